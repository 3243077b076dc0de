"""VinePPO: does it visit every state once, are values unbiased, and are advantages those drawn by hand?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.explore import Group
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, ScoredCompletion, Solution, TokenIds, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import PassSettings
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.single import Single
from flow_dpo.recipes.state_values import state_values
from flow_dpo.recipes.vineppo.credit import StepAdvantages
from flow_dpo.recipes.vineppo.explore import StepRollouts
from tests.core.test_explore import ANSWER_PROMPT, END, FLOW, PROBLEMS, Bare, chunks, explore, fits, next_probs
from tests.support.graders import FunctionGrader
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import tiny_model
from tests.support.tree_builders import completion, graded, problem, request, valued

LENGTH = 4
ONE_PASS = Single(max_tokens=LENGTH)
"""Token 1 is "one" and a line's end, token 2 is "two": a step ends behind each 1 that something follows."""


def right(ids: TokenIds) -> float:
    """Made-up truth: one 2 exactly."""
    return float(ids.count(2) == 1)


def value(prefix: TokenIds) -> float:
    """The exact probability of being right after `prefix`, over every continuation."""
    total = 0.0
    for rest, p in chunks((ANSWER_PROMPT, *prefix), LENGTH - len(prefix)):
        total += p * right(prefix + rest)
    return total


def said(tree: Tree, rollout: int) -> TokenIds:
    return tuple(t for node in tree.path(tree.rollouts[rollout].leaf) for t in node.completion.token_ids)


def graded_trees(trees: Sequence[Tree]) -> Sequence[Tree]:
    for tree in trees:
        for rollout in list(tree.rollouts):
            status = "correct" if right(said(tree, rollout.id)) else "wrong"
            tree.grade(rollout.id, "", Verdict(status=status))
    return trees


def boundaries(ids: TokenIds) -> list[int]:
    """Behind each 1 that words follow; by hand, without the decoder."""
    words = [i for i, token in enumerate(ids) if token in (1, 2)]
    return [0, *(i + 1 for i in words if ids[i] == 1 and i < words[-1])]


def test_every_state_on_a_path_is_probed_once_and_nothing_else() -> None:
    for tree in explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=3, num_completions=2), num=200):
        paths = [r for r in tree.rollouts if not r.probe]
        assert [r.id for r in paths] == [0, 1, 2]
        states = {said(tree, r.id)[:at] for r in paths for at in boundaries(said(tree, r.id))}
        probed = Counter(tree.nodes[r.start].request.prompt_ids[1:] for r in tree.rollouts if r.probe)
        assert probed == dict.fromkeys(states, 2)
        for rollout in tree.rollouts:
            node = tree.nodes[rollout.start]
            before = tuple(t for n in tree.path(node.id)[:-1] for t in n.completion.token_ids)
            assert node.request.prompt_ids == (ANSWER_PROMPT, *before)
            assert node.request.max_tokens == LENGTH - len(before)
            assert rollout.solution.pieces == (tuple(t for t in said(tree, rollout.id) if t != END),)


def test_grading_begins_as_soon_as_a_path_or_a_probe_has_ended() -> None:
    """Each is handed to the grader once, while others are still sampled: before the last request is answered."""
    begun: list[tuple[Solution, int]] = []

    class Counting(TabularEngine):
        polls = 0

        def poll(self) -> list[tuple[int, Completion]]:
            self.polls += 1
            return super().poll()

    class Grader(FunctionGrader):
        def begin(self, problem: Problem, solution: Solution) -> None:
            begun.append((solution, engine.polls))

    engine = Counting(next_probs, end_ids={END})
    runner = RolloutRunner(engine, Bare(), Grader(lambda _: pytest.fail("nothing is asked for while it samples")))
    trees = StepRollouts(num_rollouts=3, num_completions=2)(ONE_PASS, runner, PROBLEMS[:2], seed=0)
    solutions = [rollout.solution for tree in trees for rollout in tree.rollouts]
    assert sorted(map(str, solutions)) == sorted(str(solution) for solution, _ in begun)
    assert begun[0][1] < engine.polls


def test_paths_are_those_of_a_group() -> None:
    vine = explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=3, num_completions=1), num=100)
    group = explore(flow=ONE_PASS, settings=Group(num_rollouts=3), num=100)
    for one, other in zip(vine, group, strict=True):
        assert [said(one, i) for i in range(3)] == [said(other, i) for i in range(3)]


def test_probes_follow_the_flow_from_their_state() -> None:
    trees = explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=2, num_completions=2), num=3000)
    drawn: dict[TokenIds, Counter[TokenIds]] = {}
    for tree in trees:
        for rollout in tree.rollouts:
            if rollout.probe:
                node = tree.nodes[rollout.start]
                drawn.setdefault(node.request.prompt_ids, Counter())[node.completion.token_ids] += 1
    assert len(drawn) == 1 + 4 + 6 - 3  # the question and every state below, by enumeration of what ends in a 1
    for prompt, counts in drawn.items():
        assert fits(counts, dict(chunks(prompt, LENGTH - len(prompt) + 1))), prompt


@cache
def many_trees() -> Sequence[Tree]:
    """Graded, to be read alone."""
    return graded_trees(explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=2, num_completions=3), num=4000))


def test_values_are_unbiased() -> None:
    """The mean estimate at every state, over trees that came there, against enumeration; 5 standard errors."""
    trees = many_trees()
    found: dict[TokenIds, list[float]] = {}
    for tree in trees:
        for state, estimate in state_values(tree).items():
            found.setdefault(state.prompt_ids[1:], []).append(estimate)
    assert len(found) > 5
    for prefix, estimates in found.items():
        exact = value(prefix)
        error = math.sqrt(exact * (1 - exact) / 3 / len(estimates))
        assert abs(math.fsum(estimates) / len(estimates) - exact) <= 5 * error + 1e-9, prefix


def test_advantages_are_unbiased() -> None:
    """The mean advantage of every step that was often said against that of exact values; 5 standard errors."""
    trees = many_trees()[:3000]
    came = Counter(
        (node.request.prompt_ids[1:], node.completion.token_ids)
        for tree in trees
        for node in tree.nodes
        if not tree.rollout_of(node).probe
    )
    total: Counter[tuple[TokenIds, TokenIds]] = Counter()
    for example in StepAdvantages(whiten=False)(trees):
        total[(example.request.prompt_ids[1:], example.completion.token_ids)] += example.advantage  # type: ignore[assignment]
    often = [key for key, num in came.items() if num >= 100]
    assert len(often) > 8
    for before, step in often:
        last = END in step or len(before + step) == LENGTH or step[-1] != 1
        after = right(before + step) if last else value(before + step)
        num = came[(before, step)]
        # Two means of three rewards vary by at most 1/2 around their difference.
        assert abs(total[(before, step)] / num - (after - value(before))) < 5 * 0.41 / math.sqrt(num), (before, step)


def test_the_same_seed_gives_the_same_trees_however_they_are_batched() -> None:
    settings = StepRollouts(num_rollouts=3, num_completions=2)
    together = explore(flow=FLOW, settings=settings, num=30)
    assert together == [explore(flow=FLOW, settings=settings, num=n)[-1] for n in range(1, 31)]
    assert explore(flow=FLOW, settings=settings, num=30, seed=1) != together


def test_flows_of_several_turns_have_states_at_every_turn() -> None:
    flow = AnswerStop(chunk_tokens=2, max_chunks=2)
    for tree in explore(flow=flow, settings=StepRollouts(num_rollouts=2, num_completions=2), num=100):
        states = {node.request for node in tree.nodes if not tree.rollout_of(node).probe}
        probed = Counter(tree.nodes[r.start].request for r in tree.rollouts if r.probe)
        assert probed == dict.fromkeys(states, 2)
        assert {node.role for node in tree.trunk_nodes()} == {"answer", "stop"}


def test_alone_is_one_path_without_probes() -> None:
    alone = StepRollouts(temperature=0.6, top_p=0.9).alone(greedy=True)
    assert alone == Group(num_rollouts=1, greedy_trunk=True, temperature=0.6, top_p=0.9)


# ---- by hand --------------------------------------------------------------------------------------------------------


def drawn() -> Tree:
    """Two paths that begin alike. V(q) = 1/2, V(q 5 6) = 1/4, V(q 5 7) = 1.

    path 0   5 6 | 8 9 9        right        path 1   5 7 | 3        wrong
    probes   4 from q, 4 behind 5 6, 2 behind 5 7
    """
    tree = Tree(problem=problem())
    end = Solution(pieces=((5,),), ended=True)
    q, a, b = request("answer", 1), request("answer", 1, 5, 6), request("answer", 1, 5, 7)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (a, completion(8, 9, 9), ())], end)
    tree.add_rollout(None, [(q, completion(5, 7), ()), (b, completion(3), ())], end)
    for parent, state, num in ((None, q, 4), (0, a, 4), (2, b, 2)):
        for index in range(num):
            tree.add_rollout(parent, [(state, completion(4, index), ())], end, probe=True)
    return graded(
        tree, "correct", "wrong",
        "correct", "wrong", "correct", "wrong",
        "correct", "wrong", "wrong", "wrong",
        "correct", "correct",
    )  # fmt: skip


def test_values_and_advantages_by_hand() -> None:
    tree = drawn()
    assert {r.prompt_ids: v for r, v in state_values(tree).items()} == {(1,): 0.5, (1, 5, 6): 0.25, (1, 5, 7): 1.0}
    examples = StepAdvantages(whiten=False)([tree])
    # 1/4 - 1/2; then reward 1, and nothing after it, less 1/4; 1 - 1/2; 0 - 1.
    assert [(e.node, e.advantage, e.weight) for e in examples] == [
        (0, -0.25, 1.0), (1, 0.75, 1.0), (2, 0.5, 1.0), (3, -1.0, 1.0),
    ]  # fmt: skip
    assert examples[1].request.prompt_ids == (1, 5, 6)
    # Path by path they add up to the reward less the question's value.
    assert examples[0].advantage + examples[1].advantage == 1 - 0.5
    assert examples[2].advantage + examples[3].advantage == 0 - 0.5


def test_values_and_advantages_of_real_valued_rewards_by_hand() -> None:
    """V(q) = (0.5 + 0 + 1 + 0.5) / 4, V(q 5 6) = (2 + 1) / 2 without the two ungraded, V(q 5 7) = (0.25 - 0.25) / 2."""
    tree = valued(drawn(), 1.75, -0.5, 0.5, 0.0, 1.0, 0.5, 2.0, None, 1.0, None, 0.25, -0.25)
    assert {r.prompt_ids: v for r, v in state_values(tree).items()} == {(1,): 0.5, (1, 5, 6): 1.5, (1, 5, 7): 0.0}
    examples = StepAdvantages(whiten=False)([tree])
    # 1.5 - 0.5; 1.75 - 1.5; 0 - 0.5; -0.5 - 0.
    assert [(e.node, e.advantage) for e in examples] == [(0, 1.0), (1, 0.25), (2, -0.5), (3, -0.5)]


def test_whitening_counts_tokens() -> None:
    examples = StepAdvantages()([drawn()])
    # Lengths 2 3 2 1 of 8; mean (-0.5 + 2.25 + 1 - 1) / 8 = 7/32.
    mean = 7 / 32
    spread = math.sqrt(sum(n * (a - mean) ** 2 for n, a in ((2, -0.25), (3, 0.75), (2, 0.5), (1, -1.0))) / 8)
    assert [e.advantage for e in examples] == pytest.approx([(a - mean) / spread for a in (-0.25, 0.75, 0.5, -1.0)])
    assert {e.weight for e in examples} == {1.0}, "how steps are averaged is the objective's"
    assert math.fsum(len(e.completion.token_ids) * e.advantage for e in examples) == pytest.approx(0)


def test_what_is_not_known_makes_no_example() -> None:
    tree = drawn()
    tree.grade(0, "", Verdict(status="ungraded"))
    for rollout in (10, 11):  # all probes behind 5 7
        tree.grade(rollout, "", Verdict(status="ungraded"))
    assert [e.node for e in StepAdvantages(whiten=False)([tree])] == [0]
    assert StepAdvantages()([]) == []
    all_alike = graded(drawn(), *["correct"] * 12)
    assert StepAdvantages()([all_alike]) == []


def test_probes_are_never_learned() -> None:
    for tree in graded_trees(explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=2, num_completions=2), num=50)):
        assert not any(tree.rollout_of(tree.nodes[e.node]).probe for e in StepAdvantages()([tree]))


def test_the_divergence_is_cut() -> None:
    """k3 of 20 nats is cut at 10, and has no gradient there; that of 0.2 counts whole."""
    policy = [[torch.tensor([-20.0, -0.5], requires_grad=True)]]
    reference = [[torch.tensor([0.0, -0.3])]]
    example = ScoredCompletion(
        request=request("answer", 1), completion=replace(completion(5, 6), logprobs=(-20.0, -0.5)), advantage=1.0
    )
    loss = ClippedPolicyGradient(kl_coef=0.1, max_kl=10.0)([example], policy, reference)
    small = math.exp(0.2) - 0.2 - 1
    assert loss.total.item() == pytest.approx(-1.0 + 0.1 * (10 + small) / 2)
    gradient = torch.autograd.grad(loss.total, policy[0])[0].tolist()
    assert gradient == pytest.approx([-0.5, -0.5 + 0.1 * (1 - math.exp(0.2)) / 2])


def test_two_passes_are_two_updates_on_the_same_batch() -> None:
    def learner(passes: int) -> Learner:
        policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)
        own = PassSettings(epochs_per_batch=passes)
        return Learner(policy, LearnerSettings(learning_rate=1e-2, examples_per_update=2, passes=own))

    examples = [
        ScoredCompletion(
            request=request("answer", 5, 6, 7), completion=completion(*ids, version=-1), advantage=a, problem_id="p"
        )
        for ids, a in (((8, 9), 1.0), ((8, 11), -1.0))
    ]
    twice, by_hand = learner(2), learner(1)
    row = twice.update(ClippedPolicyGradient(), examples)
    for _ in range(2):
        by_hand.update(ClippedPolicyGradient(), examples)
    assert (twice.version, row["learn/updates"], twice.pool) == (2, 2, [])
    for a, b in zip(twice.policy.weights("answer"), by_hand.policy.weights("answer"), strict=True):
        assert torch.equal(a, b)
