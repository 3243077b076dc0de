"""Do flows take turns as they say? State machines driven by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts, WorkedExample
from flow_dpo.core.types import Completion, FinishReason, Problem
from flow_dpo.recipes.single import Single

PROBLEM = Problem(id="p", question="What is {candidate} + 1?", gold="2")
PROMPTS = AnswerStopPrompts(stop_user="Q {question}\nC {candidate}\nOK?", reopen="Wait.")
FLOW = AnswerStop(chunk_tokens=3, max_chunks=3, prompts=PROMPTS)


def chunk(*ids: int, finish: FinishReason = "length") -> Completion:
    zeros = (0.0,) * len(ids)
    return Completion(token_ids=ids, logprobs=zeros, sampled_logprobs=zeros, finish_reason=finish, policy_version=0)


def word(choice: int) -> Completion:
    return replace(chunk(90 + choice, finish="choice"), choice=choice, choice_logprobs=(-0.7, -0.7))


def test_a_play_of_two_chunks() -> None:
    state = FLOW.start(PROBLEM)
    turn = FLOW.turn(state)
    assert turn is not None
    assert (turn.role, turn.max_tokens, turn.continuation, turn.choices) == ("answer", 3, (), ())
    state = FLOW.advance(state, chunk(5, 6, 7))
    turn = FLOW.turn(state)
    assert turn is not None
    assert turn.role == "stop"
    assert turn.choices == ("Yes", "No")
    # The question's own "{candidate}" is text; only the template's is the place of the sampled ids.
    assert turn.messages[1].content == ("Q What is {candidate} + 1?\nC ", (5, 6, 7), "\nOK?")
    assert FLOW.tags(state) == ("unfinished",)
    state = FLOW.advance(state, word(1))
    turn = FLOW.turn(state)
    assert turn is not None
    assert turn.continuation == ((5, 6, 7),)
    state = FLOW.advance(state, chunk(8, 2, finish="stop"))
    assert FLOW.tags(state) == ("finished",)
    turn = FLOW.turn(state)
    assert turn is not None
    # The end token 2 was sampled, and enters nothing that comes after it.
    assert turn.messages[1].content == ("Q What is {candidate} + 1?\nC ", (5, 6, 7), (8,), "\nOK?")
    state = FLOW.advance(state, word(0))
    assert FLOW.turn(state) is None
    assert FLOW.solution(state).pieces == ((5, 6, 7), (8,))
    assert FLOW.solution(state).ended


def test_no_after_an_ended_answer_reopens_it() -> None:
    state = FLOW.advance(FLOW.start(PROBLEM), chunk(5, 2, finish="stop"))
    state = FLOW.advance(state, word(1))
    turn = FLOW.turn(state)
    assert turn is not None
    assert turn.continuation == ((5,), "Wait.")
    assert not FLOW.solution(state).ended


def test_accepting_flow_never_asks_about_an_ended_answer() -> None:
    flow = replace(FLOW, on_refused_end="accept")
    state = flow.advance(flow.start(PROBLEM), chunk(5, 2, finish="stop"))
    assert flow.turn(state) is None
    assert flow.solution(state).ended


def test_yes_to_a_cut_answer_ends_it_unended() -> None:
    state = FLOW.advance(FLOW.advance(FLOW.start(PROBLEM), chunk(5, 6, 7)), word(0))
    assert FLOW.turn(state) is None
    assert not FLOW.solution(state).ended


def test_a_cut_answer_is_sampled_one_token_further() -> None:
    """After Yes and at the cap: the end token makes it a whole answer, any other token is a part of it."""
    accepted = FLOW.advance(FLOW.advance(FLOW.start(PROBLEM), chunk(5, 6, 7)), word(0))
    capped = FLOW.start(PROBLEM)
    while (turn := FLOW.turn(capped)) is not None:
        capped = FLOW.advance(capped, word(1) if turn.choices else chunk(5, 6, 7))
    for cut in (accepted, capped):
        closing = FLOW.closing(cut)
        assert closing is not None
        assert (closing.role, closing.max_tokens, closing.continuation) == ("answer", 1, FLOW.solution(cut).pieces)
        whole, longer = FLOW.advance(cut, chunk(2, finish="stop")), FLOW.advance(cut, chunk(8))
        assert FLOW.solution(whole) == replace(FLOW.solution(cut), ended=True)
        assert FLOW.solution(longer) == replace(FLOW.solution(cut), pieces=(*FLOW.solution(cut).pieces, (8,)))
        assert FLOW.turn(whole) is None
        assert FLOW.turn(longer) is None


def test_an_ended_answer_is_not_sampled_further() -> None:
    ended = FLOW.advance(FLOW.advance(FLOW.start(PROBLEM), chunk(5, 2, finish="stop")), word(0))
    assert FLOW.closing(ended) is None
    assert FLOW.solution(ended).pieces == ((5,),)
    assert FLOW.closing(FLOW.start(PROBLEM)) is None


def test_at_the_cap_stop_is_not_asked() -> None:
    state = FLOW.start(PROBLEM)
    asked: list[str] = []
    while (turn := FLOW.turn(state)) is not None:
        asked.append(turn.role)
        state = FLOW.advance(state, word(1) if turn.choices else chunk(5, 6, 7))
    assert asked == ["answer", "stop", "answer", "stop", "answer"]


def test_an_empty_chunk_adds_nothing() -> None:
    state = FLOW.advance(FLOW.start(PROBLEM), chunk(2, finish="stop"))
    assert state.pieces == ()
    assert state.ended


def test_states_are_values() -> None:
    start = FLOW.start(PROBLEM)
    FLOW.advance(start, chunk(5, 6, 7))
    assert start == FLOW.start(PROBLEM)
    with pytest.raises(AttributeError):
        start.num_chunks = 3  # type: ignore[misc]


def test_worked_examples_are_chat_turns() -> None:
    prompts = replace(
        PROMPTS, answer_user="Solve: {question}", examples=(WorkedExample(question="1?", solution="Answer: 1"),)
    )
    turn = Single(prompts=prompts).turn(Single().start(PROBLEM))
    assert turn is not None
    assert [(message.role, message.content) for message in turn.messages[1:]] == [
        ("user", ("Solve: 1?",)),
        ("assistant", ("Answer: 1",)),
        ("user", ("Solve: What is {candidate} + 1?",)),
    ]


def test_single_speaks_once() -> None:
    flow = Single(max_tokens=9)
    state = flow.start(PROBLEM)
    assert flow.solution(state).pieces == ()
    state = flow.advance(state, chunk(5, 6, 2, finish="stop"))
    assert flow.turn(state) is None
    assert flow.solution(state).pieces == ((5, 6),)
