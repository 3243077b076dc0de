"""Do attempts teach what they should? Every pair and word again, by a second reading of the same trees."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.core.explore import Explore, Group, Siblings
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Example, Pair, Problem, ScoredCompletion, Solution, Status, TokenIds, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.credit import AttemptCredit, OutcomePairsAndVerdicts
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from tests.core.test_explore import Bare
from tests.core.test_explore import next_probs as reopening_probs
from tests.support import attempt_worlds as worlds
from tests.support.attempt_worlds import END, NO, PROBLEMS, YES, Written, explore, flat, grader, status_of
from tests.support.graders import FunctionGrader
from tests.support.tree_builders import completion, request, valued

FLOW = Attempts(chunk_tokens=1, max_chunks=2, max_attempts=3, threshold=0.5)
CASES = [
    (FLOW, AttemptSiblings()),
    (FLOW, AttemptSiblings(num_alternatives=3, branched_attempts=2)),
    (replace(FLOW, threshold=None, answers="last", retry="shown"), AttemptSiblings(branched_attempts=3)),
    (replace(FLOW, chunk_tokens=2, max_chunks=3, threshold=1.0), AttemptSiblings(num_alternatives=2)),
    (replace(FLOW, max_attempts=1), AttemptSiblings(branched_attempts=0)),
]
PairKey = tuple[TokenIds, TokenIds, TokenIds, int, int]
"""Prompt, chosen and rejected tokens, and the two nodes."""
WordKey = tuple[TokenIds, int]
"""The candidate's prompt, and the word."""


def verdict_of(one: Written, salt: int) -> Status:
    return status_of(one.ids, ended=one.ended, salt=salt)


def naive(tree: Tree, salt: int) -> tuple[list[PairKey], set[WordKey]]:
    """Pairs and words by the texts alone, each graded by itself: no rollout's verdict is read."""
    pairs: list[PairKey] = []
    words: set[WordKey] = set()
    trunk = {f"attempt {at + 1}": one for at, (one, _) in enumerate(worlds.written(tree.trunk_nodes()))}
    for node in tree.trunk_nodes():
        for other in tree.nodes:
            if node.role != "answer" or other.parent != node.parent or other.id == node.id:
                continue
            ours = verdict_of(trunk[node.tags[0]], salt)
            theirs = verdict_of(worlds.written(tree.path(tree.rollouts[other.rollout].leaf))[-1][0], salt)
            if {ours, theirs} == {"correct", "wrong"}:
                good, bad = (node, other) if ours == "correct" else (other, node)
                pairs.append((node.request.prompt_ids, good.completion.token_ids, bad.completion.token_ids, good.id,
                              bad.id))  # fmt: skip
    for rollout in tree.rollouts:
        for one, _ in worlds.written(tree.path(rollout.leaf)):
            status = verdict_of(one, salt)
            if one.ended and status != "ungraded":
                words.add(((worlds.STOP, *one.ids), YES if status == "correct" else NO))
    return pairs, words


def taught(examples: list[Example]) -> tuple[list[PairKey], list[WordKey]]:
    pairs = [
        (one.request.prompt_ids, one.chosen.token_ids, one.rejected.token_ids, one.chosen_node, one.rejected_node)
        for one in examples
        if isinstance(one, Pair)
    ]
    words = [
        (one.request.prompt_ids, one.completion.token_ids[0]) for one in examples if isinstance(one, ScoredCompletion)
    ]
    return pairs, words


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("salt", range(3))
def test_pairs_and_words_are_those_of_a_second_reading(case: int, salt: int) -> None:
    flow, settings = CASES[case]
    trees, kinds = explore(flow, settings, 80, seed=salt), Counter[str]()
    grader(salt).grade(trees)
    for tree in trees:
        pairs, words = taught(AttemptCredit()([tree]))
        expected_pairs, expected_words = naive(tree, salt)
        assert sorted(pairs) == sorted(expected_pairs)
        assert len(set(pairs)) == len(pairs)
        assert len(set(words)) == len(words)
        assert set(words) == expected_words
        trunk = worlds.written(tree.trunk_nodes())
        kinds["all refused"] += all(judge is None or judge.completion.choice for _, judge in trunk)
        kinds["cut"] += not trunk[0][0].ended
        kinds["ungraded"] += any(verdict_of(one, salt) == "ungraded" for one, _ in trunk)
        texts = [own for rollout in tree.rollouts for own, judge in worlds.written(tree.path(rollout.leaf))
                 if judge is not None and judge.completion.choice == 0]  # fmt: skip
        kinds["repeated"] += len(texts) > len(set(texts))
        kinds["pairs"] += len(pairs)
        kinds["words"] += len(words)
    # Of every kind there are some, or the test is empty.
    assert all(kinds[kind] for kind in ("all refused", "cut", "ungraded", "words"))
    assert kinds["repeated"] or flow.max_attempts == 1
    assert bool(kinds["pairs"]) == bool(settings.branched_attempts)
    together = AttemptCredit()(trees)
    assert together == [one for tree in trees for one in AttemptCredit()([tree])]


def test_examples_say_where_they_come_from() -> None:
    trees = explore(FLOW, AttemptSiblings(num_alternatives=2, branched_attempts=2), 100)
    grader().grade(trees)
    for tree in trees:
        for one in AttemptCredit(verdict_weight=0.25)([tree]):
            assert one.problem_id == tree.problem.id
            if isinstance(one, Pair):
                good, bad = tree.nodes[one.chosen_node], tree.nodes[one.rejected_node]
                assert (one.chosen, one.rejected) == (good.completion, bad.completion)
                assert (one.request, one.depth, one.tags) == (good.request, good.depth, good.tags)
                assert (one.margin, one.weight, one.request.role) == (1.0, 1.0, "answer")
                assert [verdict.reward for verdict in one.verdicts] == [1.0, 0.0]
                continue
            leaf = tree.nodes[one.node]
            assert (one.request, one.depth, one.tags, one.weight) == (leaf.request, leaf.depth, leaf.tags, 0.25)
            # The word has the log-probability that Stop gave it, and stays one of the request's choices.
            word, said = one.completion, leaf.completion
            assert (said.choice, word.token_ids) == (0, (one.request.choices[word.choice or 0],))
            assert word.choice_logprobs == said.choice_logprobs
            assert word.logprobs == (said.choice_logprobs[word.choice or 0],)
            assert (word.policy_version, word.finish_reason) == (said.policy_version, "choice")
    assert not any(isinstance(one, ScoredCompletion) for one in AttemptCredit(verdict_weight=0.0)(trees))


def test_a_text_that_was_cut_is_wrong_on_either_side() -> None:
    """Whatever a verifier reads in it, and where what gives no answer counts as ungraded."""
    trees = explore(FLOW, AttemptSiblings(), 300)
    for status in ("correct", "wrong", "ungraded"):
        for tree in trees:
            for rollout in tree.rollouts:
                own: Status = status_of(flat(rollout.solution.pieces), ended=True) if rollout.solution.ended else status
                tree.grade(rollout.id, "", Verdict(status=own))
        for tree in trees:
            assert sorted(taught(AttemptCredit()([tree]))[0]) == sorted(naive(tree, 0)[0])


def test_pairs_of_real_valued_rewards_have_their_difference() -> None:
    """An attempt 5 6, accepted, at 0.75. In place of 5: 7 at 0.25, 8 at 0.75 (a tie), 9 at 1.5; in place of 6: 4
    ungraded, 3 cut before its end at 0.5, and 2, which only a verifier found wrong."""
    first, second, tag = request("answer", 1), request("answer", 1, 5), ("finished", "attempt 1")

    def accepted(*ids: int) -> tuple[Any, Any, tuple[str, ...]]:
        return request("stop", 2, *ids), completion(YES, choice=0), tag

    end = Solution(pieces=((5, 6),), ended=True)
    tree = Tree(problem=PROBLEMS[0])
    tree.add_rollout(None, [(first, completion(5), tag), (second, completion(6), tag), accepted(5, 6)], end)
    for token in (7, 8, 9):
        tree.add_rollout(None, [(first, completion(token), tag), accepted(token)], end)
    tree.add_rollout(0, [(second, completion(4), tag), accepted(5, 4)], end)
    tree.add_rollout(0, [(second, completion(3), tag)], end)
    tree.add_rollout(0, [(second, completion(2), tag), accepted(5, 2)], end)
    valued(tree, 0.75, 0.25, 0.75, 1.5, None, 0.5, None)
    tree.grade(6, "", Verdict(status="wrong"))

    def pairs(min_margin: float) -> list[tuple[TokenIds, TokenIds, float]]:
        found = AttemptCredit(min_margin=min_margin, verdict_weight=0)([tree])
        assert all(isinstance(one, Pair) for one in found)
        return [(p.chosen.token_ids, p.rejected.token_ids, p.margin) for p in found if isinstance(p, Pair)]

    assert pairs(0) == [((5,), (7,), 0.5), ((9,), (5,), 0.75), ((6,), (3,), 0.25)]
    assert pairs(0.5) == [((5,), (7,), 0.5), ((9,), (5,), 0.75)]
    assert pairs(0.6) == [((9,), (5,), 0.75)]
    assert pairs(1) == []


def test_what_has_no_verdict_teaches_nothing() -> None:
    """Ungraded rollouts, ones that were never graded, and trunks sampled alone, whose refusals nothing judged."""
    trees = explore(FLOW, AttemptSiblings(branched_attempts=2), 50)
    for tree in trees:
        assert AttemptCredit()([tree]) == []
        for rollout in tree.rollouts:
            tree.grade(rollout.id, "", Verdict(status="ungraded"))
        assert AttemptCredit()([tree]) == []
    for settings in (AttemptSiblings(num_alternatives=0), Group(num_rollouts=3)):
        alone = settings(FLOW, worlds.runner(), PROBLEMS[:100], seed=0)
        grader().grade(alone)
        assert any(one.completion.choice == 1 for tree in alone for one in tree.trunk_nodes())
        for tree in alone:
            pairs, words = taught(AttemptCredit()([tree]))
            accepted = {
                ((worlds.STOP, *own.ids), YES if verdict_of(own, 0) == "correct" else NO)
                for rollout in tree.rollouts
                for own, judge in worlds.written(tree.path(rollout.leaf))
                if judge is not None and judge.completion.choice == 0 and verdict_of(own, 0) != "ungraded"
            }
            assert set(words) == accepted
            assert len(words) == len(accepted)
            assert not pairs or len(tree.rollouts) > 1


@pytest.mark.parametrize("settings", [Siblings(num_alternatives=2), Group(num_rollouts=4)], ids=["siblings", "group"])
def test_a_rollout_that_went_on_to_another_attempt_tells_nothing_of_its_first(settings: Explore) -> None:
    """Explorations that sample to the end: where an alternative's attempt was refused, the verdict is another's."""
    trees, went_on, found = settings(FLOW, worlds.runner(), PROBLEMS[:300], seed=0), 0, 0
    grader().grade(trees)
    for tree in trees:
        expected = set[PairKey]()
        trunk = {f"attempt {at + 1}": one for at, one in enumerate(worlds.written(tree.trunk_nodes()))}
        for node in tree.trunk_nodes():
            own, judge = trunk[node.tags[-1]]
            flips = [one for one in tree.nodes if judge is not None and one.parent == judge.parent]
            known = not own.ended or any(one.completion.choice == 0 for one in flips)
            for other in tree.nodes:
                if node.role != "answer" or other.parent != node.parent or other.rollout == 0:
                    continue
                path = worlds.written(tree.path(tree.rollouts[other.rollout].leaf))
                theirs, their_judge = path[int(node.tags[0].removeprefix("attempt ")) - 1]
                alone = len(path) == int(node.tags[0].removeprefix("attempt "))
                accepted = their_judge is None or their_judge.completion.choice == 0
                went_on += not alone
                statuses = (verdict_of(own, 0), verdict_of(theirs, 0))
                same = node.completion.token_ids == other.completion.token_ids
                if known and alone and accepted and not same and set(statuses) == {"correct", "wrong"}:
                    good, bad = (node, other) if statuses[0] == "correct" else (other, node)
                    expected.add((node.request.prompt_ids, good.completion.token_ids, bad.completion.token_ids,
                                  good.id, bad.id))  # fmt: skip
        pairs, _ = taught(AttemptCredit()([tree]))
        assert set(pairs) == expected
        assert len(pairs) == len(expected)
        found += len(pairs)
    assert went_on > 50
    assert found > 20


# ---- words beside the paper's pairs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", [AttemptCredit, OutcomePairsAndVerdicts])
def test_words_have_a_weight_that_is_none_or_above(credit: type[AttemptCredit]) -> None:
    with pytest.raises(ConfigError, match="verdict_weight of 0 or more, found -1"):
        credit(verdict_weight=-1)
    trees = explore(FLOW, AttemptSiblings(), 20)
    grader().grade(trees)
    without, there = credit(verdict_weight=0)(trees), credit()(trees)
    assert without == [one for one in there if isinstance(one, Pair)]
    assert len(without) < len(there)


def papers_trees(num: int = 300) -> list[Tree]:
    """Trees of the paper's flow, whose ended answers are reopened where Stop refuses them."""

    def find(items: list[tuple[Problem, Solution]]) -> list[Verdict]:
        return [Verdict(status=status_of(flat(one.pieces), ended=True)) for _, one in items]

    runner = RolloutRunner(TabularEngine(reopening_probs, end_ids={END}), Bare())
    trees = Siblings()(AnswerStop(chunk_tokens=2, max_chunks=3), runner, PROBLEMS[:num], seed=0)
    FunctionGrader(find).grade(trees)  # type: ignore[arg-type]
    return trees


def finished_and_accepted(tree: Tree) -> list[tuple[Node, Status]]:
    """Every leaf at which Stop accepted a text that had ended, with its rollout's verdict."""
    found: list[tuple[Node, Status]] = []
    for rollout in tree.rollouts:
        *before, leaf = tree.path(rollout.leaf)
        if leaf.completion.choice == 0 and before[-1].completion.finish_reason == "stop" and rollout.verdict:
            found.append((leaf, rollout.verdict.status))
    return found


def test_the_papers_pairs_have_words_at_finished_candidates_beside_them() -> None:
    trees = papers_trees()
    num_unfinished = 0
    for tree in trees:
        examples = OutcomePairsAndVerdicts(verdict_weight=0.5)([tree])
        assert [one for one in examples if isinstance(one, Pair)] == OutcomePairs()([tree])
        expected: dict[TokenIds, int] = {}
        for leaf, status in finished_and_accepted(tree):
            if status != "ungraded":
                expected.setdefault(leaf.request.prompt_ids, YES if status == "correct" else NO)
        words = [one for one in examples if isinstance(one, ScoredCompletion)]
        assert {one.request.prompt_ids: one.completion.token_ids[0] for one in words} == expected
        assert len(words) == len(expected)
        assert {one.weight for one in words} <= {0.5}
        assert all("finished" in one.tags for one in words)
        leaves = [tree.nodes[rollout.leaf] for rollout in tree.rollouts]
        num_unfinished += sum(leaf.completion.choice == 0 and "unfinished" in leaf.tags for leaf in leaves)
    assert num_unfinished > 100
    with pytest.raises(FlowError, match="AttemptCredit expects trees of the flow Attempts"):
        AttemptCredit()(trees)
    only = OutcomePairsAndVerdicts(pairs=OutcomePairs(roles=("answer",)))(trees)
    assert {one.request.role for one in only if isinstance(one, Pair)} == {"answer"}
    assert {one.request.role for one in only if isinstance(one, ScoredCompletion)} == {"stop"}
