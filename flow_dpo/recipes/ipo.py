"""Identity preference optimisation on pairs (Azar et al., arXiv 2310.12036): a target distance of log-ratios.

    Recipe(flow=..., explore=..., credit=OutcomePairs(), objective=Ipo(beta=0.5))

Of a pair whose mean log-ratios lie 0.3 apart, at beta 1: loss (0.3 - 0.5)^2 = 0.04. Invariant: as of every objective,
loss and measures are sums over the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flow_dpo.core.dpo import Ratios
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.objective import Loss, TokenLogprobs
from flow_dpo.core.types import Pair


@dataclass(frozen=True, kw_only=True)
class Ipo:
    """Identity preference optimisation (Azar et al., arXiv 2310.12036, equation 17).

        loss = (r_w / |chosen| - r_l / |rejected| - 1 / (2 beta))^2

    The log-ratios are means over tokens, as the authors advise: sums would make the target depend on length.
    """

    accepts: ClassVar[tuple[type, ...]] = (Pair,)

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
        ratios = Ratios(examples, policy, reference)
        distance = ratios.chosen / ratios.chosen_lengths - ratios.rejected / ratios.rejected_lengths
        return ratios.loss((distance - 1 / (2 * self.beta)).square(), self.beta * distance)
