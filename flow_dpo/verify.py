r"""Is a solution's final answer the gold one?

Three-valued, in three steps, each of which may end it: find the answer (`extract`), compare it as numbers and names
(`answers`), ask computer algebra in a process that can be killed (`grading_pool`). What could not be decided is
`ungraded` with its reason, never a silent zero.

    with Verifier() as verifier:
        verifier.grade("14", "2 + 3 * 4 = 14\nAnswer: 14\n", ended=False)   Verdict("correct", "14")
        verifier.grade("14", "2 + 3 * 4 = 14\nAnswer: 1", ended=False)      Verdict("wrong", None, "no answer")
        verifier.grade("x+1", "\\boxed{1+x}", ended=True)                   Verdict("correct", "1+x", "algebra")
        verifier.grade("1", "\\boxed{9^{9^{9^9}}}", ended=True)             Verdict("ungraded", ..., "timeout: ...")

The conventions (units, percent signs, rounding, lists) and the figures are in docs/verifier.md.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from flow_dpo.answers import MAX_CHARS, for_algebra, same
from flow_dpo.errors import DataError
from flow_dpo.extract import NO_ANSWER, AnswerRule, extract_answer, gold_answer
from flow_dpo.grading_pool import Finding, GradingPool
from flow_dpo.strict_json import parse_object
from flow_dpo.types import Verdict

MAX_DEPTH = 60
"""Deeper brackets are not handed to the parser."""
MAX_DIGITS = 400
"""Nor longer runs of digits."""
CACHED_PAIRS = 20_000

STANDALONE = AnswerRule(which="anywhere")
"""The rule for texts that are graded by themselves: they are whole, and need not end with their answer."""


class Verifier:
    """Grades solutions. Holds up to `num_workers` child processes, started on first need, until it is closed."""

    def __init__(self, *, rule: AnswerRule | None = None, timeout_s: float = 5.0, num_workers: int = 2) -> None:
        self.rule = rule or AnswerRule()
        self._pool = GradingPool(num_workers=num_workers, timeout_s=timeout_s)
        self._cache: OrderedDict[tuple[str, str], Finding] = OrderedDict()
        self._lock = threading.Lock()
        self._begun: dict[tuple[str, str], Future[list[Finding]]] = {}
        """Pairs that the pool was asked about ahead."""
        self._ahead: ThreadPoolExecutor | None = None

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child processes, and what was begun."""
        if self._ahead is not None:
            self._ahead.shutdown(cancel_futures=True)
            self._ahead = None
        self._begun.clear()
        self._pool.close()

    @property
    def worker_pids(self) -> list[int]:
        """The child processes that run now."""
        return self._pool.pids

    def grade(self, gold: str, text: str, *, ended: bool) -> Verdict:
        """The verdict on one solution; `ended` says that its end token was said, so that nothing was cut off."""
        return self.grade_many([(gold, text, ended)])[0]

    def begin(self, items: Iterable[tuple[str, str, bool]]) -> None:
        """Have algebra look, beside whatever goes on here, at those of these (gold, text, ended) triples that need it.

        Returns at once; `grade_many` then finds done what was begun, or waits for it.
        """
        for item in items:
            accepted, answer, verdict = self._read(*item)
            if verdict is not None or answer is None:
                continue
            pair = (accepted, answer)
            if pair in self._cache or pair in self._begun:
                continue
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, thread_name_prefix="verifier")
            self._begun[pair] = self._ahead.submit(self._ask, [pair])

    def grade_many(self, items: Iterable[tuple[str, str, bool]]) -> list[Verdict]:
        """The verdicts on (gold, text, ended) triples, in their order."""
        verdicts: list[Verdict | None] = []
        asked: dict[tuple[str, str], list[int]] = {}
        for item in items:
            accepted, answer, verdict = self._read(*item)
            if verdict is None and answer is not None:
                asked.setdefault((accepted, answer), []).append(len(verdicts))
            verdicts.append(verdict)
        for begun in [self._begun.pop(pair) for pair in asked if pair in self._begun]:
            if not begun.cancel():  # what is not under way yet is asked with the rest, of all workers at once
                begun.result()
        for (gold, answer), finding in zip(asked, self._ask(list(asked)), strict=True):
            for position in asked[gold, answer]:
                verdicts[position] = _from_algebra(answer, finding)
        return [verdict for verdict in verdicts if verdict is not None]

    def _read(self, gold: str, text: str, ended: bool) -> tuple[str, str | None, Verdict | None]:
        """The gold answer, the one that was given, and the verdict where it needs no algebra."""
        accepted, answer = gold_answer(gold), extract_answer(text, ended=ended, rule=self.rule)
        return accepted, answer, _without_algebra(accepted, answer)

    def _ask(self, pairs: Sequence[tuple[str, str]]) -> list[Finding]:
        """The pool's findings, each pair's once."""
        with self._lock:
            return self._asked(pairs)

    def _asked(self, pairs: Sequence[tuple[str, str]]) -> list[Finding]:
        fresh = [pair for pair in pairs if pair not in self._cache]
        known = {pair: self._cache[pair] for pair in pairs if pair in self._cache}
        for pair, finding in zip(
            fresh, self._pool.compare_many([(for_algebra(a), for_algebra(b)) for a, b in fresh]), strict=True
        ):
            known[pair] = finding
            if finding.found != "died":  # that may have been somebody's kill
                self._cache[pair] = finding
        while len(self._cache) > CACHED_PAIRS:
            self._cache.popitem(last=False)
        return [known[pair] for pair in pairs]


def _without_algebra(gold: str, answer: str | None) -> Verdict | None:
    """What can be said without a child process; None where algebra has to look."""
    if not gold:
        return Verdict(status="ungraded", answer=answer, reason="the gold answer is empty")
    if answer is None:
        return Verdict(status="wrong", reason=NO_ANSWER)
    equal = same(gold, answer)
    if equal is not None:
        return Verdict(status="correct" if equal else "wrong", answer=answer[:MAX_CHARS])
    for name, text in (("gold", gold), ("answer", answer)):
        excess = _excess(text)
        if excess:
            # A model that writes this has not answered; a gold like it is the data's fault, not the model's.
            return Verdict(
                status="wrong" if name == "answer" else "ungraded", answer=answer, reason=f"{name}: {excess}"
            )
    return None


def _excess(text: str) -> str:
    """Why a text is not handed to the parser, "" where it is."""
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
    said = {
        "gold": "the gold answer cannot be parsed",
        "error": "the comparison failed",
        "timeout": "timeout",
        "died": "the grading process died",
    }[finding.found]
    return Verdict(status="ungraded", answer=answer, reason=f"{said}: {finding.reason}")


# ---- files ----------------------------------------------------------------------------------------------------------


def verify_file(
    path: str | Path, output: str | Path, *, rule: AnswerRule = STANDALONE, timeout_s: float = 5.0, num_workers: int = 2
) -> dict[str, Any]:
    """Grade a JSONL file of `{"gold", "model_output"}` rows; write each with what was found added.

    Added are "status", "reason" and "extracted_answer". `output` is a folder, which gets `verdicts.jsonl` and
    `summary.json`, or a file such as `graded.jsonl`, with `graded.summary.json` beside it. The summary counts statuses;
    where rows carry an `is_correct` of their own it counts agreement, with rows that name a `policy` or are `disputed`
    apart.
    """
    source, target = Path(path), Path(output)
    if target.is_dir() or not target.suffix:
        table, summary_file = target / "verdicts.jsonl", target / "summary.json"
    else:
        table, summary_file = target, target.with_suffix(".summary.json")
    if table.exists() and table.samefile(source):
        raise DataError(f"expected another file than the input for the output, found {table} for both; name another")
    rows = list(_rows(source))
    items = [(str(row["gold"]), row["model_output"], True) for row in rows]
    with Verifier(rule=rule, timeout_s=timeout_s, num_workers=num_workers) as verifier:
        verdicts = verifier.grade_many(items)
    table.parent.mkdir(parents=True, exist_ok=True)
    with open(table, "w", encoding="utf-8") as file:
        for row, verdict in zip(rows, verdicts, strict=True):
            found = {"status": verdict.status, "reason": verdict.reason, "extracted_answer": verdict.answer}
            file.write(json.dumps({**row, **found}) + "\n")  # ASCII: a lone surrogate is no UTF-8
    summary = _summary(source, rows, verdicts)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a JSONL file at {path}, found {error}; give a file of rows to grade") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        # Half surrogate pairs are hostile text like any other: graded, and written back in ASCII.
        fields = parse_object(line, f"{path}, row {number}", any_text=True)
        for name, kinds in (("gold", (str, int, float)), ("model_output", (str,))):
            if not isinstance(fields.get(name), kinds) or isinstance(fields[name], bool):
                raise DataError(
                    f"{path}, row {number}: expected a text in {name!r}, found {fields.get(name)!r:.80} among the "
                    f"fields {', '.join(sorted(fields))}; name the columns gold and model_output"
                )
        yield fields


def _summary(source: Path, rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    counts = Counter(verdict.status for verdict in verdicts)
    graded = counts["correct"] + counts["wrong"]
    summary: dict[str, Any] = {
        "file": str(source),
        "num_rows": len(rows),
        **{f"num_{status}": counts[status] for status in ("correct", "wrong", "ungraded")},
        "accuracy": counts["correct"] / graded if graded else None,
        "ungraded_reasons": dict(Counter(each.reason.split(":")[0] for each in verdicts if each.status == "ungraded")),
    }
    if any(isinstance(row.get("is_correct"), bool) for row in rows):
        groups: dict[str, Counter[str]] = {}
        for row, verdict in zip(rows, verdicts, strict=True):
            if isinstance(row.get("is_correct"), bool):
                said = "ungraded" if verdict.reward is None else str(verdict.reward == float(row["is_correct"]))
                name = {"True": "num_agree", "False": "num_disagree"}.get(said, "num_ungraded")
                groups.setdefault(_group(row), Counter()).update([name])
        summary["against_labels"] = {name: dict(sorted(groups[name].items())) for name in sorted(groups)}
    return summary


def _group(row: dict[str, Any]) -> str:
    """Labels that are one grader's convention, or in dispute, are counted apart."""
    if row.get("disputed"):
        return "disputed"
    return f"policy: {row['policy']}" if row.get("policy") else "agreed"
