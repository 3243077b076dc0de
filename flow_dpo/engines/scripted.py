"""How does a flow run without a model?

Two engines in plain Python, for tests, demonstrations and users' own experiments. `ScriptedEngine` lets a function
speak, `TabularEngine` draws from a function that names the next token's probabilities. Both keep the contract of every
engine to the letter, so what passes here fails on a real model only for the model's reasons.

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

EVEN = math.log(0.5)
"""What a script's token is worth where the script does not say: as likely as not, so that alternatives to it exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a script says to one request: token ids, or the index of a choice."""

    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    """One a token; `EVEN` each where empty. Taken for the sampled log-probabilities as well."""
    choice: int | None = None
    choice_logprobs: Sequence[float] = ()
    """One a declared choice; all equally likely where empty."""


Speak = Callable[[Request, int, TokenIds], Said | Sequence[int] | int]
"""Given a request, its seed and what its first token may not be: what is said. Token ids or an index alone will do."""

NextProbs = Callable[[Role, TokenIds], Mapping[int, float]]
"""Given a role and all ids so far: the probability of each next token (those not named have none)."""


@dataclass(frozen=True, slots=True)
class _Asked:
    ticket: int
    request: Request
    sampling: Sampling
    seed: int
    excluded: TokenIds


class _QueueEngine(Engine):
    """Answers everything that is queued, in order, whenever it is polled."""

    def __init__(self, *, end_ids: Collection[int] = (), context_tokens: int = 1 << 20) -> None:
        self._end_ids = frozenset(end_ids)
        self._context_tokens = context_tokens
        self._versions: dict[Role, int] = {}
        self._queue: deque[_Asked] = deque()
        self._num_tickets = 0

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        self._num_tickets += 1
        self._queue.append(_Asked(self._num_tickets, request, sampling, seed, tuple(excluded)))
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        answered: list[tuple[int, Completion]] = []
        while self._queue:
            asked = self._queue.popleft()
            try:
                answered.append((asked.ticket, self._answer(asked)))
            except EngineError:
                if not answered:
                    raise
                # Hand over what is answered; the next poll meets this request first, and raises.
                self._queue.appendleft(asked)
                break
        return answered

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(len(self._queue))
        self._versions = {role: adapter.version for role, adapter in adapters.items()}

    def _version(self, role: Role) -> int:
        return self._versions.get(role, 0)

    @abstractmethod
    def _answer(self, asked: _Asked) -> Completion: ...


class ScriptedEngine(_QueueEngine):
    """A function speaks. What it says beyond `max_tokens` is cut off, so it may say a whole solution to every chunk."""

    def __init__(self, speak: Speak, *, end_ids: Collection[int] = (), context_tokens: int = 1 << 20) -> None:
        super().__init__(end_ids=end_ids, context_tokens=context_tokens)
        self._speak = speak

    def _answer(self, asked: _Asked) -> Completion:
        said = self._speak(asked.request, asked.seed, asked.excluded)
        if isinstance(said, int):
            said = Said(choice=said)
        elif not isinstance(said, Said):
            said = Said(token_ids=said)
        return self._chosen(asked, said) if asked.request.choices else self._written(asked, said)

    def _chosen(self, asked: _Asked, said: Said) -> Completion:
        choices = asked.request.choices
        if said.choice is None or not 0 <= said.choice < len(choices) or choices[said.choice] in asked.excluded:
            raise EngineError(f"expected an allowed index into the choices {choices}, found a script that says {said}")
        logprobs = tuple(said.choice_logprobs) or (-math.log(len(choices)),) * len(choices)
        if len(logprobs) != len(choices):
            raise EngineError(f"expected {len(choices)} choice_logprobs, found a script that says {said}")
        return Completion(
            token_ids=(choices[said.choice],),
            logprobs=(logprobs[said.choice],),
            sampled_logprobs=(logprobs[said.choice],),
            finish_reason="choice",
            policy_version=self._version(asked.request.role),
            choice=said.choice,
            choice_logprobs=logprobs,
        )

    def _written(self, asked: _Asked, said: Said) -> Completion:
        limit = asked.request.max_tokens
        ids = tuple(said.token_ids[:limit])
        logprobs = tuple(said.logprobs[:limit]) or (EVEN,) * len(ids)
        if not ids or ids[0] in asked.excluded or len(logprobs) != len(ids):
            raise EngineError(
                f"expected tokens that do not begin with one of {asked.excluded}, and as many logprobs or none, found "
                f"a script that says {said}"
            )
        ended = ids[-1] in self._end_ids
        if not self._end_ids.isdisjoint(ids[:-1]) or not (ended or len(ids) == limit):
            raise EngineError(
                f"expected one end token ({sorted(self._end_ids)}), as the last, or at least {limit} tokens, found a "
                f"script that says {ids}"
            )
        return Completion(
            token_ids=ids,
            logprobs=logprobs,
            sampled_logprobs=logprobs,
            finish_reason="stop" if ended else "length",
            policy_version=self._version(asked.request.role),
        )


class TabularEngine(_QueueEngine):
    """Draws from a table of probabilities, exactly as an engine draws from a model's."""

    def __init__(self, next_probs: NextProbs, *, end_ids: Collection[int] = (), context_tokens: int = 1 << 20) -> None:
        super().__init__(end_ids=end_ids, context_tokens=context_tokens)
        self._next_probs = next_probs

    def _answer(self, asked: _Asked) -> Completion:
        return self._chosen(asked) if asked.request.choices else self._written(asked)

    def _chosen(self, asked: _Asked) -> Completion:
        request = asked.request
        scores = self._logprobs(request.role, request.prompt_ids)
        return choose(
            [scores.get(token, -math.inf) for token in request.choices],
            request,
            asked.sampling,
            seed=asked.seed,
            excluded=asked.excluded,
            policy_version=self._version(request.role),
        )

    def _written(self, asked: _Asked) -> Completion:
        request, drawn = asked.request, list[Drawn]()
        prefix = request.prompt_ids
        while len(drawn) < request.max_tokens and not (drawn and drawn[-1].token in self._end_ids):
            token = draw(
                self._logprobs(request.role, prefix),
                asked.sampling,
                uniform=uniform(asked.seed, len(drawn)),
                excluded=() if drawn else asked.excluded,
            )
            if token is None:
                raise nothing_left(request, asked.sampling, asked.excluded)
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
