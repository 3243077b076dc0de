"""A recipe: a method as four values.

    Recipe(flow=AnswerStop(), explore=Siblings(), credit=OutcomePairs(), objective=Dpo(beta=1.0))    Flow-DPO

No loop, learner, engine or worker knows a recipe by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flow_dpo.core.credit import Credit
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method, as the four values that define it."""

    flow: Flow[Any]
    """Which role takes which turn."""
    explore: Explore
    """Which rollouts of the flow are sampled on a problem."""
    credit: Credit
    """Which examples the graded rollouts make: pairs, or scored completions."""
    objective: Objective
    """The loss on these examples."""
