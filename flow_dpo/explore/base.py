"""What is an exploration?

A value that says which plays of a flow are made on a problem, and how their completions are drawn. It knows no model,
and what it draws for a problem depends on the seed and the problem alone:

    Drawing(temperature=0.7).sampling(turn, trunk=False)    ->  Sampling(temperature=0.7, top_p=1.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flow_dpo.flows.base import Flow
from flow_dpo.speaker import Speaker
from flow_dpo.tree import Tree
from flow_dpo.types import Problem, Sampling, Turn


class Explore(Protocol):
    """A rule that says which plays are made."""

    def __call__(self, flow: Flow[Any], speaker: Speaker, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        """One tree a problem, in their order; its first rollout is what progressive validation reads.

        The same seed gives the same trees, however the problems are batched.
        """
        ...

    def alone(self, *, greedy: bool) -> Explore:
        """The same drawing with one play a problem, for evaluation."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the plays of an exploration are drawn."""

    greedy_trunk: bool = False
    """Whether the trunk takes the likeliest token (not stated in the paper). Alternatives are always drawn."""
    temperature: float = 1.0
    """Of the Answer role and any other that writes (not stated in the paper; its ancestor used 0.7)."""
    top_p: float = 1.0
    """Nucleus of the same (not stated in the paper; its ancestor used 0.9)."""
    choice_temperature: float = 1.0
    """Of turns with declared choices, such as Stop's (not stated in the paper)."""

    def sampling(self, turn: Turn, *, trunk: bool) -> Sampling:
        """The distribution that a turn's completion is drawn from."""
        greedy = trunk and self.greedy_trunk
        if turn.choices:
            return Sampling(temperature=self.choice_temperature, greedy=greedy)
        return Sampling(temperature=self.temperature, top_p=self.top_p, greedy=greedy)
