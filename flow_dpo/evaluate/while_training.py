"""Settings of evaluations while a run is under way: `flow-dpo train --eval_steps 20`.

Invariant: they change nothing of the run, so that they are no part of its config.yaml, and are given again with
`--resume`; nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from flow_dpo.core.errors import expect


@dataclass(frozen=True, kw_only=True)
class WhileTrainingSettings:
    """When held-out problems are evaluated during training, and which."""

    eval_steps: int = 0
    """Updates between two evaluations of the flow and of one pass of its Answer role, both greedy, written to
    evaluations.jsonl at the end of a batch. 0 makes none."""
    eval_problems: int = 200
    """Problems of each, the first of the split."""
    eval_split: str = "test"
    """The data set's split that is held out."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "eval_steps")
        expect(self, "of 1 or more", lambda value: value >= 1, "eval_problems")
