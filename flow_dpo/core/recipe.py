"""TODO docstring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flow_dpo.core.credit import Credit
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method, as the four choices that make it."""

    flow: Flow[Any]
    """Who speaks when."""
    explore: Explore
    """Which plays are made on a problem."""
    credit: Credit
    """What the graded plays teach."""
    objective: Objective
    """The loss of what they teach."""
