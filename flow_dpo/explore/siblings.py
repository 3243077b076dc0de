"""How is every node of one play compared with something else?

`Siblings` is the paper's exploration (arXiv 2410.22304, section 2): play one chain, the trunk; at *every* node of it
say something else from the same prefix, and let the flow run on from there to a second end. With one alternative a
node, a trunk of n turns gives n + 1 rollouts; the alternatives start while the trunk is still being played.

    trunk   answer "3+4=7"  stop No   answer "Answer: 7"  stop Yes
    at 0    answer "3+4=8"  ...                              an Answer chunk drawn to differ (flow_dpo.deviation)
    at 1                    stop Yes                         the flipped word; ends at once
    ...

Invariant: an alternative never says what the trunk says, nor what another one at its node does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flow_dpo.explore.base import Drawing
from flow_dpo.explore.playing import explore
from flow_dpo.flows.base import Flow
from flow_dpo.speaker import Speaker
from flow_dpo.tree import Tree
from flow_dpo.types import Problem


@dataclass(frozen=True, kw_only=True)
class Siblings(Drawing):
    """A trunk, and alternatives at every node of it, each played to the end."""

    num_alternatives: int = 1
    """Alternatives at a node; they differ from the trunk and from each other. A choice has one fewer than its words.
    The paper makes one; 0 plays the trunk alone."""

    def __call__(self, flow: Flow[Any], speaker: Speaker, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        return explore(self, flow, speaker, problems, seed, num_plays=1, num_alternatives=self.num_alternatives)

    def alone(self, *, greedy: bool) -> Siblings:
        return replace(self, num_alternatives=0, greedy_trunk=greedy)
