"""Step-APO: DPO on pairs with their margin required, and optionally NLL on completions, in one loss.

Of a batch with a completion of NLL 0.4 and a pair of loss 0.7:

    loss 1.1    likelihood_loss 0.4    preference_loss 0.7    said_rate 1 of 2

Invariant: with `sft`, measures are over all examples, of both kinds, so that the two losses add up to the loss whatever
a batch holds; margins, which only pairs have, are not among them. Without, loss and measures are those of `Dpo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ObjectiveError
from flow_dpo.core.objective import Loss, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.recipes.rejection_sampling.objective import Nll


@dataclass(frozen=True, kw_only=True)
class StepApo:
    """`Dpo` with a margin of what is paired, and with `sft` also `Nll` of what is scored: the two losses of a round
    that begins by fine-tuning on right rollouts (Critical Plan Step Learning, arXiv 2409.08642)."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)

    beta: float = 0.3
    """Strength of the pull towards the reference; the paper's is 0.3."""
    margin_weight: float = 1.0
    """How far `beta` times the difference of log-ratios must exceed 0, in units of the pair's margin; the paper's alpha
    is 1."""
    sft: bool = False
    """Also learn scored completions, by their negative log-likelihood. Without, one is an `ObjectiveError`."""

    def __post_init__(self) -> None:
        self._dpo()  # refuses what cannot be

    @property
    def needs_reference(self) -> tuple[type, ...]:
        return (Pair,)

    def __call__(
        self, examples: Sequence[Example], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it

        dpo = self._dpo()
        scored = [(e, mine) for e, mine in zip(examples, policy, strict=True) if isinstance(e, ScoredCompletion)]
        pairs = [
            (e, mine, theirs)
            for e, mine, theirs in zip(examples, policy, reference, strict=True)
            if isinstance(e, Pair)
        ]
        if not self.sft:
            if scored:
                raise ObjectiveError(
                    f"StepApo expects pairs alone without --objective.sft, found {len(scored)} scored "
                    f"completions in {len(examples)} examples; add the flag, or leave out the credit's fine_tune and "
                    f"valued_by"
                )
            return dpo([e for e, _, _ in pairs], policy, reference)
        nothing = torch.zeros((), device=policy[0][0].device)
        likelihood = Nll()([e for e, _ in scored], [p for _, p in scored], []).total if scored else nothing
        preference = (
            dpo([e for e, _, _ in pairs], [p for _, p, _ in pairs], [r for _, _, r in pairs]).total
            if pairs
            else nothing
        )
        measures = {
            "loss": (likelihood + preference).detach(),
            "likelihood_loss": likelihood.detach(),
            "preference_loss": preference.detach(),
            "said_rate": torch.tensor(float(len(scored))),
        }
        return Loss(likelihood + preference, measures)

    def _dpo(self) -> Dpo:
        return Dpo(beta=self.beta, margin_weight=self.margin_weight)
