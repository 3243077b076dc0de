r"""Step-level rollouts: fresh completions from the states along a path.

A path is a rollout from the beginning. Its completions are cut into steps (`core.steps`), and before each step there is
a state: a turn, and how much of it has been written. From a state any number of fresh completions, the probes, are
sampled to the end, whatever the path itself did next:

    path 0    [q] "12 + 7 = 19\n" [q + 1 step] "Answer: 19"         two states
    probes    from [q]: 9 rollouts; from [q + 1 step]: 9 rollouts
    path 1    [q] "12 + 7 = 18\n" [...] "Answer: 18"                its first state is known: no new probes

Invariant: states in which the same role has the same prompt tokens are one state. Its probes depend on it, the seed and
the problem, not on which path reached it first. Paths come first in a tree, then the probes, state by state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from flow_dpo.core.errors import FlowError
from flow_dpo.core.explore import TurnSampling
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.rollouts import Finished, RolloutRunner, RolloutSteps, Sampled, SampleRequest, Yields, sample
from flow_dpo.core.seeds import derive
from flow_dpo.core.steps import join, split
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Solution, Turn, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a path, and the state before it."""

    turn: Turn
    state: Any
    """The flow's state at the turn's beginning."""
    kept: Completion | None
    """What had been written of the turn before this step."""
    request: Request
    """The turn's request with `kept` after its prompt; it identifies the state."""
    completion: Completion
    tags: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Path:
    """One rollout from the beginning, under way or finished."""

    index: int
    steps: list[Step] = field(default_factory=list[Step])
    solution: Solution | None = None


@dataclass(slots=True, kw_only=True)
class _Probe:
    turns: list[tuple[Request, Completion, tuple[str, ...]]] = field(
        default_factory=list[tuple[Request, Completion, tuple[str, ...]]]
    )
    solution: Solution | None = None


class Branched:
    """Paths and probes of one problem."""

    cut_probes: ClassVar[bool] = False
    """Whether the completions of probes are also cut into steps."""

    def __init__(
        self,
        turn_sampling: TurnSampling,
        flow: Flow[Any],
        problem: Problem,
        runner: RolloutRunner,
        seed: int,
        num_completions: int,
    ) -> None:
        self.turn_sampling, self.flow, self.problem, self.runner, self.seed = turn_sampling, flow, problem, runner, seed
        self.num_completions = num_completions
        self.paths: list[Path] = []
        self._probes: dict[Request, list[_Probe]] = {}

    def new_path(self) -> Path:
        """Add a path that has not begun, and return it."""
        self.paths.append(Path(index=len(self.paths)))
        return self.paths[-1]

    def rollout(self, path: Path, *, probing: bool) -> RolloutSteps:
        """Sample a path to its end; if `probing`, start the probes of every new state along the way."""
        state, num_turns = self.flow.start(self.problem), 0
        while (turn := self.flow.turn(state)) is not None:
            check_turn(self.flow, turn, num_turns, self.problem)
            seed = derive(self.seed, self.problem.id, -1, path.index, num_turns)
            sampling = self.turn_sampling.for_turn(turn, trunk=path.index == 0)
            sampled = yield from sample(SampleRequest(turn=turn, sampling=sampling, seed=seed))
            for step in self._steps(turn, state, sampled):
                path.steps.append(step)
                if probing:
                    yield from self.probe(step)
            state, num_turns = self.flow.advance(state, sampled.completion), num_turns + 1
        seed = derive(self.seed, self.problem.id, -1, path.index, num_turns)
        path.solution = yield from self.turn_sampling.solution(self.flow, state, trunk=path.index == 0, seed=seed)
        yield Finished(problem=self.problem, solution=path.solution)

    def probe(self, step: Step) -> RolloutSteps:
        """Start the probes of the state before `step`, unless it has some already."""
        if step.request in self._probes:
            return
        probes = self._probes[step.request] = [_Probe() for _ in range(self.num_completions)]
        for index, probe in enumerate(probes):
            yield self._continue(probe, step, index)

    def tree(self) -> Tree:
        """The finished tree."""
        tree, done = Tree(problem=self.problem), set[Request]()
        for path in self.paths:
            if path.solution is None or not path.steps:
                raise FlowError(
                    f"{type(self.flow).__name__} ended a rollout of {self.problem.id} without a turn; it needs "
                    f"at least one turn"
                )
            tree.add_rollout(None, [(s.request, s.completion, s.tags) for s in path.steps], path.solution)
        for path in self.paths:
            for node, step in enumerate(path.steps, start=tree.rollouts[path.index].start):
                if step.request in done:
                    continue
                done.add(step.request)
                for probe in self._probes.get(step.request, ()):
                    assert probe.solution is not None
                    tree.add_rollout(tree.nodes[node].parent, probe.turns, probe.solution, probe=True)
        return tree

    def step_ends(self, completion: Completion) -> tuple[int, ...]:
        """For each step but the last, how many of the completion's tokens there are up to its end."""
        return self.runner.step_ends(completion)

    def _steps(self, turn: Turn, state: Any, sampled: Sampled) -> Iterator[Step]:
        """One turn's completion, step by step. A choice is a single step."""
        ends = () if turn.choices else self.step_ends(sampled.completion)
        kept: Completion | None = None
        for piece in split(sampled.completion, ends):
            request = sampled.request if kept is None else request_after(sampled.request, kept)
            yield Step(turn=turn, state=state, kept=kept, request=request, completion=piece, tags=self.flow.tags(state))
            kept = piece if kept is None else join(kept, piece)

    def _continue(self, probe: _Probe, step: Step, index: int) -> RolloutSteps:
        """Sample from the state before `step` to the end."""
        # The seed depends on the state alone: several paths can reach it, in any order.
        place = f"{step.request.role} {step.request.max_tokens} {step.request.prompt_ids}"
        turns, probe.solution = yield from continuation(
            self.turn_sampling, self.flow, self.problem, turn=step.turn, state=step.state, kept=step.kept,
            seed_of=lambda num_turns: derive(self.seed, self.problem.id, "probe", place, index, num_turns),
        )  # fmt: skip
        if self.cut_probes:
            whole = [(one, Sampled(request=one.request, completion=one.completion)) for one in turns]
            turns = [piece for one, sampled in whole for piece in self._steps(one.turn, one.state, sampled)]
        probe.turns = [(one.request, one.completion, one.tags) for one in turns]
        yield Finished(problem=self.problem, solution=probe.solution)


def continuation(
    turn_sampling: TurnSampling,
    flow: Flow[Any],
    problem: Problem,
    *,
    turn: Turn | None,
    state: Any,
    kept: Completion | None,
    seed_of: Callable[[int], int],
    trunk: bool = False,
) -> Generator[Yields, Sampled | Verdict, tuple[list[Step], Solution]]:
    """Sample to the end of the flow, from a turn of which `kept` has been written; each turn is one step.

    `seed_of` gives the seed of each turn by its number, counted from 0 for the turn that is continued.
    """
    steps: list[Step] = []
    while turn is not None:
        check_turn(flow, turn, len(steps), problem)
        ids = () if kept is None else kept.token_ids
        sampling = turn_sampling.for_turn(turn, trunk=trunk)
        sampled = yield from sample(
            SampleRequest(turn=turn, sampling=sampling, seed=seed_of(len(steps)), prefix_ids=ids)
        )  # fmt: skip
        request = sampled.request if kept is None else request_after(sampled.request, kept)
        steps.append(
            Step(turn=turn, state=state, kept=kept, request=request, completion=sampled.completion,
                 tags=flow.tags(state))
        )  # fmt: skip
        state = flow.advance(state, sampled.completion if kept is None else join(kept, sampled.completion))
        turn, kept = flow.turn(state), None
    return steps, (yield from turn_sampling.solution(flow, state, trunk=trunk, seed=seed_of(len(steps))))


def request_after(request: Request, kept: Completion) -> Request:
    """The request that remains once `kept` has been written."""
    return replace(
        request,
        prompt_ids=request.prompt_ids + kept.token_ids,
        max_tokens=request.max_tokens - len(kept.token_ids),
    )
