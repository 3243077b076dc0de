"""Settings of evaluations during a run: `flow-dpo train --eval_steps 20`.

Invariant: they do not change the run, so they are not in its config.yaml and have to be given again with `--resume`.
Nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from flow_dpo.core.errors import expect


@dataclass(frozen=True, kw_only=True)
class WhileTrainingSettings:
    """When held-out problems are evaluated during training, and which ones."""

    eval_steps: int = 0
    """Updates between two evaluations of the flow and of a single pass of its Answer role. Both are greedy and written
    to evaluations.jsonl at the end of a batch. 0 evaluates nothing."""
    eval_problems: int = 200
    """Problems per evaluation: the first ones of the split."""
    eval_split: str = "test"
    """The held-out split of the data set."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "eval_steps")
        expect(self, "of 1 or more", lambda value: value >= 1, "eval_problems")
