"""Step-APO: DPO on pairs with their margin required, plus losses for likelihood and values.

For a batch with a completion of NLL 0.4, a value of 0.2 whose target is 0.5, and a pair of loss 0.7:

    loss 0.7, of pairs    likelihood_loss 0.4    value_loss 0.09    and their sum is minimised

A value is read from the word of a role that chooses: with p the probability of the first of two words, and d the
difference of their logits,

    value = 2 p - 1 = tanh(d / 2)        squared error (value - target)^2

so the role's choice is a tanh head on the last hidden state: the head's weights are the difference of the two words'
rows in the model's output head, and the role's adapter trains it.

Invariant: each measure is over one kind of examples alone; on pairs alone, loss and measures are those of `Dpo`.
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
    """`Dpo` with a margin on pairs, and a loss on scored completions: for rounds that begin by fine-tuning on right
    rollouts, and for a role that values states (Critical Plan Step Learning, arXiv 2409.08642)."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)

    beta: float = 0.3
    """Strength of the pull towards the reference; the paper's is 0.3."""
    margin_weight: float = 1.0
    """alpha: by how much `beta` times the difference of log-ratios must exceed 0, in units of the pair's margin; the
    paper's is 1."""
    value_loss: Literal["squared", "entropy"] = "squared"
    """Loss of scored words, whose advantage is the probability that the word should have: "squared", the squared error
    of the value (the authors'), or "entropy", cross-entropy."""
    rounds: bool = False
    """Make each batch of problems a round: fine-tune from the run's first adapters, then learn the pairs from there.
    Needs a credit with something to fine-tune on, and a reference that is renewed with each batch."""

    def __post_init__(self) -> None:
        self._dpo()  # refuses invalid values

    def learns(self, learner: Any) -> Learns:
        """What learns in a run, given a `Learner` that nothing was loaded into: `Rounds`, or the learner itself."""
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
        """Words by the squared error of their value, if so set, and everything else by its likelihood."""
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
    """(value - target)^2, both from -1 to 1; the same for either word, since the other one's value is the negative."""
    value, target = 2 * logprob.exp().sum() - 1, 2 * word.advantage - 1
    return word.weight * (value - target).square()
