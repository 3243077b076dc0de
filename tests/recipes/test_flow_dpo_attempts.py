"""Does a flow of attempts play as it says? Enumerated without its states, driven by hand, and by chance."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Completion, Problem, TokenIds, Turn
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsPrompts, AttemptsState
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from tests.core.test_explore import fits
from tests.support import attempt_worlds as worlds
from tests.support.attempt_worlds import END, NO, YES, BareIds, Written, explore, flat, p_yes, plain, word

PROBLEM = Problem(id="p", question="What is {candidate} + 1?", gold="2")

Outcome = tuple[tuple[Written, ...], int, bool]
"""The attempts of a rollout, which of them answers, and whether Stop accepted it."""


# ---- every rollout, its probability and its answer -------------------------------------------------------------------


def outcomes(flow: Attempts, before: tuple[Written, ...] = ()) -> Iterator[tuple[Outcome, float]]:
    """Every outcome with its probability, from the table alone: no states, no turns, no chunks."""
    if len(before) == flow.max_attempts:
        worth = [p_yes(one.ids) if one.ended else 0.0 for one in before]
        best = max(range(len(before)), key=lambda at: (worth[at], -at))
        yield (before, best if flow.answers == "best" else len(before) - 1, False), 1.0
        return
    for one, p in worlds.attempts(flow, before[-1] if before else None):
        tried = (*before, one)
        yes = p_yes(one.ids) if one.ended else 0.0
        if flow.threshold is not None:
            yes = float(yes > flow.threshold)
        if yes:
            yield (tried, len(before), True), p * yes
        if yes < 1:
            for outcome, q in outcomes(flow, tried):
                yield outcome, p * (1 - yes) * q


def played(flow: Attempts, state: AttemptsState) -> Iterator[tuple[AttemptsState, bool, float]]:
    """Every rollout of the flow itself by its turns: the last state, whether Yes ended it, and its probability."""
    turn = flow.turn(state)
    assert turn is not None
    request = BareIds().render(turn)
    if turn.choices:
        table = worlds.next_probs("stop", request.prompt_ids)
        yes = table[YES] if turn.threshold is None else float(table[YES] > turn.threshold)
        logs = (math.log(table[YES]), math.log(table[NO]))
        said = [(word(choice, *logs), p) for choice, p in ((0, yes), (1, 1 - yes)) if p]
    else:
        drawn = chunks(request.prompt_ids, turn.max_tokens)
        said = [(plain(*ids, ended=ids[-1] == END), p) for ids, p in drawn]
    for completion, p in said:
        after = flow.advance(state, completion)
        if flow.turn(after) is None:
            yield after, completion.choice == 0, p
        else:
            for end, accepted, q in played(flow, after):
                yield end, accepted, p * q


def chunks(prefix: TokenIds, left: int) -> Iterator[tuple[TokenIds, float]]:
    """Every completion of so many tokens at most, with its probability."""
    for token, p in worlds.next_probs("answer", prefix).items():
        if token == END or left == 1:
            yield (token,), p
        else:
            for rest, q in chunks((*prefix, token), left - 1):
                yield (token, *rest), p * q


def outcome_of(state: AttemptsState, *, accepted: bool) -> Outcome:
    tried = (*state.refused, *((state.attempt,) if accepted else ()))
    [answers] = [at for at, one in enumerate(tried) if one is state.attempt]
    return tuple(Written(flat(one.pieces), one.ended) for one in tried), answers, accepted


SIZES = {1: (2, 2), 2: (1, 2), 3: (1, 1)}
"""Chunk and number of chunks by the number of attempts: all outcomes of the longest can still be written down."""
FLOWS = [
    Attempts(chunk_tokens=SIZES[num][0], max_chunks=SIZES[num][1], max_attempts=num, threshold=threshold,
             answers=answers, retry=retry)
    for num in SIZES
    for threshold in (None, 0.0, 0.45, 1.0)
    for answers in ("best", "last")
    for retry in ("fresh", "shown")
]  # fmt: skip


def named(flow: Attempts) -> str:
    return f"{flow.max_attempts}-{flow.threshold}-{flow.answers}-{flow.retry}"


@pytest.mark.parametrize("flow", FLOWS, ids=named)
def test_every_rollout_its_probability_and_the_attempt_that_answers(flow: Attempts) -> None:
    expected: Counter[Outcome] = Counter()
    for outcome, p in outcomes(flow):
        expected[outcome] += p  # type: ignore[assignment]
    assert math.fsum(expected.values()) == pytest.approx(1)
    found: Counter[Outcome] = Counter()
    for state, accepted, p in played(flow, flow.start(PROBLEM)):
        outcome = outcome_of(state, accepted=accepted)
        found[outcome] += p  # type: ignore[assignment]
        tried, answers, _ = outcome
        solution = flow.solution(state)
        assert (flat(solution.pieces), solution.ended) == (tried[answers].ids, tried[answers].ended)
        assert solution.attempt_start == 0
    assert set(found) == set(expected)
    assert found == pytest.approx(expected)
    # Attempts that are cut and ones that end, accepted and not, are all there.
    kinds = {(one.ended, accepted) for tried, answers, accepted in found for one in tried}
    assert len(kinds) >= (2 if flow.threshold in (0.0, 1.0) else 3)


@pytest.mark.parametrize(
    "flow",
    [flow for flow in FLOWS if flow.threshold in (None, 0.45) and (flow.answers, flow.retry) != ("last", "shown")],
    ids=named,
)
def test_what_is_sampled_follows_that_distribution(flow: Attempts) -> None:
    expected: Counter[tuple[Outcome, Written]] = Counter()
    for outcome, p in outcomes(flow):
        expected[outcome, outcome[0][outcome[1]]] += p  # type: ignore[assignment]
    drawn: Counter[tuple[Outcome, Written]] = Counter()
    for tree in explore(flow, AttemptSiblings(num_alternatives=0), 3000):
        assert len(tree.rollouts) == 1
        found = worlds.written(tree.trunk_nodes())
        judge = found[-1][1]
        accepted = judge is not None and judge.completion.choice == 0
        tried = tuple(one for one, _ in found)
        # Which one answers is told by probability alone where two are the same.
        answer = Written(flat(tree.trunk.solution.pieces), tree.trunk.solution.ended)
        worth = [p_yes(one.ids) if one.ended else 0.0 for one in tried]
        best = max(range(len(tried)), key=lambda at: (worth[at], -at))
        answers = len(tried) - 1 if accepted or flow.answers == "last" else best
        drawn[(tried, answers, accepted), answer] += 1
    assert fits(drawn, expected)  # type: ignore[arg-type]


def test_the_first_attempt_alone_is_greedy_where_the_trunk_is() -> None:
    """Each later one is drawn: from the whole distribution, not again the first."""
    flow = Attempts(chunk_tokens=1, max_chunks=2, max_attempts=2, threshold=1.0)
    trees = explore(flow, AttemptSiblings().alone(greedy=True), 1500)
    tried = [tuple(one for one, _ in worlds.written(tree.trunk_nodes())) for tree in trees]
    [first] = {one for one, _ in tried}
    likeliest: tuple[int, ...] = ()
    while len(likeliest) <= 2:
        probs = worlds.next_probs("answer", (worlds.ANSWER, *likeliest))
        token = max(probs, key=lambda token: probs[token])
        if token == END:
            break
        likeliest += (token,)
    assert first == Written(likeliest, ended=len(likeliest) <= 2)
    expected: Counter[Written] = Counter()
    for one, p in worlds.attempts(flow, first):
        expected[one] += p  # type: ignore[assignment]
    assert fits(Counter(second for _, second in tried), expected)  # type: ignore[arg-type]


# ---- driven by hand --------------------------------------------------------------------------------------------------


def asked(flow: Attempts, state: AttemptsState) -> Turn:
    turn = flow.turn(state)
    assert turn is not None
    return turn


def test_an_answer_that_fills_its_chunks_is_judged_and_one_that_goes_on_is_not() -> None:
    """The last chunk has room for the end token: "Answer: 1" of 15 at the cap is followed by its 5, and is cut."""
    flow = Attempts(chunk_tokens=3, max_chunks=2)
    full = flow.advance(flow.start(PROBLEM), plain(5, 6, 7))
    assert (asked(flow, flow.start(PROBLEM)).max_tokens, asked(flow, full).max_tokens) == (3, 4)
    # 1. A chunk is full, and the next holds the end token alone.
    ended = flow.advance(full, plain(END, ended=True))
    assert asked(flow, ended).role == "stop"
    assert flow.tags(ended) == ("finished", "attempt 1")
    assert flow.solution(ended).pieces == ((5, 6, 7),)
    # 2. The last chunk is full, and the end token is its one token more.
    whole = flow.advance(full, plain(8, 9, 1, END, ended=True))
    assert asked(flow, whole).role == "stop"
    assert flat(flow.solution(whole).pieces) == (5, 6, 7, 8, 9, 1)
    # 3. The last chunk goes on: whatever its text says so far, it is not judged, and the next attempt begins.
    cut = flow.advance(full, plain(8, 9, 1, 5))
    assert (asked(flow, cut).role, asked(flow, cut).continuation) == ("answer", ())
    assert not cut.refused[0].ended
    assert cut.refused[0].log_odds == -math.inf
    # One chunk alone is a last chunk too.
    assert asked(replace(flow, max_chunks=1), flow.start(PROBLEM)).max_tokens == 4


def test_cut_attempts_alone_end_in_one_that_is_not_whole() -> None:
    for answers in ("best", "last"):
        flow = Attempts(chunk_tokens=1, max_chunks=1, max_attempts=3, answers=answers)
        state = flow.start(PROBLEM)
        for token in (5, 6, 7):
            assert asked(flow, state).role == "answer"
            state = flow.advance(state, plain(token, token))
        assert flow.turn(state) is None
        solution = flow.solution(state)
        assert not solution.ended
        assert flat(solution.pieces) == ((5, 5) if answers == "best" else (7, 7))


def test_the_best_of_what_was_refused_answers() -> None:
    """A judged one before a cut one, however improbable; of two equal ones the first."""
    flow = Attempts(chunk_tokens=2, max_chunks=1, max_attempts=4, threshold=0.9)
    state = flow.start(PROBLEM)
    script: list[Completion] = [
        plain(4, 4, 4), plain(5, END, ended=True), word(1, -3.0, -0.05),
        plain(6, END, ended=True), word(1, -2.0, -0.15), plain(7, END, ended=True), word(1, -2.0, -0.15),
    ]  # fmt: skip
    for completion in script:
        state = flow.advance(state, completion)
    assert flow.turn(state) is None
    assert flat(flow.solution(state).pieces) == (6,)
    assert [flat(one.pieces) for one in state.refused] == [(4, 4, 4), (5,), (6,), (7,)]


def test_a_refused_attempt_is_shown_to_the_next_and_to_no_other() -> None:
    prompts = AttemptsPrompts(retry="Again.")
    fresh, shown = (Attempts(chunk_tokens=2, max_chunks=2, retry=r, prompts=prompts) for r in ("fresh", "shown"))
    for flow in (fresh, shown):
        state = flow.start(PROBLEM)
        first = asked(flow, state).messages
        for completion in (plain(5, 6), plain(7, END, ended=True), word(1), plain(8, 9)):
            state = flow.advance(state, completion)
        turn = asked(flow, state)
        assert (turn.continuation, turn.greedy) == (((8, 9),), False)
        more = [(one.role, one.content) for one in turn.messages[len(first) :]]
        assert turn.messages[: len(first)] == first
        assert more == ([] if flow is fresh else [("assistant", ((5, 6), (7,))), ("user", ("Again.",))])
        state = flow.advance(state, plain(3, END, ended=True))
        assert flat(asked(flow, state).messages[1].content) == (8, 9, 3)
        state = flow.advance(state, word(1))
        more = [one.content for one in asked(flow, state).messages[len(first) :]]
        assert more == ([] if flow is fresh else [((8, 9), (3,)), ("Again.",)])


@pytest.mark.parametrize(
    "wrong",
    [{"chunk_tokens": 0}, {"max_chunks": 0}, {"max_attempts": 0}, {"threshold": -0.1}, {"threshold": 1.1},
     {"threshold": math.nan}],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Attempts(**wrong)  # type: ignore[arg-type]


# ---- the five rules of a flow ----------------------------------------------------------------------------------------

ANY_FLOW = st.builds(
    Attempts,
    chunk_tokens=st.integers(1, 4),
    max_chunks=st.integers(1, 4),
    max_attempts=st.integers(1, 4),
    threshold=st.one_of(st.none(), st.floats(0, 1)),
    answers=st.sampled_from(["best", "last"]),
    retry=st.sampled_from(["fresh", "shown"]),
)


def any_completion(turn: Turn, data: st.DataObject) -> Completion:
    if turn.choices:
        yes = data.draw(st.floats(0.01, 0.99))
        choice = 1 if turn.threshold is None else int(yes <= turn.threshold)
        choice = data.draw(st.sampled_from([choice, choice, 1 - choice]))
        return word(choice, math.log(yes), math.log1p(-yes))
    num = data.draw(st.integers(0, turn.max_tokens))
    ids = tuple(data.draw(st.lists(st.integers(1, 9), min_size=num, max_size=num)))
    return plain(*ids) if num == turn.max_tokens else plain(*ids, END, ended=True)


@settings(deadline=None, max_examples=150)
@given(flow=ANY_FLOW, data=st.data())
def test_the_rules_hold_whatever_is_sampled(flow: Attempts, data: st.DataObject) -> None:
    state, attempt, chunk_count, sampled = flow.start(PROBLEM), 0, 0, list[TokenIds]([()])
    judged: list[tuple[float, int]] = []
    for _ in range(flow.max_attempts * (flow.max_chunks + 1) + 1):
        turn = flow.turn(state)
        # 1. A state's turn is always the same, and names a declared role.
        assert flow.turn(state) == turn
        if turn is None:
            break
        assert turn.role in flow.roles
        # 2. Sampled ids are passed on as they are, and only those of this attempt.
        if turn.role == "answer":
            assert flat(turn.continuation) == sampled[-1]
            assert turn.max_tokens == flow.chunk_tokens + (chunk_count + 1 == flow.max_chunks)
            assert (turn.greedy, turn.threshold) == (False if attempt else None, None)
        else:
            assert flat(turn.messages[1].content) == sampled[-1]
            assert (turn.greedy, turn.threshold, turn.choices) == (None, flow.threshold, ("Yes", "No"))
        name = f"attempt {attempt + 1}"
        assert flow.tags(state) == (("finished", name) if turn.choices else (name,))
        # 3. States are immutable.
        completion = any_completion(turn, data)
        before = copy.deepcopy(state)
        after = flow.advance(state, completion)
        assert (state, flow.turn(state), flow.solution(state)) == (before, turn, flow.solution(before))
        assert flow.advance(state, completion) == after
        assert flow.closing(after) is None
        # What should come of it, by counting.
        over = False
        if turn.role == "answer":
            sampled[-1] += tuple(token for token in completion.token_ids if token != END)
            chunk_count += 1
            over = completion.finish_reason == "length" and chunk_count == flow.max_chunks
            judged += [(-math.inf, attempt)] if over else []
        else:
            judged.append((completion.choice_logprobs[0], attempt))
            over = completion.choice == 1
            assert (flow.turn(after) is None) == (completion.choice == 0 or attempt + 1 == flow.max_attempts)
        if over and attempt + 1 < flow.max_attempts:
            attempt, chunk_count, sampled = attempt + 1, 0, [*sampled, ()]
        state = after
    else:
        raise AssertionError("the rollout has not ended")
    # 4. It has ended, with the attempt that was accepted, or the best or the last.
    best = max(judged, key=lambda one: (one[0], -one[1]))[1]
    accepted = len(state.refused) < attempt + 1
    answers = attempt if accepted or flow.answers == "last" else best
    assert flat(flow.solution(state).pieces) == sampled[answers]
    assert len(state.refused) == len(judged) - accepted
    for name in (one.name for one in fields(state)):
        with pytest.raises(FrozenInstanceError):
            setattr(state, name, None)
