"""DPO on pairs, and the likelihood of what is scored, in one loss.

Of a batch with a completion of NLL 0.4 and a pair of loss 0.7 the loss is 1.1, at `sft_weight` 1.

Invariant: loss and measures are sums over the examples, each measure over one kind alone; a kind that a batch has none
of adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import expect
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.recipes.rejection_sampling.objective import Nll


@dataclass(frozen=True, kw_only=True)
class DpoAndLikelihood:
    """`Dpo` of what is paired, and `Nll` of what is scored."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)

    beta: float = 0.2
    """Strength of the pull towards the reference, of pairs; the paper's is 0.2."""
    sft_weight: float = 1.0
    """Weight of the negative log-likelihood."""

    def __post_init__(self) -> None:
        expect(self, "above 0", lambda value: value > 0, "beta")
        expect(self, "of 0 or more", lambda value: value >= 0, "sft_weight")

    @property
    def needs_reference(self) -> tuple[type, ...]:
        return (Pair,)

    def __call__(
        self, examples: Sequence[Example], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it

        rows = list(zip(examples, policy, reference, strict=True))
        pairs = [(e, p, r) for e, p, r in rows if isinstance(e, Pair)]
        scored = [(e, p) for e, p, _ in rows if isinstance(e, ScoredCompletion)]
        total, measures = torch.zeros((), device=policy[0][0].device), dict[str, Tensor]()
        counts: dict[str, int] = {}
        if pairs:
            loss = Dpo(beta=self.beta)([e for e, _, _ in pairs], [p for _, p, _ in pairs], [r for _, _, r in pairs])
            total, measures = total + loss.total, dict(loss.measures)
            counts |= dict.fromkeys(measures, len(pairs))
        if scored:
            likelihood = Nll()([e for e, _ in scored], [p for _, p in scored], []).total
            total = total + self.sft_weight * likelihood
            measures["likelihood_loss"] = likelihood.detach()
            counts["likelihood_loss"] = len(scored)
        return Loss(total, measures, counts)
