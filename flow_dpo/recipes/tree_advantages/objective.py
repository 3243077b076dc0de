"""The clipped policy gradient on segments, of which sure tokens may be masked.

Of a segment with the advantage 0.7, the probabilities .5 and .95 when it was sampled, and the mask from .9 on: only the
first token is learned, on policy with the gradient -0.7 of its log-probability.

Invariant: what a masked token's probability is now changes neither loss nor gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from flow_dpo.core.errors import expect
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import ScoredCompletion


@dataclass(frozen=True, kw_only=True)
class SegmentPolicyGradient:
    """PPO's clipped surrogate over a segment's learned tokens, and a penalty that is summed over them or their mean
    (SPO, arXiv 2505.23564, and the authors' code, AIFrameResearch/SPO at b9fc6a2, `ppo_trainer.py`; TreeRL, arXiv
    2506.11902; TreeRPO, 2506.05183, with GRPO's).

    With r = pi / pi_old of a token, A the advantage, w the weight, d = log ref - log pi:

        loss = - w * mean of min(r A, clip(r, 1 - e, 1 + e') A)  +  b * sum or w * mean of (exp(d) - d - 1)

    pi_old is what was recorded while sampling, at the learner's `logit_temperature`. Learned is what pi_old gave less
    than `mask_above`; the mean is over what it gave less at temperature 1, by which the credit weighs segments, so that
    a learned token counts the same in each.
    """

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)

    clip_range: float = 0.2
    """e: below 1 - e a token whose advantage is negative gives no more."""
    clip_high: float = 0.2
    """e': above 1 + e' a token whose advantage is positive gives no more."""
    kl_coef: float = 1e-4
    """b; 0 leaves the reference out of it."""
    kl_reduction: Literal["sum", "mean"] = "sum"
    """Over a segment's learned tokens; the mean is weighed as the policy's part is."""
    mask_above: float = 0.9
    """Tokens from this probability on are not learned; 0 masks none."""

    def __post_init__(self) -> None:
        expect(self, "between 0 and 1", lambda value: 0 < value < 1, "clip_range")
        expect(self, "above 0", lambda value: value > 0, "clip_high")
        expect(self, "of 0 or more", lambda value: value >= 0, "kl_coef")
        expect(self, "from 0 to 1", lambda value: 0 <= value <= 1, "mask_above")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def __call__(
        self, examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it

        losses: list[Tensor] = []
        names = ("kl", "clipped", "ratio", "completion_logprobs", "advantage", "masked")
        sums = {name: torch.zeros(()) for name in names}
        for index, (example, (logprobs,)) in enumerate(zip(examples, policy, strict=True)):
            old = torch.tensor(example.completion.logprobs, device=logprobs.device)
            learned = old.exp() < self.mask_above if self.mask_above else torch.ones_like(old, dtype=torch.bool)
            raw = torch.tensor(example.completion.raw_logprobs, device=logprobs.device)
            counted = raw.exp() < self.mask_above if len(raw) and self.mask_above else learned
            count = counted.sum().clamp(min=1)
            ratio = torch.where(learned, logprobs - old, torch.zeros_like(old)).exp()
            kept = ratio.clamp(1 - self.clip_range, 1 + self.clip_high)
            gain = torch.minimum(ratio * example.advantage, kept * example.advantage)
            loss = -example.weight * (gain * learned).sum() / count
            kl = torch.zeros_like(gain)
            if self.kl_coef:
                away = torch.where(learned, reference[index][0] - logprobs, torch.zeros_like(old))
                kl = away.exp() - away - 1
                loss = loss + self.kl_coef * (
                    kl.sum() if self.kl_reduction == "sum" else example.weight * kl.sum() / count
                )
            losses.append(loss)
            clipped = ((ratio * example.advantage > kept * example.advantage) & learned).sum() / count
            found = (kl.sum() / count, clipped, (ratio * learned).sum() / count, logprobs.sum(),
                     torch.tensor(example.advantage), 1 - learned.float().mean())  # fmt: skip
            sums = {name: sums[name] + value.detach().cpu() for name, value in zip(names, found, strict=True)}
        total = torch.stack(losses).sum()
        return Loss(total, sums | {"loss": total.detach()})
