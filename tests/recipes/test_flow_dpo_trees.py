"""Are trees of attempts what they promise? Every node against a brute-force reading of the table."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.core.explore import Siblings
from flow_dpo.core.metrics import tree_metrics
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Node, Tree
from flow_dpo.engines.scripted import ScriptedEngine, ScriptedReply, TabularEngine
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.credit import AttemptCredit
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from tests.core.test_explore import fits
from tests.support import attempt_worlds as worlds
from tests.support.attempt_worlds import END, NO, PROBLEMS, YES, BareIds, Written, explore, flat, grader, status_of

FLOW = Attempts(chunk_tokens=1, max_chunks=2, max_attempts=3, threshold=0.5)
FLOWS = [
    FLOW,
    replace(FLOW, chunk_tokens=2, max_chunks=1, threshold=None, answers="last"),
    replace(FLOW, retry="shown", max_attempts=2),
    replace(FLOW, threshold=1.0, max_attempts=1),
]
SETTINGS = [
    AttemptSiblings(num_alternatives=num, branched_attempts=branched) for num in (1, 3) for branched in (0, 1, 2)
]


def nodes_of(tree: Tree, rollout: int) -> list[Node]:
    return [node for node in tree.nodes if node.rollout == rollout]


@pytest.mark.parametrize("flow", FLOWS, ids=range(len(FLOWS)))
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: f"{one.num_alternatives}-{one.branched_attempts}")
def test_alternatives_stand_where_they_should_and_end_with_their_attempt(
    flow: Attempts, settings: AttemptSiblings
) -> None:
    trees = explore(flow, settings, 60)
    grader().grade(trees)
    cut = 0
    for tree in trees:
        trunk = worlds.written(tree.trunk_nodes())
        for node in tree.trunk_nodes():
            others = [one for one in tree.children(node.parent) if one.id != node.id]
            attempt = int(node.tags[-1].removeprefix("attempt "))
            refused = node.role == "stop" and node.completion.choice == 1
            # 1. How many there are: at the chunks of the first attempts, and one Yes at each refusal.
            branches = node.role == "answer" and attempt <= settings.branched_attempts
            possible = 2 ** (node.request.max_tokens + 1) - 1 if node.role == "answer" else 2
            assert len(others) == (min(settings.num_alternatives, possible - 1) if branches else int(refused))
            # 2. All differ, and are of the same request and tags.
            same = [one.completion.token_ids for one in (node, *others)]
            assert len(set(same)) == len(same)
            assert {(one.request, one.tags) for one in others} <= {(node.request, node.tags)}
            for other in others:
                cut += _check_alternative(flow, tree, trunk, node, other)
        # 3. Nothing hangs anywhere else.
        starts = {tree.nodes[rollout.start].parent for rollout in tree.rollouts[1:]}
        assert starts <= {node.parent for node in tree.trunk_nodes()}
    assert cut > 0 or settings.branched_attempts == 0


def _check_alternative(
    flow: Attempts, tree: Tree, trunk: list[tuple[Written, Node | None]], node: Node, other: Node
) -> bool:
    """Whether this alternative was cut."""
    rollout = tree.rollout_of(other)
    path = tree.path(rollout.leaf)
    found = worlds.written(path)
    attempt = int(node.tags[-1].removeprefix("attempt "))
    # What stands before is the trunk's, and the last attempt is its own: nothing comes behind it.
    assert len(found) == attempt
    assert [one for one, _ in found[:-1]] == [one for one, _ in trunk[: attempt - 1]]
    own, judge = found[-1]
    assert (flat(rollout.solution.pieces), rollout.solution.ended) == (own.ids, own.ended)
    assert rollout.verdict is not None
    assert rollout.verdict.status == status_of(own.ids, ended=own.ended)
    if not own.ended:
        assert judge is None
        assert len(own.ids) == flow.chunk_tokens * flow.max_chunks + 1
        return True
    # It ends with Stop's Yes, whose log-probabilities are Stop's own.
    assert judge is not None
    assert judge.id == rollout.leaf
    assert judge.completion.choice == 0
    assert judge.completion.token_ids == (YES,)
    yes = worlds.p_yes(own.ids)
    assert judge.completion.choice_logprobs == pytest.approx((math.log(yes), math.log(1 - yes)))
    assert judge.completion.logprobs == pytest.approx((math.log(yes),))
    if node.role == "stop":
        assert judge is other
        assert own == trunk[attempt - 1][0]
    return False


def test_every_attempt_that_ended_has_a_verdict_of_its_own() -> None:
    """Each refused one's is that of its Yes, graded without the tree; the accepted one's is the trunk's."""
    for tree in (trees := explore(FLOW, AttemptSiblings(branched_attempts=0), 300)):
        grader().grade([tree])
        for own, judge in worlds.written(tree.trunk_nodes()):
            assert (judge is not None) == own.ended
            if judge is None:
                continue
            [yes] = [one for one in tree.children(judge.parent) if one.completion.choice == 0]
            verdict = tree.rollout_of(yes).verdict
            assert verdict is not None
            assert verdict.status == status_of(own.ids, ended=True)
            assert tree.rollout_of(yes).leaf == yes.id
    refused = [one for tree in trees for one in tree.trunk_nodes() if one.completion.choice == 1]
    assert len(refused) > 50


@pytest.mark.parametrize("flow", FLOWS, ids=range(len(FLOWS)))
@pytest.mark.parametrize("greedy", [False, True])
def test_the_trunk_is_the_flow_sampled_alone(flow: Attempts, greedy: bool) -> None:
    """Bit for bit: no alternative moves a number of it."""
    alone = explore(flow, AttemptSiblings(num_alternatives=3, top_p=0.9).alone(greedy=greedy), 50, seed=4)
    for num in (0, 1, 3):
        settings = AttemptSiblings(num_alternatives=num, top_p=0.9, branched_attempts=2, greedy_trunk=greedy)
        for tree, single in zip(explore(flow, settings, 50, seed=4), alone, strict=True):
            assert tree.trunk_nodes() == single.nodes
            assert tree.trunk.solution == single.trunk.solution
            assert len(single.rollouts) == 1


def test_trees_depend_on_the_seed_and_the_problem_alone() -> None:
    settings = AttemptSiblings(num_alternatives=2, branched_attempts=2)
    together = explore(FLOW, settings, 40)
    assert together == [settings(FLOW, worlds.runner(), [one], seed=0)[0] for one in PROBLEMS[:40]]
    assert together[::-1] == settings(FLOW, worlds.runner(), PROBLEMS[:40][::-1], seed=0)
    assert together != explore(FLOW, settings, 40, seed=1)


def test_alternatives_follow_the_conditional_distribution() -> None:
    """At the root: the whole attempt of the alternative, given the first chunk of the trunk."""
    trees = explore(FLOW, AttemptSiblings(), 4000)
    everything = Counter[Written]()
    for one, p in worlds.attempts(FLOW, None):
        everything[one] += p  # type: ignore[assignment]
    for trunk in ((1,), (2,), (END,)):
        drawn: Counter[Written] = Counter()
        for tree in trees:
            if tree.nodes[0].completion.token_ids == trunk:
                [other] = [one for one in tree.children(None) if one.rollout]
                drawn[worlds.written(nodes_of(tree, other.rollout))[0][0]] += 1
        left = {one: p for one, p in everything.items() if (one.ids[:1] or (END,)) != trunk}
        assert fits(drawn, {one: p / sum(left.values()) for one, p in left.items()}), trunk  # type: ignore[arg-type]


def test_an_alternative_cut_at_the_cap_ends_there() -> None:
    """Also the last attempt's, where every attempt before was refused: what answers is its own text, not the best."""
    flow = Attempts(chunk_tokens=1, max_chunks=1, max_attempts=2, threshold=1.0)
    seen = 0
    for tree in explore(flow, AttemptSiblings(branched_attempts=2), 200):
        for node in tree.trunk_nodes():
            for other in tree.children(node.parent):
                if other.rollout and other.completion.finish_reason == "length":
                    seen += node.tags == ("attempt 2",)
                    rollout = tree.rollout_of(other)
                    assert rollout.start == rollout.leaf == other.id
                    assert flat(rollout.solution.pieces) == other.completion.token_ids
                    assert not rollout.solution.ended
    assert seen > 20


def test_no_other_token_no_alternative() -> None:
    """A node at which nothing else has any probability is skipped and counted, once; Stop's Yes is still there."""
    sure = {"answer": lambda prefix: {2: 1.0} if prefix[-1] != 2 else {END: 1.0}, "stop": lambda _: {YES: 0.3, NO: 0.7}}
    engine = TabularEngine(lambda role, prefix: sure[role](prefix), end_ids={END})
    [tree] = AttemptSiblings(num_alternatives=3)(FLOW, RolloutRunner(engine, BareIds()), PROBLEMS[:1], seed=0)
    row = tree_metrics([tree], [], FLOW.roles)
    assert tree.skipped == {"answer": 2}
    assert (row["skipped/answer"], row["skipped/stop"], row["nodes/answer"], row["nodes/stop"]) == (2, 0, 6, 3)
    assert [nodes_of(tree, one.id)[0].completion.choice for one in tree.rollouts[1:]] == [0, 0, 0]


def test_a_stop_that_gives_yes_no_probability_does_not_accept_an_alternative() -> None:
    """No threshold takes a word that cannot be: the alternative ends with No, and with its own text."""
    table = {"stop": lambda _: {NO: 1.0}, "answer": lambda prefix: worlds.next_probs("answer", prefix)}
    engine = TabularEngine(lambda role, prefix: table[role](prefix), end_ids={END})
    trees = AttemptSiblings()(FLOW, RolloutRunner(engine, BareIds()), PROBLEMS[:50], seed=0)
    ended = 0
    for tree in trees:
        for other in (one for one in tree.children(None) if one.rollout):
            rollout = tree.rollout_of(other)
            [(own, judge)] = worlds.written(nodes_of(tree, other.rollout))
            assert flat(rollout.solution.pieces) == own.ids
            ended += judge is not None and judge.completion.choice == 1
    assert ended > 10


def test_counts_of_these_trees_mean_what_they_say() -> None:
    """Ties are of rollouts: at a chunk of a refused attempt the trunk's is that of the whole flow."""
    trees = explore(FLOW, AttemptSiblings(num_alternatives=2, branched_attempts=2), 200)
    grader().grade(trees)
    examples = AttemptCredit()(trees)
    row = tree_metrics(trees, examples, FLOW.roles)
    for role in FLOW.roles:
        ties = ungraded = 0
        for tree in trees:
            for node in tree.trunk_nodes():
                own = tree.children(node.parent)
                if node.role == role and len(own) > 1:
                    statuses = [tree.rollouts[one.rollout].verdict.status for one in own]  # type: ignore[union-attr]
                    graded = [status for status in statuses if status != "ungraded"]
                    ties += len(graded) > 1 and len(set(graded)) == 1
                    ungraded += len(graded) < 2
        assert (row[f"ties/{role}"], row[f"ungraded/{role}"]) == (ties, ungraded)
        assert ties > 10
    assert row["num_verdicts"] == row["num_rollouts"] == sum(len(tree.rollouts) for tree in trees)
    stops = [node for tree in trees for node in tree.trunk_nodes() if node.role == "stop"]
    assert row["stop/yes_rate"] == sum(node.completion.choice == 0 for node in stops) / len(stops)
    assert row["scored/stop"] + row["pairs/answer"] == len(examples)
    assert row["pairs/stop"] == 0
    assert "scored/answer" not in row


def test_settings_and_flows_that_it_cannot_explore() -> None:
    with pytest.raises(ConfigError, match="branched_attempts of 0 or more, found -1"):
        AttemptSiblings(branched_attempts=-1)
    with pytest.raises(ConfigError, match="num_alternatives of 0 or more, found -1"):
        AttemptSiblings(num_alternatives=-1)
    with pytest.raises(FlowError, match="expects the flow Attempts, found AnswerStop"):
        AttemptSiblings()(AnswerStop(), worlds.runner(), PROBLEMS[:1], seed=0)


def test_other_explorations_sample_attempts_too() -> None:
    """The plain flow needs no exploration of its own: each refused attempt is followed by another."""
    lines = ScriptedEngine(
        lambda request, seed, excluded: ScriptedReply(choice=1) if request.choices else (1 + seed % 2, END),
        end_ids={END},
    )
    tree = Siblings(num_alternatives=0)(FLOW, RolloutRunner(lines, BareIds()), PROBLEMS[:1], seed=0)[0]
    assert [node.role for node in tree.nodes] == ["answer", "answer", "stop"] * 3
