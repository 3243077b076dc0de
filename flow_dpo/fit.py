"""Does a flow fit into a model's context window?

Found out before any model speaks: the flow is walked with made-up completions of the longest kind, once with answers
that are cut and once with answers that end and are refused, and every turn on the way is rendered. That also finds
choices that are not distinct and templates that refuse a prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from flow_dpo.engines.base import RendersTurns
from flow_dpo.errors import ConfigError, DataError, FlowError
from flow_dpo.flows.base import Flow
from flow_dpo.types import Completion, FinishReason, Problem, Request, Turn

log = logging.getLogger("flow_dpo")

_MOST_TURNS = 10_000
_SLACK = 8
"""Tokens by which two questions' prompts of one role may differ from their answers' prompts."""


def fitting_problems(
    flow: Flow[Any], renderer: RendersTurns, problems: Sequence[Problem], context_tokens: int
) -> list[Problem]:
    """The problems whose longest play fits into `context_tokens`; others are left out with a warning that names them.

    Raises `ConfigError` where one chunk has no room behind the shortest prompt, or no problem's longest play fits.
    """
    if not problems:
        raise DataError("expected at least one problem, found none; see --max_problems and --dataset_split")
    prompts = [len(renderer.render(_first_turn(flow, problem)).prompt_ids) for problem in problems]
    shortest = min(prompts)
    requests = list(longest_requests(flow, renderer, problems[0]))
    chunk = requests[0].max_tokens
    if shortest + chunk > context_tokens:
        raise ConfigError(
            f"expected room for one completion of {chunk} tokens, found a context window of {context_tokens} tokens "
            f"and a shortest prompt of {shortest}; shorten the prompts or the chunk (--flow.chunk_tokens)"
        )
    behind = max(len(request.prompt_ids) + request.max_tokens for request in requests) - prompts[0]
    fits = [prompt + behind + _SLACK <= context_tokens for prompt in prompts]
    if not any(fits):
        raise ConfigError(
            f"expected the longest play to fit into the context window of {context_tokens} tokens, found that it takes "
            f"{shortest + behind + _SLACK} at least; lower --flow.max_chunks or --flow.chunk_tokens"
        )
    left_out = [problem.id for problem, fit in zip(problems, fits, strict=True) if not fit]
    if left_out:
        log.warning(
            "left out %d of %d problems whose longest play exceeds the context window of %d tokens: %s",
            len(left_out), len(problems), context_tokens, ", ".join(left_out[:3]),
        )  # fmt: skip
    return [problem for problem, fit in zip(problems, fits, strict=True) if fit]


def longest_requests(flow: Flow[Any], renderer: RendersTurns, problem: Problem) -> Iterator[Request]:
    """Every request of two made-up plays in which all is as long as it may be and the last choice is always taken."""
    kinds: tuple[FinishReason, ...] = ("length", "stop")
    for finish_reason in kinds:
        state = flow.start(problem)
        for _ in range(_MOST_TURNS):
            turn = flow.turn(state)
            if turn is None:
                break
            if turn.role not in flow.roles:
                raise FlowError(
                    f"{type(flow).__name__} asked role {turn.role!r} to speak; it declares only {list(flow.roles)}"
                )
            request = renderer.render(turn)
            yield request
            following = flow.advance(state, _made_up(request, finish_reason))
            if flow.turn(state) != turn:
                raise FlowError(
                    f"{type(flow).__name__}.advance changed the state that it was given, at {turn.role!r} of "
                    f"{problem.id}; states are immutable: return a new one (dataclasses.replace)"
                )
            state = following
        else:
            raise FlowError(f"{type(flow).__name__} asked for {_MOST_TURNS} turns on {problem.id}; every play must end")


def _first_turn(flow: Flow[Any], problem: Problem) -> Turn:
    turn = flow.turn(flow.start(problem))
    if turn is None:
        raise FlowError(f"{type(flow).__name__} asks nobody about {problem.id}; a play needs one turn at least")
    return turn


def _made_up(request: Request, finish_reason: FinishReason) -> Completion:
    if request.choices:
        last = len(request.choices) - 1
        return Completion(
            token_ids=(request.choices[last],),
            logprobs=(0.0,),
            sampled_logprobs=(0.0,),
            finish_reason="choice",
            policy_version=0,
            choice=last,
            choice_logprobs=(0.0,) * len(request.choices),
        )
    zeros = (0.0,) * request.max_tokens
    return Completion(
        token_ids=(0,) * request.max_tokens,
        logprobs=zeros,
        sampled_logprobs=zeros,
        finish_reason=finish_reason,
        policy_version=0,
    )
