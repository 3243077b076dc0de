"""Threads of an update: a small model samples in one, for its steps are short, and learns in two.

    learns = LearnsInTwo(learner)       torch has two threads inside of `update`, and what it had before outside

A row of an update has thousands of tokens, and its products fill two cores; a step of sampling has tens, and waits for
the second core longer than it computes. Invariant: what the user set stays, by --num_threads or OMP_NUM_THREADS; runs
whose last bits are to be equal on other machines or over ranks set it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from flow_dpo.core.objective import Objective
from flow_dpo.core.protocols import Learns, Row
from flow_dpo.core.types import Adapter, Example, Role
from flow_dpo.models.settings import ModelSettings

_THREADS = 2
"""However many cores there are: with more, less of each is used."""


def in_two_threads(learner: Learns, settings: ModelSettings, device: torch.device) -> Learns:
    """The same learner, whose updates have two threads where a second core may be used and one thread was chosen for
    the model's size."""
    given = settings.num_threads or "OMP_NUM_THREADS" in os.environ
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    small = torch.get_num_threads() == 1 and device.type == "cpu"
    return LearnsInTwo(learner) if small and not given and cores >= _THREADS else learner


class LearnsInTwo:
    """A learner whose updates have two threads (`core.protocols.Learns`)."""

    def __init__(self, learner: Learns) -> None:
        self._learner = learner

    @property
    def adapters(self) -> Mapping[Role, Adapter]:
        """The adapters in force, one a role."""
        return self._learner.adapters

    @property
    def version(self) -> int:
        """Updates made so far."""
        return self._learner.version

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Take the examples in, learn from as many as make an update, and return metrics."""
        before = torch.get_num_threads()
        torch.set_num_threads(_THREADS)
        try:
            return self._learner.update(objective, examples)
        finally:
            torch.set_num_threads(before)
