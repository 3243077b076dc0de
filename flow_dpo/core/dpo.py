"""The DPO loss, and its step-wise variant with a margin: objectives on preference pairs.

Invariant: both objectives compare log-ratios of policy and reference, so every pair counts alike at the start. The
log-ratios of one pair, summed over tokens:

    chosen 0.2    rejected -0.1    ->    h = beta * 0.3, loss -log sigmoid(h)

The measure "accuracy" is the share of pairs with h > 0; h = 0, as when policy and reference are equal, counts as 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.errors import expect
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Pair


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, equation 7), and conservative DPO.
    With log-ratios r_w = log pi(chosen)/ref(chosen) and r_l of the rejected, sums over tokens, h = beta (r_w - r_l):

        loss = -(1 - e) log sigmoid(h) - e log sigmoid(-h) - sft_weight * mean over tokens of log pi(chosen)

    where e is `label_smoothing` (Mitchell's note on cDPO, equation 3). At e = 0, d loss / d h = -sigmoid(-h): log 2 and
    -1/2 if policy and reference are equal. Implicit rewards are beta times the log-ratios. With `margin_weight` a and
    the pair's margin m, h - a m takes the place of h in the loss: Step-APO (Critical Plan Step Learning, arXiv
    2409.08642), where m is the difference of the two values.
    """

    accepts: ClassVar[tuple[type, ...]] = (Pair,)

    beta: float = 1.0
    """Strength of the pull towards the reference; 1 in the paper."""
    label_smoothing: float = 0.0
    """Assumed share of pairs that are the wrong way round, below 1/2."""
    sft_weight: float = 0.0
    """Weight of the NLL of the chosen completion, a mean over its tokens (RPO, Pang et al., arXiv 2404.19733). It keeps
    the likelihood of chosen completions from falling. Not in the paper."""
    margin_weight: float = 0.0
    """How far h should exceed 0, in units of the pair's margin; Step-APO's alpha, 1 there. Not in the paper."""

    def __post_init__(self) -> None:
        expect(self, "above 0", lambda value: value > 0, "beta")
        expect(self, "of 0 or more, below 0.5", lambda value: 0 <= value < 0.5, "label_smoothing")
        expect(self, "of 0 or more", lambda value: value >= 0, "sft_weight", "margin_weight")

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(
        self, examples: Sequence[Pair], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        from torch.nn.functional import logsigmoid  # settings are read without torch

        ratios = Ratios(examples, policy, reference)
        h = self.beta * (ratios.chosen - ratios.rejected)
        wanted = h - self.margin_weight * h.new_tensor([e.margin for e in examples])
        losses = -(1 - self.label_smoothing) * logsigmoid(wanted)
        if self.label_smoothing:
            losses = losses - self.label_smoothing * logsigmoid(-wanted)
        if self.sft_weight:
            losses = losses - self.sft_weight * ratios.chosen_logprobs / ratios.chosen_lengths
        return ratios.loss(losses, h)


class Ratios:
    """The sums over tokens that every objective on pairs starts from, one value per pair."""

    def __init__(
        self, examples: Sequence[Pair], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> None:
        self.chosen_logprobs, self.rejected_logprobs = (_sums(policy, side) for side in (0, 1))
        self.chosen = self.chosen_logprobs - _sums(reference, 0)
        self.rejected = self.rejected_logprobs - _sums(reference, 1)
        self.weights = self.chosen.new_tensor([e.weight for e in examples])
        self.chosen_lengths = self.chosen.new_tensor([float(len(e.chosen.token_ids)) for e in examples])
        self.rejected_lengths = self.chosen.new_tensor([float(len(e.rejected.token_ids)) for e in examples])

    def loss(self, losses: Tensor, margins: Tensor) -> Loss:
        weighted = self.weights * losses
        measures = {
            "loss": weighted,
            "margin": margins,
            "accuracy": (1 + margins.sign()) / 2,
            "chosen_ratio": self.chosen,
            "chosen_logprobs": self.chosen_logprobs,
            "rejected_logprobs": self.rejected_logprobs,
        }
        return Loss(weighted.sum(), {name: value.detach().sum() for name, value in measures.items()})


def _sums(logprobs: Sequence[TokenLogprobs], side: int) -> Tensor:
    import torch

    return torch.stack([pieces[side].sum() for pieces in logprobs])
