"""Seed step checker: whether every step of a solution is correct, or its answer is correct only by luck.

A solution's lines are compared with the problem's own solution and with exact arithmetic. Invariant: all verdicts are
valid and the last is the answer's (`is_sound`) only if every step of the problem was taken, in order and correctly.
A correct answer after two wrong steps, for 12 apples, "She buys 7", "She lends 5", "more than 50?":

    She buys 7: 12 + 7 = 18      arithmetic
    She lends 5: 18 - 5 = 13     total        (starts from a wrong total: correct arithmetic, wrong for the problem)
    Answer: no                   missing      (correct, but not all correct steps came before it)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from flow_dpo.core.types import Problem
from flow_dpo.data.checked_steps import CheckedLine, CheckedSolution

Fault = Literal["", "form", "foreign", "order", "arithmetic", "operation", "total", "amount", "missing", "answer"]

_REOPEN_LINE = "Wait, that is wrong."
_ANSWER = "Answer: "
_STEP = re.compile(
    r"(?P<label>[^:]+): (?P<left>\d{1,40}) (?P<operation>[+-]) (?P<right>\d{1,40}) = (?P<result>\d{1,40})"
)
_TOTALS = re.compile(r"\w+ has \d+, \w+ has \d+")
"""The line of a "compare" problem that states both numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVerdict:
    """The verdict on one line of a solution."""

    line: str
    fault: Fault
    """"" for a valid line. "form": not a step; "foreign": not an event of this problem (uses a distractor); "order":
    repeated or too late; "arithmetic": the result is wrong; "operation": adds for an event that subtracts, or the
    reverse; "total": starts from a wrong total; "amount": not the event's number. For the answer, "missing": it is
    right, but a correct step is absent; "answer": it is not the right answer."""

    @property
    def valid(self) -> bool:
        return not self.fault


def judge_steps(problem: Problem, solution_text: str) -> list[StepVerdict]:
    """One verdict per line of the solution's last attempt (lines before "Wait, that is wrong." do not count)."""
    *steps, _ = problem.solution.splitlines()
    expected = [match for step in steps if (match := _STEP.fullmatch(step))]
    labels = [match["label"] for match in expected]
    lines = solution_text.strip("\n").split("\n")
    if _REOPEN_LINE in lines:
        lines = lines[len(lines) - lines[::-1].index(_REOPEN_LINE) :]
    verdicts, next_index = [], 0
    for line in lines:
        if line.startswith(_ANSWER):
            num_right = len({verdict.line for verdict in verdicts if verdict.valid})
            fault: Fault = "answer" if line.removeprefix(_ANSWER) != problem.gold else ""
            if not fault and num_right < len(steps):
                fault = "missing"
            verdicts.append(StepVerdict(line=line, fault=fault))
            continue
        match = _STEP.fullmatch(line)
        if _TOTALS.fullmatch(line):
            verdicts.append(StepVerdict(line=line, fault="" if line in steps else "total"))
        elif match is None:
            verdicts.append(StepVerdict(line=line, fault="form"))
        elif match["label"] not in labels:
            verdicts.append(StepVerdict(line=line, fault="foreign"))
        elif (index := labels.index(match["label"])) < next_index:
            verdicts.append(StepVerdict(line=line, fault="order"))
        else:
            verdicts.append(StepVerdict(line=line, fault=_find_fault(expected[index], match)))
            next_index = index + 1
    return verdicts


_WORDS: dict[Fault, str] = {
    "": "", "form": "not a step", "foreign": "not of this problem", "order": "told again, or too late",
    "arithmetic": "the result does not follow", "operation": "adds where it should take away, or the reverse",
    "total": "carries a wrong total on", "amount": "not the number of the story",
    "missing": "right, but not all right steps came before it", "answer": "not the right answer",
}  # fmt: skip


def check_steps(problem: Problem, text: str) -> CheckedSolution | None:
    """The family's step checker (`data.datasets`); None for a problem without a solution in the family's form."""
    steps = problem.solution.splitlines()
    known = steps and steps[-1].startswith(_ANSWER)
    if not known or not all(_STEP.fullmatch(step) or _TOTALS.fullmatch(step) for step in steps[:-1]):
        return None
    verdicts = judge_steps(problem, text)
    lines = text.strip("\n").split("\n")
    given_up = [CheckedLine(text=line, given_up=True) for line in lines[: len(lines) - len(verdicts)]]
    judged = [CheckedLine(text=one.line, fault=_WORDS[one.fault]) for one in verdicts]
    return CheckedSolution(lines=(*given_up, *judged), sound=is_sound(problem, text))


def is_sound(problem: Problem, solution_text: str) -> bool:
    """Whether the solution has the correct answer after all correct steps and no other lines."""
    verdicts = judge_steps(problem, solution_text)
    return bool(verdicts) and verdicts[-1].line.startswith(_ANSWER) and all(verdict.valid for verdict in verdicts)


def _find_fault(expected: re.Match[str], found: re.Match[str]) -> Fault:
    left, right, result = (int(found[name]) for name in ("left", "right", "result"))
    if result != (left + right if found["operation"] == "+" else left - right):
        return "arithmetic"
    if found["operation"] != expected["operation"]:
        return "operation"
    operands = int(expected["left"]), int(expected["right"])
    if (left, right) == operands or (found["operation"] == "+" and (right, left) == operands):
        return ""
    return "total" if left != operands[0] else "amount"
