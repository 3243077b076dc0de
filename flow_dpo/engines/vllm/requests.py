"""vLLM requests: one completion as a sequence of requests to vLLM and replies, the same in process and over HTTP.

A generator yields requests, in terms of vLLM's `SamplingParams`, and is sent the replies. Most completions take one
request. The exceptions:

    choices              one token with its top log-probabilities, which nearly always include the choices; a missing
                         choice is requested alone; `choose` samples
    excluded first       one token with its top log-probabilities; the first token is sampled here, from the truncated
    tokens               distribution without excluded tokens; a second request samples the rest
    temperature, top-p   every token with its top log-probabilities, which give the sampled log-probabilities; if they
                         do not suffice (`topk_logprobs`), more or all of them are requested for that position

    steps = completion_steps(request, sampling, seed=7, excluded=(), facts=facts, policy_version=3)
    vllm_request = next(steps)                     # VllmRequest((1, 5, 6), {"max_tokens": 8, "seed": 7, ...})
    steps.send(Reply((5, 2), (-0.1, -0.3), ({}, {})))      # StopIteration with the completion

vLLM reports the log-probabilities of the unscaled, untruncated distribution (its `raw_logprobs`, the default). It can
also report those of given tokens (`logprob_token_ids`), but then it reports no top log-probabilities for other requests
in the same batch (vLLM 0.32), so that is never used. Invariant: what is sampled depends only on the request, its seed
and the adapter, up to rounding of sums, unless seeds are left out (`ModelFacts.seeds_from_top_p`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Completion, Request, Sampling, TokenIds
from flow_dpo.engines.choices import choose
from flow_dpo.engines.request_checks import nothing_left
from flow_dpo.engines.sampling_rule import Drawn, stream, uniform
from flow_dpo.engines.vllm.topk_logprobs import (
    Candidates,
    TopLogprobs,
    draw_candidate,
    find_candidates,
    sampled_logprobs,
)

MAX_ASKED_ALONE = 2
"""Maximum number of missing choices that are requested one by one; for more, all log-probabilities are."""
_MORE_LOGPROBS = 512
"""Number of top log-probabilities requested if the first few do not suffice."""
TEMPERATURES = (0.01, 2.0)
"""The lowest and highest temperature that vLLM accepts."""
_SEED_BITS = (1 << 63) - 1
_NOT_A_NUMBER = -9000.0
"""vLLM reports -9999 for a log-probability that is not a number."""


@dataclass(frozen=True, slots=True)
class VllmRequest:
    """One request to vLLM."""

    prompt_ids: TokenIds
    params: Mapping[str, Any]
    """Parameters, named as in vLLM's `SamplingParams`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """vLLM's reply to one request."""

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    top_logprobs: Sequence[Mapping[int, float]]
    """At each position, the log-probabilities of the requested number of most probable tokens, by id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What an engine knows about the served model."""

    end_ids: frozenset[int]
    vocab_size: int
    """Number of token ids."""
    num_top_logprobs: int
    """Number of top log-probabilities requested first, if any are needed."""
    seeds_from_top_p: float = 0.0
    """Requests carry their own seed from this top-p on (`engines.settings`)."""

    @property
    def unsampled(self) -> dict[str, float]:
        """Parameters of a request whose sampled token is not used. If seeds are left out, no request is greedy, because
        a greedy one would keep its whole step from the fast sampler."""
        return {"max_tokens": 1, "temperature": 0.0 if self.seeds_from_top_p == 0 else 1.0}


CompletionSteps = Generator[VllmRequest, Reply, Completion]


def completion_steps(
    request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds, facts: ModelFacts, policy_version: int
) -> CompletionSteps:
    """The requests for one completion. Raises `EngineError` if no token is left to sample."""
    if request.choices:
        return (yield from _choice_steps(request, sampling, seed, excluded, facts, policy_version))
    drawn: list[Drawn] = []
    if excluded:
        drawn.append((yield from _first_token_steps(request, sampling, seed, excluded, facts)))
    if not drawn or (drawn[0].token not in facts.end_ids and request.max_tokens > 1):
        drawn += yield from _text_steps(request, sampling, seed, tuple(d.token for d in drawn), facts)
    return Completion(
        token_ids=tuple(d.token for d in drawn),
        logprobs=tuple(d.logprob for d in drawn),
        sampled_logprobs=tuple(d.sampled_logprob for d in drawn),
        finish_reason="stop" if drawn[-1].token in facts.end_ids else "length",
        policy_version=policy_version,
    )


def check_sampling(sampling: Sampling) -> None:
    """Raise `EngineError` for a temperature that vLLM would change or refuse."""
    least, most = TEMPERATURES
    if not (sampling.greedy or least <= sampling.temperature <= most):
        raise EngineError(
            f"expected a temperature from {least} to {most}, vLLM's range, found "
            f"{sampling.temperature}; change --temperature, or use --engine local"
        )


def _choice_steps(
    request: Request, sampling: Sampling, seed: int, excluded: TokenIds, facts: ModelFacts, policy_version: int
) -> CompletionSteps:
    # 1. The most probable tokens nearly always include the choices.
    reply = yield VllmRequest(
        request.prompt_ids, plain_params(**facts.unsampled, logprobs=_top_logprob_counts(facts)[0])
    )
    top_logprobs = dict(reply.top_logprobs[0])
    # 2. The missing choices: one request each, or one for the whole distribution.
    missing = [token for token in request.choices if token not in top_logprobs]
    if len(missing) > MAX_ASKED_ALONE:
        top_logprobs = (
            yield VllmRequest(request.prompt_ids, plain_params(**facts.unsampled, logprobs=-1))
        ).top_logprobs[0]
    else:
        for token in missing:
            single = yield VllmRequest(
                request.prompt_ids, plain_params(**facts.unsampled, logprobs=0, allowed_token_ids=[token])
            )
            top_logprobs |= zip(single.token_ids, single.logprobs, strict=True)
    # 3. Sample by our rule.
    try:
        scores = [top_logprobs[token] for token in request.choices]
    except KeyError as error:
        raise EngineError(
            f"expected vLLM to report the log-probabilities of {request.choices} ({request.role!r}), found {error!r}"
        ) from error
    if not max(scores) > _NOT_A_NUMBER:
        raise EngineError(
            f"expected log-probabilities of {request.choices} ({request.role!r}) from vLLM, found {scores}: no numbers"
        )
    return choose(scores, request, sampling, seed=seed, excluded=excluded, policy_version=policy_version)


def _first_token_steps(
    request: Request, sampling: Sampling, seed: int, excluded: Collection[int], facts: ModelFacts
) -> Generator[VllmRequest, Reply, Drawn]:
    """The first token, sampled here because some tokens are excluded."""
    for count in _top_logprob_counts(facts):
        reply = yield VllmRequest(request.prompt_ids, plain_params(**facts.unsampled, logprobs=count))
        top_logprobs = _top(reply.top_logprobs[0], count)
        candidates = find_candidates(top_logprobs, sampling, vocab_size=facts.vocab_size)
        drawn = candidates and draw_candidate(
            candidates, top_logprobs, uniform=uniform(seed, 0), greedy=sampling.greedy, excluded=excluded
        )
        if drawn is not None:
            return drawn
    raise nothing_left(request, sampling, tuple(excluded))


def _text_steps(
    request: Request, sampling: Sampling, seed: int, first_ids: TokenIds, facts: ModelFacts
) -> Generator[VllmRequest, Reply, list[Drawn]]:
    """The tokens after `first_ids`, which were already sampled here."""
    # 1. One request for all tokens.
    prompt_ids, room = request.prompt_ids + first_ids, request.max_tokens - len(first_ids)
    plain = sampling.temperature == 1 and sampling.top_p == 1
    temperature, top_p = (0.0, 1.0) if sampling.greedy else (sampling.temperature, sampling.top_p)
    # The random number that decided the first token must not be used again.
    own_seed = (stream(seed) if first_ids else seed) & _SEED_BITS
    seeded = {"seed": own_seed} if sampling.top_p >= facts.seeds_from_top_p else {}
    reply = yield VllmRequest(
        prompt_ids,
        plain_params(
            max_tokens=room,
            temperature=temperature,
            top_p=top_p,
            logprobs=0 if plain else _top_logprob_counts(facts)[0],
            stop_token_ids=sorted(facts.end_ids),
            **seeded,
        ),
    )
    # 2. Check the reply.
    ids = reply.token_ids
    ended = bool(ids) and ids[-1] in facts.end_ids
    if not facts.end_ids.isdisjoint(ids[:-1]) or not (ended or len(ids) == room):
        raise EngineError(
            f"expected {room} tokens, or fewer up to an end token {sorted(facts.end_ids)}, from vLLM for role "
            f"{request.role!r}, found {ids}"
        )
    if not all(_NOT_A_NUMBER < value <= 1e-3 for value in reply.logprobs):
        raise nothing_left(request, sampling, ())
    # 3. Sampled log-probabilities, position by position, with further requests if the top ones do not suffice.
    if plain:
        return [
            Drawn(token, min(0.0, value), min(0.0, value)) for token, value in zip(ids, reply.logprobs, strict=True)
        ]
    found = sampled_logprobs(
        ids, reply.logprobs, _same_count(reply, _top_logprob_counts(facts)[0]), sampling, vocab_size=facts.vocab_size
    )
    drawn: list[Drawn] = []
    for at, (token, logprob, sampled) in enumerate(zip(ids, reply.logprobs, found, strict=True)):
        if math.isnan(sampled):
            candidates = yield from _request_more(prompt_ids + ids[:at], sampling, facts)
            sampled = candidates.sampled_logprob(logprob)
        drawn.append(Drawn(token, min(0.0, logprob), min(0.0, sampled)))
    return drawn


def _request_more(
    prompt_ids: TokenIds, sampling: Sampling, facts: ModelFacts
) -> Generator[VllmRequest, Reply, Candidates]:
    """The candidates after this prompt, from more top log-probabilities, or finally from those of all tokens."""
    top_logprobs: Mapping[int, float] = {}
    for count in _top_logprob_counts(facts)[1:]:
        reply = yield VllmRequest(prompt_ids, plain_params(**facts.unsampled, logprobs=count))
        top_logprobs = _top(reply.top_logprobs[0], count)
        candidates = find_candidates(
            top_logprobs, sampling, vocab_size=facts.vocab_size if count > 0 else len(top_logprobs)
        )
        if candidates is not None:
            return candidates
    raise EngineError(
        f"expected log-probabilities of all {facts.vocab_size} tokens from vLLM, found {len(top_logprobs)} that do not "
        "sum to one; start it with --max-logprobs -1 and --logprobs-mode raw_logprobs"
    )


def _top_logprob_counts(facts: ModelFacts) -> tuple[int, ...]:
    """The numbers of top log-probabilities to request, one after the other if they do not suffice; -1 means all.

    All come last, because one such request makes vLLM sort the vocabulary for its whole batch.
    """
    few = min(facts.num_top_logprobs, facts.vocab_size)
    return (few, _MORE_LOGPROBS, -1) if few < _MORE_LOGPROBS < facts.vocab_size // 2 else (few, -1)


def _top(top_logprobs: Mapping[int, float], count: int) -> Mapping[int, float]:
    """The `count` most probable tokens: vLLM adds the sampled one, which can be far less probable."""
    if not 0 < count < len(top_logprobs):
        return top_logprobs
    return dict(sorted(top_logprobs.items(), key=lambda item: -item[1])[:count])


def _same_count(reply: Reply, count: int) -> TopLogprobs:
    """The reply's top log-probabilities, with the same number of tokens at each position."""
    if isinstance(reply.top_logprobs, TopLogprobs):
        return reply.top_logprobs
    rows = [_top(position, count) for position in reply.top_logprobs]
    return TopLogprobs(np.array([[*row] for row in rows]), np.array([[*row.values()] for row in rows]))


def plain_params(**params: Any) -> dict[str, Any]:
    """Sampling parameters that set all values which vLLM would take from the generation config. Greedy by default."""
    return {
        "n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "skip_special_tokens": False,
    } | params  # fmt: skip
