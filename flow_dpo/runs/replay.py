"""Batches in flight at an interruption: what a checkpoint keeps of them, and how a resumed run submits them again.

At lag 1, batch 4 is being sampled while batch 3 is learned from. The checkpoint that follows holds the learner after
batch 3, and everything that batch 4 depends on:

    "in_flight": [{"num_problems": 16, "policy_version": 12, "evidence": [...]}]    of batch 4, submitted after batch 2

The learner holds the weights of version 12. Nothing that was sampled is kept; it is sampled again, to the same bytes.
Invariant: a batch is submitted again with the adapters and the flow with which it was first submitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.core.loop import InFlight, submit
from flow_dpo.core.protocols import RolloutWorkers
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.types import Problem
from flow_dpo.data import typed_json
from flow_dpo.data.typed_json import Count, Ordinal
from flow_dpo.learner.learner import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What a batch in flight depends on, besides the problems and the settings."""

    num_problems: Ordinal
    policy_version: Count
    """Version of the adapters that it is sampled with."""
    evidence: tuple[Mapping[str, Any], ...]
    """The evidence on which its flow was calibrated."""


def facts(batch: InFlight) -> Any:
    """What `submit_again` needs to know about a batch, as JSON."""
    found = Submitted(
        num_problems=len(batch.problems), policy_version=batch.version, evidence=tuple(batch.evidence)
    )  # fmt: skip
    return typed_json.write(found)


def submit_again(
    found: Sequence[Any],
    recipe: Recipe,
    problems: Sequence[Problem],
    workers: RolloutWorkers,
    learner: Learner,
    *,
    seed: int,
    place: str,
) -> list[InFlight]:
    """Submit again the batches that were in flight at a checkpoint, starting with the first of `problems`.

    Raises `DataError` naming `place` if they are not what `facts` wrote, or have more problems than there are.
    """
    submitted: list[InFlight] = []
    start = 0
    for each in found:
        one = typed_json.read(Submitted, each, place)
        batch = problems[start : start + one.num_problems]
        if len(batch) < one.num_problems:
            raise DataError(
                f"{place}: expected {start + one.num_problems} problems after those that were learned from, found "
                f"{len(problems)}; give the problems of the run (--max_problems)"
            )
        start += len(batch)
        with learner.holding(one.policy_version) as adapters:
            workers.refresh(adapters)
            submitted.append(submit(recipe, batch, workers, one.policy_version, one.evidence, seed=seed))
    return submitted
