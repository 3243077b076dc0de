"""The clipped policy gradient on scored completions: one loss for PPO, GRPO, DAPO, Dr. GRPO, GSPO, CISPO, RLOO and SPO.

The methods differ in five fields: what a probability ratio is of (`ratio_level`), what clipping does (`surrogate`), how
tokens (`reduction`) and the divergence from the reference (`kl_reduction`) are averaged, and which tokens are learned
(`mask_above`). For two answers of 2 and 6 tokens with advantages 0.7 and -0.7, on policy, the gradient of the
loss by each token's log-probability is

    reduction "answer"      -0.7 / (2 * 2)     0.7 / (2 * 6)      every answer counts the same
    reduction "tokens"      -0.7 / 8           0.7 / 8            every token counts the same
    reduction "constant"    -0.7 / (2 * L)     0.7 / (2 * L)      a token counts the same whatever the lengths

Invariants: averages are over the whole update, however it is cut into rows and whichever process computes them. With
"min", a token that has moved the right way beyond the clip adds no gradient. A masked token's current probability
changes neither loss nor gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Completion, ScoredCompletion

_FARTHEST = 20.0
"""Log-ratios are clamped to this size, as in verl's `core_algos.py` and OpenRLHF's `loss.py`: e^89 overflows float32,
and one clipped answer of a thousand tokens, 0.1 nats off each, would make the whole gradient NaN."""
AnswerKey = tuple[str, int, int]
"""Problem id, policy version and first node, which the completions of one answer share."""


def num_learned(completion: Completion, mask_above: float, *, as_recorded: bool = False) -> int:
    """Number of the completion's tokens that are learned: those with a probability below `mask_above`; 0 masks none.

    `as_recorded` counts by the probabilities at sampling, as credits do, not by those converted to another temperature.
    """
    if not mask_above:
        return len(completion.token_ids)
    logprobs = (as_recorded and completion.raw_logprobs) or completion.logprobs
    return sum(math.exp(logprob) < mask_above for logprob in logprobs)


def answer_of(example: ScoredCompletion) -> AnswerKey:
    """Which answer the completion belongs to. The nodes of a rollout from the beginning are numbered consecutively, so
    a node's id minus its depth is that of the first node. A completion that stands alone is an answer of its own."""
    return (example.problem_id, example.completion.policy_version, example.node - example.depth)


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient:
    """The clipped surrogate of PPO (Schulman et al., arXiv 1707.06347, equation 7), plus a penalty in the loss on the
    divergence from the reference (GRPO: Shao et al., arXiv 2402.03300, equations 3 and 4).

    With r = pi / pi_old, A the completion's advantage, d = log ref - log pi, and "mean" as `reduction` defines it:

        loss = - mean of [ min(r A, clip(r, 1 - low, 1 + high) A) ] + kl_coef * mean of [ exp(d) - d - 1 ]

    pi_old is what was recorded while sampling, at the learner's `logit_temperature`. On policy r = 1 and the gradient
    is that of - A mean log pi.
    """

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)

    ratio_level: Literal["token", "sequence", "product"] = "token"
    """What the ratio r is of: "token", each token; "sequence", a completion, as its tokens' geometric mean (GSPO, arXiv
    2507.18071, equation 7); "product", a completion, as its tokens' product, the ratio of its probabilities (RLOO)."""
    surrogate: Literal["min", "weight"] = "min"
    """What the clip does: "min" is PPO's clipped surrogate; "weight" takes the clipped r as a fixed weight of A log pi,
    so every token keeps a gradient (CISPO, arXiv 2506.13585, equation 4)."""
    clip_low: float = 0.2
    """How far below 1 the ratio r counts; 1 sets no limit."""
    clip_high: float = 0.2
    """How far above 1 the ratio r counts; DAPO's "clip-higher" is 0.28 (arXiv 2503.14476, section 3.1)."""
    reduction: Literal["answer", "completion", "tokens", "constant", "sum"] = "answer"
    """How an update's tokens are averaged: "answer", the mean of each answer's mean; "completion", of each completion's
    (segments, weighted by their credit); "tokens", the mean of all; "constant", each answer's sum divided by `length`
    (arXiv 2503.20783) or "sum", undivided, and then the mean over answers."""
    length: int = 0
    """What "constant" divides by, in tokens; 0 takes the longest completion that the flow allows."""
    kl_coef: float = 0.04
    """Weight of the divergence from the reference; 0 leaves the reference out."""
    kl_reduction: Literal["as_policy", "sum"] = "as_policy"
    """How the divergence is averaged: "as_policy", like `reduction`; "sum", summed over an answer and averaged over
    answers, as in VinePPO: T times as strong at T tokens. With `reduction` "completion", "sum" sums over a completion,
    whatever its weight (SPO, arXiv 2505.23564)."""
    kl_estimator: Literal["k3", "k2"] = "k3"
    """Estimator, with d = log ref - log pi: "k3", exp(d) - d - 1, or "k2", d^2 / 2 (REINFORCE++, arXiv 2501.03262)."""
    max_kl: float = 0.0
    """The most that one token's divergence counts; beyond it there is no gradient. 0 sets no limit; VinePPO's is 10."""
    max_ratio: float = 0.0
    """A completion whose mean ratio r exceeds this is left out of an update. 0 sets no limit; VinePPO's is 10."""
    mask_above: float = 0.0
    """Tokens to which pi_old gave at least this probability are not learned; 0 masks none. SPO's is 0.9."""

    def __post_init__(self) -> None:
        expect(self, "above 0 and at most 1 (1 sets no limit)", lambda value: 0 < value <= 1, "clip_low")
        expect(self, "above 0", lambda value: value > 0, "clip_high")
        expect(self, "of 0 or more", lambda value: value >= 0, "length", "kl_coef", "max_kl", "max_ratio")
        expect(self, "from 0 to 1", lambda value: 0 <= value <= 1, "mask_above")
        if self.max_ratio and self.max_ratio <= 1:
            raise ConfigError(f"expected max_ratio above 1, or 0 for no limit, found {self.max_ratio}")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def for_update(self, examples: Sequence[ScoredCompletion]) -> OfUpdate:
        """The loss for the rows of an update that consists of these examples."""
        lengths: Counter[AnswerKey] = Counter()
        for example in examples:
            lengths[answer_of(example)] += num_learned(example.completion, self.mask_above)
        length = self.length or max((example.request.max_tokens for example in examples), default=1)
        return OfUpdate(
            settings=self, num_examples=len(examples), num_tokens=lengths.total(), lengths=lengths, length=length
        )

    def __call__(
        self, examples: Sequence[ScoredCompletion], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        """The loss if these examples are the whole update."""
        return self.for_update(examples)(examples, policy, reference)


@dataclass(frozen=True, kw_only=True)
class OfUpdate:
    """The loss for the rows of one update: sums over a row's examples that add up to `num_examples` times the loss."""

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)

    settings: ClippedPolicyGradient
    num_examples: int
    num_tokens: int
    lengths: Mapping[AnswerKey, int]
    """Number of learned tokens of each answer in the update."""
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
        names = ("kl", "clipped", "ratio", "masked", "left_out", "completion_logprobs", "advantage")
        sums = {name: torch.zeros(()) for name in names}
        for index, (example, (whole,)) in enumerate(zip(examples, policy, strict=True)):
            # 1. For each learned token, its gain and its divergence.
            old = torch.tensor(example.completion.logprobs, device=whole.device)
            learned = old.exp() < self.settings.mask_above if self.settings.mask_above else old == old
            logprobs, old = whole[learned], old[learned]
            gain, ratio, clipped = self._gain(example.advantage, logprobs, old)
            kl = self._kl(logprobs, reference[index][0][learned]) if self.needs_reference else torch.zeros_like(old)
            # 2. A ratio that ran away means that the old and new policy are too far apart to learn from.
            count = max(len(old), 1)
            left_out = bool(self.settings.max_ratio) and float(ratio.detach().sum()) / count > self.settings.max_ratio
            if left_out:
                gain = kl = 0 * logprobs
            # 3. Averages over the update.
            share, kl_share = self._shares(example)
            losses.append(self.settings.kl_coef * kl_share * kl.sum() - share * gain.sum())
            mine = [each.sum() / count for each in (kl, clipped.float(), ratio)]
            flags = [torch.tensor(value) for value in (1 - len(old) / len(whole), float(left_out), example.advantage)]
            found = (*mine, *flags[:2], whole.sum(), flags[2])
            sums = {name: sums[name] + value.detach().cpu() for name, value in zip(names, found, strict=True)}
        total = torch.stack(losses).sum()
        return Loss(total, sums | {"loss": total.detach()})

    def _gain(self, advantage: float, logprobs: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each token's gain, its ratio, and whether the clip removed its gradient or cut its weight."""
        import torch

        settings, moved = self.settings, logprobs - old
        if settings.ratio_level != "token":
            moved = (moved.mean() if settings.ratio_level == "sequence" else moved.sum()).expand_as(moved)
        ratio = moved.clamp(-_FARTHEST, _FARTHEST).exp()
        kept = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        if settings.surrogate == "weight":
            return kept.detach() * advantage * logprobs, ratio, kept != ratio
        return torch.minimum(ratio * advantage, kept * advantage), ratio, ratio * advantage > kept * advantage

    def _kl(self, logprobs: Tensor, reference: Tensor) -> Tensor:
        """The estimated divergence from the reference, per token."""
        away = (reference - logprobs).clamp(-_FARTHEST, _FARTHEST)
        kl = away.square() / 2 if self.settings.kl_estimator == "k2" else away.exp() - away - 1
        return kl.clamp(max=self.settings.max_kl) if self.settings.max_kl else kl

    def _shares(self, example: ScoredCompletion) -> tuple[float, float]:
        """The weights of the example's learned tokens in the policy term and in the divergence, times the number of
        examples."""
        settings = self.settings
        # A segment's mean is over the tokens that its credit weighted it by, so a token counts alike in all segments.
        weighed = num_learned(example.completion, settings.mask_above, as_recorded=True)
        of_sum = 1.0 if settings.reduction == "completion" else self.num_examples / len(self.lengths)
        share = (
            example.weight
            * {
                "answer": of_sum / max(self.lengths[answer_of(example)], 1),
                "completion": of_sum / max(weighed, 1),
                "tokens": self.num_examples / max(self.num_tokens, 1),
                "constant": of_sum / self.length,
                "sum": of_sum,
            }[settings.reduction]
        )
        return share, of_sum if settings.kl_reduction == "sum" else share
