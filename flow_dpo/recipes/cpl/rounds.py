"""Rounds: each batch of problems starts from the first adapters, fine-tunes them, and then learns its pairs from there.

The round of Critical Plan Step Learning (arXiv 2409.08642; the authors' README.md and my_scripts/). A batch with 40
scored completions and 60 pairs, in updates of 16:

    adapters and optimizers as at the run's beginning   ->   2 updates on 32 scored completions, 8 wait
    reference: the current policy (`learner.reference.each_batch`)   ->   4 updates, the first with those 8, 4 wait

Invariant: all that a round leaves behind is in the learner, which is saved after it, so a resumed run is the same run.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.objective import Objective
from flow_dpo.core.types import Adapter, Example, Pair, Role
from flow_dpo.learner.gradients import SUMS
from flow_dpo.learner.learner import Learner, Row

_SUMS = {*SUMS, "updates", "skipped", "seconds"}


class Rounds:
    """A learner (`core.protocols.Learns`) that restarts with each batch that has something to fine-tune on."""

    def __init__(self, learner: Learner) -> None:
        """`learner` is as at a run's beginning, with no checkpoint loaded. Raises `ConfigError` if its reference is not
        renewed with each batch, or if its logits have a temperature other than 1."""
        if not learner.settings.reference.each_batch:
            raise ConfigError(
                "objective.rounds compares with the fine-tuned policy, and needs --learner.reference.kind snapshot "
                "--learner.reference.each_batch"
            )
        if learner.settings.logit_temperature != 1:
            raise ConfigError(
                "expected learner.logit_temperature of 1 with objective.rounds, found "
                f"{learner.settings.logit_temperature:g}: a round starts from the first adapters, and those that "
                "sampled, which are needed to convert what was recorded, are gone by then; leave it out"
            )
        self._learner = learner
        self._folder = Path(mkdtemp(prefix="flow-dpo-rounds-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        learner.save(self._folder)

    @property
    def adapters(self) -> Mapping[Role, Adapter]:
        return self._learner.adapters

    @property
    def version(self) -> int:
        return self._learner.version

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Fine-tune from the run's first adapters, then learn the pairs. Each measure is over its own examples."""
        scored = [example for example in examples if not isinstance(example, Pair)]
        if not scored:
            return self._learner.update(objective, examples)
        self._restart()
        first = self._learner.update(objective, scored)
        learned = self._learner.learned
        second = self._learner.update(objective, [example for example in examples if isinstance(example, Pair)])
        self._learner.learned = [*learned, *self._learner.learned]
        return _together(first, second)

    def _restart(self) -> None:
        """Reset adapters, optimizers and schedules to the run's beginning, as a new version; what waits stays."""
        learner = self._learner
        version, waiting = learner.version, {name: pool.examples for name, pool in learner.pools.items()}
        learner.load(self._folder)
        learner.version = version + 1
        for name, pool in learner.pools.items():
            pool.examples = waiting[name]


def _together(first: Row, second: Row) -> Row:
    """Both rows as one: sums add up, means in both are averaged by examples, and of anything else the later counts."""
    row: Row = {**first, **second}
    for name in [name for name in first if name in second]:
        start, _, last = name.rpartition("/")
        counts = f"{start}/pairs"
        if last in _SUMS:
            row[name] = first[name] + second[name]
        elif counts in first and last != "learning_rate":
            total = first[counts] + second[counts]
            row[name] = (first[counts] * first[name] + second[counts] * second[name]) / total
    return row
