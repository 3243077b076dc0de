"""Rollouts as coroutines: turns in, completions out, all of them at once.

A rollout is a generator that yields what it needs and is sent the result. The runner, which holds an engine, a renderer
and a grader, drives all rollouts at the same time, so a short chunk never waits for a long one and the engine always
sees all the work that is pending:

    def rollout(state):
        sampled = yield from sample(SampleRequest(turn=flow.turn(state), sampling=sampling, seed=derive(seed, id, 0)))
        ...
        yield another_rollout                                         # a yielded generator is started as well
        verdict = yield from verify(problem, flow.solution(state))    # if the rollout depends on the verdict
        yield Finished(problem=problem, solution=flow.solution(state))    # the grader can start on it

Invariant: what a rollout is sent does not depend on the other rollouts.
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
    """A turn for which a completion is to be sampled."""

    turn: Turn
    sampling: Sampling
    seed: int
    prefix_ids: TokenIds = ()
    """Leading tokens of the completion that are given; the answer holds only what follows them."""
    excluded_ids: TokenIds = ()
    """Token ids that the token after `prefix_ids` must not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The answer: the turn's rendered request and the completion, both without `prefix_ids`."""

    request: Request
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """A solution whose verdict the rollout needs to continue. A slow verdict is waited for once sampling is idle."""

    problem: Problem
    solution: Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A rollout that has ended: the grader can start on it while others are sampled. It is not answered."""

    problem: Problem
    solution: Solution


RolloutSteps: TypeAlias = "Generator[SampleRequest | VerifyRequest | Finished | RolloutSteps, Sampled | Verdict, None]"
"""A rollout in progress. It is sent a `Sampled` for each `SampleRequest` and a `Verdict` for each `VerifyRequest`; a
yielded generator is started, and nothing is sent in return."""
Yields: TypeAlias = "SampleRequest | VerifyRequest | Finished | RolloutSteps"
"""What a rollout can yield."""


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
    """Drives rollouts with an engine, a renderer and a grader."""

    def __init__(self, engine: Engine, renderer: RendersTurns, grader: Grader | None = None) -> None:
        """`grader` checks solutions while rollouts are sampled, and is given every finished solution."""
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
        """Drive every rollout, and those that they start, to the end.
        Raises `EngineError` if a completion comes from a policy version other than the one in force.
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
        """Number of the completion's tokens up to the end of each step but the last (`core.steps`)."""
        return step_ends(completion.content_ids, lambda ids: self.renderer.to_text((ids,)))

    def _cut(self, yielded: SampleRequest, completion: Completion) -> Completion:
        """The completion up to the token that completes a stop string, or the first line of a `one_line` turn."""
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
        """Have the grader check all pending solutions together, and continue their rollouts."""
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
        """Send the answer and run the rollout up to its next request."""
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
                    self._to_verify.append((current, yielded))  # a slow verdict must not hold up sampling
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
