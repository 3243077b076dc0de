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
from flow_dpo.report.sources import Spoken

_MOST_LINES, _MOST_CHARS = 80, 4000
_LOOKED_AT = 400
"""Problems among which those to show are picked."""

MergedModels = Mapping[str, Mapping[str, Spoken]]
"""By who speaks: the solutions, by the problem's id."""


def marked(spoken: Spoken) -> tuple[Line, ...]:
    """The lines of a solution, each with what is wrong with it."""
    text = spoken.text[:_MOST_CHARS]
    checked = checked_steps(spoken.problem, text).lines
    found = [Line(text=line.text, fault=line.fault, given_up=line.given_up) for line in checked]
    if len(found) > _MOST_LINES or len(text) < len(spoken.text):
        found = [*found[:_MOST_LINES], Line(text="[cut here: the rest is in the source's own file]")]
    return tuple(found)


_MOST_BESIDE = 6
"""Different solutions of one problem that are shown."""
_MOST_NAMES = 3


def side_by_side(voices: MergedModels, num: int) -> list[SideBySide]:
    """The `num` problems that show most: spoken of by most, judged differently, right answers with a wrong step."""
    counted: dict[str, int] = {}
    for spoken in voices.values():
        for id in spoken:
            counted[id] = counted.get(id, 0) + 1
    least = 2 if any(number > 1 for number in counted.values()) else 1
    ids = sorted((id for id, number in counted.items() if number >= least), key=lambda id: -counted[id])[:_LOOKED_AT]
    telling = sorted(ids, key=lambda id: -_tells([spoken[id] for spoken in voices.values() if id in spoken]))
    return [_shown(voices, id) for id in telling[:num]]


def _tells(spoken: Sequence[Spoken]) -> float:
    sound = {has_invalid_step(one.problem, one.text) for one in spoken if one.status == "correct"}
    return len(spoken) + (True in sound) + (sound >= {True, False}) + len({one.status for one in spoken})


def _shown(voices: MergedModels, id: str) -> SideBySide:
    mine = {name: spoken[id] for name, spoken in voices.items() if id in spoken}
    problem = next(iter(mine.values())).problem
    alike: dict[str, list[str]] = {}
    for name, one in mine.items():
        alike.setdefault(one.text, []).append(name)
    # Of every outcome one first, then others in their order.
    telling = {_outcome(mine[names[0]]): names for names in reversed(alike.values())}
    others = [names for names in alike.values() if names not in telling.values()]
    room = max(_MOST_BESIDE - len(telling), 0)
    chosen = [*telling.values(), *others[:room]]
    passages = [
        Passage(title=_names(names), status=one.status, outcome=_outcome(one), lines=marked(one))
        for names in sorted(chosen, key=lambda names: list(mine).index(names[0]))[:_MOST_BESIDE]
        for one in [mine[names[0]]]
    ]
    return SideBySide(question=problem.question, gold=problem.gold, passages=tuple(passages))


def _names(names: Sequence[str]) -> str:
    """Who said the same words."""
    more = len(names) - _MOST_NAMES
    return ", ".join(short(name, 60) for name in names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _outcome(spoken: Spoken) -> str:
    if spoken.status != "correct":
        return spoken.status + ("" if spoken.answer is None else f" (answer {short(spoken.answer)})")
    invalid = has_invalid_step(spoken.problem, spoken.text)
    steps = {True: "with a wrong step", False: "every checked step holds", None: "no step could be checked"}
    return f"correct, {steps[invalid]}"
