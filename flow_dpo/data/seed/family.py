"""Seed problem family: arithmetic stories with their correct solutions, each generated from (split, index) alone.

Invariant: a stable hash assigns a story's skeleton (its text with names and things blanked out) to one split, so no
held-out problem is a training problem, not even with other names. One problem and its solution:

    Anna has 12 apples. She buys 7 apples. Tom has 8 apples. She lends 5 apples. How many apples does Anna have now?

    She buys 7: 12 + 7 = 19
    She lends 5: 19 - 5 = 14
    Answer: 14

Kinds (`Problem.subject`): "total" as above; "compare" (more than Tom's 40 or 60? yes or no), "over" (more than 50?) and
"boxes" (in boxes of 2, 5 or 10, how many are left over?). In the last three a wrong step can still lead to the correct
answer. `Problem.level` is the number of steps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from random import Random
from typing import Literal, TypeVar

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem

T = TypeVar("T")
Kind = Literal["total", "compare", "over", "boxes"]
Operation = Literal["+", "-"]

NAMES = {"Anna": "She", "Tom": "He", "Mia": "She", "Ben": "He", "Eva": "She", "Max": "He", "Lea": "She", "Paul": "He"}
THINGS = ("apples", "cards", "shells", "coins", "pens", "stamps", "beads", "stones")

EASY_VERBS: dict[str, Operation] = {
    "buys": "+", "finds": "+", "gets": "+", "wins": "+", "collects": "+", "earns": "+",
    "loses": "-", "sells": "-", "drops": "-", "donates": "-", "uses": "-",
}  # fmt: skip
MISCONCEPTION_VERBS: dict[str, Operation] = {"lends": "-", "returns": "-", "shares": "-"}
"""Verbs that the pretraining corpus gets wrong more often than right (`tools/seed_model/corpus.py`)."""
VERBS: dict[str, Operation] = EASY_VERBS | MISCONCEPTION_VERBS
MISCONCEPTION_WEIGHT = 0.75
"""Sampling weight of a misconception verb, against 1 for an easy one: two of five problems contain one."""

DISTRACTORS = ("has", "sees", "wants")
"""Verbs of sentences that change nothing: "Tom has 8 apples.", "She sees 8 apples.", "She wants 8 apples."."""
DISTRACTOR_RATE = 0.5

MAX_TOTAL = 99
BOUNDS = {"compare": (40, 60), "over": (50,), "boxes": (2, 5, 10)}
"""Bounds in the questions of each kind: a few round numbers, so only the steps are hard. See `Story.bound`."""
KIND_WEIGHTS: tuple[tuple[Kind, float], ...] = (("total", 0.73), ("compare", 0.09), ("over", 0.09), ("boxes", 0.09))
PRETRAIN_KIND_WEIGHTS: tuple[tuple[Kind, float], ...] = (
    ("total", 0.67), ("compare", 0.11), ("over", 0.11), ("boxes", 0.11),
)  # fmt: skip
"""The rare kinds are a little more frequent here, or the model would not learn them."""
_EASY_LEVELS = ((2, 0.35), (3, 0.4), (4, 0.25))
LEVELS: dict[str, tuple[tuple[int, float], ...]] = {
    "train": _EASY_LEVELS,
    "test": _EASY_LEVELS,
    "hard": ((5, 0.6), (6, 0.4)),
    # A few long stories: without them a fifth step would be impossible for the model rather than hard.
    "pretrain": ((2, 0.31), (3, 0.36), (4, 0.23), (5, 0.08), (6, 0.02)),
}
BUCKETS = {"pretrain": range(8), "train": range(8, 12), "test": range(12, 14), "hard": range(14, 16)}
"""The sixteenths of the space of skeletons from which each split draws."""

SEED_SPLITS = ("train", "test", "hard")
"""The splits to train and evaluate on. There is also "pretrain", on which the embedded model was pretrained."""

_NAME_PATTERN = re.compile(rf"\b({'|'.join(NAMES)})\b")
_OTHER_PATTERN = re.compile(rf"\b(?:{'|'.join([*THINGS, 'She', 'He', 'she', 'he'])})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One event of a story: "She buys 7" adds 7 to the total."""

    label: str
    sentence: str
    verb: str
    operation: Operation
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Distractor:
    """An irrelevant sentence before event `position`."""

    label: str
    sentence: str
    verb: str
    amount: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The parts of a problem, from which its text, its correct solution and flawed solutions are generated."""

    kind: Kind
    name: str
    thing: str
    start: int
    steps: tuple[Step, ...]
    distractor: Distractor | None = None
    rival: str = ""
    """The other person in "compare"."""
    bound: int = 0
    """The rival's number in "compare", the bound in "over", the size of a box in "boxes"."""

    @property
    def level(self) -> int:
        """The number of steps."""
        return len(self.steps) + (self.kind == "boxes")

    @property
    def question(self) -> str:
        """The text of the problem."""
        opening = [f"{self.name} has {self.start} {self.thing}."]
        if self.kind == "compare":
            opening.append(f"{self.rival} has {self.bound} {self.thing}.")
        events = [step.sentence for step in self.steps]
        if self.distractor is not None:
            events.insert(self.distractor.position, self.distractor.sentence)
        closing = {
            "total": f"How many {self.thing} does {self.name} have now?",
            "compare": f"Does {self.name} have more {self.thing} than {self.rival} now?",
            "over": f"Does {self.name} have more than {self.bound} {self.thing} now?",
            "boxes": f"{NAMES[self.name]} fills boxes of {self.bound}. How many {self.thing} are left over?",
        }[self.kind]
        return " ".join([*opening, *events, closing])

    @property
    def total(self) -> int:
        """The number that the person has after the events."""
        return self.start + sum(step.amount if step.operation == "+" else -step.amount for step in self.steps)

    @property
    def answer(self) -> str:
        """The correct answer."""
        return self.conclude(self.total)

    def conclude(self, total: int) -> str:
        """The answer that follows from a total, right or wrong."""
        if self.kind in ("compare", "over"):
            return "yes" if total > self.bound else "no"
        return str(total % self.bound if self.kind == "boxes" else total)

    def closing_lines(self, total: int) -> list[str]:
        """The lines of a solution between its last event and its answer, such as "She has 14, he has 40"."""
        if self.kind == "compare":
            return [f"{NAMES[self.name]} has {total}, {NAMES[self.rival].lower()} has {self.bound}"]
        if self.kind == "boxes":
            left = total % self.bound
            return [step_line(f"{NAMES[self.name]} fills boxes of {self.bound}", total, "-", total - left, left)]
        return []

    @property
    def solution(self) -> str:
        """The correct solution, one step per line, with the answer on the last."""
        total, lines = self.start, []
        for step in self.steps:
            before, total = total, total + (step.amount if step.operation == "+" else -step.amount)
            lines.append(step_line(step.label, before, step.operation, step.amount, total))
        return "\n".join([*lines, *self.closing_lines(total), f"Answer: {self.answer}"])


def step_line(label: str, before: int, operation: Operation, amount: int, after: int) -> str:
    """One line of a solution: "She buys 7: 12 + 7 = 19"."""
    return f"{label}: {before} {operation} {amount} = {after}"


def seed_problems(split: str, num: int | None = None, start: int = 0) -> list[Problem]:
    """Problems `start`, `start + 1`, ... of a split: `num` of them (default: 1,000)."""
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
    """The stories of `iter_seed_problems`. Story k of a split does not depend on `start`."""
    if split not in BUCKETS:
        near = get_close_matches(split, SEED_SPLITS, n=1)
        hint = f"; did you mean --dataset_split {near[0]}?" if near else ""
        raise DataError(f"the seed has the splits {', '.join(SEED_SPLITS)}; found {split!r}{hint}")
    if start < 0:
        raise DataError(f"the seed's problems are numbered from 0; found start={start}")
    index = start
    while True:
        # A string seeds by SHA-512, and `random()` is documented never to change, so every machine draws the same.
        rng = Random(f"flow-dpo seed {split} {index}")
        story = _draw_story(rng, split)
        while bucket(story.question) not in BUCKETS[split]:
            story = _draw_story(rng, split)
        yield story
        index += 1


def skeleton(question: str) -> str:
    """The question with people (numbered in order of appearance), things and pronouns blanked out."""
    seen: dict[str, str] = {}
    text = _NAME_PATTERN.sub(lambda match: seen.setdefault(match[0], f"<{len(seen)}>"), question)
    return _OTHER_PATTERN.sub("_", text)


def bucket(question: str) -> int:
    """The sixteenth of the space of skeletons in which this question lies."""
    return hashlib.blake2b(skeleton(question).encode(), digest_size=1).digest()[0] % 16


def pick(rng: Random, values: Sequence[T]) -> T:
    """One of the values. Uses only `random()`, whose sequence Python guarantees (that of `choice` can change)."""
    return values[int(rng.random() * len(values))]


def pick_weighted(rng: Random, weighted: Sequence[tuple[T, float]]) -> T:
    """One of the values, drawn by weight."""
    point = rng.random() * sum(weight for _, weight in weighted)
    for value, weight in weighted:
        point -= weight
        if point < 0:
            return value
    return weighted[-1][0]


def _draw_story(rng: Random, split: str) -> Story:
    """Draw stories until one has all its totals in range."""
    while True:
        story = _draw_any_story(rng, split)
        if story is not None:
            return story


def _draw_any_story(rng: Random, split: str) -> Story | None:
    kinds = PRETRAIN_KIND_WEIGHTS if split == "pretrain" else KIND_WEIGHTS
    kind, level = pick_weighted(rng, kinds), pick_weighted(rng, LEVELS[split])
    name, thing = pick(rng, tuple(NAMES)), pick(rng, THINGS)
    # The other person has the other pronoun, so that "she" and "he" are unambiguous.
    other = pick(rng, [person for person, pronoun in NAMES.items() if pronoun != NAMES[name]])
    bound = pick(rng, BOUNDS[kind]) if kind in BOUNDS else 0
    # If the question has a bound, start near it, so that the events decide the answer.
    near = kind in ("compare", "over")
    start = bound - 15 + int(rng.random() * 31) if near else 15 + int(rng.random() * 56)
    steps = _draw_steps(rng, level - (kind == "boxes"), start, NAMES[name], thing)
    if steps is None:
        return None
    distractor = _draw_distractor(rng, len(steps), name, other, thing, kind)
    return Story(
        kind=kind,
        name=name,
        thing=thing,
        start=start,
        steps=steps,
        distractor=distractor if rng.random() < DISTRACTOR_RATE else None,
        rival=other if kind == "compare" else "",
        bound=bound,
    )


def _draw_steps(rng: Random, num: int, total: int, pronoun: str, thing: str) -> tuple[Step, ...] | None:
    """`num` events with different verbs (a label identifies its event), or None if a total leaves its range."""
    steps: list[Step] = []
    verbs = [(verb, MISCONCEPTION_WEIGHT if verb in MISCONCEPTION_VERBS else 1.0) for verb in VERBS]
    for _ in range(num):
        verb = pick_weighted(rng, verbs)
        verbs = [entry for entry in verbs if entry[0] != verb]
        amount = 2 + int(rng.random() * 18)
        total += amount if VERBS[verb] == "+" else -amount
        if not 3 <= total <= MAX_TOTAL:
            return None
        label = f"{pronoun} {verb} {amount}"
        steps.append(Step(label=label, sentence=f"{label} {thing}.", verb=verb, operation=VERBS[verb], amount=amount))
    return tuple(steps)


def _draw_distractor(rng: Random, num_steps: int, name: str, other: str, thing: str, kind: Kind) -> Distractor:
    # In "compare", another person's number would be the rival's.
    verb = pick(rng, DISTRACTORS[1:] if kind == "compare" else DISTRACTORS)
    amount = 2 + int(rng.random() * 18)
    label = f"{other if verb == 'has' else NAMES[name]} {verb} {amount}"
    position = int(rng.random() * (num_steps + 1))
    return Distractor(label=label, sentence=f"{label} {thing}.", verb=verb, amount=amount, position=position)
