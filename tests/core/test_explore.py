"""Does exploration visit what it says, with the probability that it says? Against brute-force enumeration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import pytest
from scipy.stats import chisquare

from flow_dpo.core.answer_stop import AnswerStop, AnswerStopState
from flow_dpo.core.errors import EngineError, FlowError
from flow_dpo.core.explore import Explore, Group, Siblings
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Completion, Piece, Problem, Request, Solution, TokenIds, Turn
from flow_dpo.engines.scripted import ScriptedEngine, TabularEngine
from flow_dpo.engines.scripted import ScriptedReply as Line
from flow_dpo.recipes.single import Single
from tests.support.graders import FunctionGrader

END, YES, NO, ANSWER_PROMPT, STOP_PROMPT, WAIT = 0, 90, 91, 100, 101, 102


class Bare:
    """A renderer for bare ids: fixed words are the token WAIT. In words, token 1 ends a line."""

    def to_text(self, pieces: Sequence[Piece]) -> str:
        return "".join({1: "one\n", 2: "two "}.get(token, "?") for ids in pieces for token in ids)

    def render(self, turn: Turn) -> Request:
        def ids(pieces: tuple[Piece, ...]) -> TokenIds:
            return tuple(t for piece in pieces for t in ((WAIT,) if isinstance(piece, str) else piece))

        if turn.choices:
            candidate = tuple(piece for piece in turn.messages[1].content if not isinstance(piece, str))
            waits = tuple((WAIT,) for piece in turn.messages[1].content[1:-1] if isinstance(piece, str))
            prompt = (STOP_PROMPT, *ids(candidate), *(t for wait in waits for t in wait))
            return Request(role=turn.role, prompt_ids=prompt, choices=(YES, NO))
        return Request(role=turn.role, prompt_ids=(ANSWER_PROMPT, *ids(turn.continuation)), max_tokens=turn.max_tokens)


def next_probs(role: str, prefix: TokenIds) -> dict[int, float]:
    """A small world: tokens 1 and 2, an end, and words of Stop that depend on the candidate."""
    if role == "stop":
        yes = 0.3 if prefix[-1] == 1 else 0.6
        return {YES: yes, NO: 1 - yes}
    at = len(prefix) % 3
    return {1: [0.5, 0.2, 0.7][at], 2: [0.3, 0.5, 0.2][at], END: [0.2, 0.3, 0.1][at]}


FLOW = AnswerStop(chunk_tokens=2, max_chunks=2)
PROBLEMS = [Problem(id=f"p{i}", question="?", gold="1") for i in range(6000)]


def explore(
    flow: AnswerStop | Single = FLOW, settings: Explore | None = None, num: int = 6000, seed: int = 0
) -> list[Tree]:
    runner = RolloutRunner(TabularEngine(next_probs, end_ids={END}), Bare())
    return (settings or Siblings())(flow, runner, PROBLEMS[:num], seed=seed)


# Brute force: every play from a state, with its probability.


def chunks(prefix: TokenIds, left: int) -> Iterator[tuple[TokenIds, float]]:
    for token, p in next_probs("answer", prefix).items():
        if token == END or left == 1:
            yield (token,), p
        else:
            for rest, q in chunks((*prefix, token), left - 1):
                yield (token, *rest), p * q


def plays(state: AnswerStopState) -> Iterator[tuple[tuple[TokenIds, ...], float]]:
    turn = FLOW.turn(state)
    if turn is None:
        yield (), 1.0
        return
    request = Bare().render(turn)
    if request.choices:
        said = [((choice,), p) for choice, p in next_probs("stop", request.prompt_ids).items()]
    else:
        said = list(chunks(request.prompt_ids, FLOW.chunk_tokens))
    for ids, p in said:
        for rest, q in plays(FLOW.advance(state, made(ids, request))):
            yield (ids, *rest), p * q


def made(ids: TokenIds, request: Request) -> Completion:
    zeros = (0.0,) * len(ids)
    if request.choices:
        return Completion(
            token_ids=ids, logprobs=zeros, sampled_logprobs=zeros, finish_reason="choice", policy_version=0,
            choice=request.choices.index(ids[0]), choice_logprobs=(0.0, 0.0),
        )  # fmt: skip
    finish = "stop" if ids[-1] == END else "length"
    return Completion(token_ids=ids, logprobs=zeros, sampled_logprobs=zeros, finish_reason=finish, policy_version=0)


def fits(drawn: Counter[tuple[TokenIds, ...]], expected: dict[tuple[TokenIds, ...], float]) -> bool:
    """Chi-square; outcomes expected less than five times are pooled. False alarm below 1e-6 a call."""
    total = sum(drawn.values())
    assert set(drawn) <= {key for key, p in expected.items() if p > 0}
    big = [key for key, p in expected.items() if p * total >= 5]
    observed = [float(drawn[key]) for key in big]
    wanted = [expected[key] * total for key in big]
    rest = total - sum(wanted)
    if rest > 1e-6 * total:
        observed.append(total - sum(observed))
        wanted.append(rest)
    return len(wanted) < 2 or bool(chisquare(observed, [w * sum(observed) / sum(wanted) for w in wanted]).pvalue > 1e-6)


@cache
def siblings() -> list[Tree]:
    """Those of all problems, to be read alone."""
    return explore()


def test_trunks_follow_the_flow() -> None:
    expected = dict(plays(FLOW.start(PROBLEMS[0])))
    assert sum(expected.values()) == pytest.approx(1)
    drawn = Counter(tuple(node.completion.token_ids for node in tree.trunk_nodes()) for tree in siblings())
    assert fits(drawn, expected)


def test_alternatives_follow_the_conditional_distribution() -> None:
    """At each of the first two nodes: the alternative and its play, given the trunk's word there."""
    trees = siblings()
    start = FLOW.start(PROBLEMS[0])
    first = Bare().render(FLOW.turn(start))  # type: ignore[arg-type]
    everything = list(chunks(first.prompt_ids, 2))
    for trunk, p in everything:
        drawn: Counter[tuple[TokenIds, ...]] = Counter()
        for tree in trees:
            if tree.nodes[0].completion.token_ids == trunk:
                (other,) = [node for node in tree.children(None) if node.rollout]
                path = [node for node in tree.nodes if node.rollout == other.rollout]
                drawn[tuple(node.completion.token_ids for node in path)] += 1
        expected = {
            (ids, *rest): q / (1 - p) * r
            for ids, q in everything
            if ids != trunk
            for rest, r in plays(FLOW.advance(start, made(ids, first)))
        }
        assert sum(expected.values()) == pytest.approx(1)
        assert fits(drawn, expected), trunk


def test_every_trunk_node_has_one_alternative_and_stop_flips() -> None:
    for tree in explore(num=300):
        assert tree.skipped == {}
        for node in tree.trunk_nodes():
            ours, other = tree.children(node.parent)
            assert ours.id == node.id
            assert other.request == node.request
            assert other.completion.token_ids != node.completion.token_ids
            if node.role == "stop":
                assert {node.completion.choice, other.completion.choice} == {0, 1}
                assert other.completion.logprobs[0] == pytest.approx(math.log1p(-math.exp(node.completion.logprobs[0])))
            else:
                probs = {i: next_probs("answer", node.request.prompt_ids + other.completion.token_ids[:i])
                         for i in range(len(other.completion.token_ids))}  # fmt: skip
                expected = [math.log(probs[i][t]) for i, t in enumerate(other.completion.token_ids)]
                assert other.completion.sampled_logprobs == pytest.approx(expected)
        assert len(tree.rollouts) == 1 + len(tree.trunk_nodes())


def test_prompts_of_alternatives_continue_their_own_words() -> None:
    for tree in explore(num=100):
        for node in tree.nodes:
            if node.role == "answer":
                before = [n for n in tree.path(node.id)[:-1] if n.role == "answer"]
                said = [t for n in before for t in n.completion.content_ids]
                assert [t for t in node.request.prompt_ids if t not in (ANSWER_PROMPT, WAIT)] == said


def test_several_alternatives_all_differ() -> None:
    for tree in explore(settings=Siblings(num_alternatives=3), num=200):
        for node in tree.trunk_nodes():
            siblings = [sibling.completion.token_ids for sibling in tree.children(node.parent)]
            assert len(set(siblings)) == len(siblings) == (2 if node.role == "stop" else 4)


def test_the_same_seed_gives_the_same_trees_however_they_are_batched() -> None:
    together = explore(num=40)
    runner = RolloutRunner(TabularEngine(next_probs, end_ids={END}), Bare())
    alone = [Siblings()(FLOW, runner, [problem], seed=0)[0] for problem in PROBLEMS[:40]]
    assert together == alone
    assert explore(num=40, seed=1) != together


def test_greedy_trunk_takes_the_likeliest_and_still_has_alternatives() -> None:
    trees = explore(settings=Siblings(greedy_trunk=True), num=50)
    assert len({tuple(n.completion.token_ids for n in tree.trunk_nodes()) for tree in trees}) == 1
    assert trees[0].nodes[0].completion.token_ids == (2, 1)
    assert len({tree.children(None)[1].completion.token_ids for tree in trees}) > 3


def test_a_node_at_which_nothing_else_can_be_said_is_skipped_and_counted() -> None:
    """The nucleus holds one token everywhere at top_p 0.3."""
    tree = explore(settings=Siblings(top_p=0.3), num=1)[0]
    assert tree.skipped == {"answer": sum(node.role == "answer" for node in tree.trunk_nodes())}
    assert all(rollout.id == 0 or tree.nodes[rollout.start].role == "stop" for rollout in tree.rollouts)


def test_no_alternatives_is_plain_play() -> None:
    for tree in explore(settings=Siblings(num_alternatives=0), num=20):
        assert len(tree.rollouts) == 1


def test_a_single_turn_flow_explores_too() -> None:
    tree = explore(flow=Single(max_tokens=4), num=1)[0]
    assert len(tree.rollouts) == 2
    assert tree.nodes[0].completion != tree.nodes[1].completion


def test_alternatives_start_before_the_trunk_is_done() -> None:
    """One engine call answers what is due of many plays: nothing waits in lockstep for the trunk."""
    sizes: list[int] = []

    class Counting(TabularEngine):
        def poll(self):  # type: ignore[no-untyped-def]
            answered = super().poll()
            sizes.append(len(answered))
            return answered

    Siblings()(FLOW, RolloutRunner(Counting(next_probs, end_ids={END}), Bare()), PROBLEMS[:50], seed=0)
    assert sizes[0] == 50
    assert sizes[1] == 100
    assert len(sizes) <= 7


def test_a_play_that_has_ended_is_told_of_while_others_are_under_way() -> None:
    """So that a verifier begins with it at once."""
    told: list[tuple[str, Solution]] = []
    under_way: list[int] = []

    class Counting(TabularEngine):
        def poll(self):  # type: ignore[no-untyped-def]
            under_way.append(len(told))
            return super().poll()

    class Told(FunctionGrader):
        def begin(self, problem: Problem, solution: Solution) -> None:
            told.append((problem.id, solution))

    runner = RolloutRunner(Counting(next_probs, end_ids={END}), Bare(), Told(lambda items: []))
    trees = Siblings()(FLOW, runner, PROBLEMS[:20], seed=0)
    ends = [(tree.problem.id, rollout.solution) for tree in trees for rollout in tree.rollouts]
    assert Counter(told) == Counter(ends)
    assert any(0 < count < len(told) for count in under_way)


def test_stale_speech_stops_the_run() -> None:
    engine = ScriptedEngine(
        lambda request, seed, excluded: Line(choice=0) if request.choices else (1, 2), end_ids={END}
    )
    runner = RolloutRunner(engine, Bare())
    engine.refresh({"answer": Adapter(role="answer", version=3), "stop": Adapter(role="stop", version=3)})
    with pytest.raises(EngineError, match="stale adapters"):
        Siblings()(FLOW, runner, PROBLEMS[:1], seed=0)


def test_flows_that_break_their_contract_are_named() -> None:
    @dataclass(frozen=True)
    class Rogue(AnswerStop):
        roles: ClassVar[tuple[str, ...]] = ("answer",)

    with pytest.raises(FlowError, match=r"Rogue made a turn of role 'stop'"):
        explore(flow=Rogue(chunk_tokens=2, max_chunks=2), num=1)

    class Mute(AnswerStop):
        def turn(self, state: AnswerStopState) -> None:
            return None

    with pytest.raises(FlowError, match="without a turn"):
        explore(flow=Mute(), num=1)


def test_refused_ends_are_reopened_by_fixed_words() -> None:
    """Stop refuses everything; each chunk ends at once: the words come in, the end tokens never."""
    lines = ScriptedEngine(lambda request, seed, excluded: 1 if request.choices else (1, END), end_ids={END})
    flow = replace(FLOW, chunk_tokens=4, max_chunks=3)
    tree = Siblings(num_alternatives=0)(flow, RolloutRunner(lines, Bare()), PROBLEMS[:1], seed=0)[0]
    prompts = [node.request.prompt_ids for node in tree.trunk_nodes() if node.role == "answer"]
    assert prompts == [(ANSWER_PROMPT,), (ANSWER_PROMPT, 1, WAIT), (ANSWER_PROMPT, 1, WAIT, 1, WAIT)]


def test_plays_of_a_group_are_independent_and_follow_the_flow() -> None:
    trees = explore(settings=Group(num_rollouts=2), num=6000)
    assert {len(tree.rollouts) for tree in trees} == {2}
    said = [
        tuple(tuple(n.completion.token_ids for n in tree.nodes if n.rollout == which) for which in (0, 1))
        for tree in trees
    ]
    one = dict(plays(FLOW.start(PROBLEMS[0])))
    both = {(a, b): p * q for a, p in one.items() for b, q in one.items()}
    assert math.fsum(both.values()) == pytest.approx(1)
    # Often the same twice: nothing is excluded.
    assert sum(a == b for a, b in said) > 100
    assert fits(Counter(said), both)
    assert {tree.nodes[tree.rollouts[1].start].parent for tree in trees} == {None}


def test_the_first_play_of_a_group_is_the_trunk_of_siblings() -> None:
    group, siblings = (explore(settings=s, num=30) for s in (Group(num_rollouts=3), Siblings(num_alternatives=0)))
    for a, b in zip(group, siblings, strict=True):
        assert a.trunk_nodes() == b.trunk_nodes()


def test_alone_is_one_play_a_problem() -> None:
    for settings in (Group(num_rollouts=5, temperature=0.5), Siblings(num_alternatives=2, top_p=0.9)):
        alone = settings.alone(greedy=True)
        assert (alone.temperature, alone.top_p, alone.greedy_trunk) == (settings.temperature, settings.top_p, True)
        assert {len(tree.rollouts) for tree in explore(settings=alone, num=20)} == {1}


def test_a_turn_may_carry_its_own_sampling() -> None:
    """Its own greediness before the exploration's, and a threshold where it has choices."""
    written, chosen = Turn(role="answer", messages=(), max_tokens=3), Turn(role="stop", messages=(), choices=("a", "b"))
    for greedy_trunk in (False, True):
        settings = Siblings(greedy_trunk=greedy_trunk, temperature=0.7, top_p=0.9, choice_temperature=2.0)
        for trunk in (False, True):
            for turn, temperature, top_p in ((written, 0.7, 0.9), (chosen, 2.0, 1.0)):
                for own, greedy in ((None, trunk and greedy_trunk), (True, True), (False, False)):
                    found = settings.for_turn(replace(turn, greedy=own, threshold=0.3), trunk=trunk)
                    assert (found.greedy, found.temperature, found.top_p) == (greedy, temperature, top_p)
                    assert found.threshold == (0.3 if turn.choices else None)
                assert settings.for_turn(turn, trunk=trunk).threshold is None
