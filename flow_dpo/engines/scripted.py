"""Scripted and tabular engines: engines without a model, for tests, demonstrations and experiments.

`ScriptedEngine` takes completions from a function; `TabularEngine` samples from a function that returns the next
token's probabilities. Both keep the engine contract exactly, so if a flow works here and fails on a real model, the
model is the reason.

    engine = ScriptedEngine(lambda request, seed, excluded: (5, 6, 2), end_ids={2})
    engine = TabularEngine(lambda role, prefix: {5: 0.75, 2: 0.25}, end_ids={2})
    [completion] = engine.sample([Request(role="answer", prompt_ids=(1,), max_tokens=8)], Sampling(), seeds=[7])

Invariant: a completion ends with an end token, or is exactly `max_tokens` long, or is a choice.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.choices import choose
from flow_dpo.engines.request_checks import check_idle, check_request, nothing_left
from flow_dpo.engines.sampling_rule import Drawn, draw, uniform

EVEN_LOGPROB = math.log(0.5)
"""Log-probability of a scripted token if the script gives none: one half, so that alternatives to it exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedReply:
    """A script's reply to one request: token ids, or the index of a choice."""

    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    """One for each token; if empty, each is `EVEN_LOGPROB`. Also used as the sampled log-probabilities."""
    choice: int | None = None
    choice_logprobs: Sequence[float] = ()
    """One for each declared choice; all equally likely if empty."""


Script = Callable[[Request, int, TokenIds], ScriptedReply | Sequence[int] | int]
"""Maps a request, its seed and the excluded first tokens to a reply, or to just its token ids or choice index."""

NextProbs = Callable[[Role, TokenIds], Mapping[int, float]]
"""Maps a role and all ids so far to the probability of each next token (0 for ids that are missing)."""


@dataclass(frozen=True, slots=True)
class _Pending:
    ticket: int
    request: Request
    sampling: Sampling
    seed: int
    excluded: TokenIds


class _QueueEngine(Engine):
    """Completes all queued requests, in order, whenever it is polled."""

    def __init__(self, *, end_ids: Collection[int] = (), context_tokens: int = 1 << 20) -> None:
        self._end_ids = frozenset(end_ids)
        self._context_tokens = context_tokens
        self._versions: dict[Role, int] = {}
        self._queue: deque[_Pending] = deque()
        self._num_tickets = 0

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        self._num_tickets += 1
        self._queue.append(_Pending(self._num_tickets, request, sampling, seed, tuple(excluded)))
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        finished: list[tuple[int, Completion]] = []
        while self._queue:
            pending = self._queue.popleft()
            try:
                finished.append((pending.ticket, self._complete(pending)))
            except EngineError:
                if not finished:
                    raise
                # Return what is finished; the next poll tries this request first, and raises.
                self._queue.appendleft(pending)
                break
        return finished

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(len(self._queue))
        self._versions = {role: adapter.version for role, adapter in adapters.items()}

    def _version(self, role: Role) -> int:
        return self._versions.get(role, 0)

    @abstractmethod
    def _complete(self, pending: _Pending) -> Completion: ...


class ScriptedEngine(_QueueEngine):
    """Replies with a function's result, cut off after `max_tokens`, so a script can return whole solutions."""

    def __init__(self, script: Script, *, end_ids: Collection[int] = (), context_tokens: int = 1 << 20) -> None:
        super().__init__(end_ids=end_ids, context_tokens=context_tokens)
        self._script = script

    def _complete(self, pending: _Pending) -> Completion:
        reply = self._script(pending.request, pending.seed, pending.excluded)
        if isinstance(reply, int):
            reply = ScriptedReply(choice=reply)
        elif not isinstance(reply, ScriptedReply):
            reply = ScriptedReply(token_ids=reply)
        return (
            self._choice_completion(pending, reply)
            if pending.request.choices
            else self._text_completion(pending, reply)
        )

    def _choice_completion(self, pending: _Pending, reply: ScriptedReply) -> Completion:
        choices = pending.request.choices
        if reply.choice is None or not 0 <= reply.choice < len(choices) or choices[reply.choice] in pending.excluded:
            raise EngineError(f"expected a script to return the index of an allowed choice of {choices}, found {reply}")
        logprobs = tuple(reply.choice_logprobs) or (-math.log(len(choices)),) * len(choices)
        if len(logprobs) != len(choices):
            raise EngineError(f"expected a script to return {len(choices)} choice_logprobs, found {reply}")
        return Completion(
            token_ids=(choices[reply.choice],),
            logprobs=(logprobs[reply.choice],),
            sampled_logprobs=(logprobs[reply.choice],),
            finish_reason="choice",
            policy_version=self._version(pending.request.role),
            choice=reply.choice,
            choice_logprobs=logprobs,
        )

    def _text_completion(self, pending: _Pending, reply: ScriptedReply) -> Completion:
        limit = pending.request.max_tokens
        ids = tuple(reply.token_ids[:limit])
        logprobs = tuple(reply.logprobs[:limit]) or (EVEN_LOGPROB,) * len(ids)
        if not ids or ids[0] in pending.excluded or len(logprobs) != len(ids):
            raise EngineError(
                f"expected a script to return tokens that do not begin with one of {pending.excluded}, and as many "
                f"logprobs or none, found {reply}"
            )
        ended = ids[-1] in self._end_ids
        if not self._end_ids.isdisjoint(ids[:-1]) or not (ended or len(ids) == limit):
            raise EngineError(
                f"expected a script to return one end token ({sorted(self._end_ids)}), as the last, or at least "
                f"{limit} tokens, found {ids}"
            )
        return Completion(
            token_ids=ids,
            logprobs=logprobs,
            sampled_logprobs=logprobs,
            finish_reason="stop" if ended else "length",
            policy_version=self._version(pending.request.role),
        )


class TabularEngine(_QueueEngine):
    """Samples from a function's probabilities, by the same rule as engines with a model."""

    def __init__(self, next_probs: NextProbs, *, end_ids: Collection[int] = (), context_tokens: int = 1 << 20) -> None:
        super().__init__(end_ids=end_ids, context_tokens=context_tokens)
        self._next_probs = next_probs

    def _complete(self, pending: _Pending) -> Completion:
        return self._choice_completion(pending) if pending.request.choices else self._text_completion(pending)

    def _choice_completion(self, pending: _Pending) -> Completion:
        request = pending.request
        scores = self._logprobs(request.role, request.prompt_ids)
        return choose(
            [scores.get(token, -math.inf) for token in request.choices],
            request,
            pending.sampling,
            seed=pending.seed,
            excluded=pending.excluded,
            policy_version=self._version(request.role),
        )

    def _text_completion(self, pending: _Pending) -> Completion:
        request, drawn = pending.request, list[Drawn]()
        prefix = request.prompt_ids
        while len(drawn) < request.max_tokens and not (drawn and drawn[-1].token in self._end_ids):
            token = draw(
                self._logprobs(request.role, prefix),
                pending.sampling,
                uniform=uniform(pending.seed, len(drawn)),
                excluded=() if drawn else pending.excluded,
            )
            if token is None:
                raise nothing_left(request, pending.sampling, pending.excluded)
            drawn.append(token)
            prefix += (token.token,)
        return Completion(
            token_ids=tuple(d.token for d in drawn),
            logprobs=tuple(d.logprob for d in drawn),
            sampled_logprobs=tuple(d.sampled_logprob for d in drawn),
            finish_reason="stop" if drawn[-1].token in self._end_ids else "length",
            policy_version=self._version(request.role),
        )

    def _logprobs(self, role: Role, prefix: TokenIds) -> dict[int, float]:
        probs = {token: p for token, p in self._next_probs(role, prefix).items() if p > 0}
        if not probs:
            raise EngineError(f"expected a next token with probability for role {role!r} after {prefix}, found none")
        return {token: math.log(p) for token, p in probs.items()}
