"""Preference objectives that a flag puts in place of a recipe's own: DPO, cDPO, IPO, SimPO, ORPO, KTO and others.

    flow-dpo train --recipe online-dpo --objective simpo --objective.beta 2.5
    Recipe(flow=..., explore=..., credit=OutcomePairs(), objective=Ipo(beta=0.5))

One pair with log-ratios of policy to reference (sums over tokens) of 0.2 for chosen and -0.1 for rejected, two tokens
each, at beta 1: DPO -log sigmoid(0.3), hinge 1 - 0.3, IPO (0.15 - 0.5)^2.

If a credit also makes scored completions (a word of Stop's, a right rollout), these are learned by their likelihood.
Invariants: loss and measures are sums over the examples, each measure over one kind; a pair's loss depends on that pair
alone, so a batch can be split over any number of rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.dpo import Ratios
from flow_dpo.core.errors import expect
from flow_dpo.core.objective import Loss, Tensor, TokenLogprobs
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.recipes.likelihood import by_kind


@dataclass(frozen=True, kw_only=True)
class PairObjective(ABC):
    """A loss on pairs, plus the negative log-likelihood of scored completions."""

    accepts: ClassVar[tuple[type, ...]] = (Pair, ScoredCompletion)
    reads_reference: ClassVar[bool] = True

    beta: float = 1.0
    """Strength of the preference; each objective says what it multiplies."""
    sft_weight: float = 0.0
    """Weight of the chosen completion's own negative log-likelihood, averaged over its tokens."""

    def __post_init__(self) -> None:
        expect(self, "above 0", lambda value: value > 0, "beta")
        expect(self, "of 0 or more", lambda value: value >= 0, "sft_weight")

    @property
    def needs_reference(self) -> bool | tuple[type, ...]:
        return (Pair,) if self.reads_reference else False

    @abstractmethod
    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        """The loss and the margin of each pair; the margin is above 0 if chosen is preferred. Without a reference the
        log-ratios are the log-probabilities themselves."""

    def __call__(
        self, examples: Sequence[Example], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        import torch  # settings are read without it

        theirs = reference if self.reads_reference else [[torch.zeros_like(p) for p in pieces] for pieces in policy]
        return by_kind(examples, policy, theirs, pairs=self._of_pairs)

    def _of_pairs(
        self, examples: Sequence[Pair], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        ratios = Ratios(examples, policy, reference)
        losses, margins = self.losses(ratios)
        if self.sft_weight:
            losses = losses - self.sft_weight * ratios.chosen_logprobs / ratios.chosen_lengths
        loss = ratios.loss(losses, margins)
        kept = {name: value for name, value in loss.measures.items() if self.reads_reference or name != _RATIO}
        return Loss(loss.total, kept)


_RATIO = "chosen_ratio"
"""A measure that exists only with a reference."""


@dataclass(frozen=True, kw_only=True)
class SmoothedDpo(PairObjective):
    """DPO (Rafailov et al., arXiv 2305.18290, equation 7) or, with `label_smoothing` e, cDPO (Mitchell's note on
    conservative DPO, equation 3), with h = beta (r_w - r_l):

        loss = -(1 - e) log sigmoid(h) - e log sigmoid(-h)        d loss / d h = (1 - e) (sigmoid(h) - 1) + e sigmoid(h)

    The loss is least at sigmoid(h) = 1 - e: a preference is learned up to that certainty and no further.
    """

    label_smoothing: float = 0.0
    """Share of pairs assumed to be the wrong way round, below 1/2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 0 or more and below 0.5", lambda value: 0 <= value < 0.5, "label_smoothing")

    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        h, agrees, differs = _sigmoid_losses(self.beta, ratios)
        return (1 - self.label_smoothing) * agrees + self.label_smoothing * differs, h


@dataclass(frozen=True, kw_only=True)
class RobustDpo(SmoothedDpo):
    """DPO with an unbiased correction for a share e of pairs that are the wrong way round (Chowdhury et al., arXiv
    2403.00409), with h = beta (r_w - r_l):

        loss = (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e)

    If labels are flipped with probability e, its expectation is DPO's loss on the true labels.
    """

    label_smoothing: float = 0.1
    """Share of pairs assumed to be the wrong way round, below 1/2."""

    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        h, agrees, differs = _sigmoid_losses(self.beta, ratios)
        flipped = self.label_smoothing
        return ((1 - flipped) * agrees - flipped * differs) / (1 - 2 * flipped), h


@dataclass(frozen=True, kw_only=True)
class Hinge(PairObjective):
    """Hinge loss on DPO's margin (SLiC, Zhao et al., arXiv 2305.10425, normalised as in RSO, arXiv 2309.06657):

    loss = max(0, 1 - beta (r_w - r_l)): a pair with a margin of 1 or more has no gradient.
    """

    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        h = self.beta * (ratios.chosen - ratios.rejected)
        return (1 - h).relu(), h


@dataclass(frozen=True, kw_only=True)
class Ipo(PairObjective):
    """Identity preference optimisation (Azar et al., arXiv 2310.12036, equation 17).

        loss = (r_w / |chosen| - r_l / |rejected| - 1 / (2 beta))^2

    The log-ratios are means over tokens, as the authors advise: sums would make the target depend on length. `beta` is
    tau in that paper: the mean log-ratios are pulled to a distance of 1 / (2 beta).
    """

    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        distance = ratios.chosen / ratios.chosen_lengths - ratios.rejected / ratios.rejected_lengths
        return (distance - 1 / (2 * self.beta)).square(), self.beta * distance


@dataclass(frozen=True, kw_only=True)
class SimPo(PairObjective):
    """Simple preference optimisation (Meng et al., arXiv 2405.14734, equation 6): mean log-probabilities m without a
    reference, and a target margin.

        loss = -log sigmoid(beta (m_w - m_l) - target_margin)
    """

    reads_reference: ClassVar[bool] = False

    beta: float = 2.0
    """Multiplies the mean log-probabilities; the paper's 2 to 2.5 act like a DPO beta hundreds of times smaller."""
    target_margin: float = 1.0
    """gamma: what beta times the difference of the means should exceed; the paper's are 0.3 to 1.6."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 0 or more", lambda value: value >= 0, "target_margin")

    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import logsigmoid

        chosen, rejected = _means(ratios)
        margins = self.beta * (chosen - rejected)
        return -logsigmoid(margins - self.target_margin), margins


@dataclass(frozen=True, kw_only=True)
class Orpo(PairObjective):
    """Odds-ratio preference optimisation (Hong et al., arXiv 2403.07691, equations 6 and 7): the chosen completion's
    likelihood and an odds ratio, without a reference. With m a completion's mean log-probability and
    log odds(m) = m - log(1 - e^m):

        loss = -sft_weight * m_w - beta * log sigmoid(log odds(m_w) - log odds(m_l))
    """

    reads_reference: ClassVar[bool] = False

    beta: float = 0.1
    """lambda: weight of the odds ratio; the paper's is 0.1 for Mistral-7B, 0.2 for Llama-2-7B and 0.25 for Phi-2."""
    sft_weight: float = 1.0
    """Weight of the chosen completion's own negative log-likelihood, averaged over its tokens; the paper's is 1."""

    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import logsigmoid

        chosen, rejected = _means(ratios)
        margins = log_odds(chosen) - log_odds(rejected)
        return -self.beta * logsigmoid(margins), margins


@dataclass(frozen=True, kw_only=True)
class Kto(PairObjective):
    """Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306, equation 8): each completion of a pair by
    itself, desirable or undesirable, measured from a reference point z.

        loss = (desirable_weight   * (1 - sigmoid(beta (r_w - z)))
              + undesirable_weight * (1 - sigmoid(beta (z - r_l)))) / 2        z = max(0, (r_w + r_l) / 2), no gradient

    z stands for the divergence of policy and reference. The paper estimates it from other completions in the batch;
    here it comes from the pair's own two, each taken as an answer to another prompt: what that estimate is for a batch
    of these two, and the same however a batch is split. At the start of training both ratios, and so z, are 0.
    """

    beta: float = 0.1
    """Multiplies the log-ratios, which are sums over tokens; the paper's is 0.1."""
    desirable_weight: float = 1.0
    """lambda_D, the weight of the desirable completion. The paper keeps its product with the number of desirables
    within 1 to 3/2 of the other product (4/3 in TRL's documentation); a pair has one of each."""
    undesirable_weight: float = 1.0
    """lambda_U, the weight of the undesirable completion."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 0 or more", lambda value: value >= 0, "desirable_weight", "undesirable_weight")

    def losses(self, ratios: Ratios) -> tuple[Tensor, Tensor]:
        point = ((ratios.chosen + ratios.rejected) / 2).clamp(min=0).detach()
        desirable = self.desirable_weight * (1 - (self.beta * (ratios.chosen - point)).sigmoid())
        undesirable = self.undesirable_weight * (1 - (self.beta * (point - ratios.rejected)).sigmoid())
        return (desirable + undesirable) / 2, self.beta * (ratios.chosen - ratios.rejected)


OBJECTIVES: dict[str, PairObjective] = {
    "dpo": SmoothedDpo(beta=0.1),
    "cdpo": SmoothedDpo(beta=0.1, label_smoothing=0.1),
    "robust": RobustDpo(beta=0.1),
    "hinge": Hinge(beta=0.1),
    "ipo": Ipo(beta=0.1),
    "simpo": SimPo(),
    "orpo": Orpo(),
    "kto": Kto(),
}
"""The objectives that `--objective` names, with their default values."""


def log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(mean); a p of 1 is kept just below it, because its odds are infinite."""
    return mean - (-mean.clamp(max=-1e-6).expm1()).log()


def _means(ratios: Ratios) -> tuple[Tensor, Tensor]:
    """Mean log-probability per token of the chosen and of the rejected completions."""
    return ratios.chosen_logprobs / ratios.chosen_lengths, ratios.rejected_logprobs / ratios.rejected_lengths


def _sigmoid_losses(beta: float, ratios: Ratios) -> tuple[Tensor, Tensor, Tensor]:
    """h, -log sigmoid(h) and -log sigmoid(-h)."""
    from torch.nn.functional import logsigmoid

    h = beta * (ratios.chosen - ratios.rejected)
    return h, -logsigmoid(h), -logsigmoid(-h)
