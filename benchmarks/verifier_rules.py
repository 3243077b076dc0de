r"""The verifier beside other graders' rules, on the same labelled cases: what each rewards and refuses.

    python -m benchmarks.verifier_rules --cases cases.jsonl --pairs tests/verify/hard_pairs.tsv

`cases` are JSONL rows of gold, model_output and is_correct, graded as they are. `pairs` are rows of gold, answer and
what is right. Each rule gets an answer in the ending that it asks for ("#### 5", "The final answer is 5. I hope it is
correct.", or a box), so that comparison is measured and not extraction. The rules are written from their documentation:

- lm-evaluation-harness, gsm8k strict-match: the first "#### number" as text; flexible-extract: the last number as text.
  Both drop ",", "$" and a final ".".
- lm-evaluation-harness, minerva_math: what "Final Answer: The final answer is ... I hope it is correct." says, without
  units and formatting; equal as text, or if sympy simplifies the difference of the two to 0 (math-verify's grammar
  here).
- math-verify 0.9, called as in its README; lighteval's extractive match: the same with a box before everything else.

Invariant: a rule sees one case at a time, for at most five seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import starmap
from pathlib import Path
from signal import ITIMER_REAL, SIGALRM, setitimer, signal
from typing import Any

Case = tuple[str, str, bool]
"""Gold, a model's output, whether it is right."""
Rule = Callable[[str, str], bool]

BOX, HASHES = "So it is \\boxed{%s}.", "So it is %s.\n#### %s"
MINERVA = "So it is %s.\nFinal Answer: The final answer is $%s$. I hope it is correct."

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_MINERVA = re.compile(r"Final Answer: The final answer is(.*?)\. I hope it is correct\.", re.DOTALL)
_DRESSING = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|boxed|overline)\{(.*?)\}|\\(?:left|right|displaystyle|,|!|;|%|\$)|\$|\s"
    r"|\^\{?\\circ\}?|\b(?:square|units?|dollars?|cents?|degrees?|hours?|minutes?|days?|weeks?|years?|months?|miles?|feet|"
    r"inch(?:es)?|meters?|cm|mm|ft|points?|integers?|sq|percent|mph|cubic)\b|(?<=\d),(?=\d{3})"
)


def gsm8k_text(text: str) -> str:
    """A number as text."""
    return re.sub(r"[,$]|(?s:.*#### )", "", text).rstrip(".").lower()


def gsm8k_strict(gold: str, output: str) -> bool:
    found = _STRICT.search(output)
    return found is not None and gsm8k_text(found[1]) == gsm8k_text(gold)


def gsm8k_flexible(gold: str, output: str) -> bool:
    found = _FLEXIBLE.findall(output)
    return bool(found) and gsm8k_text(found[-1]) == gsm8k_text(gold)


def minerva_text(text: str) -> str:
    """An answer without its dressing."""
    text = text.rpartition("=")[2]
    return _DRESSING.sub(lambda match: match[1] or "", text)


def minerva_math(gold: str, output: str) -> bool:
    from math_verify import LatexExtractionConfig
    from sympy import Expr, simplify

    found = _MINERVA.search(output)
    if found is None:
        return False
    ours, theirs = minerva_text(gold), minerva_text(found[1])
    if ours == theirs:
        return True
    a, b = (next(iter(_parse(f"${each}$", [LatexExtractionConfig()])), None) for each in (ours, theirs))
    try:
        return isinstance(a, Expr) and isinstance(b, Expr) and bool(simplify(a - b) == 0)
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        return False


def _parse(text: str, targets: list[Any]) -> list[Any]:
    from math_verify import parse

    return parse(text, targets, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


def math_verify(gold: str, output: str, *, box_first: bool = False) -> bool:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, verify

    latex = LatexExtractionConfig(boxed_match_priority=0) if box_first else LatexExtractionConfig()
    dressed = gold if "$" in gold or "\\boxed" in gold or "\\(" in gold else f"${gold}$"
    ours = _parse(dressed, [LatexExtractionConfig(), ExprExtractionConfig()])
    theirs = _parse(output, [ExprExtractionConfig(), latex] if box_first else [latex, ExprExtractionConfig()])
    return verify(ours, theirs, timeout_seconds=None)


def lighteval(gold: str, output: str) -> bool:
    return math_verify(gold, output, box_first=True)


RULES: dict[str, tuple[Rule, str]] = {
    "lm-evaluation-harness gsm8k, strict": (gsm8k_strict, HASHES),
    "lm-evaluation-harness gsm8k, flexible": (gsm8k_flexible, HASHES),
    "lm-evaluation-harness minerva_math": (minerva_math, MINERVA),
    "lighteval extractive match": (lighteval, BOX),
    "math-verify 0.9": (math_verify, BOX),
}


class _OutOfTimeError(Exception):
    pass


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def end(*_: object) -> None:
        raise _OutOfTimeError

    previous = signal(SIGALRM, end)
    setitimer(ITIMER_REAL, seconds)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0)
        signal(SIGALRM, previous)


def decided(rule: Rule, gold: str, output: str) -> bool:
    """The rule's verdict; what takes too long is refused."""
    try:
        with _at_most(5):
            return rule(gold, output)
    except _OutOfTimeError:
        return False


def count(verdicts: list[str], cases: list[Case]) -> dict[str, int]:
    """Of right and wrong answers, how many are rewarded, refused and left ungraded."""
    found = Counter(
        ("right" if right else "wrong") + {"correct": "_rewarded", "wrong": "_refused"}.get(verdict, "_ungraded")
        for verdict, (_, _, right) in zip(verdicts, cases, strict=True)
    )
    return dict(sorted(found.items()))


def ours(cases: list[Case]) -> list[str]:
    from flow_dpo.verify.verifier import STANDALONE, Verifier

    with Verifier(rule=STANDALONE) as verifier:
        return [verdict.status for verdict in verifier.grade_many([(gold, text, True) for gold, text, _ in cases])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="JSONL of gold, model_output, is_correct")
    parser.add_argument("--pairs", type=Path, help="TSV of kind, gold, answer, right or wrong")
    parser.add_argument("--tiny", action="store_true", help="only the first 20 of each, to see that it runs")
    settings = parser.parse_args()
    most = 20 if settings.tiny else None
    logging.disable(logging.CRITICAL)
    tables: dict[str, Callable[[str], list[Case]]] = {}
    if settings.cases:
        rows: list[dict[str, Any]] = [json.loads(line) for line in settings.cases.read_text("utf-8").splitlines()]
        cases = [(row["gold"], row["model_output"], row["is_correct"]) for row in rows[:most]]
        tables["labelled cases"] = lambda _: cases
    if settings.pairs:
        lines = [line.split("\t") for line in settings.pairs.read_text("utf-8").splitlines()[1:]]
        pairs = [(gold, answer, should == "right") for _, gold, answer, should in lines if should != "ungraded"][:most]
        tables["hard pairs"] = lambda ending: [
            (gold, ending.replace("%s", answer), right) for gold, answer, right in pairs
        ]
    for name, cases_in in tables.items():
        print(f"{name}: {len(cases_in(BOX))}")
        print(f"  flow-dpo: {count(ours(cases_in(BOX)), cases_in(BOX))}", flush=True)
        for title, (rule, ending) in RULES.items():
            found = starmap(lambda gold, text, _, rule=rule: decided(rule, gold, text), cases_in(ending))
            verdicts = ["correct" if each else "wrong" for each in found]
            print(f"  {title}: {count(verdicts, cases_in(ending))}", flush=True)


if __name__ == "__main__":
    main()
