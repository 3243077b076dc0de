"""The engine's protocol: token ids in, sampled token ids out.

Requests are submitted one by one, each with a seed of its own, and finished completions are collected in whatever order
they come, so that a short completion never waits for a long one:

    ticket = engine.submit(request, sampling, seed=7)
    for ticket, completion in engine.poll(): ...

The completion of a request depends on the request, the sampling, its seed and the adapters in force, and on nothing
that is sampled beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from flow_dpo.core.types import Adapter, Completion, Piece, Request, Role, Sampling, TokenIds, Turn


class RendersTurns(Protocol):
    """A renderer, as far as whoever stands in front of an engine needs it: a function of tests will do."""

    def render(self, turn: Turn) -> Request:
        """The turn in token ids."""
        ...

    def to_text(self, pieces: Sequence[Piece]) -> str:
        """The pieces decoded together. Called only where steps end by their text, and by searches that read answers."""
        ...


class Engine(ABC):
    """Turns requests into completions."""

    @abstractmethod
    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        """Queue one request and return its ticket.
        `excluded` holds token ids that the *first* token may not be: they get probability zero after temperature and
        top-p, and the rest is renormalised. `Completion.sampled_logprobs` stay those of the distribution before.
        Raises `EngineError` where the request does not fit the context window.
        """

    @abstractmethod
    def poll(self) -> list[tuple[int, Completion]]:
        """Work until at least one submitted request is finished; return what is. Empty only if nothing is queued."""

    @abstractmethod
    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on. Nothing may be under way."""

    def take_stats(self) -> dict[str, float]:
        """Counts and seconds of the work done since the last call, for the record."""
        return {}

    def close(self) -> None:
        """Release what the engine holds."""
        return

    def sample(self, requests: Sequence[Request], sampling: Sampling, *, seeds: Sequence[int]) -> list[Completion]:
        """Answer all requests, in their order. Shapes: as many seeds as requests."""
        tickets = [self.submit(r, sampling, seed=s) for r, s in zip(requests, seeds, strict=True)]
        done: dict[int, Completion] = {}
        while len(done) < len(tickets):
            done.update(self.poll())
        return [done[t] for t in tickets]
