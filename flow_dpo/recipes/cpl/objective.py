"""Step-APO: DPO on pairs with their margin required, and beside them likelihood and values.

Of a batch with a completion of NLL 0.4, a value of 0.2 whose target is 0.5, and a pair of loss 0.7:

    loss 0.7, of pairs    likelihood_loss 0.4    value_loss 0.09    and their sum is what is learned

A value is read off the word of a role that chooses: with p the probability of the first of two words, and d the
difference of their logits,

    value = 2 p - 1 = tanh(d / 2)        squared error (value - target)^2

so the role's choice is a tanh head on the last hidden state, whose weights are the difference of the two words' rows in
the model's output head and which its adapter moves.

Invariant: each measure is over one kind of examples alone; of pairs alone, loss and measures are those of `Dpo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.recipes.likelihood import by_kind, likelihood

if TYPE_CHECKING:
    from flow_dpo.core.protocols import Learns


@dataclass(frozen=True, kw_only=True)
class StepApo:
    """`Dpo` with a margin of what is paired, and what is scored: the losses of a round that begins by fine-tuning on
    right rollouts, and of a role that values states (Critical Plan Step Learning, arXiv 2409.08642)."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)

    beta: float = 0.3
    """Strength of the pull towards the reference; the paper's is 0.3."""
    margin_weight: float = 1.0
    """How far `beta` times the difference of log-ratios must exceed 0, in units of the pair's margin; the paper's alpha
    is 1."""
    value_loss: Literal["squared", "entropy"] = "squared"
    """Of scored words, whose advantage is the probability that the word should have: the squared error of the value
    (the authors'), or cross-entropy."""
    rounds: bool = False
    """Let each batch of problems be a round: fine-tuned on from the run's first adapters, and its pairs learned from
    there. Needs a credit that has something to fine-tune on, and a reference that is renewed with each batch."""

    def __post_init__(self) -> None:
        self._dpo()  # refuses what cannot be

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
        return by_kind(examples, policy, reference, pairs=self._dpo(), scored=self._of_scored)

    def _dpo(self) -> Dpo:
        return Dpo(beta=self.beta, margin_weight=self.margin_weight)

    def _of_scored(
        self, examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        """Words by the error of their value, if it is to be squared, and all else by its likelihood."""
        import torch  # settings are read without it

        squared = self.value_loss == "squared"
        rows = list(zip(examples, policy, strict=True))
        words = [(e, p) for e, p in rows if squared and e.request.choices]
        texts = [(e, p) for e, p in rows if not (squared and e.request.choices)]
        measures, counts = dict[str, Tensor](), {"likelihood_loss": len(texts), "value_loss": len(words)}
        total = policy[0][0].new_zeros(())
        if texts:
            loss = likelihood([e for e, _ in texts], [p for _, p in texts], [])
            total, measures = total + loss.total, dict(loss.measures)
        if words:
            errors = torch.stack([_squared_error(e, p[0]) for e, p in words]).sum()
            total, measures = total + errors, measures | {"value_loss": errors.detach()}
        return Loss(total, measures, {name: counts[name] for name in measures})


def _squared_error(word: ScoredCompletion, logprob: Tensor) -> Tensor:
    """(value - target)^2, both from -1 to 1; the same by either word, since the other's value is the negative."""
    value, target = 2 * logprob.exp().sum() - 1, 2 * word.advantage - 1
    return word.weight * (value - target).square()
