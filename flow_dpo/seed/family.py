"""Which problems does the embedded seed pose, and what is the right solution of each?

Endless arithmetic stories, each made from (split, index) alone. Invariant: a story's skeleton (its text with names and
things blanked out) belongs to exactly one split by a stable hash, so that no held-out problem is a training problem,
not even under another name. One problem and its solution:

    Anna has 12 apples. She buys 7 apples. Tom has 8 apples. She lends 5 apples. How many apples does Anna have now?

    She buys 7: 12 + 7 = 19
    She lends 5: 19 - 5 = 14
    Answer: 14

Kinds (`Problem.subject`): "total" as above; "compare" (two people, who has more?), "over" (more than 20? yes or no) and
"boxes" (packed in boxes of 2, 5 or 10, how many are left over?). In the last three a wrong step can still reach the
right answer. `Problem.level` is the number of steps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal, TypeVar

from flow_dpo.errors import DataError
from flow_dpo.types import Problem

T = TypeVar("T")
Kind = Literal["total", "compare", "over", "boxes"]
Operation = Literal["+", "-"]

NAMES = {"Anna": "She", "Tom": "He", "Mia": "She", "Ben": "He", "Eva": "She", "Max": "He", "Lea": "She", "Paul": "He"}
THINGS = ("apples", "cards", "shells", "coins", "pens", "stamps", "beads", "stones")

EASY_VERBS: dict[str, Operation] = {
    "buys": "+", "finds": "+", "gets": "+", "wins": "+", "collects": "+", "earns": "+",
    "loses": "-", "sells": "-", "drops": "-", "donates": "-", "uses": "-",
}  # fmt: skip
MISCONCEPTION_VERBS: dict[str, Operation] = {"borrows": "+", "lends": "-", "returns": "-"}
"""The pretraining corpus gets these wrong more often than right (`seed/corpus.py`)."""
VERBS: dict[str, Operation] = EASY_VERBS | MISCONCEPTION_VERBS
MISCONCEPTION_WEIGHT = 0.6
"""How often a misconception verb is drawn, against 1 for an easy one: a good third of the problems hold one."""

DISTRACTORS = {
    "has": ("{other} has {amount} {thing}.", "{other} has {amount}"),
    "sees": ("{pronoun} sees {amount} {thing}.", "{pronoun} sees {amount}"),
    "wants": ("{pronoun} wants {amount} {thing}.", "{pronoun} wants {amount}"),
}
"""Sentences that change nothing, and the label of the step that wrongly uses them."""
DISTRACTOR_RATE = 0.5

MAX_TOTAL = 99
KIND_WEIGHTS: tuple[tuple[Kind, float], ...] = (("total", 0.73), ("compare", 0.09), ("over", 0.09), ("boxes", 0.09))
_EASY_LEVELS = ((2, 0.35), (3, 0.4), (4, 0.25))
LEVELS: dict[str, tuple[tuple[int, float], ...]] = {
    "train": _EASY_LEVELS,
    "test": _EASY_LEVELS,
    "hard": ((5, 0.6), (6, 0.4)),
    # A few long stories, or a fifth step would be unthinkable to the model rather than hard.
    "pretrain": ((2, 0.31), (3, 0.36), (4, 0.23), (5, 0.08), (6, 0.02)),
}
BUCKETS = {"pretrain": range(8), "train": range(8, 12), "test": range(12, 14), "hard": range(14, 16)}
"""Sixteenths of the space of skeletons; a split draws only from its own."""

SEED_SPLITS = ("train", "test", "hard")
"""The splits to learn and to measure on. "pretrain" exists too, and is what the embedded model has seen."""

_NAME_PATTERN = re.compile(rf"\b({'|'.join(NAMES)})\b")
_OTHER_PATTERN = re.compile(rf"\b(?:{'|'.join([*THINGS, 'She', 'He', 'she', 'he'])})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event of a story: "She buys 7" adds 7 to the total of person `owner`."""

    label: str
    sentence: str
    verb: str
    operation: Operation
    amount: int
    owner: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distractor:
    """A sentence of no consequence that is told before event `position`."""

    label: str
    sentence: str
    verb: str
    amount: int
    position: int
    owner: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A problem in parts, from which the text, the right solution and every flawed one are written."""

    kind: Kind
    people: tuple[str, ...]
    thing: str
    starts: tuple[int, ...]
    steps: tuple[Step, ...]
    distractor: Distractor | None = None
    bound: int = 0
    """The number asked about in "over", the size of a box in "boxes"."""

    @property
    def level(self) -> int:
        return len(self.steps) + (self.kind == "boxes")

    @property
    def pronoun(self) -> str:
        return NAMES[self.people[0]]

    @property
    def question(self) -> str:
        """The text that is asked."""
        events = [step.sentence for step in self.steps]
        if self.distractor is not None:
            events.insert(self.distractor.position, self.distractor.sentence)
        opening = [f"{who} has {n} {self.thing}." for who, n in zip(self.people, self.starts, strict=True)]
        name, pronoun = self.people[0], self.pronoun
        closing = {
            "total": f"How many {self.thing} does {name} have now?",
            "compare": f"Who has more {self.thing} now?",
            "over": f"Does {name} have more than {self.bound} {self.thing} now?",
            "boxes": f"{pronoun} fills boxes of {self.bound}. How many {self.thing} are left over?",
        }[self.kind]
        return " ".join([*opening, *events, closing])

    @property
    def totals(self) -> tuple[int, ...]:
        """What each person has at the end."""
        totals = list(self.starts)
        for step in self.steps:
            totals[step.owner] += step.amount if step.operation == "+" else -step.amount
        return tuple(totals)

    @property
    def box_label(self) -> str:
        return f"{self.pronoun} fills boxes of {self.bound}"

    @property
    def answer(self) -> str:
        totals = self.totals
        if self.kind == "boxes":
            return str(totals[0] % self.bound)
        return self.conclude(totals)

    def conclude(self, totals: Sequence[int]) -> str:
        """The answer that follows from the last totals, which for "boxes" is what the last box left over."""
        if self.kind == "compare":
            return self.people[0] if totals[0] > totals[1] else self.people[1]
        if self.kind == "over":
            return "yes" if totals[0] > self.bound else "no"
        return str(totals[0])

    @property
    def solution(self) -> str:
        """The right solution, one step a line, the answer on the last."""
        totals, lines = list(self.starts), []
        for step in self.steps:
            before = totals[step.owner]
            totals[step.owner] += step.amount if step.operation == "+" else -step.amount
            lines.append(step_line(step.label, before, step.operation, step.amount, totals[step.owner]))
        if self.kind == "boxes":
            left = totals[0] % self.bound
            lines.append(step_line(self.box_label, totals[0], "-", totals[0] - left, left))
        return "\n".join([*lines, f"Answer: {self.answer}"])


def step_line(label: str, before: int, operation: Operation, amount: int, after: int) -> str:
    """One line of a solution: "She buys 7: 12 + 7 = 19"."""
    return f"{label}: {before} {operation} {amount} = {after}"


def seed_problems(split: str, num: int | None = None, start: int = 0) -> list[Problem]:
    """Problems `start`, `start + 1`, ... of a split: `num` of them, 1,000 where it is not given."""
    return list(islice(iter_seed_problems(split, start), 1000 if num is None else num))


def iter_seed_problems(split: str, start: int = 0) -> Iterator[Problem]:
    """All problems of a split from number `start` on, without end."""
    for index, story in enumerate(iter_stories(split, start), start):
        yield Problem(
            id=f"seed/{split}/{index}",
            question=story.question,
            gold=story.answer,
            source=f"seed/{split}",
            solution=story.solution,
            level=str(story.level),
            subject=story.kind,
        )


def iter_stories(split: str, start: int = 0) -> Iterator[Story]:
    """The stories behind `iter_seed_problems`. Number k of a split is the same story wherever the reading starts."""
    if split not in BUCKETS:
        raise DataError(f"the seed has the splits {', '.join(SEED_SPLITS)}; found {split!r}")
    if start < 0:
        raise DataError(f"the seed's problems are numbered from 0; found start={start}")
    index = start
    while True:
        # A string seeds by SHA-512 and `random()` is documented never to change: the same on every machine.
        rng = Random(f"flow-dpo seed {split} {index}")
        story = _draw_story(rng, LEVELS[split])
        while bucket(story.question) not in BUCKETS[split]:
            story = _draw_story(rng, LEVELS[split])
        yield story
        index += 1


def skeleton(question: str) -> str:
    """The question with people (numbered as they appear), things and pronouns blanked out: what it is, not whose."""
    seen: dict[str, str] = {}
    text = _NAME_PATTERN.sub(lambda match: seen.setdefault(match[0], f"<{len(seen)}>"), question)
    return _OTHER_PATTERN.sub("_", text)


def bucket(question: str) -> int:
    """Which sixteenth of the space of problems this question lies in."""
    return hashlib.blake2b(skeleton(question).encode(), digest_size=1).digest()[0] % 16


def pick(rng: Random, values: Sequence[T]) -> T:
    """One of the values. Uses `random()` alone, whose sequence Python guarantees (`choice` may change)."""
    return values[int(rng.random() * len(values))]


def pick_weighted(rng: Random, weighted: Sequence[tuple[T, float]]) -> T:
    """One of the values, each with its weight."""
    point = rng.random() * sum(weight for _, weight in weighted)
    for value, weight in weighted:
        point -= weight
        if point < 0:
            return value
    return weighted[-1][0]


def _draw_story(rng: Random, levels: Sequence[tuple[int, float]]) -> Story:
    """Draw until all totals on the way lie in range and the question is not trivial."""
    while True:
        story = _draw_any_story(rng, levels)
        if story is not None:
            return story


def _draw_any_story(rng: Random, levels: Sequence[tuple[int, float]]) -> Story | None:
    kind, level = pick_weighted(rng, KIND_WEIGHTS), pick_weighted(rng, levels)
    thing, names = pick(rng, THINGS), list(NAMES)
    people = [names.pop(int(rng.random() * len(names))) for _ in range(2 if kind == "compare" else 1)]
    # Two people start and stay close together, so that who has more is decided by the events.
    starts = [15 + int(rng.random() * 56)]
    if kind == "compare":
        starts.append(starts[0] + int(rng.random() * 21) - 10)
    steps = _draw_steps(rng, level - (kind == "boxes"), people, starts, thing, kind)
    if steps is None:
        return None
    distractor = None
    if rng.random() < DISTRACTOR_RATE:
        distractor = _draw_distractor(rng, steps, people, names, thing, kind)
    bound = pick(rng, (2, 5, 10)) if kind == "boxes" else 0
    story = Story(
        kind=kind, people=tuple(people), thing=thing, starts=tuple(starts), steps=steps, distractor=distractor,
        bound=bound,
    )  # fmt: skip
    return _with_question(rng, story)


def _draw_steps(
    rng: Random, num: int, people: list[str], starts: list[int], thing: str, kind: Kind
) -> tuple[Step, ...] | None:
    """`num` events with different verbs (a label names its event), or None where a total leaves its range."""
    totals, steps = list(starts), []
    verbs = [(verb, MISCONCEPTION_WEIGHT if verb in MISCONCEPTION_VERBS else 1.0) for verb in VERBS]
    for index in range(num):
        verb = pick_weighted(rng, verbs)
        verbs = [entry for entry in verbs if entry[0] != verb]
        amount = 2 + int(rng.random() * 18)
        owner = index % 2 if kind == "compare" else 0
        totals[owner] += amount if VERBS[verb] == "+" else -amount
        if not 3 <= totals[owner] <= MAX_TOTAL:
            return None
        subject = people[owner] if kind == "compare" else NAMES[people[0]]
        steps.append(
            Step(
                label=f"{subject} {verb} {amount}",
                sentence=f"{subject} {verb} {amount} {thing}.",
                verb=verb,
                operation=VERBS[verb],
                amount=amount,
                owner=owner,
            )
        )
    return tuple(steps)


def _draw_distractor(
    rng: Random, steps: tuple[Step, ...], people: list[str], names: list[str], thing: str, kind: Kind
) -> Distractor:
    verb, amount = pick(rng, tuple(DISTRACTORS)), 2 + int(rng.random() * 18)
    position = int(rng.random() * (len(steps) + 1))
    owner = int(rng.random() * len(people))
    sentence, label = DISTRACTORS[verb]
    words = {
        "pronoun": people[owner] if kind == "compare" else NAMES[people[0]],
        "other": pick(rng, names),
        "amount": amount,
        "thing": thing,
    }
    return Distractor(
        label=label.format(**words), sentence=sentence.format(**words), verb=verb, amount=amount, position=position,
        owner=owner,
    )  # fmt: skip


def _with_question(rng: Random, story: Story) -> Story | None:
    """Set what is asked about; None where there is no clear answer."""
    totals = story.totals
    if story.kind == "compare" and abs(totals[0] - totals[1]) < 3:
        return None
    if story.kind == "over":
        # A round number next to the total, on either side: most wrong steps matter, some do not.
        tens = totals[0] // 10 * 10
        bound = pick(rng, (tens, tens + 10))
        if bound in (0, totals[0]):
            return None
        return Story(
            kind=story.kind, people=story.people, thing=story.thing, starts=story.starts, steps=story.steps,
            distractor=story.distractor, bound=bound,
        )  # fmt: skip
    return story
