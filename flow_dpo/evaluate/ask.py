"""A new question, answered by a trained flow: every turn as it is sampled, then the answer and the reason for it.

    answered = ask("runs/quickstart", "Mia has 4 shells. She finds 3 shells. How many shells does Mia have now?")
    answered.answer                  "7"
    answered.turns[-1].choices       {"Yes": 0.93, "No": 0.07}, Stop's, for the attempt that was accepted

Works for every recipe's flow and for your own. No gold answer is needed, and nothing is graded. Invariant: a question
is sampled like a problem of the same id, settings and seed in `evaluate`; watching the turns changes nothing.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Explore, Siblings
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.types import Adapter, Completion, Problem, Role
from flow_dpo.data.problems import ProblemSet, fingerprint
from flow_dpo.engines.settings import EngineSettings
from flow_dpo.evaluate.asked import Answered, AskedTurn, AskSettings, outcome
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsState
from flow_dpo.runs.adapters import load_adapters, sampled_flow
from flow_dpo.runs.given_objects import GivenObjects, sampling_settings
from flow_dpo.runs.published import names_a_run
from flow_dpo.runs.resolve import nearest
from flow_dpo.runs.runtime import EngineOpener, Runtime, open_runtime
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings
from flow_dpo.verify.extract import AnswerRule, extract_answer
from flow_dpo.workers.settings import WorkersSettings

Tell = Callable[[AskedTurn], None]


def ask(
    source: str | Path | Runtime,
    question: str | Problem,
    *,
    tell: Tell | None = None,
    flow: Flow[Any] | None = None,
    engine: str | EngineSettings | EngineOpener | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> Answered:
    """Answer a question with the flow of a run folder, of a named model (untrained), or of an open runtime.

    `tell` is called with every turn as soon as it is sampled. Any setting of `flow-dpo ask` can be given by name:
    `ask(run, question, greedy=False, seed=3)`. For several questions, open a runtime; otherwise each one loads a model.
    Raises `ConfigError` for an unknown setting and for an empty question.
    """
    given = GivenObjects(engine=engine, flow=flow)
    overrides = {**(settings or {}), **more}
    problem = asked_problem(question)
    if isinstance(source, Runtime):
        recipe = source.recipe
        chosen = flow or (None if recipe is None else recipe.flow)
        if chosen is None or engine is not None:
            raise ConfigError("expected a runtime that was opened with a flow and its engine; or name a run folder")
        explore = Siblings() if recipe is None else recipe.explore
        how = _settings_of(overrides)
        flow_asked = sampled_flow(chosen, how.mode)
        return Asking(source, flow_asked, explore, source.adapters_in_force, AnswerRule(), how)(problem, tell)
    found = sampling_settings("flow_dpo.ask", str(source), {"ask": AskSettings()}, overrides, given)
    run = str(source) if names_a_run(str(source)) else None
    with open_to_ask(found, SpeakingSettings(run=run), [problem], given) as asking:
        return asking(problem, tell)


def _settings_of(values: Mapping[str, Any]) -> AskSettings:
    """The settings that an open runtime still takes, by name."""
    known = [each.name for each in fields(AskSettings)]
    for name in values:
        if name.removeprefix("ask.") not in known:
            near = nearest(name, known).replace("--", "")
            raise ConfigError(f"unknown setting {name} of an open runtime; {near}")
    return AskSettings(**{name.removeprefix("ask."): value for name, value in values.items()})


def asked_problem(question: str | Problem) -> Problem:
    """The question as a problem without a gold answer. Its id, from which seeds derive, is a hash of its text."""
    if isinstance(question, Problem):
        return question
    text = question.strip()
    if not text:
        raise ConfigError("expected a question, found an empty one")
    try:
        known = hashlib.sha256(text.encode()).hexdigest()[:12]
    except UnicodeEncodeError as error:  # bytes from a shell or a pipe in another encoding
        raise ConfigError(f"expected a question in UTF-8, found {text!r:.80}") from error
    return Problem(id=f"asked/{known}", question=text, gold="")


@contextmanager
def open_to_ask(
    sections: Mapping[str, Any],
    speaking: SpeakingSettings,
    problems: Sequence[Problem],
    given: GivenObjects | None = None,
    *,
    doing: Callable[[str], None] = lambda _: None,
) -> Iterator[Asking]:
    """Load model and adapters to answer questions in this process; `sections` are those of `flow-dpo ask`.

    Raises `ConfigError` if none of the problems fits the context window, before anything is sampled.
    """
    given = GivenObjects() if given is None else given
    settings: AskSettings = sections["ask"]
    flow = sampled_flow(sections["flow"], settings.mode)
    runtime_settings = replace(RuntimeSettings.from_sections(sections), workers=WorkersSettings())
    known = ProblemSet(problems=tuple(problems), fingerprint=fingerprint(tuple(problems)))
    with open_runtime(
        runtime_settings,
        flow,
        roles=sections["flow"].roles,
        seed=settings.seed,
        engine=given.engine,
        problems=known,
        doing=doing,
    ) as runtime:
        adapters = load_adapters(runtime.policy, speaking)
        rule = runtime_settings.grading.rule
        yield Asking(runtime, flow, sections["explore"], adapters, rule, settings)


class Asking:
    """A loaded flow that answers questions, one after another."""

    def __init__(
        self,
        runtime: Runtime,
        flow: Flow[Any],
        explore: Explore,
        adapters: Mapping[Role, Adapter],
        rule: AnswerRule,
        settings: AskSettings,
    ) -> None:
        self.flow, self._settings, self._rule = flow, settings, rule
        self._explore = explore.alone(greedy=settings.greedy)
        self._renderer = runtime.renderer
        self._runner = RolloutRunner(runtime.backends.engine, runtime.renderer)
        self._adapters = adapters

    def __call__(self, problem: Problem, tell: Tell | None = None) -> Answered:
        """Sample one rollout of the flow, and report each turn at once."""
        turns: list[AskedTurn] = []

        def on_advance(state: Any, completion: Completion, after: Any) -> None:
            turn = self._turn(state, completion, after, turns)
            if turn is not None:
                turns.append(turn)
                if tell is not None:
                    tell(turn)

        # Refreshed each time: what an engine has cached from one question would carry rounding into the next.
        self._runner.refresh(self._adapters)
        [tree] = self._explore(watched(self.flow, on_advance), self._runner, [problem], seed=self._settings.seed)
        nodes, solution = tree.trunk_nodes(), tree.trunk.solution
        text = self._renderer.to_text(solution.attempt)
        number, accepted, why = outcome(turns, best=isinstance(self.flow, Attempts) and self.flow.answers == "best")
        return Answered(
            question=problem.question,
            answer=extract_answer(text, ended=solution.ended, rule=self._rule),
            solution=text,
            ended=solution.ended,
            attempt=number,
            num_attempts=turns[-1].attempt,
            accepted=accepted,
            why=why,
            turns=tuple(turns),
            tokens=sum(len(node.completion.token_ids) for node in nodes),
        )

    def _turn(self, state: Any, completion: Completion, after: Any, before: Sequence[AskedTurn]) -> AskedTurn | None:
        """What is shown of a turn; None for the token that only closes a rollout."""
        turn = self.flow.turn(state)
        if turn is None:
            return None
        right = threshold = None
        if isinstance(state, AttemptsState) and isinstance(after, AttemptsState):
            attempt = len(state.refused) + 1
            if turn.choices and isinstance(self.flow, Attempts):
                judged = after.refused[-1] if len(after.refused) > len(state.refused) else after.attempt
                right, threshold = 1 / (1 + math.exp(-judged.log_odds)), self.flow.threshold
        else:  # Stop refused an ended answer and it was reopened: its turns belong to the next attempt
            reopened = bool(before) and self.flow.solution(state).attempt_start > 0 and not turn.choices
            last = before[-1].attempt if before else 1
            attempt = last + (reopened and self._newly_reopened(state))
        written = turn.choices[completion.choice or 0] if turn.choices else self._text(completion)
        odds = zip(turn.choices, completion.choice_logprobs, strict=False)
        return AskedTurn(
            role=turn.role,
            text=written,
            choices={word: math.exp(logprob) for word, logprob in odds},
            attempt=attempt,
            right=right,
            threshold=threshold,
            tokens=len(completion.token_ids),
        )

    def _text(self, completion: Completion) -> str:
        return self._renderer.to_text((completion.content_ids,))

    def _newly_reopened(self, state: Any) -> bool:
        """Whether nothing of the reopened attempt has been written yet."""
        solution = self.flow.solution(state)
        return not any(not isinstance(piece, str) for piece in solution.pieces[solution.attempt_start :])


def watched(flow: Flow[Any], on_advance: Callable[[Any, Completion, Any], None]) -> Flow[Any]:
    """The same flow, in a subclass of its own class that reports every turn, so explorations that need a certain kind
    of flow still accept it."""
    kind = type(flow)

    def advance(self: Flow[Any], state: Any, completion: Completion) -> Any:
        after = kind.advance(self, state, completion)
        on_advance(state, completion, after)
        return after

    seen = copy.copy(flow)
    # Without slots of its own, so the layout stays the flow's; its settings can be frozen.
    object.__setattr__(seen, "__class__", type(kind.__name__, (kind,), {"advance": advance, "__slots__": ()}))
    return seen
