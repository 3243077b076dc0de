"""Rollouts as coroutines: turns in, completions out, all of them under way at once.

A rollout is a generator that yields what it needs and is sent the result. The runner, an engine with a renderer in
front and a grader beside it, drives every one that there is, so a short chunk never waits for a long one and every
engine sees as much work as there is:

    def rollout(state):
        sampled = yield from sample(SampleRequest(turn=flow.turn(state), sampling=sampling, seed=derive(seed, id, 0)))
        ...
        yield another_rollout                                         # a generator that is yielded is started beside
        verdict = yield from verify(problem, flow.solution(state))    # of rollouts that depend on verdicts
        yield Finished(problem=problem, solution=flow.solution(state))    # the grader may begin to look at it

Invariant: what a rollout is sent does not depend on what is under way beside it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from flow_dpo.core.engine import Engine, RendersTurns
from flow_dpo.core.errors import EngineError, FlowError
from flow_dpo.core.grader import Grader
from flow_dpo.core.steps import line_end, split, step_ends, stop_end
from flow_dpo.core.types import Adapter, Completion, Problem, Request, Role, Sampling, Solution, TokenIds, Turn, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """A turn to sample a completion of."""

    turn: Turn
    sampling: Sampling
    seed: int
    prefix_ids: TokenIds = ()
    """First tokens of the completion that are given; the answer holds what follows them."""
    excluded_ids: TokenIds = ()
    """What the token after `prefix_ids` may not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The answer: the request as the turn renders and the completion, both without `prefix_ids`."""

    request: Request
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """A solution to be graded, since the rollout continues by its verdict; where that takes long, once all is idle."""

    problem: Problem
    solution: Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A rollout that has come to its end: the grader may begin with it while others are sampled. Not answered."""

    problem: Problem
    solution: Solution


RolloutSteps: TypeAlias = "Generator[SampleRequest | VerifyRequest | Finished | RolloutSteps, Sampled | Verdict, None]"
"""A rollout in progress. Answered with a `Sampled` for each `SampleRequest` and a `Verdict` for each `VerifyRequest`; a
yielded generator is started and answered with nothing."""
Yields: TypeAlias = "SampleRequest | VerifyRequest | Finished | RolloutSteps"
"""What a rollout may yield."""


def sample(request: SampleRequest) -> Generator[Yields, Sampled | Verdict, Sampled]:
    """Sample a completion from within a rollout."""
    answer = yield request
    assert isinstance(answer, Sampled)
    return answer


def verify(problem: Problem, solution: Solution) -> Generator[Yields, Sampled | Verdict, Verdict]:
    """Ask the grader from within a rollout."""
    answer = yield VerifyRequest(problem=problem, solution=solution)
    assert isinstance(answer, Verdict)
    return answer


class RolloutRunner:
    """An engine with a renderer in front, and a grader beside it."""

    def __init__(self, engine: Engine, renderer: RendersTurns, grader: Grader | None = None) -> None:
        """`grader` checks solutions while rollouts are sampled, and is given every solution that has finished."""
        self.engine = engine
        self.renderer = renderer
        self.grader = grader
        self._version = 0
        self._to_verify: list[tuple[RolloutSteps, VerifyRequest]] = []

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on."""
        self.engine.refresh(adapters)
        self._version = max((adapter.version for adapter in adapters.values()), default=0)

    def run(self, rollouts: Iterable[RolloutSteps]) -> None:
        """Drive every rollout, and every one started by another, to its end.
        Raises `EngineError` where a completion comes from another policy version than the one in force.
        """
        waiting: dict[int, tuple[RolloutSteps, SampleRequest, Request]] = {}
        self._to_verify = []
        for rollout in rollouts:
            self._advance(rollout, None, waiting)
        while waiting or self._to_verify:
            if not waiting:
                self._verify(waiting)
            for ticket, completion in self.engine.poll() if waiting else ():
                if completion.policy_version != self._version:
                    raise EngineError(
                        f"expected a completion of policy version {self._version}, found version "
                        f"{completion.policy_version}: the engine samples with stale adapters"
                    )
                rollout, yielded, request = waiting.pop(ticket)
                self._advance(rollout, Sampled(request=request, completion=self._cut(yielded, completion)), waiting)

    def step_ends(self, completion: Completion) -> tuple[int, ...]:
        """How many tokens of the completion stand before the end of each step but the last (`core.steps`)."""
        return step_ends(completion.content_ids, lambda ids: self.renderer.to_text((ids,)))

    def _cut(self, yielded: SampleRequest, completion: Completion) -> Completion:
        """The completion up to the token that completes a stop string, or the line of a turn that is of one line."""
        turn, given = yielded.turn, len(yielded.prefix_ids)
        ids = yielded.prefix_ids + completion.content_ids
        if turn.one_line:
            end = line_end(ids, lambda ids: self.renderer.to_text((ids,)))
            if end is not None and end - given < len(completion.token_ids):
                completion, ids = split(completion, (max(end - given, 1),))[0], ids[:end]
        decode = lambda ids: self.renderer.to_text((*turn.continuation, ids))  # noqa: E731
        strings = yielded.sampling.stop_strings
        if strings and (stop := stop_end(ids, decode, strings)) is not None:
            completion = split(completion, (max(stop[0] - given, 1),))[0]
            return replace(completion, finish_reason="stop_string", num_stop_tokens=stop[0] - stop[1])
        return completion

    def _verify(self, waiting: dict[int, tuple[RolloutSteps, SampleRequest, Request]]) -> None:
        """Have the grader check all pending solutions together, and continue with their rollouts."""
        if self.grader is None:
            raise FlowError("this exploration verifies solutions while it samples; give the RolloutRunner a grader")
        pending, self._to_verify = self._to_verify, []
        verdicts = self.grader.check([(one.problem, one.solution) for _, one in pending])
        for (rollout, _), verdict in zip(pending, verdicts, strict=True):
            self._advance(rollout, verdict, waiting)

    def _advance(
        self,
        rollout: RolloutSteps,
        answer: Sampled | Verdict | None,
        waiting: dict[int, tuple[RolloutSteps, SampleRequest, Request]],
    ) -> None:
        """Send the answer and follow the rollout up to its next question."""
        todo: list[tuple[RolloutSteps, Sampled | Verdict | None]] = [(rollout, answer)]
        while todo:
            current, given = todo.pop()
            try:
                yielded = next(current) if given is None else current.send(given)
            except StopIteration:
                continue
            if isinstance(yielded, SampleRequest):
                request = self.renderer.render(yielded.turn)
                ticket = self._submit(yielded, request)
                waiting[ticket] = (current, yielded, request)
            elif isinstance(yielded, VerifyRequest | Finished):
                verdict = None if self.grader is None else self.grader.begin(yielded.problem, yielded.solution)
                if isinstance(yielded, VerifyRequest) and verdict is None:
                    self._to_verify.append((current, yielded))  # what takes long holds up nobody else's sampling
                else:
                    todo.append((current, verdict if isinstance(yielded, VerifyRequest) else None))
            else:
                todo.append((current, None))
                todo.append((yielded, None))

    def _submit(self, yielded: SampleRequest, request: Request) -> int:
        if yielded.prefix_ids:
            request = replace(
                request,
                prompt_ids=request.prompt_ids + yielded.prefix_ids,
                max_tokens=request.max_tokens - len(yielded.prefix_ids),
            )
        return self.engine.submit(request, yielded.sampling, seed=yielded.seed, excluded=yielded.excluded_ids)
