"""Negative log-likelihood of the completions that a credit kept, alone or added to a loss on pairs.

`Nll` is the objective of imitation: fine-tuning on what a credit kept, without a reference and without what was
rejected. One completion of two tokens, kept with advantage 1:

    policy   -0.2 -0.6      loss 0.4, and its derivative by each token's log-probability is -1/2

`by_kind` is the loss of a batch that holds both kinds of examples, for every objective that learns both. If the batch
also holds a pair of loss 0.7, its loss is 1.1.

Invariant: loss and measures are sums over the examples, each measure over one kind alone; a kind that is not in the
batch adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flow_dpo.core.errors import ObjectiveError
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion


@dataclass(frozen=True, kw_only=True)
class Nll:
    """Advantage-weighted negative log-likelihood, averaged over each completion's tokens:

        loss = - weight * advantage * (1 / |y|) * sum over t of log pi(y_t | x, y_<t)

    With all advantages 1 this is the cross-entropy of supervised fine-tuning on a model's own right answers (STaR,
    arXiv 2203.14465; RFT, arXiv 2308.01825; ReST-EM, arXiv 2312.06585, with its binary reward). Every completion weighs
    the same, however long it is. Raises `ObjectiveError` for an advantage below 0, whose loss would have no lower
    bound.
    """

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(
        self, examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it

        worst = min((example.advantage for example in examples), default=1.0)
        if worst < 0:
            raise ObjectiveError(
                f"Nll expects advantages of at least 0, found {worst} in {len(examples)} examples; choose a credit "
                "that keeps what was right, or ClippedPolicyGradient for advantages of both signs"
            )
        means = torch.stack([logprobs.mean() for (logprobs,) in policy])
        sums = torch.stack([logprobs.detach().sum() for (logprobs,) in policy])
        factors = torch.tensor([e.weight * e.advantage for e in examples], device=means.device)
        total = -(factors * means).sum()
        advantages = torch.tensor([e.advantage for e in examples])
        measures = {
            "loss": total.detach(),
            "token_logprobs": means.detach().sum(),
            "completion_logprobs": sums.sum(),
            "advantage": advantages.sum(),
        }
        return Loss(total, measures)


OfKind = Callable[[Sequence[Any], Sequence[TokenLogprobs], Sequence[TokenLogprobs]], Loss]
"""The loss on examples of one kind, called like an objective."""


def likelihood(
    examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
) -> Loss:
    """`Nll` as the scored part of `by_kind`; its loss is the measure "likelihood_loss"."""
    total = Nll()(examples, policy, reference).total
    return Loss(total, {"likelihood_loss": total.detach()})


def by_kind(
    examples: Sequence[Example],
    policy: Sequence[TokenLogprobs],
    reference: Sequence[TokenLogprobs],
    *,
    pairs: OfKind,
    scored: OfKind = likelihood,
) -> Loss:
    """One loss on the pairs plus another on the scored completions. A measure is over the examples of its kind, or over
    as many as that loss counts."""
    import torch  # settings are read without it

    rows = list(zip(examples, policy, reference, strict=True))
    total = torch.zeros((), device=policy[0][0].device)
    measures, counts = dict[str, Tensor](), dict[str, int]()
    for kind, of_kind in ((Pair, pairs), (ScoredCompletion, scored)):
        found = [row for row in rows if isinstance(row[0], kind)]
        if found:
            loss = of_kind(*map(list, zip(*found, strict=True)))
            total = total + loss.total
            measures |= loss.measures
            counts |= dict.fromkeys(loss.measures, len(found)) | dict(loss.counts)
    return Loss(total, measures, counts)
