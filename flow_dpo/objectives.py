"""What is to be made small?

An objective is a value: its fields are its hyper-parameters, and calling it turns examples and the log-probabilities of
their completions into a loss and some measures. It knows no model, no adapter and no batch. One pair with its tokens'
log-probabilities under policy and reference:

    policy      chosen -0.2 -0.1    rejected -0.3 -1.0
    reference   chosen -0.3 -0.2    rejected -0.3 -0.9
    log-ratios  chosen  0.2         rejected -0.1         margin beta * 0.3, loss -log sigmoid(beta * 0.3)

Invariant: loss and measures are *sums* over the examples, so that a batch may be split over any number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch.nn.functional import logsigmoid

from flow_dpo.errors import ConfigError, ObjectiveError
from flow_dpo.types import Pair, Scored

TokenLogprobs = Sequence[torch.Tensor]
"""Of an example's completions, in their order: one value a token, float32."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Of some examples."""

    total: torch.Tensor
    """Sum over the examples of weight times loss; carries the gradient."""
    measures: Mapping[str, torch.Tensor]
    """Sums over the examples, for the record."""


class Objective(Protocol):
    """A rule that says how good the policy's log-probabilities are."""

    eats: ClassVar[type]
    """The kind of example."""

    @property
    def needs_reference(self) -> bool:
        """Whether it reads the reference's log-probabilities; where not, they are not computed and it gets none."""
        ...

    def __call__(
        self, examples: Sequence[Any], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        """`policy` and `reference` hold the log-probabilities of each example's `completions`."""
        ...


def check_food(objective: Objective, examples: Sequence[object]) -> None:
    """Refuse, before any work, examples that the objective does not eat."""
    for example in examples:
        if not isinstance(example, objective.eats):
            raise ObjectiveError(
                f"{type(objective).__name__} eats {objective.eats.__name__}, found {type(example).__name__}; "
                f"choose a credit that makes {objective.eats.__name__}"
            )


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, equation 7), and conservative DPO.

    With log-ratios r_w = log pi(chosen)/ref(chosen) and r_l of the rejected, sums over tokens, h = beta (r_w - r_l):

        loss = -(1 - e) log sigmoid(h) - e log sigmoid(-h) - sft_weight * mean over tokens of log pi(chosen)

    where e is `label_smoothing` (Mitchell's note on cDPO, equation 3). At e = 0, d loss / d h = -sigmoid(-h): log 2 and
    -1/2 where policy and reference are equal. Implicit rewards are beta times the log-ratios.
    """

    eats: ClassVar[type] = Pair

    beta: float = 1.0
    """Strength of the pull towards the reference; the paper's is 1."""
    label_smoothing: float = 0.0
    """Share of pairs supposed to be the wrong way round, below 1/2."""
    sft_weight: float = 0.0
    """Weight of the chosen completion's own likelihood (RPO of Pang et al., arXiv 2404.19733). It counters a falling
    likelihood of chosen completions. Not in the paper."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"beta must be above 0, found {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing must be in [0, 0.5), found {self.label_smoothing}")
        if self.sft_weight < 0:
            raise ConfigError(f"sft_weight must be 0 or more, found {self.sft_weight}")

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(
        self, examples: Sequence[Pair], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        ratios = _Ratios(examples, policy, reference)
        h = self.beta * (ratios.chosen - ratios.rejected)
        losses = -(1 - self.label_smoothing) * logsigmoid(h)
        if self.label_smoothing:
            losses = losses - self.label_smoothing * logsigmoid(-h)
        if self.sft_weight:
            losses = losses - self.sft_weight * ratios.chosen_logprobs / ratios.chosen_lengths
        return ratios.loss(losses, h)


@dataclass(frozen=True, kw_only=True)
class Ipo:
    """Identity preference optimisation (Azar et al., arXiv 2310.12036, equation 17).

        loss = (r_w / |chosen| - r_l / |rejected| - 1 / (2 beta))^2

    The log-ratios are means over tokens, as the authors advise: sums would make the target depend on length.
    """

    eats: ClassVar[type] = Pair

    beta: float = 1.0
    """tau in that paper: the mean log-ratios are pulled to a distance of 1 / (2 beta)."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"beta must be above 0, found {self.beta}")

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(
        self, examples: Sequence[Pair], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        ratios = _Ratios(examples, policy, reference)
        distance = ratios.chosen / ratios.chosen_lengths - ratios.rejected / ratios.rejected_lengths
        return ratios.loss((distance - 1 / (2 * self.beta)).square(), self.beta * distance)


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient:
    """The clipped surrogate of PPO (Schulman et al., arXiv 1707.06347, equation 7) with a penalty on the divergence
    from the reference in the loss, as GRPO has it (Shao et al., arXiv 2402.03300, equations 3 and 4) and VinePPO too.

    With r = pi / pi_old of a token, A the completion's advantage, d = log ref - log pi:

        loss = - mean over the completion's tokens of [ min(r A, clip(r, 1 - e, 1 + e) A) - b (exp(d) - d - 1) ]

    pi_old is what was recorded while sampling, of the unscaled distribution. On policy r = 1 and the gradient is that
    of - A mean log pi. The penalty is the estimator k3, never below 0.
    """

    eats: ClassVar[type] = Scored

    clip_range: float = 0.2
    """e: beyond it a token that has already moved the right way gives no more."""
    kl_coef: float = 0.04
    """b; 0 leaves the reference out of it."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_range < 1:
            raise ConfigError(f"clip_range must be between 0 and 1, found {self.clip_range}")
        if self.kl_coef < 0:
            raise ConfigError(f"kl_coef must be 0 or more, found {self.kl_coef}")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def __call__(
        self, examples: Sequence[Scored], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        losses: list[torch.Tensor] = []
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
            losses.append(-example.weight * (gain - self.kl_coef * kl).mean())
            clipped = (ratio * example.advantage > kept * example.advantage).float()
            found = (kl.mean(), clipped.mean(), ratio.mean(), logprobs.sum(), torch.tensor(example.advantage))
            sums = {name: sums[name] + value.detach().cpu() for name, value in zip(names, found, strict=True)}
        total = torch.stack(losses).sum()
        return Loss(total, sums | {"loss": total.detach()})


class _Ratios:
    """Sums over tokens that every objective on pairs begins with; one value a pair."""

    def __init__(
        self, examples: Sequence[Pair], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> None:
        self.chosen_logprobs, self.rejected_logprobs = (_sums(policy, side) for side in (0, 1))
        self.chosen = self.chosen_logprobs - _sums(reference, 0)
        self.rejected = self.rejected_logprobs - _sums(reference, 1)
        device = self.chosen.device
        self.weights = torch.tensor([e.weight for e in examples], device=device)
        self.chosen_lengths = torch.tensor([float(len(e.chosen.token_ids)) for e in examples], device=device)
        self.rejected_lengths = torch.tensor([float(len(e.rejected.token_ids)) for e in examples], device=device)

    def loss(self, losses: torch.Tensor, margins: torch.Tensor) -> Loss:
        weighted = self.weights * losses
        measures = {
            "loss": weighted,
            "margin": margins,
            "accuracy": (margins > 0).float(),
            "chosen_ratio": self.chosen,
            "chosen_logprobs": self.chosen_logprobs,
            "rejected_logprobs": self.rejected_logprobs,
        }
        return Loss(weighted.sum(), {name: value.detach().sum() for name, value in measures.items()})


def _sums(logprobs: Sequence[TokenLogprobs], side: int) -> torch.Tensor:
    return torch.stack([pieces[side].sum() for pieces in logprobs])
