"""The engine's protocol: token ids in, sampled token ids out.

Requests are submitted one by one, each with its own seed, and completions are collected in whatever order they finish,
so a short completion never waits for a long one:

    ticket = engine.submit(request, sampling, seed=7)
    for ticket, completion in engine.poll(): ...

A completion depends only on its request, its sampling, its seed and the adapters in force, never on what else is being
sampled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from flow_dpo.core.types import Adapter, Completion, Piece, Request, Role, Sampling, TokenIds, Turn


class RendersTurns(Protocol):
    """The part of a renderer that users of an engine need, which a test can replace by a simple function."""

    def render(self, turn: Turn) -> Request:
        """The turn in token ids."""
        ...

    def to_text(self, pieces: Sequence[Piece]) -> str:
        """The pieces decoded together. Called only where text decides: ends of steps, stop strings, read answers."""
        ...


class Engine(ABC):
    """Turns requests into completions."""

    @abstractmethod
    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        """Queue one request and return its ticket.
        `excluded` holds token ids that the *first* token must not be: they get probability zero after temperature and
        top-p, and the rest is renormalised. `Completion.sampled_logprobs` are those before this exclusion.
        Raises `EngineError` if the request does not fit the context window.
        """

    @abstractmethod
    def poll(self) -> list[tuple[int, Completion]]:
        """Work until at least one request has finished; return all that have. Empty only if nothing is queued."""

    @abstractmethod
    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on. No request may be pending."""

    def take_stats(self) -> dict[str, float]:
        """Counts and seconds of the work done since the last call, for the record."""
        return {}

    def close(self) -> None:
        """Release what the engine holds."""
        return

    def sample(self, requests: Sequence[Request], sampling: Sampling, *, seeds: Sequence[int]) -> list[Completion]:
        """Complete all requests; returns the completions in the order of the requests. `seeds` has one per request."""
        tickets = [self.submit(r, sampling, seed=s) for r, s in zip(requests, seeds, strict=True)]
        done: dict[int, Completion] = {}
        while len(done) < len(tickets):
            done.update(self.poll())
        return [done[t] for t in tickets]
