"""Negative log-likelihood of the completions that a credit kept.

`Nll` is the objective of imitation: fine-tuning on what a credit kept, without a reference and without what was
rejected. One completion of two tokens, kept with advantage 1:

    policy   -0.2 -0.6      loss 0.4, and -1/2 its derivative by each token's log-probability

Invariant: as of every objective, loss and measures are sums over the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.errors import ObjectiveError
from flow_dpo.core.objective import Loss, TokenLogprobs
from flow_dpo.core.types import ScoredCompletion


@dataclass(frozen=True, kw_only=True)
class Nll:
    """Advantage-weighted negative log-likelihood, a mean over each completion's tokens:

        loss = - weight * advantage * (1 / |y|) * sum over t of log pi(y_t | x, y_<t)

    With all advantages 1 this is the cross-entropy of supervised fine-tuning on one's own right answers (STaR, arXiv
    2203.14465; RFT, arXiv 2308.01825; ReST-EM, arXiv 2312.06585, with its binary
    reward), each completion weighing the same however long it is. Raises `ObjectiveError` for an advantage below 0:
    its loss would have no lower bound.
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
                f"Nll expects advantages above 0, found {worst} in {len(examples)} examples; choose a credit "
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
