"""How does an exploration play one chain to its end and see how it went?

A search decides by what it has seen, so it runs the speaker several times and looks at the ends in between:

    chains = [Chain(flow, problem, drawing, seed=derive(seed, problem.id, i)) for i in range(4)]
    speaker.run([chain.play() for chain in chains])
    [chain.matches(speaker) for chain in chains]        exact match with the gold answer, to steer the search by

Invariant: a match steers the search and nothing else. What is taught is decided by the verifier's verdicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flow_dpo.answers import same
from flow_dpo.errors import FlowError
from flow_dpo.explore.base import Drawing, check_turn
from flow_dpo.extract import AnswerRule, extract_answer, gold_answer
from flow_dpo.flows.base import Flow
from flow_dpo.seeds import derive
from flow_dpo.speaker import Ask, Play, Speaker, say
from flow_dpo.tree import Tree
from flow_dpo.types import Completion, Problem, Request, Solution


class Chain:
    """One play from a problem's beginning."""

    def __init__(
        self,
        flow: Flow[Any],
        problem: Problem,
        drawing: Drawing,
        *,
        seed: int,
        trunk: bool = False,
        tags: tuple[str, ...] = (),
        between: Callable[[Any], Any] | None = None,
    ) -> None:
        """`tags` are added to every turn's own; `between` may replace the state between two turns."""
        self.flow, self.problem, self.drawing, self.seed = flow, problem, drawing, seed
        self.trunk, self.tags, self.between = trunk, tags, between
        self.said: list[tuple[Request, Completion, tuple[str, ...]]] = []
        self.solution = Solution(pieces=(), ended=False)

    def play(self) -> Play:
        """Play to the end. Raises `FlowError` for a turn that the flow may not ask for."""
        state = self.flow.start(self.problem)
        while (turn := self.flow.turn(state)) is not None:
            depth = len(self.said)
            check_turn(self.flow, turn, depth, self.problem)
            sampling = self.drawing.sampling(turn, trunk=self.trunk)
            said = yield from say(Ask(turn=turn, sampling=sampling, seed=derive(self.seed, depth)))
            self.said.append((said.request, said.completion, (*self.flow.tags(state), *self.tags)))
            state = self.flow.advance(state, said.completion)
            if self.between is not None:
                state = self.between(state)
        self.solution = self.flow.solution(state)

    def matches(self, speaker: Speaker) -> bool:
        """Whether the solution's final answer is the gold one, by exact comparison of numbers and names."""
        text = speaker.renderer.to_text(self.solution.pieces)
        answer = extract_answer(text, ended=self.solution.ended, rule=AnswerRule())
        return answer is not None and same(gold_answer(self.problem.gold), answer) is True

    def add_to(self, tree: Tree) -> int:
        """Hang the play below the root, and return its rollout's id."""
        if not self.said:
            raise FlowError(f"{type(self.flow).__name__} ended a play of {self.problem.id} before anybody spoke")
        return tree.add_rollout(None, self.said, self.solution)
