"""Does a problem that is let through fit, however a model answers? Every prompt of a flow, by random play."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.flow import Flow
from flow_dpo.core.types import Problem
from flow_dpo.models.context_window import fitting_problems, longest_requests
from flow_dpo.recipes.dots.flow import Planned
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsPrompts
from flow_dpo.recipes.single import Single
from tests.support.attempt_worlds import plain, word
from tests.support.char_renderer import END, Letters

PROBLEM = Problem(id="p", question="Why?", gold="1")
SHORT = AttemptsPrompts(answer_system="", stop_system="", stop_user="{question}{candidate}", retry="No.")
LONG_STOP = replace(SHORT, stop_system="Judge with the greatest care. " * 3)
ATTEMPTS = Attempts(chunk_tokens=3, max_chunks=4, max_attempts=3, prompts=SHORT)
FLOWS: dict[str, Flow] = {  # type: ignore[type-arg]
    "attempts": ATTEMPTS,
    "attempts, Stop's prompt longest": replace(ATTEMPTS, prompts=LONG_STOP),
    "attempts shown": replace(ATTEMPTS, retry="shown"),
    "attempts shown, Stop's prompt longest": replace(ATTEMPTS, retry="shown", prompts=LONG_STOP),
    "one attempt of one chunk": replace(ATTEMPTS, max_chunks=1, max_attempts=1, prompts=LONG_STOP),
    "the paper's": AnswerStop(chunk_tokens=3, max_chunks=4, prompts=AnswerStopPrompts(stop_system="Judge.")),
    "single": Single(max_tokens=5, prompts=SHORT),
}


def room(flow: Flow) -> int:  # type: ignore[type-arg]
    """The longest prompt with its completion, of the walk."""
    return max(len(one.prompt_ids) + one.max_tokens for one in longest_requests(flow, Letters(), PROBLEM))


def played(flow: Flow, seed: int) -> int:  # type: ignore[type-arg]
    """The same of one rollout by chance, which often fills its chunks and often ends right behind a full one."""
    rng, state, most = random.Random(seed), flow.start(PROBLEM), 0
    while (turn := flow.turn(state)) is not None:
        request = Letters().render(turn)
        most = max(most, len(request.prompt_ids) + request.max_tokens)
        if turn.choices:
            completion = word(int(rng.random() < 0.8))
        elif rng.random() < 0.7:
            completion = plain(*[ord("x")] * turn.max_tokens)
        else:
            num = rng.choice([turn.max_tokens - 1, rng.randrange(turn.max_tokens)])
            completion = plain(*[ord("x")] * num, END, ended=True)
        state = flow.advance(state, completion)
    return most


@pytest.mark.parametrize("name", FLOWS)
def test_no_rollout_asks_for_more_than_the_walk_does(name: str) -> None:
    flow = FLOWS[name]
    found = [played(flow, seed) for seed in range(400)]
    # Not more, and no less: a walk that is too long would leave problems out.
    if "paper" in name:  # an answer that was reopened in every chunk but the last; chance seldom does it
        assert max(found) <= room(flow)
    else:
        assert max(found) == room(flow)


@pytest.mark.parametrize("name", FLOWS)
def test_a_window_of_that_length_takes_the_problem(name: str) -> None:
    """With the stated reserve of 8 tokens, and not with one token less."""
    flow, needed = FLOWS[name], room(FLOWS[name]) + 8
    assert fitting_problems(flow, Letters(), [PROBLEM], needed) == [PROBLEM]
    with pytest.raises(ConfigError, match="found that it takes"):
        fitting_problems(flow, Letters(), [PROBLEM], needed - 1)


def test_a_shown_attempt_is_walked_with_the_whole_of_the_next() -> None:
    fresh, shown = (room(replace(ATTEMPTS, retry=retry)) for retry in ("fresh", "shown"))
    # What was cut at the cap, 3 * 4 + 1 tokens, and the retry's own turns.
    assert shown - fresh == 13 + len("<assistant>") + len("<user>No.")
    assert room(replace(ATTEMPTS, retry="shown", max_attempts=1)) == fresh


def test_a_prompt_that_has_the_question_twice_is_counted_for_every_question() -> None:
    twice = replace(SHORT, stop_user="{question}{candidate}{question}")
    flow = replace(ATTEMPTS, prompts=twice)
    problems = [Problem(id=str(n), question="?" * n, gold="1") for n in (3, 90, 40)]
    needs = {
        one.id: max(len(r.prompt_ids) + r.max_tokens for r in longest_requests(flow, Letters(), one)) + 8
        for one in problems
    }
    assert needs["90"] - needs["3"] == 2 * 87
    for window in (needs["3"], needs["40"] - 1, needs["40"], needs["90"] - 1, needs["90"]):
        fitting = fitting_problems(flow, Letters(), problems, window)
        assert [one.id for one in fitting] == [one.id for one in problems if needs[one.id] <= window]


def test_what_a_program_prints_is_counted_in_the_prompts_that_show_it() -> None:
    """A program can print 200 characters; a longer line counts as a failure, so no prompt is longer than the walk's."""
    flow = Planned(fixed="cot+verify", max_tokens=40, explanation_tokens=20)
    ways = [way.name for way in Planned(programs=True).trajectories if way.program and way.verify]
    for way in ways:
        written = replace(flow, programs=True, fixed=way)
        state = written.start(PROBLEM)
        most = 0
        while (turn := written.turn(state)) is not None and not (state.draft is not None and state.again):
            request = Letters().render(turn)
            most = max(most, len(request.prompt_ids) + request.max_tokens)
            full = word(0) if turn.choices else plain(*[ord("x")] * turn.max_tokens)
            state = written.advance(state, full)
            if written.awaiting(state):
                state = written.with_output(state, output="7" * 200, reason="")
                assert "7" * 200 in str(state.result)
        assert most > 200 + 40
        assert most <= room(written)
    longer = written.with_output(written.start(PROBLEM), output="7" * 201, reason="")
    assert longer.result == written.with_output(written.start(PROBLEM), output="", reason="").result
