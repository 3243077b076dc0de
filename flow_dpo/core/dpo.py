"""The DPO loss, and its step-wise variant with a margin: objectives on preference pairs.

Invariant: both objectives compare log-ratios of policy and reference, so that at the start every pair weighs alike. One
pair's log-ratios, sums over tokens:

    chosen 0.2    rejected -0.1    ->    h = beta * 0.3, loss -log sigmoid(h)

The measure "accuracy" is the share of pairs with h > 0; h = 0, as in an update where both are equal, counts as a half.
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
    -1/2 where policy and reference are equal. Implicit rewards are beta times the log-ratios. With a `margin_weight` a
    the pair's margin m is required on top, h - a m in place of h: Step-APO (Critical Plan Step Learning, arXiv
    2409.08642), where m is the difference of the two values.
    """

    accepts: ClassVar[tuple[type, ...]] = (Pair,)

    beta: float = 1.0
    """Strength of the pull towards the reference; the paper's is 1."""
    label_smoothing: float = 0.0
    """Share of pairs supposed to be the wrong way round, below 1/2."""
    sft_weight: float = 0.0
    """Weight of the chosen completion's own likelihood (RPO of Pang et al., arXiv 2404.19733). It counters a falling
    likelihood of chosen completions. Not in the paper."""
    margin_weight: float = 0.0
    """How far h must exceed 0, in units of the pair's margin; Step-APO's alpha is 1. Not in the paper."""

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
    """Sums over tokens that every objective on pairs begins with; one value a pair."""

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
