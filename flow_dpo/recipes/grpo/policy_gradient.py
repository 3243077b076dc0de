"""The clipped policy gradient of PPO and GRPO, on scored completions.

Invariant: a token that has already moved the right way by `clip_range` gives no more gradient. On policy, with an
advantage of 0.7 and two tokens, each token's log-probability has the gradient -0.7 / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import ScoredCompletion


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient:
    """The clipped surrogate of PPO (Schulman et al., arXiv 1707.06347, equation 7) with a penalty on the divergence
    from the reference in the loss, as GRPO has it (Shao et al., arXiv 2402.03300, equations 3 and 4) and VinePPO too.

    With r = pi / pi_old of a token, A the completion's advantage, d = log ref - log pi:

        loss = - mean over the completion's tokens of [ min(r A, clip(r, 1 - e, 1 + e) A) - b (exp(d) - d - 1) ]

    pi_old is what was recorded while sampling, of the unscaled distribution. On policy r = 1 and the gradient is that
    of - A mean log pi. The penalty is the estimator k3, never below 0.
    """

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)

    clip_range: float = 0.2
    """e: beyond it a token that has already moved the right way gives no more."""
    kl_coef: float = 0.04
    """b; 0 leaves the reference out of it."""
    max_kl: float = 0.0
    """Most that the divergence of one token counts; beyond it has no gradient. 0 sets no limit; VinePPO's is 10."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_range < 1:
            raise ConfigError(f"clip_range must be between 0 and 1, found {self.clip_range}")
        if self.kl_coef < 0:
            raise ConfigError(f"kl_coef must be 0 or more, found {self.kl_coef}")
        if self.max_kl < 0:
            raise ConfigError(f"max_kl must be 0 or more, found {self.max_kl}")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def __call__(
        self, examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it

        losses: list[Tensor] = []
        names = ("kl", "clipped", "ratio", "completion_logprobs", "advantage")
        sums = {name: torch.zeros(()) for name in names}
        for index, (example, (logprobs,)) in enumerate(zip(examples, policy, strict=True)):
            old = torch.tensor(example.completion.logprobs, device=logprobs.device)
            ratio = (logprobs - old).exp()
            kept = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
            gain = torch.minimum(ratio * example.advantage, kept * example.advantage)
            kl = torch.zeros_like(gain)
            if self.kl_coef:
                away = reference[index][0] - logprobs
                kl = away.exp() - away - 1
                if self.max_kl:
                    kl = kl.clamp(max=self.max_kl)
            losses.append(-example.weight * (gain - self.kl_coef * kl).mean())
            clipped = (ratio * example.advantage > kept * example.advantage).float()
            found = (kl.mean(), clipped.mean(), ratio.mean(), logprobs.sum(), torch.tensor(example.advantage))
            sums = {name: sums[name] + value.detach().cpu() for name, value in zip(names, found, strict=True)}
        total = torch.stack(losses).sum()
        return Loss(total, sums | {"loss": total.detach()})
