"""What is to be made small? Objectives are values: their fields are hyper-parameters, and they know no model."""

from flow_dpo.objectives.base import Loss, Objective, TokenLogprobs, check_food
from flow_dpo.objectives.clipped import ClippedPolicyGradient
from flow_dpo.objectives.likelihood import Likelihood
from flow_dpo.objectives.odds import PathOdds
from flow_dpo.objectives.preference import Dpo, Ipo

__all__ = [
    "ClippedPolicyGradient",
    "Dpo",
    "Ipo",
    "Likelihood",
    "Loss",
    "Objective",
    "PathOdds",
    "TokenLogprobs",
    "check_food",
]
