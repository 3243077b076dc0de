"""Does a flow fit into a model's context window?

Found out before any model speaks: the flow is walked with made-up completions of the longest kind, with answers that
are cut and with answers that end, refused and accepted, and every turn on the way is rendered. That also finds choices
that are not distinct, templates that refuse a prompt, and flows that break their contract.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from flow_dpo.core.engine import RendersTurns
from flow_dpo.core.errors import ConfigError, DataError, FlowError
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.types import Completion, FinishReason, Problem, Request, Turn

log = logging.getLogger("flow_dpo")

_MOST_TURNS = 1_000
"""A play of more turns than this ends nowhere, as far as anybody can wait for."""
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
    lengths = [(len(asked.prompt_ids), asked.max_tokens) for asked in longest_requests(flow, renderer, problems[0])]
    chunk = lengths[0][1]
    if shortest + chunk > context_tokens:
        raise ConfigError(
            f"expected room for one completion of {chunk} tokens, found a context window of {context_tokens} tokens "
            f"and a shortest prompt of {shortest}; shorten the prompts or the chunk (--flow.chunk_tokens)"
        )
    behind = max(prompt + said for prompt, said in lengths) - prompts[0]
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
    """Every request of made-up plays in which all is as long as it may be, is cut or ends, and the first or the last
    choice is always taken. Raises `FlowError` where a rule of the contract is broken on the way."""
    kinds: tuple[FinishReason, ...] = ("length", "stop")
    for finish_reason, takes_last in itertools.product(kinds, (True, False)):
        state = flow.start(problem)
        for num_turns in range(_MOST_TURNS):
            turn = flow.turn(state)
            if flow.turn(state) != turn:
                raise FlowError(
                    f"{type(flow).__name__}.turn asks something else each time, at turn {num_turns} of {problem.id}; a "
                    "state's turn is always the same: it may not draw, count or read a clock"
                )
            if turn is None:
                break
            check_turn(flow, turn, num_turns, problem)
            request = renderer.render(turn)
            yield request
            before = copy.deepcopy(state)
            following = flow.advance(state, _made_up(request, finish_reason, takes_last=takes_last))
            if _changed(state, before) or flow.turn(state) != turn or flow.solution(state) != flow.solution(before):
                raise FlowError(
                    f"{type(flow).__name__}.advance changed the state that it was given, at {turn.role!r} of "
                    f"{problem.id}; states are immutable: return a new one (dataclasses.replace)"
                )
            state = following
        else:
            raise FlowError(f"{type(flow).__name__} asked for {_MOST_TURNS} turns on {problem.id}; every play must end")


def _changed(state: Any, before: Any) -> bool:
    """Whether a state is not what it was, as far as its class can tell."""
    return type(state).__eq__ is not object.__eq__ and state != before


def _first_turn(flow: Flow[Any], problem: Problem) -> Turn:
    turn = flow.turn(flow.start(problem))
    if turn is None:
        raise FlowError(f"{type(flow).__name__} asks nobody about {problem.id}; a play needs one turn at least")
    return turn


def _made_up(request: Request, finish_reason: FinishReason, *, takes_last: bool) -> Completion:
    if request.choices:
        choice = len(request.choices) - 1 if takes_last else 0
        return Completion(
            token_ids=(request.choices[choice],),
            logprobs=(0.0,),
            sampled_logprobs=(0.0,),
            finish_reason="choice",
            policy_version=0,
            choice=choice,
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
