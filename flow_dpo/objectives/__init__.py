"""What is to be made small? Objectives are values: their fields are hyper-parameters, and they know no model."""

from flow_dpo.objectives.base import Loss, Objective, TokenLogprobs, check_food, food
from flow_dpo.objectives.clipped import ClippedPolicyGradient
from flow_dpo.objectives.likelihood import Likelihood
from flow_dpo.objectives.odds import PathOdds
from flow_dpo.objectives.preference import Dpo, Ipo
from flow_dpo.objectives.rounds import SayThenPrefer

__all__ = [
    "ClippedPolicyGradient",
    "Dpo",
    "Ipo",
    "Likelihood",
    "Loss",
    "Objective",
    "PathOdds",
    "SayThenPrefer",
    "TokenLogprobs",
    "check_food",
    "food",
]
