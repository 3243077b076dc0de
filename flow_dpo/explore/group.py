"""How is a problem played several times over, each time anew?

As GRPO does (arXiv 2402.03300). Invariant: the plays are independent draws from the flow; two may say the same.

    play 0    answer "3+4=7 ... Answer: 7"       the trunk
    play 1    answer "3+4=8 ... Answer: 8"
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
class Group(Drawing):
    """Independent plays of one problem from its beginning (GRPO, arXiv 2402.03300). Two may say the same."""

    num_plays: int = 8
    """Plays of a problem, the first of which is its trunk."""

    def __call__(self, flow: Flow[Any], speaker: Speaker, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        return explore(self, flow, speaker, problems, seed, num_plays=self.num_plays, num_alternatives=0)

    def alone(self, *, greedy: bool) -> Group:
        return replace(self, num_plays=1, greedy_trunk=greedy)


def one_play(drawing: Drawing, *, greedy: bool) -> Group:
    """The plain flow, played once as `drawing` draws: what an exploration that plays otherwise is evaluated by."""
    return Group(
        num_plays=1,
        greedy_trunk=greedy,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        choice_temperature=drawing.choice_temperature,
    )
