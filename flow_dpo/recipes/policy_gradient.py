"""The clipped policy gradient on scored completions: one loss for PPO, GRPO, DAPO, Dr. GRPO, GSPO, CISPO and RLOO.

What sets them apart are four choices, each a field: what a probability ratio is of (`ratio_level`), what clipping does
(`surrogate`), how tokens are averaged (`reduction`), and how the divergence from the reference is (`kl_reduction`). Two
answers of 2 and 6 tokens with advantages 0.7 and -0.7, on policy, and the gradient of each token's log-probability:

    reduction "answer"      -0.7 / (2 * 2)     0.7 / (2 * 6)      an answer counts as much as any other
    reduction "tokens"      -0.7 / 8           0.7 / 8            a token does
    reduction "constant"    -0.7 / (2 * L)     0.7 / (2 * L)      the same whatever else is in the update

Invariant: averages are over the whole update, however it is cut into rows, and whoever computes them. A token that has
moved the right way beyond the clip gives no more gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import ScoredCompletion

AnswerKey = tuple[str, int, int]
"""Problem, policy version and first node: what the completions of one answer share."""


def answer_of(example: ScoredCompletion) -> AnswerKey:
    """Which answer the completion is of. The nodes of a rollout from the beginning are numbered in a row, so that node
    less depth is the first; completions that stand alone are an answer each."""
    return (example.problem_id, example.completion.policy_version, example.node - example.depth)


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient:
    """The clipped surrogate of PPO (Schulman et al., arXiv 1707.06347, equation 7) with a penalty on the divergence
    from the reference in the loss (GRPO: Shao et al., arXiv 2402.03300, equations 3 and 4).

    With r = pi / pi_old, A the completion's advantage, d = log ref - log pi, and "mean" as `reduction` says:

        loss = - mean of [ min(r A, clip(r, 1 - low, 1 + high) A) ] + kl_coef * mean of [ exp(d) - d - 1 ]

    pi_old is what was recorded while sampling, at the learner's `logit_temperature`. On policy r = 1 and the gradient
    is that of - A mean log pi.
    """

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)

    ratio_level: Literal["token", "sequence", "product"] = "token"
    """What r is of: each token; a completion, as the geometric mean over its tokens (GSPO, arXiv 2507.18071, equation
    7); or a completion, as the product over its tokens, which is the ratio of its probabilities (RLOO)."""
    surrogate: Literal["min", "weight"] = "min"
    """What the clip does: "min" as above; "weight" clips r as a fixed weight of A log pi, so that every token keeps a
    gradient (CISPO, arXiv 2506.13585, equation 4)."""
    clip_low: float = 0.2
    """How far below 1 r counts; 1 sets no limit."""
    clip_high: float = 0.2
    """How far above 1 r counts; DAPO's "clip-higher" is 0.28 (arXiv 2503.14476, section 3.1)."""
    reduction: Literal["answer", "tokens", "constant", "sum"] = "answer"
    """Over an update's tokens: the mean of each answer's mean; the mean of all; each answer's sum divided by `length`
    (Dr. GRPO, arXiv 2503.20783), or undivided, and then the mean over answers."""
    length: int = 0
    """What "constant" divides by; 0: the longest completion that the flow allows, in tokens."""
    kl_coef: float = 0.04
    """Of the divergence; 0 leaves the reference out of it."""
    kl_reduction: Literal["as_policy", "sum"] = "as_policy"
    """As `reduction`, or summed over an answer's tokens and averaged over answers, as VinePPO has it: T times as strong
    at T tokens an answer."""
    kl_estimator: Literal["k3", "k2"] = "k3"
    """exp(d) - d - 1, or d^2 / 2 (REINFORCE++, arXiv 2501.03262). Neither is ever below 0."""
    max_kl: float = 0.0
    """Most that the divergence of one token counts; beyond it has no gradient. 0 sets no limit; VinePPO's is 10."""
    max_ratio: float = 0.0
    """A completion whose mean r is above this is left out of an update. 0 sets no limit; VinePPO's is 10."""

    def __post_init__(self) -> None:
        expect(self, "above 0 and at most 1 (1 sets no limit)", lambda value: 0 < value <= 1, "clip_low")
        expect(self, "above 0", lambda value: value > 0, "clip_high")
        expect(self, "of 0 or more", lambda value: value >= 0, "length", "kl_coef", "max_kl", "max_ratio")
        if self.max_ratio and self.max_ratio <= 1:
            raise ConfigError(f"expected max_ratio above 1, or 0 for no limit, found {self.max_ratio}")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def for_update(self, examples: Sequence[ScoredCompletion]) -> OfUpdate:
        """The loss of the rows of an update with these examples."""
        lengths: Counter[AnswerKey] = Counter()
        for example in examples:
            lengths[answer_of(example)] += len(example.completion.token_ids)
        length = self.length or max((example.request.max_tokens for example in examples), default=1)
        return OfUpdate(
            settings=self, num_examples=len(examples), num_tokens=lengths.total(), lengths=lengths, length=length
        )

    def __call__(
        self, examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        """The loss where these examples are the whole update."""
        return self.for_update(examples)(examples, policy, reference)


@dataclass(frozen=True, kw_only=True)
class OfUpdate:
    """The same for the rows of one update: sums over a row's examples, that add up to `num_examples` times the loss."""

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)

    settings: ClippedPolicyGradient
    num_examples: int
    num_tokens: int
    lengths: Mapping[AnswerKey, int]
    """Tokens of each answer that are learned in the update."""
    length: int
    """What "constant" divides by."""

    @property
    def needs_reference(self) -> bool:
        return self.settings.needs_reference

    def __call__(
        self, examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it

        losses: list[Tensor] = []
        names = ("kl", "clipped", "ratio", "left_out", "completion_logprobs", "advantage")
        sums = {name: torch.zeros(()) for name in names}
        for index, (example, (logprobs,)) in enumerate(zip(examples, policy, strict=True)):
            # 1. Of each token: what it gains, and its divergence.
            gain, ratio, clipped = self._gain(example, logprobs)
            kl = self._kl(logprobs, reference[index][0]) if self.needs_reference else torch.zeros_like(logprobs)
            # 2. A ratio that ran away says that old and new policy are too far apart to learn from.
            left_out = bool(self.settings.max_ratio) and float(ratio.detach().mean()) > self.settings.max_ratio
            if left_out:
                gain = kl = 0 * logprobs
            # 3. Averages over the update.
            share, kl_share = self._shares(example)
            losses.append(example.weight * (self.settings.kl_coef * kl_share * kl.sum() - share * gain.sum()))
            mine = (kl.mean(), clipped.float().mean(), ratio.mean(), torch.tensor(float(left_out)), logprobs.sum())
            found = (*mine, torch.tensor(example.advantage))
            sums = {name: sums[name] + value.detach().cpu() for name, value in zip(names, found, strict=True)}
        total = torch.stack(losses).sum()
        return Loss(total, sums | {"loss": total.detach()})

    def _gain(self, example: ScoredCompletion, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each token gains, its ratio, and whether the clip took its gradient, or cut its weight."""
        import torch

        settings, advantage = self.settings, example.advantage
        moved = logprobs - torch.tensor(example.completion.logprobs, device=logprobs.device)
        if settings.ratio_level != "token":
            moved = (moved.mean() if settings.ratio_level == "sequence" else moved.sum()).expand_as(moved)
        ratio = moved.exp()
        kept = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        if settings.surrogate == "weight":
            return kept.detach() * advantage * logprobs, ratio, kept != ratio
        return torch.minimum(ratio * advantage, kept * advantage), ratio, ratio * advantage > kept * advantage

    def _kl(self, logprobs: Tensor, reference: Tensor) -> Tensor:
        """The divergence from the reference of each token, estimated."""
        away = reference - logprobs
        kl = away.square() / 2 if self.settings.kl_estimator == "k2" else away.exp() - away - 1
        return kl.clamp(max=self.settings.max_kl) if self.settings.max_kl else kl

    def _shares(self, example: ScoredCompletion) -> tuple[float, float]:
        """What each of its tokens counts in the policy's part and in the divergence's, times the number of examples."""
        settings, of_sum = self.settings, self.num_examples / len(self.lengths)
        share = {
            "answer": of_sum / self.lengths[answer_of(example)],
            "tokens": self.num_examples / self.num_tokens,
            "constant": of_sum / self.length,
            "sum": of_sum,
        }[settings.reduction]
        return share, of_sum if settings.kl_reduction == "sum" else share
