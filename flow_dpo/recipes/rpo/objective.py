"""Likelihood of a correct path plus an odds ratio of its continuation against a wrong one.

Invariant: no reference policy is needed; the contrast reads only what chosen and rejected do not share. A pair with one
token in common and log-probabilities

    chosen a -0.2  b -0.1  c -0.3    rejected a -0.2  d -1.0    ->    path 0.2, contrast of means -0.2 and -1.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.errors import expect
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Pair
from flow_dpo.recipes.pair_objectives import log_odds


@dataclass(frozen=True, kw_only=True)
class OddsRatio:
    """Likelihood of the chosen path and an odds ratio after the common prefix (Reasoning Paths Optimization, Chia et
    al., arXiv 2410.10858, section 3; the ratio is that of ORPO, Hong et al., arXiv 2403.07691, equation 7).

    With m the mean log-probability of a completion's tokens after the common prefix, M that of all tokens of the
    chosen one, and log odds(m) = m - log(1 - e^m):

        loss = - M_chosen - exploration_weight * log sigmoid(log odds(m_chosen) - log odds(m_rejected))

    d log odds / d m = 1 / (1 - e^m): a continuation that is nearly certain is pushed hardest.
    """

    accepts: ClassVar[tuple[type, ...]] = (Pair,)

    exploration_weight: float = 0.3
    """lambda, the weight of the odds ratio; the authors' are 0.1 to 0.3."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "exploration_weight")

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(
        self, examples: Sequence[Pair], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it
        from torch.nn.functional import logsigmoid

        shared = [num_shared(pair.chosen.token_ids, pair.rejected.token_ids) for pair in examples]
        path = torch.stack([chosen.mean() for chosen, _ in policy])
        odds = [
            torch.stack([log_odds(_after(pieces[side], n).mean()) for pieces, n in zip(policy, shared, strict=True)])
            for side in (0, 1)
        ]
        margins = odds[0] - odds[1]
        weights = torch.tensor([pair.weight for pair in examples], device=path.device)
        losses = weights * (-path - self.exploration_weight * logsigmoid(margins))
        sums = [torch.stack([pieces[side].sum() for pieces in policy]) for side in (0, 1)]
        measures = {
            "loss": losses,
            "margin": margins,
            "accuracy": (1 + margins.sign()) / 2,
            "path_loss": -path,
            "chosen_logprobs": sums[0],
            "rejected_logprobs": sums[1],
        }
        return Loss(losses.sum(), {name: value.detach().sum() for name, value in measures.items()})


def num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    same = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        same += 1
    return same


def _after(logprobs: Tensor, shared: int) -> Tensor:
    """The tokens after the common prefix; the last token if there are none (one side can be the other's beginning)."""
    return logprobs[min(shared, len(logprobs) - 1) :]
