"""Who turns a flow's turns into completions?

A speaker is an engine with a renderer in front: turns in, completions out. Plays are generators that yield what they
ask and are sent the answer; the speaker keeps them all under way at once, so a short chunk never waits for a long one
and every engine sees as much work as there is:

    def play(state):
        said = yield from say(Ask(turn=flow.turn(state), sampling=sampling, seed=derive(seed, problem.id, 0)))
        ...
        yield another_play                                        # a generator that is yielded is started beside this
        verdict = yield from check(problem, flow.solution(state))   # of plays that go on by what was right

Invariant: what a play is answered does not depend on what is under way beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flow_dpo.core.engine import Engine, RendersTurns
from flow_dpo.core.errors import EngineError, FlowError
from flow_dpo.core.steps import line_end, split, step_ends
from flow_dpo.core.types import Adapter, Completion, Problem, Request, Role, Sampling, Solution, TokenIds, Turn, Verdict


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A question to the verifier."""

    problem: Problem
    solution: Solution


Play = Generator["Ask | Check | Play", "Said | Verdict", None]
"""A play in progress. Answered with a `Said` for each `Ask` and a `Verdict` for each `Check`; a yielded `Play` is
started and answered with nothing."""

Finds = Callable[[Sequence[tuple[Problem, Solution]]], Sequence[Verdict]]
"""A verifier's findings on solutions, in their order."""


def say(asked: Ask) -> Generator[Ask | Check | Play, Said | Verdict, Said]:
    """Ask the speaker from within a play."""
    answer = yield asked
    assert isinstance(answer, Said)
    return answer


def check(problem: Problem, solution: Solution) -> Generator[Ask | Check | Play, Said | Verdict, Verdict]:
    """Ask the verifier from within a play."""
    answer = yield Check(problem=problem, solution=solution)
    assert isinstance(answer, Verdict)
    return answer


class Speaker:
    """An engine with a renderer in front, and a verifier beside it for explorations that ask while they play."""

    def __init__(
        self,
        engine: Engine,
        renderer: RendersTurns,
        finds: Finds | None = None,
        *,
        begins: Callable[[Problem, Solution], None] | None = None,
    ) -> None:
        """`finds` answers explorations that ask while they play. `begins` is told of every play that has ended, so that
        a verifier may look at it while others are played; it must return at once."""
        self.engine = engine
        self.renderer = renderer
        self.ended: Callable[[Problem, Solution], None] = begins or (lambda problem, solution: None)
        """To be told of a play that has ended."""
        self._finds = finds
        self._version = 0
        self._checks: list[tuple[Play, Check]] = []

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Speak with these adapters from now on."""
        self.engine.refresh(adapters)
        self._version = max((adapter.version for adapter in adapters.values()), default=0)

    def run(self, plays: Iterable[Play]) -> None:
        """Drive every play, and every play started by one, to its end.

        Raises `EngineError` where a completion comes from another policy version than the one in force.
        """
        waiting: dict[int, tuple[Play, Ask, Request]] = {}
        for play in plays:
            self._go_on(play, None, waiting)
        while waiting or self._checks:
            if self._checks:
                self._find(waiting)
                continue
            for ticket, completion in self.engine.poll():
                if completion.policy_version != self._version:
                    raise EngineError(
                        f"expected a completion of policy version {self._version}, found version "
                        f"{completion.policy_version}: the engine speaks with stale adapters"
                    )
                play, asked, request = waiting.pop(ticket)
                self._go_on(play, Said(request=request, completion=self._cut(asked, completion)), waiting)

    def step_ends(self, completion: Completion) -> tuple[int, ...]:
        """How many tokens of the completion have been said at the end of each step but the last (`core.steps`)."""
        return step_ends(completion.content_ids, lambda ids: self.renderer.to_text((ids,)))

    def _cut(self, asked: Ask, completion: Completion) -> Completion:
        """The completion up to the end of its line, where the turn is of one line."""
        if not asked.turn.one_line:
            return completion
        end = line_end(asked.kept + completion.content_ids, lambda ids: self.renderer.to_text((ids,)))
        if end is None or end - len(asked.kept) >= len(completion.token_ids):
            return completion
        return split(completion, (max(end - len(asked.kept), 1),))[0]

    def _find(self, waiting: dict[int, tuple[Play, Ask, Request]]) -> None:
        """Put all questions to the verifier together, and go on with those who asked."""
        if self._finds is None:
            raise FlowError("this exploration asks what is right while it plays; give the Speaker a verifier (`finds`)")
        asked, self._checks = self._checks, []
        verdicts = self._finds([(one.problem, one.solution) for _, one in asked])
        for (play, _), verdict in zip(asked, verdicts, strict=True):
            self._go_on(play, verdict, waiting)

    def _go_on(self, play: Play, said: Said | Verdict | None, waiting: dict[int, tuple[Play, Ask, Request]]) -> None:
        """Send the answer and follow the play up to its next question."""
        todo: list[tuple[Play, Said | Verdict | None]] = [(play, said)]
        while todo:
            current, answer = todo.pop()
            try:
                asked = next(current) if answer is None else current.send(answer)
            except StopIteration:
                continue
            if isinstance(asked, Ask):
                request = self.renderer.render(asked.turn)
                ticket = self._submit(asked, request)
                waiting[ticket] = (current, asked, request)
            elif isinstance(asked, Check):
                self._checks.append((current, asked))
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
