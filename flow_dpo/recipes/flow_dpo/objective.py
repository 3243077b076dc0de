"""DPO on pairs, and cross-entropy on the words of a choosing role, in one loss.

A scored word is Stop's right answer for a candidate (`credit`). Its loss is the negative log-probability of that word,
renormalised over the declared choices. With z the log-odds of Yes and y = 1 if Yes is right, else 0, the gradient by z
is sigmoid(z) - y:

    P(Yes) .8 for a wrong candidate     loss 1.61    gradient by z +.8

Invariant: loss and measures are sums over the examples, each measure over one kind alone; a kind that is not in the
batch adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import expect
from flow_dpo.core.objective import Loss, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.recipes.likelihood import by_kind


@dataclass(frozen=True, kw_only=True)
class DpoAndVerdicts:
    """`Dpo` on pairs, and cross-entropy on scored words."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)

    beta: float = 1.0
    """Strength of the pull towards the reference, for pairs."""

    def __post_init__(self) -> None:
        expect(self, "above 0", lambda value: value > 0, "beta")

    @property
    def needs_reference(self) -> tuple[type, ...]:
        return (Pair,)

    def __call__(
        self, examples: Sequence[Example], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        return by_kind(examples, policy, reference, pairs=Dpo(beta=self.beta), scored=_verdicts)


def _verdicts(
    examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
) -> Loss:
    import torch  # settings are read without it

    words = list(zip(examples, policy, strict=True))
    entropy = torch.stack([-e.weight * p[0].sum() for e, p in words]).sum()
    right = [float(p[0].sum() > -math.log(2)) for _, p in words]
    return Loss(entropy, {"verdict_loss": entropy.detach(), "verdict_accuracy": torch.tensor(sum(right))})
