"""Rounds: each batch of problems is fine-tuned on from the base again, and then its pairs are learned from there.

The round of Critical Plan Step Learning (arXiv 2409.08642; the authors' README.md and my_scripts/). A batch with 40
scored completions and 60 pairs, updates of 16:

    adapters and optimizers as at the run's beginning   ->   2 updates of what is scored, 8 wait
    reference: the policy as it is now (`learner.reference.each_batch`)   ->   4 updates, the first with those 8, 4 wait

Invariant: all that a round leaves is in the learner, which is saved after it, so that a resumed run is the run.
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
        """`learner` is as a run begins, nothing of a checkpoint in it yet. Raises `ConfigError` for one whose reference
        is not that of rounds, or with a temperature of its logits."""
        if not learner.settings.reference.each_batch:
            raise ConfigError(
                "objective.rounds compares with the fine-tuned policy, and needs --learner.reference.kind snapshot "
                "--learner.reference.each_batch"
            )
        if learner.settings.logit_temperature != 1:
            raise ConfigError(
                "expected learner.logit_temperature of 1 with objective.rounds, found "
                f"{learner.settings.logit_temperature:g}: a round starts from the first adapters, and those that "
                "sampled, by which what was recorded would be scaled, are not at hand any more; leave it out"
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
        """Fine-tune from the run's first adapters, then learn the pairs; measures of both, each over its own."""
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
        """Adapters, optimizers and schedules as at the run's beginning, as a version of its own; what waits stays."""
        learner = self._learner
        version, waiting = learner.version, {name: pool.examples for name, pool in learner.pools.items()}
        learner.load(self._folder)
        learner.version = version + 1
        for name, pool in learner.pools.items():
            pool.examples = waiting[name]


def _together(first: Row, second: Row) -> Row:
    """Both rows: sums add up, and of a mean that both have it is the mean by their examples; else the later counts."""
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
