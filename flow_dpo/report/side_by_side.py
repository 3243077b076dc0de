"""Solutions of one problem side by side, with their wrong lines marked.

    She buys 7: 12 + 7 = 18        the result does not follow
    She lends 5: 18 - 5 = 13       carries a wrong total on
    Answer: no                     right, but not all right steps came before it

Lines are judged by the step checker of the problem's data set, or else by the equations that they state
(`step_validity.checked_steps`). Invariant: a line without a fault is not claimed to be right; a line that
states nothing that can be checked is just not marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flow_dpo.evaluate.step_validity import checked_steps, has_invalid_step
from flow_dpo.report.document import Line, Passage, SideBySide
from flow_dpo.report.formatting import short
from flow_dpo.report.sources import GivenSolution

_MOST_LINES, _MOST_CHARS = 80, 4000
_LOOKED_AT = 400
"""Problems among which those to show are picked."""

SolutionsByName = Mapping[str, Mapping[str, GivenSolution]]
"""By the name of a model or a data set: its solutions, by the problem's id."""


def marked(solution: GivenSolution) -> tuple[Line, ...]:
    """The lines of a solution, each with what is wrong with it."""
    text = solution.text[:_MOST_CHARS]
    checked = checked_steps(solution.problem, text).lines
    found = [Line(text=line.text, fault=line.fault, given_up=line.given_up) for line in checked]
    if len(found) > _MOST_LINES or len(text) < len(solution.text):
        found = [*found[:_MOST_LINES], Line(text="[cut here: the rest is in the source's own file]")]
    return tuple(found)


_MOST_BESIDE = 6
"""Different solutions of one problem that are shown."""
_MOST_NAMES = 3


def side_by_side(solutions: SolutionsByName, num: int) -> list[SideBySide]:
    """The `num` problems that show most: solved by most, judged differently, right answers with a wrong step."""
    counted: dict[str, int] = {}
    for given in solutions.values():
        for id in given:
            counted[id] = counted.get(id, 0) + 1
    least = 2 if any(number > 1 for number in counted.values()) else 1
    ids = sorted((id for id, number in counted.items() if number >= least), key=lambda id: -counted[id])[:_LOOKED_AT]
    most_telling = sorted(ids, key=lambda id: -_contrast([given[id] for given in solutions.values() if id in given]))
    return [_shown(solutions, id) for id in most_telling[:num]]


def _contrast(given: Sequence[GivenSolution]) -> float:
    """How much the solutions of one problem differ: in number, in soundness of the right ones, in outcome."""
    sound = {has_invalid_step(one.problem, one.text) for one in given if one.status == "correct"}
    return len(given) + (True in sound) + (sound >= {True, False}) + len({one.status for one in given})


def _shown(solutions: SolutionsByName, id: str) -> SideBySide:
    mine = {name: given[id] for name, given in solutions.items() if id in given}
    problem = next(iter(mine.values())).problem
    alike: dict[str, list[str]] = {}
    for name, one in mine.items():
        alike.setdefault(one.text, []).append(name)
    # One of every outcome first, then others in their order.
    first_of_each = {_outcome(mine[names[0]]): names for names in reversed(alike.values())}
    others = [names for names in alike.values() if names not in first_of_each.values()]
    room = max(_MOST_BESIDE - len(first_of_each), 0)
    chosen = [*first_of_each.values(), *others[:room]]
    passages = [
        Passage(title=_names(names), status=one.status, outcome=_outcome(one), lines=marked(one))
        for names in sorted(chosen, key=lambda names: list(mine).index(names[0]))[:_MOST_BESIDE]
        for one in [mine[names[0]]]
    ]
    return SideBySide(question=problem.question, gold=problem.gold, passages=tuple(passages))


def _names(names: Sequence[str]) -> str:
    """Those that gave the same text."""
    more = len(names) - _MOST_NAMES
    return ", ".join(short(name, 60) for name in names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _outcome(solution: GivenSolution) -> str:
    if solution.status != "correct":
        return solution.status + ("" if solution.answer is None else f" (answer {short(solution.answer)})")
    invalid = has_invalid_step(solution.problem, solution.text)
    steps = {True: "with a wrong step", False: "every checked step holds", None: "no step could be checked"}
    return f"correct, {steps[invalid]}"
