r"""Verifier: grades whether a solution's final answer equals the gold answer.

It works in three steps, and each can decide: find the answer (`extract`), compare it as numbers and names
(`equivalence`), ask computer algebra in a process that can be killed (`worker_pool`). The verdict has three values: an
undecided answer is `ungraded` with a reason, never silently wrong.

    with Verifier() as verifier:
        verifier.grade("14", "2 + 3 * 4 = 14\nAnswer: 14\n", ended=False)   Verdict("correct", "14")
        verifier.grade("14", "2 + 3 * 4 = 14\nAnswer: 1", ended=False)      Verdict("wrong", None, "no answer")
        verifier.grade("x+1", "\\boxed{1+x}", ended=True)                   Verdict("correct", "1+x", "algebra")
        verifier.grade("1", "\\boxed{9^{9^{9^9}}}", ended=True)             Verdict("ungraded", ..., "timeout: ...")

The conventions (units, percent signs, rounding, lists) and the figures are in docs/verifier.md.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from flow_dpo.core.types import Verdict
from flow_dpo.verify.canonical import canonical
from flow_dpo.verify.equivalence import MAX_CHARS, for_algebra, same
from flow_dpo.verify.extract import NO_ANSWER, AnswerRule, extract_answer, gold_answer
from flow_dpo.verify.worker_pool import Finding, GradingPool

MAX_DEPTH = 60
"""Brackets nested more deeply are not passed to the parser."""
MAX_DIGITS = 400
"""Longer runs of digits are not passed to the parser either."""
CACHED_PAIRS = 20_000

STANDALONE = AnswerRule(which="anywhere")
"""The rule for texts that are graded on their own: they are complete, and need not end with their answer."""


class Verifier:
    """Grades solutions, with up to `num_workers` child processes that start when needed and end with `close`."""

    def __init__(self, *, rule: AnswerRule | None = None, timeout_s: float = 5.0, num_workers: int = 2) -> None:
        """`timeout_s`: the most seconds of processor time for computer algebra on one pair."""
        self.rule = rule or AnswerRule()
        self._pool = GradingPool(num_workers=num_workers, timeout_s=timeout_s)
        self._cache: OrderedDict[tuple[str, str], Finding] = OrderedDict()
        self._lock = threading.Lock()
        self._started: dict[tuple[str, str], Future[list[Finding]]] = {}
        """Pairs that `begin` has passed to the pool, ahead of `grade_many`."""
        self._ahead: ThreadPoolExecutor | None = None

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child processes and cancel comparisons that have not started."""
        if self._ahead is not None:
            self._ahead.shutdown(cancel_futures=True)
            self._ahead = None
        self._started.clear()
        self._pool.close()

    @property
    def worker_pids(self) -> list[int]:
        """The ids of the running child processes."""
        return self._pool.pids

    def grade(self, gold: str, text: str, *, ended: bool) -> Verdict:
        """The verdict on one solution; `ended`: its end token was sampled, so nothing was cut off."""
        return self.grade_many([(gold, text, ended)])[0]

    def begin(self, items: Iterable[tuple[str, str, bool]]) -> list[Verdict | None]:
        """Start computer algebra in the background on those (gold, text, ended) triples that need it.

        Returns at once, for each triple, its verdict, or None if it needs algebra, even if the result is cached.
        `grade_many` later takes the results, or waits for them.
        """
        verdicts: list[Verdict | None] = []
        for item in items:
            accepted, answer, verdict = self._read(*item)
            verdicts.append(verdict)
            if verdict is not None or answer is None:
                continue
            pair = (accepted, answer)
            if pair in self._cache or pair in self._started:
                continue
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, thread_name_prefix="verifier")
            self._started[pair] = self._ahead.submit(self._compare, [pair])
        return verdicts

    def grade_many(self, items: Iterable[tuple[str, str, bool]]) -> list[Verdict]:
        """The verdicts on (gold, text, ended) triples, in order."""
        verdicts: list[Verdict | None] = []
        undecided: dict[tuple[str, str], list[int]] = {}
        for item in items:
            accepted, answer, verdict = self._read(*item)
            if verdict is None and answer is not None:
                undecided.setdefault((accepted, answer), []).append(len(verdicts))
            verdicts.append(verdict)
        for future in [self._started.pop(pair) for pair in undecided if pair in self._started]:
            if not future.cancel():  # a pair that has not started joins the rest, which all workers share
                future.result()
        for (gold, answer), finding in zip(undecided, self._compare(list(undecided)), strict=True):
            for position in undecided[gold, answer]:
                verdicts[position] = _from_algebra(answer, finding)
        return [verdict for verdict in verdicts if verdict is not None]

    def _read(self, gold: str, text: str, ended: bool) -> tuple[str, str | None, Verdict | None]:
        """The gold answer, the solution's answer, and the verdict, or None if that needs algebra."""
        accepted, answer = gold_answer(gold), extract_answer(text, ended=ended, rule=self.rule)
        if len(text) > MAX_DIGITS and answer is not None and answer.isdecimal():
            # A window can cut a very long numeral. If the answer is only a part of it, the whole text is the answer.
            whole = re.search(rf"(?<!\d){answer}(?!\d)", text) is not None
            answer = answer if whole else text.strip()
        return accepted, answer, _without_algebra(accepted, answer, field=gold)

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[Finding]:
        """The pool's findings; each pair is compared only once."""
        with self._lock:
            return self._compare_fresh(pairs)

    def _compare_fresh(self, pairs: Sequence[tuple[str, str]]) -> list[Finding]:
        fresh = [pair for pair in pairs if pair not in self._cache]
        known = {pair: self._cache[pair] for pair in pairs if pair in self._cache}
        for pair, finding in zip(
            fresh, self._pool.compare_many([(for_algebra(a), for_algebra(b)) for a, b in fresh]), strict=True
        ):
            known[pair] = finding
            if finding.found != "died":  # the process can have been killed from outside
                self._cache[pair] = finding
        while len(self._cache) > CACHED_PAIRS:
            self._cache.popitem(last=False)
        return [known[pair] for pair in pairs]


def _without_algebra(gold: str, answer: str | None, *, field: str) -> Verdict | None:
    """The verdict, or None if computer algebra has to decide. `field` is the gold answer as written in the data."""
    if answer is not None and _trimmed(answer) == _trimmed(field) != "":
        return Verdict(status="correct", answer=_bounded(answer))
    if not gold:
        short = answer is not None and max(len(answer), len(field)) <= MAX_CHARS
        if answer is not None and short and field.strip() and canonical(answer) == canonical(field):
            return Verdict(status="correct", answer=_bounded(answer))
        reason = "cannot be parsed: no value in it, or several" if field.strip() else "is empty"
        return Verdict(status="ungraded", answer=answer and _bounded(answer), reason=f"the gold answer {reason}")
    if answer is None:
        return Verdict(status="wrong", reason=NO_ANSWER)
    equal = same(gold, answer)
    if equal is not None:
        return Verdict(status="correct" if equal else "wrong", answer=_bounded(answer))
    for name, text in (("gold", gold), ("answer", answer)):
        excess = _excess(text)
        if excess:
            # A model that writes this has not answered. A gold answer like this is the data's fault, not the model's.
            return Verdict(
                status="wrong" if name == "answer" else "ungraded", answer=_bounded(answer), reason=f"{name}: {excess}"
            )
    return None


def _trimmed(text: str) -> str:
    r"""A text without mere dressing: blanks, dollar signs, a full stop, `\text{}` around all of it."""
    text = " ".join(text.split()).strip("$ ")
    if text.startswith("\\text{") and text.endswith("}") and text.count("{") == 1:
        text = text[len("\\text{") : -1]
    return text.strip().rstrip(" .")


def _bounded(answer: str) -> str:
    """An answer as it is stored: at most a thousand characters."""
    return answer if len(answer) <= MAX_CHARS else answer[: MAX_CHARS - 3] + "..."


def _excess(text: str) -> str:
    """Why a text is not passed to the parser; "" if it is."""
    if len(text) > MAX_CHARS:
        return f"{len(text):,} characters, at most {MAX_CHARS:,} are read"
    depth = deepest = digits = longest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
        digits = digits + 1 if char.isdigit() else 0
        longest = max(longest, digits)
    if deepest > MAX_DEPTH:
        return f"brackets {deepest} deep, at most {MAX_DEPTH} are read"
    return f"a number of {longest:,} digits, at most {MAX_DIGITS} are read" if longest > MAX_DIGITS else ""


def _from_algebra(answer: str, finding: Finding) -> Verdict:
    if finding.found in ("equal", "different"):
        status = "correct" if finding.found == "equal" else "wrong"
        return Verdict(status=status, answer=answer, reason=finding.reason or "algebra")
    cause = {
        "gold": "the gold answer cannot be parsed",
        "error": "the comparison failed",
        "timeout": "timeout",
        "died": "the grading process died",
    }[finding.found]
    return Verdict(status="ungraded", answer=answer, reason=f"{cause}: {finding.reason}")
