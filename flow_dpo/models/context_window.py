"""Context window check: leave out problems whose longest rollout does not fit, before any model samples.

The flow is run with made-up completions of maximal length: with answers that are cut and with answers that end, refused
and accepted. Every turn on the way is rendered, which also detects choices that are not distinct, templates that refuse
a prompt, and flows that break their contract. Invariant: a problem that is returned fits, whatever a model answers.

    fitting_problems(flow, renderer, problems, context_tokens=2048)      # those that fit, and a warning about others
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from flow_dpo.core.engine import RendersTurns
from flow_dpo.core.errors import ConfigError, DataError, FlowError
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.types import Completion, FinishReason, Problem, Request, Turn

log = logging.getLogger("flow_dpo")

_MOST_TURNS = 1_000
"""A rollout with more turns than this counts as endless."""
_SLACK = 8
"""Reserve in tokens: tokenization can make later prompts grow by different amounts for different questions."""


def fitting_problems(
    flow: Flow[Any],
    renderer: RendersTurns,
    problems: Sequence[Problem],
    context_tokens: int,
    *,
    besides: Callable[[Flow[Any], Problem], Iterable[Flow[Any]]] | None = None,
) -> list[Problem]:
    """The problems whose longest rollout fits `context_tokens`; others are left out with a warning that names them.

    `besides` gives further flows that are sampled on a problem: an exploration with prompts of its own has such a
    method. They are walked with the longest gold answer of all problems.

    Raises `ConfigError` if one completion has no room after the shortest prompt, or no problem's longest rollout fits.
    """
    if not problems:
        raise DataError("expected at least one problem, found none; see --max_problems and --dataset_split")
    prompts = [len(renderer.render(_first_turn(flow, problem)).prompt_ids) for problem in problems]
    # 1. By how much a rollout outgrows its first prompt, for the shortest and the longest of them: a later prompt can
    #    have the question several times. Between the two it is at most what lies on a straight line.
    shortest, longest = min(prompts), max(prompts)
    gold = max((problem.gold for problem in problems), key=len)
    of_shortest, of_longest = (replace(problems[prompts.index(length)], gold=gold) for length in (shortest, longest))

    def requests(problem: Problem) -> Iterator[Request]:
        for each in (flow, *(besides(flow, problem) if besides is not None else ())):
            yield from longest_requests(each, renderer, problem)

    needs: list[int] = []
    for request in requests(of_shortest):
        needs.append(len(request.prompt_ids) + request.max_tokens)
        prompt = min(shortest, len(request.prompt_ids))
        # Checked before a completion of this length is made up: the length can be anything.
        if prompt + request.max_tokens > context_tokens:
            raise ConfigError(
                f"expected room for one completion of {request.max_tokens} tokens, found a context window of "
                f"{context_tokens} tokens and a shortest prompt of {prompt}; shorten the prompts, or "
                "the completion (--flow.max_tokens; --flow.chunk_tokens of a flow of chunks)"
            )
    growth = max(needs) - shortest
    most = max(len(request.prompt_ids) + request.max_tokens for request in requests(of_longest)) - longest
    slope = max(most - growth, 0) / max(longest - shortest, 1)
    # 2. Which rollouts fit.
    fits = [prompt + growth + slope * (prompt - shortest) + _SLACK <= context_tokens for prompt in prompts]
    if not any(fits):
        raise ConfigError(
            f"expected the longest rollout to fit the context window of {context_tokens} tokens, found that it takes "
            f"at least {shortest + growth + _SLACK}; lower --flow.max_tokens, or --flow.max_chunks or "
            "--flow.chunk_tokens of a flow of chunks"
        )
    left_out = [problem.id for problem, fit in zip(problems, fits, strict=True) if not fit]
    if left_out:
        log.warning(
            "left out %d of %d problems whose longest rollout exceeds the context window of %d tokens: %s",
            len(left_out), len(problems), context_tokens, ", ".join(left_out[:3]),
        )  # fmt: skip
    return [problem for problem, fit in zip(problems, fits, strict=True) if fit]


def longest_requests(flow: Flow[Any], renderer: RendersTurns, problem: Problem) -> Iterator[Request]:
    """Every request of made-up rollouts. All completions have maximal length; all are cut, all end, or all are cut and
    then one ends; the choice is always the first or always the last.

    Raises `FlowError` if the flow breaks its contract on the way.
    """
    kinds: tuple[FinishReason, ...] = ("length", "stop")
    for finish_reason, takes_last in itertools.product(kinds, (True, False)):
        state = flow.start(problem)
        for num_turns in range(_MOST_TURNS):
            turn = flow.turn(state)
            if flow.turn(state) != turn:
                raise FlowError(
                    f"{type(flow).__name__}.turn returns a different turn each time, at turn {num_turns} of "
                    f"{problem.id}; a state's turn must always be the same: do not draw, count or read a clock"
                )
            if turn is None:
                closing = flow.closing(state)
                if closing is not None:
                    yield renderer.render(closing)
                break
            check_turn(flow, turn, num_turns, problem)
            request = renderer.render(turn)
            yield request
            before = copy.deepcopy(state)
            made_up = _made_up(request, finish_reason, takes_last=takes_last)
            following = _after_program(flow, flow.advance(state, made_up))
            if _changed(state, before) or flow.turn(state) != turn or flow.solution(state) != flow.solution(before):
                raise FlowError(
                    f"{type(flow).__name__}.advance changed the state that it was given, at {turn.role!r} of "
                    f"{problem.id}; states are immutable: return a new one (dataclasses.replace)"
                )
            if not request.choices and finish_reason == "length":
                # The turn after an end that follows cut completions, such as a judgement of it all, can be longer yet.
                ended = flow.turn(flow.advance(state, _made_up(request, "stop", takes_last=takes_last)))
                if ended is not None:
                    yield renderer.render(ended)
            state = following
        else:
            raise FlowError(
                f"{type(flow).__name__} asked for {_MOST_TURNS} turns on {problem.id}; every rollout must end"
            )


def _after_program(flow: Any, state: Any) -> Any:
    """The state after the program that it waits for, if it waits for one, has printed as much as it may."""
    if not (hasattr(flow, "awaiting") and flow.awaiting(state)):
        return state
    longest = ("9~" * flow.longest_output)[: flow.longest_output]  # no tokenizer has long tokens of that
    return flow.with_output(state, output=longest, reason="")


def _changed(state: Any, before: Any) -> bool:
    """Whether a state has changed, as far as its class defines equality."""
    return type(state).__eq__ is not object.__eq__ and state != before


def _first_turn(flow: Flow[Any], problem: Problem) -> Turn:
    turn = flow.turn(flow.start(problem))
    if turn is None:
        raise FlowError(f"{type(flow).__name__} has no turn for {problem.id}; a rollout needs at least one turn")
    return turn


def _made_up(request: Request, finish_reason: FinishReason, *, takes_last: bool) -> Completion:
    """A completion of maximal length with this finish reason, or a choice."""
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
