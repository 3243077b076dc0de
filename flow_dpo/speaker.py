"""Who turns a flow's turns into completions?

A speaker is an engine with a renderer in front: turns in, completions out. Plays are generators that yield what they
ask and are sent the answer; the speaker keeps them all under way at once, so a short chunk never waits for a long one
and every engine sees as much work as there is:

    def play(state):
        said = yield Ask(turn=flow.turn(state), sampling=sampling, seed=derive(seed, problem.id, 0))
        ...
        yield another_play          # a generator that is yielded is started beside this one
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace

from flow_dpo.engines.base import Engine, RendersTurns
from flow_dpo.errors import EngineError
from flow_dpo.types import Adapter, Completion, Request, Role, Sampling, TokenIds, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to the speaker."""

    turn: Turn
    sampling: Sampling
    seed: int
    kept: TokenIds = ()
    """First tokens of the completion that are given; the answer holds what follows them."""
    struck: TokenIds = ()
    """What the token behind `kept` may not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The answer: the request as the turn renders (without `kept`), and the completion (without `kept`)."""

    request: Request
    completion: Completion


Play = Generator["Ask | Play", Said, None]
"""A play in progress. Answered with a `Said` for each `Ask`; a yielded `Play` is started and answered with nothing."""


class Speaker:
    """An engine with a renderer in front."""

    def __init__(self, engine: Engine, renderer: RendersTurns) -> None:
        self.engine = engine
        self.renderer = renderer
        self._version = 0

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Speak with these adapters from now on."""
        self.engine.refresh(adapters)
        self._version = max((adapter.version for adapter in adapters.values()), default=0)

    def run(self, plays: Iterable[Play]) -> None:
        """Drive every play, and every play started by one, to its end.

        Raises `EngineError` where a completion comes from another policy version than the one in force.
        """
        waiting: dict[int, tuple[Play, Request]] = {}
        for play in plays:
            self._go_on(play, None, waiting)
        while waiting:
            for ticket, completion in self.engine.poll():
                if completion.policy_version != self._version:
                    raise EngineError(
                        f"expected a completion of policy version {self._version}, found version "
                        f"{completion.policy_version}: the engine speaks with stale adapters"
                    )
                play, request = waiting.pop(ticket)
                self._go_on(play, Said(request=request, completion=completion), waiting)

    def _go_on(self, play: Play, said: Said | None, waiting: dict[int, tuple[Play, Request]]) -> None:
        """Send the answer and follow the play up to its next question."""
        todo: list[tuple[Play, Said | None]] = [(play, said)]
        while todo:
            current, answer = todo.pop()
            try:
                asked = next(current) if answer is None else current.send(answer)
            except StopIteration:
                continue
            if isinstance(asked, Ask):
                request = self.renderer.render(asked.turn)
                ticket = self._submit(asked, request)
                waiting[ticket] = (current, request)
            else:
                todo.append((current, None))
                todo.append((asked, None))

    def _submit(self, asked: Ask, request: Request) -> int:
        if asked.kept:
            request = replace(
                request,
                prompt_ids=request.prompt_ids + asked.kept,
                max_tokens=request.max_tokens - len(asked.kept),
            )
        return self.engine.submit(request, asked.sampling, seed=asked.seed, excluded=asked.struck)
