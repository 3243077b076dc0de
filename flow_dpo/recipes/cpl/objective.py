"""Step-APO: DPO on pairs with their margin required, and optionally what is scored: likelihood, and values.

Of a batch with a completion of NLL 0.4, a value of 0.2 whose target is 0.5, and a pair of loss 0.7:

    loss 1.19    likelihood_loss 0.4    value_loss 0.09    preference_loss 0.7

A value is read off the word of a role that chooses: with p the probability of the first of two words, and d the
difference of their logits,

    value = 2 p - 1 = tanh(d / 2)        squared error (value - target)^2

so the role's choice is a tanh head on the last hidden state, whose weights are the difference of the two words' rows in
the model's output head and which its adapter moves.

Invariant: with `sft`, measures are over all examples, of every kind, so that the losses add up to the loss whatever a
batch holds; margins, which only pairs have, are not among them. Without, loss and measures are those of `Dpo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError, ObjectiveError
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.recipes.rejection_sampling.objective import Nll

if TYPE_CHECKING:
    from flow_dpo.core.protocols import Learns


@dataclass(frozen=True, kw_only=True)
class StepApo:
    """`Dpo` with a margin of what is paired, and with `sft` also what is scored: the losses of a round that begins by
    fine-tuning on right rollouts, and of a role that values states (Critical Plan Step Learning, arXiv 2409.08642)."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)

    beta: float = 0.3
    """Strength of the pull towards the reference; the paper's is 0.3."""
    margin_weight: float = 1.0
    """How far `beta` times the difference of log-ratios must exceed 0, in units of the pair's margin; the paper's alpha
    is 1."""
    sft: bool = False
    """Also learn scored completions, by their negative log-likelihood. Without, one is an `ObjectiveError`."""
    value_loss: Literal["squared", "entropy"] = "squared"
    """Of scored words, whose advantage is the probability that the word should have: the squared error of the value
    (the authors'), or cross-entropy."""

    rounds: bool = False
    """Let each batch of problems be a round: fine-tuned on from the run's first adapters, and its pairs learned from
    there. Needs `sft`, and a reference that is renewed with each batch."""

    def __post_init__(self) -> None:
        self._dpo()  # refuses what cannot be
        if self.rounds and not self.sft:
            raise ConfigError("rounds needs sft, which a round begins with; add --objective.sft")

    def learns(self, learner: Any) -> Learns:
        """What learns in a run, by a `Learner` that nothing was loaded into: `Rounds`, or the learner itself."""
        from flow_dpo.recipes.cpl.rounds import Rounds  # settings are read without torch

        return Rounds(learner) if self.rounds else learner

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
        squared = self.value_loss == "squared"
        words = [(e, p) for e, p in scored if squared and e.request.choices]
        texts = [(e, p) for e, p in scored if not (squared and e.request.choices)]
        nothing = torch.zeros((), device=policy[0][0].device)
        likelihood = Nll()([e for e, _ in texts], [p for _, p in texts], []).total if texts else nothing
        value = torch.stack([_squared_error(e, p[0]) for e, p in words]).sum() if words else nothing
        preference = (
            dpo([e for e, _, _ in pairs], [p for _, p, _ in pairs], [r for _, _, r in pairs]).total
            if pairs
            else nothing
        )
        measures = {
            "loss": (likelihood + value + preference).detach(),
            "likelihood_loss": likelihood.detach(),
            "value_loss": value.detach(),
            "preference_loss": preference.detach(),
            "said_rate": torch.tensor(float(len(scored))),
        }
        return Loss(likelihood + value + preference, measures)

    def _dpo(self) -> Dpo:
        return Dpo(beta=self.beta, margin_weight=self.margin_weight)


def _squared_error(word: ScoredCompletion, logprob: Tensor) -> Tensor:
    """(value - target)^2, both from -1 to 1; the same by either word, since the other's value is the negative."""
    value, target = 2 * logprob.exp().sum() - 1, 2 * word.advantage - 1
    return word.weight * (value - target).square()
