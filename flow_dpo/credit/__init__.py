"""What does a graded tree teach? One credit a file; a credit is a value, trees in, examples out."""

from flow_dpo.credit.base import Credit
from flow_dpo.credit.branch_pairs import BranchPairs
from flow_dpo.credit.group_advantages import GroupAdvantages
from flow_dpo.credit.kept import BestWay, RightOnes, RightPaths
from flow_dpo.credit.outcome_pairs import OutcomePairs
from flow_dpo.credit.rounds import RightThenPairs
from flow_dpo.credit.step_advantages import StepAdvantages
from flow_dpo.credit.value_pairs import ValuePairs
from flow_dpo.credit.value_targets import ValuesThenPairs

__all__ = [
    "BestWay",
    "BranchPairs",
    "Credit",
    "GroupAdvantages",
    "OutcomePairs",
    "RightOnes",
    "RightPaths",
    "RightThenPairs",
    "StepAdvantages",
    "ValuePairs",
    "ValuesThenPairs",
]
