"""Request checks: which requests every engine refuses, and the errors that all engines share.

A request that no engine can answer as the contract requires is refused on submission, before any work:

    check_request(Request(role="answer", prompt_ids=(), max_tokens=8), Sampling(), context_tokens=512)   # EngineError

Invariant: a request that passes can be answered, unless `excluded` leaves no token to sample (`nothing_left`).
"""

from __future__ import annotations

from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Request, Sampling, TokenIds


def check_request(request: Request, sampling: Sampling, *, context_tokens: int) -> None:
    """Raise `EngineError` if this request is malformed or does not fit the context window (in tokens)."""
    found = f"role {request.role!r}, a prompt of {len(request.prompt_ids)} tokens"
    if not request.prompt_ids:
        raise EngineError(f"expected a prompt of at least one token, found {found}; render the prompt first")
    if len(set(request.choices)) < len(request.choices):
        raise EngineError(f"expected a distinct token id for each choice, found {request.choices} ({found})")
    if not request.choices and request.max_tokens < 1:
        raise EngineError(f"expected max_tokens of at least 1, found {request.max_tokens} ({found})")
    if not sampling.temperature > 0:
        raise EngineError(f"expected a temperature above 0, found {sampling.temperature}; use Sampling(greedy=True)")
    if sampling.threshold is not None and (len(request.choices) != 2 or not 0 <= sampling.threshold <= 1):
        raise EngineError(
            f"expected a threshold from 0 to 1 with exactly two choices, found {sampling.threshold} and "
            f"{len(request.choices)} choices ({found})"
        )
    if not 0 < sampling.top_p <= 1:
        raise EngineError(f"expected top_p above 0 and at most 1, found {sampling.top_p}")
    room = 1 if request.choices else request.max_tokens
    if len(request.prompt_ids) + room > context_tokens:
        raise EngineError(
            f"expected prompt and completion to fit the context window of {context_tokens} tokens, found "
            f"{len(request.prompt_ids)} + {room} tokens for role {request.role!r}; shorten the prompt, or lower "
            "the chunk length or the number of chunks"
        )


def check_vocabulary(request: Request, excluded: TokenIds, *, vocab_size: int) -> None:
    """Raise `EngineError` for token ids outside the vocabulary."""
    ids = request.prompt_ids + request.choices + excluded
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise EngineError(f"expected ids below {vocab_size}, the size of the vocabulary, found {ids}")


def check_idle(num_requests: int) -> None:
    """Raise `EngineError` for a refresh while requests are under way, whose adapters would change midway."""
    if num_requests:
        raise EngineError(f"expected no requests under way at a refresh, found {num_requests}; poll first")


def nothing_left(request: Request, sampling: Sampling, excluded: TokenIds) -> EngineError:
    """The error for a request that leaves no token with probability to sample."""
    if not excluded:
        return EngineError(
            f"expected probabilities of the next token for role {request.role!r}, found none: the model's logits are "
            "not finite. Its weights have diverged; lower the learning rate"
        )
    return EngineError(
        f"expected a first token other than {excluded} for role {request.role!r}, found none with probability "
        f"under {sampling}; exclude fewer tokens"
    )
