"""Pools of examples between credit and update: queues, whose examples are learned once, and replay windows.

Roles share one queue, except those to which `LearnerSettings.roles` gives their own pool. A pool says what the next
update learns from it, if one is due; once that is learned, it counts the update and drops what is done with:

    Queue(size=2)                        takes a b c     batches [a b]                c waits
    Window(size=2, window=3, updates=2)  takes a b c d   batches [b d], [c d]         b c d stay

If a window's examples are choices, a batch has equally many of each. If one has too few, the batch has all of these and
more of the others, weighted to equal sums: of 1 Yes and 9 No, the Yes at weight 2 and 3 No at weight 2/3. Pairs keep
their share and weight. Invariants: no example is in a batch twice; only what was learned or given up is dropped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from flow_dpo.core.seeds import derive
from flow_dpo.core.types import Example, Role, ScoredCompletion
from flow_dpo.learner.settings import LearnerSettings, ShortBatch

SHARED = ""
"""Name of the pool that roles without their own pool share."""


@dataclass(kw_only=True)
class Queue:
    """Examples that are learned once, in order."""

    size: int
    """Examples per update; 0 takes all that wait."""
    of_problems: bool = False
    """Whether `size` counts problems instead of examples."""
    updates: int = 1
    """Passes over each batch."""
    minibatches: int = 1
    """Updates per pass: a batch is this many times `size`, or all that wait in this many parts."""
    short_batch: ShortBatch = "wait"
    examples: list[Example] = field(default_factory=list[Example])
    num_updates: int = 0
    _batch_size: int = field(init=False, default=0)
    _parts: list[slice] = field(init=False, default_factory=list[slice])
    """Slices of `examples`, one for each update that is due."""

    def take(self, examples: Sequence[Example]) -> None:
        """Add the examples of a call, if there are any."""
        self.examples.extend(examples)
        self._parts = []

    def batch(self) -> list[Example]:
        """What the next update learns; empty if none is due."""
        keys = [example.problem_id if self.of_problems else index for index, example in enumerate(self.examples)]
        ends = [*sorted({keys[i]: i for i in reversed(range(len(keys)))}.values()), len(keys)]
        there, number, whole = len(ends) - 1, self.minibatches, self.size * self.minibatches
        if not self._parts and (there >= whole or self.short_batch == "learn"):
            if self.short_batch == "learn" and self.size:
                number, whole = max(number, round(there / self.size)), there
            end = whole or there
            part, self._batch_size = max(1, math.ceil(end / number)), ends[end]
            self._parts = [slice(ends[i], ends[min(i + part, end)]) for i in range(0, end, part)] * self.updates
        return self.examples[self._parts[0]] if self._parts else []

    def learned(self) -> None:
        """Count an update; after its last one the batch is dropped."""
        self.num_updates += 1
        del self._parts[0]
        if not self._parts:
            self.give_up()

    def give_up(self) -> None:
        """Drop the batch, and with "fill" also the rest, since the next batch must be of one version."""
        del self.examples[: None if self.short_batch == "fill" else self._batch_size]
        self._parts = []


@dataclass(kw_only=True)
class Window(Queue):
    """The most recent examples; each of a call's `updates` learns `size` of them, drawn without replacement."""

    window: int
    """Number of examples that are kept."""
    seed: int
    by_problem: bool = False
    """Whether to draw problem by problem, each with as many of its examples as needed: these share their prefixes."""

    def take(self, examples: Sequence[Example]) -> None:
        """Add the examples of a call. If there are any, updates are due once `size` are kept, not all of one choice."""
        if examples:
            self.examples = [*self.examples, *examples][-self.window :]
            choices = {_choice(example) for example in self.examples} - {None}
            due = self.updates if len(self.examples) >= self.size and len(choices) != 1 else 0
            self._parts = [slice(None)] * due

    def batch(self) -> list[Example]:
        """What the next update learns, in the window's order; empty if none is due."""
        if not self._parts:
            return []
        rng = random.Random(derive(self.seed, self.num_updates))
        draw = _by_problem(rng, self.examples) if self.by_problem else rng.sample
        # 1. Examples without a choice: as large a share as in the window, with room left for each choice.
        groups: dict[int | None, list[int]] = {}
        for index, example in enumerate(self.examples):
            groups.setdefault(_choice(example), []).append(index)
        plain = groups.pop(None, [])
        share = max(0, min(round(self.size * len(plain) / len(self.examples)), self.size - len(groups)))
        factors = dict.fromkeys(draw(plain, share), 1.0)
        # 2. Equally many of each choice, the rarest first: if it has too few, the others fill up.
        left = self.size - share
        even = left / max(len(groups), 1)
        for done, group in enumerate(sorted(groups.values(), key=len)):
            drawn = draw(group, min(len(group), left // (len(groups) - done)))
            left -= len(drawn)
            factors |= dict.fromkeys(drawn, even / max(len(drawn), 1))
        batch = [(self.examples[index], factors[index]) for index in sorted(factors)]
        return [each if factor == 1 else replace(each, weight=factor * each.weight) for each, factor in batch]

    def give_up(self) -> None:
        """Cancel the updates that are due: they would draw the same examples again. The examples stay."""
        self._parts = []


def _by_problem(rng: random.Random, examples: Sequence[Example]) -> Callable[[list[int], int], list[int]]:
    """A function that draws indices problem by problem, in one random order of problems and one of their examples."""
    problems = list(dict.fromkeys(example.problem_id for example in examples))
    rank = dict(zip(rng.sample(problems, len(problems)), range(len(problems)), strict=True))
    place = rng.sample(range(len(examples)), len(examples))
    order = [(rank[example.problem_id], place[index]) for index, example in enumerate(examples)]
    return lambda group, count: sorted(group, key=order.__getitem__)[:count]


def make_pools(settings: LearnerSettings, seed: int) -> dict[Role, Queue]:
    """The shared queue, and the pools of roles that have their own."""
    p = settings.passes
    queue = partial(Queue, updates=p.epochs_per_batch, minibatches=p.minibatches, short_batch=p.short_batch)
    size = p.problems_per_update or settings.examples_per_update
    pools = {SHARED: queue(size=size, of_problems=p.problems_per_update > 0)}
    for role, own in settings.roles.items():
        size, kept, updates = own.examples_per_update, own.window, own.updates_per_batch
        if size is not None:
            own_seed = derive(seed, "window", role)
            window = Window(size=size, updates=updates, window=kept, seed=own_seed, by_problem=own.by_problem)
            pools[role] = window if kept else queue(size=size)
    return pools


def _choice(example: Example) -> int | None:
    return example.completion.choice if isinstance(example, ScoredCompletion) else None
