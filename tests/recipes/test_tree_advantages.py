"""SPO, TreeRPO, TreeRL: do they visit what they say, and are advantages and losses those drawn by hand?"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev, pvariance
from typing import Any

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Group
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion, Solution, TokenIds
from flow_dpo.recipes.full_tree import FullTree
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.presets import RECIPES
from flow_dpo.recipes.single import Single
from flow_dpo.recipes.state_values import backed_up_values
from flow_dpo.recipes.tree_advantages.credit import LeafAdvantages, SegmentAdvantages, SiblingAdvantages
from flow_dpo.recipes.tree_advantages.cuts import CutRollouts
from flow_dpo.recipes.tree_advantages.forks import EntropyForks
from flow_dpo.runs.files import read_jsonl
from tests.core.test_explore import ANSWER_PROMPT, END, FLOW, chunks, explore, fits, next_probs
from tests.support.tree_builders import completion, graded, problem, request

LENGTH = 4
ONE_PASS = Single(max_tokens=LENGTH)
SOLUTION = Solution(pieces=((5,),), ended=True)


def said(tree: Tree, rollout: int) -> TokenIds:
    return tuple(t for node in tree.path(tree.rollouts[rollout].leaf) for t in node.completion.token_ids)


def probability(prefix: TokenIds, token: int) -> float:
    return next_probs("answer", (ANSWER_PROMPT, *prefix))[token]


# ---- the full tree ---------------------------------------------------------------------------------------------------


def test_a_full_tree_has_its_branches_where_a_segment_goes_on_and_nowhere_else() -> None:
    settings = FullTree(branch_factors=(3, 2, 2), segment_tokens=1)
    for tree in explore(flow=ONE_PASS, settings=settings, num=100):
        assert len(tree.children(None)) == 3
        for node in tree.nodes:
            before = tuple(t for one in tree.path(node.id)[:-1] for t in one.completion.token_ids)
            assert node.request.prompt_ids == (ANSWER_PROMPT, *before)
            assert node.request.max_tokens == LENGTH - len(before)
            ended = node.completion.token_ids[-1] == END
            assert len(node.completion.token_ids) == 1 or node.depth == 2
            assert len(tree.children(node.id)) == (0 if ended or node.depth == 2 else 2)
        leaves = [node.id for node in tree.nodes if not tree.children(node.id)]
        assert sorted(rollout.leaf for rollout in tree.rollouts) == leaves
        for rollout in tree.rollouts:
            assert rollout.solution.pieces == (tuple(t for t in said(tree, rollout.id) if t != END),)
            assert rollout.solution.ended == (said(tree, rollout.id)[-1] == END)


def test_siblings_of_a_full_tree_are_independent_draws() -> None:
    """The first two ways to the end from every first segment, jointly, against the product of enumerations."""
    trees = explore(flow=ONE_PASS, settings=FullTree(branch_factors=(1, 2), segment_tokens=1), num=3000)
    assert fits(Counter(said(tree, 0) for tree in trees), dict(chunks((ANSWER_PROMPT,), LENGTH)))
    for first in (1, 2):
        drawn = Counter(
            (said(tree, 0)[1:], said(tree, 1)[1:]) for tree in trees if said(tree, 0)[0] == first
        )  # fmt: skip
        rest = dict(chunks((ANSWER_PROMPT, first), LENGTH - 1))
        assert fits(drawn, {(a, b): p * q for a, p in rest.items() for b, q in rest.items()})  # type: ignore[arg-type]


def test_between_turns_a_full_tree_has_one_child_after_the_last_branching() -> None:
    for tree in explore(
        flow=AnswerStop(chunk_tokens=2, max_chunks=2), settings=FullTree(branch_factors=(2, 3)), num=50
    ):
        assert [node.role for node in tree.children(None)] == ["answer"] * 2
        for node in tree.nodes:
            if children := tree.children(node.id):
                assert len(children) == (3 if node.depth == 0 else 1)


def test_a_full_tree_depends_on_seed_and_problem_alone() -> None:
    settings = FullTree(branch_factors=(2, 2), segment_tokens=1)
    together = explore(flow=FLOW, settings=settings, num=20)
    assert together == [explore(flow=FLOW, settings=settings, num=n)[-1] for n in range(1, 21)]
    assert explore(flow=FLOW, settings=settings, num=20, seed=1) != together
    assert settings.alone(greedy=True) == Group(num_rollouts=1, greedy_trunk=True)
    for wrong in ((), (0,), (2, -1)):
        with pytest.raises(ConfigError, match="branch_factors"):
            FullTree(branch_factors=wrong)


# ---- forks and cuts --------------------------------------------------------------------------------------------------


def test_forks_stand_at_the_least_sure_tokens_and_are_plain_draws() -> None:
    settings = EntropyForks(num_rollouts=2, num_forks=2, num_completions=2, no_forks_after=())
    trees = explore(flow=ONE_PASS, settings=settings, num=800)
    group = explore(flow=ONE_PASS, settings=Group(num_rollouts=2), num=800)
    drawn: dict[TokenIds, Counter[TokenIds]] = {}
    for tree, plain in zip(trees, group, strict=True):
        chains = [r.id for r in tree.rollouts if tree.nodes[r.start].parent is None and r.start in _chain_starts(tree)]
        assert [said(tree, id) for id in chains] == [said(plain, id) for id in (0, 1)]
        for chain, after in zip(chains, [*chains[1:], len(tree.rollouts)], strict=True):
            ids = said(tree, chain)
            surprises = sorted(-probability(ids[:at], token) for at, token in enumerate(ids))
            places = Counter(len(said(tree, fork)) - _own(tree, fork) for fork in range(chain + 1, after))
            assert set(places.values()) <= {2}
            assert len(places) == min(2, len(ids))
            least = surprises[-min(2, len(ids)) :]
            assert sorted(-probability(ids[:at], ids[at]) for at in places) == pytest.approx(least)
            for fork in range(chain + 1, after):
                whole, own = said(tree, fork), _own(tree, fork)
                prefix = whole[: len(whole) - own]
                assert ids[: len(prefix)] == prefix
                drawn.setdefault(prefix, Counter())[whole[len(prefix) :]] += 1
    assert len(drawn) > 5
    for prefix, counts in drawn.items():
        assert fits(counts, dict(chunks((ANSWER_PROMPT, *prefix), LENGTH - len(prefix)))), prefix


def _chain_starts(tree: Tree) -> set[int]:
    """Chains have the rollouts of a group's seeds; every other that starts at the beginning is a fork of one there."""
    starts = [r for r in tree.rollouts if tree.nodes[r.start].parent is None]
    return {starts[0].start} | {r.start for r in starts if r.id and r.id == _first_of_second(tree)}


def _first_of_second(tree: Tree) -> int:
    first = said(tree, 0)
    return 1 + 2 * min(2, len(first))


def _own(tree: Tree, rollout: int) -> int:
    found = tree.rollouts[rollout]
    return sum(len(node.completion.token_ids) for node in tree.nodes[found.start : found.leaf + 1])


def test_a_second_round_forks_forks_but_not_at_their_first_token_nor_after_the_answer() -> None:
    settings = EntropyForks(num_rollouts=1, num_forks=1, num_completions=1, fork_rounds=3, no_forks_after=())
    for tree in explore(flow=ONE_PASS, settings=settings, num=60):
        assert len(tree.rollouts) <= 4
        for rollout in tree.rollouts[1:]:
            # A fork begins where another rollout goes on, and never where that one itself began as a fork.
            assert len(tree.children(tree.nodes[rollout.start].parent)) == 2
    # Token 2 reads "two ": it is the last that may be a fork.
    settings = EntropyForks(num_rollouts=1, num_forks=9, num_completions=1, no_forks_after=("two",))
    for tree in explore(flow=ONE_PASS, settings=settings, num=60):
        ids = said(tree, 0)
        last = ids.index(2) if 2 in ids else len(ids) - 1
        assert len(tree.rollouts) == 1 + last + 1


def test_forks_follow_a_flow_of_several_turns() -> None:
    trees = explore(flow=FLOW, settings=EntropyForks(num_rollouts=1, num_forks=2, num_completions=1), num=200)
    seen = Counter(tree.nodes[r.start].role for tree in trees for r in tree.rollouts[1:])
    assert seen["answer"] > 200
    assert not seen["stop"]
    for tree in trees:
        for node in tree.nodes:
            if node.role == "answer":
                words = tuple(t for one in tree.path(node.id)[:-1] if one.role == "answer"
                              for t in one.completion.token_ids if t != END)  # fmt: skip
                assert tuple(t for t in node.request.prompt_ids[1:] if t in (1, 2)) == words


def test_cuts_stand_before_every_second_unsure_token_and_their_states_are_probed() -> None:
    settings = CutRollouts(num_rollouts=2, num_completions=3, cut_below=0.45, cut_interval=2)
    for tree in explore(flow=ONE_PASS, settings=settings, num=300):
        wanted: Counter[TokenIds] = Counter()
        for path in (0, 1):
            ids = said(tree, path)
            unsure = [at for at, token in enumerate(ids) if probability(ids[:at], token) < 0.45]
            cuts = unsure[::2]
            nodes = tree.path(tree.rollouts[path].leaf)
            begins = [len(node.request.prompt_ids) - 1 for node in nodes]
            assert begins == [0, *(at for at in cuts if at)]
            wanted |= Counter({ids[:at]: 3 for at in cuts})
        probed = Counter(tree.nodes[r.start].request.prompt_ids[1:] for r in tree.rollouts if r.probe)
        assert probed == wanted


# ---- by hand ---------------------------------------------------------------------------------------------------------


def branched(*statuses: str) -> Tree:
    """The beginning has a and b; a has c (the trunk's) and d, b has e and f; statuses of the leaves c, d, e, f."""
    tree = Tree(problem=problem())
    q, a, b = request("answer", 1), request("answer", 1, 5, 6), request("answer", 1, 7)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (a, completion(8), ())], SOLUTION)
    tree.add_rollout(0, [(a, completion(9, 9), ())], SOLUTION)
    tree.add_rollout(None, [(q, completion(7), ()), (b, completion(3), ())], SOLUTION)
    tree.add_rollout(3, [(b, completion(4), ())], SOLUTION)
    return graded(tree, *statuses)  # type: ignore[arg-type]


def test_values_are_backed_up_and_compared_with_siblings_by_hand() -> None:
    tree = branched("correct", "wrong", "wrong", "wrong")
    assert backed_up_values(tree) == {0: 0.5, 1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}
    plain = SiblingAdvantages(whiten=False, by_tokens=False, mask_above=0.0)
    # a 1/2 - 1/4, its children 1 - 1/2 and 0 - 1/2, b 0 - 1/4; e and f tie.
    assert [(e.node, e.advantage, e.weight) for e in plain([tree])] == [
        (0, 0.25, 1.0), (1, 0.5, 1.0), (2, -0.5, 1.0), (3, -0.25, 1.0),
    ]  # fmt: skip
    by_group = replace(plain, scale="deviation")([tree])
    assert [e.advantage for e in by_group] == [1.0, 1.0, -1.0, -1.0]
    binary = replace(plain, scale="binary")([tree])
    # The beginning's mean 1/4: root of 3/16; a's mean 1/2: 1/2.
    assert [e.advantage for e in binary] == pytest.approx([1 / math.sqrt(3), 1.0, -1.0, -1 / math.sqrt(3)])
    # What was not graded is in no group: d, e and f are missing, so b has no value and a no sibling.
    assert plain([branched("correct", "ungraded", "ungraded", "ungraded")]) == []
    assert plain([branched("wrong", "wrong", "wrong", "wrong")]) == []


def test_a_node_without_siblings_has_its_predecessors_advantage() -> None:
    tree = Tree(problem=problem())
    q, a = request("answer", 1), request("other", 1, 5)
    for first, last in ((5, 8), (6, 9)):
        tree.add_rollout(None, [(q, completion(first), ()), (a, completion(last), ())], SOLUTION)
    found = SiblingAdvantages(whiten=False, by_tokens=False, mask_above=0.0)([graded(tree, "correct", "wrong")])
    assert [(e.node, e.advantage) for e in found] == [(0, 0.5), (1, 0.5), (2, -0.5), (3, -0.5)]


def test_masked_tokens_count_neither_in_means_nor_in_weights() -> None:
    tree = branched("correct", "wrong", "wrong", "wrong")
    sure = replace(tree.nodes[0].completion, logprobs=(-0.5, -0.01))
    tree.nodes[0] = replace(tree.nodes[0], completion=sure)
    tree.nodes[3] = replace(tree.nodes[3], completion=replace(tree.nodes[3].completion, logprobs=(-0.05,)))
    found = SiblingAdvantages()([tree])
    # Learned tokens: a 1 of 2, c 1, d 2, and none of b, which makes no example.
    mean = (0.25 + 0.5 - 2 * 0.5) / 4
    spread = math.sqrt(((0.25 - mean) ** 2 + (0.5 - mean) ** 2 + 2 * (-0.5 - mean) ** 2) / 4)
    assert [e.node for e in found] == [0, 1, 2]
    assert [e.advantage for e in found] == pytest.approx([(a - mean) / spread for a in (0.25, 0.5, -0.5)])
    # By tokens, and four segments had an advantage before the mask.
    assert [e.weight for e in found] == pytest.approx([1.0, 1.0, 2.0])
    assert len(SiblingAdvantages(max_per_problem=2)([branched("correct", "wrong", "wrong", "wrong")])) == 2


def test_chains_have_the_differences_of_values_and_weights_by_answers() -> None:
    tree = Tree(problem=problem())
    q, a = request("answer", 1), request("answer", 1, 5, 6)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (a, completion(8), ())], SOLUTION)
    for state, parent in ((q, None), (q, None), (a, 0), (a, 0)):
        tree.add_rollout(parent, [(state, completion(4), ())], SOLUTION, probe=True)
    found = SegmentAdvantages(whiten=False)([graded(tree, "wrong", "correct", "wrong", "correct", "correct")])
    assert [(e.node, e.advantage) for e in found] == [(0, 0.5), (1, -1.0)]
    assert [e.weight for e in found] == pytest.approx([2 / 3, 1 / 3])  # one answer of three tokens


def test_leaves_by_hand() -> None:
    tree = branched("correct", "wrong", "wrong", "wrong")
    # Rewards less the mean of the others: 1, -1/3, -1/3, -1/3. Means: a 1/3, b -1/3; over the root of 2 leaves each.
    a, b = 1 / 3 / math.sqrt(2), -1 / 3 / math.sqrt(2)
    third = 1 / 3
    found = LeafAdvantages(num_paths=0)([tree])
    wanted = [2 * a, 2 - a, -2 * third - a, 2 * b, -2 * third - b, -2 * third - b]
    assert [e.node for e in found] == [0, 1, 2, 3, 4, 5]
    assert [e.advantage for e in found] == pytest.approx(wanted)
    # Shares of their sequences: a is 2 of 3 and 2 of 4 tokens, b 1 of 2 twice; four sequences over six nodes.
    shares = [2 / 3 + 2 / 4, 1 / 3, 2 / 4, 1.0, 1 / 2, 1 / 2]
    assert [e.weight for e in found] == pytest.approx([6 / 4 * share for share in shares])
    # Two leaves are learned, the right one among them; values stay those of all four.
    for seed in range(8):
        two = LeafAdvantages(num_paths=2, draw_seed=seed)([tree])
        assert {0, 1} < {e.node for e in two}
        [own] = [e for e in two if e.node == 1]
        shared = {0, 1, 2} == {e.node for e in two}
        assert own.advantage == pytest.approx(2 - third / math.sqrt(2) if shared else 2 - third)
    assert LeafAdvantages()([branched("wrong", "wrong", "ungraded", "wrong")]) == []


# ---- the objective ---------------------------------------------------------------------------------------------------


def segments(**given: Any) -> ClippedPolicyGradient:
    """SPO's objective but for what is given."""
    objective = RECIPES["spo-tree"]["paper"].recipe.objective
    assert isinstance(objective, ClippedPolicyGradient)
    return replace(objective, **given)


def off_policy() -> tuple[list[ScoredCompletion], list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    examples, policy, reference = list[ScoredCompletion](), list[torch.Tensor](), list[torch.Tensor]()
    for advantage, weight, length in ((0.7, 1.0, 5), (-1.2, 0.4, 3), (2.0, 1.6, 7)):
        old = -torch.rand(length, generator=generator) * 1.5
        ids = completion(*range(length))
        examples.append(
            ScoredCompletion(
                request=request("answer", 1),
                completion=replace(ids, logprobs=tuple(old.tolist())),
                advantage=advantage,
                weight=weight,
            )
        )
        policy.append((old + 0.4 * torch.randn(length, generator=generator)).requires_grad_())
        reference.append(old + 0.4 * torch.randn(length, generator=generator))
    return examples, policy, reference


def test_value_and_gradient_by_hand() -> None:
    """Tokens of .5 and .95 before, ratios 1.1 and 9; the second is masked. d loss / d log pi = -0.7 * 1.1, and 0."""
    old = (math.log(0.5), math.log(0.95))
    example = ScoredCompletion(
        request=request("answer", 1), completion=replace(completion(5, 6), logprobs=old), advantage=0.7
    )
    policy = torch.tensor([old[0] + math.log(1.1), old[1] + math.log(9)], requires_grad=True)
    reference = torch.tensor([old[0], 3.0])
    loss = segments(kl_coef=0.5)([example], [[policy]], [[reference]])
    away = -math.log(1.1)
    assert loss.total.item() == pytest.approx(-0.7 * 1.1 + 0.5 * (math.exp(away) - away - 1))
    gradient = torch.autograd.grad(loss.total, policy)[0].tolist()
    assert gradient == pytest.approx([-0.7 * 1.1 + 0.5 * (1 - math.exp(away)), 0.0])
    # Above 1 + e' a good token gives no more; the same ratio of a bad one does.
    high = segments(clip_high=0.05, kl_coef=0.0)
    assert torch.autograd.grad(high([example], [[policy]], []).total, policy)[0].tolist() == [0.0, 0.0]
    bad = replace(example, advantage=-0.7)
    assert torch.autograd.grad(high([bad], [[policy]], []).total, policy)[0].tolist() == pytest.approx([0.77, 0.0])


def test_without_mask_it_is_the_mean_of_each_sequence_clipped_higher_above() -> None:
    """TreeRL's `ReinforcePolicyLoss`, and GRPO's penalty as a mean, on the same tensors."""
    examples, policy, reference = off_policy()
    settings = segments(clip_high=0.26, mask_above=0.0, kl_coef=0.3, kl_reduction="as_policy")
    mine = settings(examples, [[p] for p in policy], [[r] for r in reference])
    theirs = torch.zeros(())
    for e, new, ref in zip(examples, policy, reference, strict=True):
        ratio = (new - torch.tensor(e.completion.logprobs)).exp()
        surrogate = -torch.min(ratio * e.advantage, ratio.clamp(0.8, 1.26) * e.advantage)
        theirs = theirs + e.weight * (surrogate + 0.3 * ((ref - new).exp() - (ref - new) - 1)).mean()
    assert mine.total.item() == pytest.approx(theirs.item())
    for a, b in zip(*(torch.autograd.grad(one, policy) for one in (mine.total, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_with_the_credits_weights_it_is_the_authors_batch_loss() -> None:
    """SPO's `_compute_actor_loss` on one padded batch: a mean over learned tokens, and k3 summed over an answer's."""
    examples, policy, reference = off_policy()
    learned = [torch.tensor(e.completion.logprobs).exp() < 0.9 for e in examples]
    total = sum(int(mask.sum()) for mask in learned)
    weighted = [
        replace(e, weight=int(mask.sum()) * len(examples) / total) for e, mask in zip(examples, learned, strict=True)
    ]
    mine = segments(kl_coef=0.3)(weighted, [[p] for p in policy], [[r] for r in reference])
    policy_part, kl_part = torch.zeros(()), torch.zeros(())
    for e, new, ref, mask in zip(examples, policy, reference, learned, strict=True):
        ratio = ((new - torch.tensor(e.completion.logprobs)) * mask).exp()
        losses = torch.maximum(-e.advantage * ratio, -e.advantage * ratio.clamp(0.8, 1.2))
        policy_part = policy_part + (losses * mask).sum() / total
        log = ref - new
        kl_part = kl_part + ((log.exp() - 1 - log) * mask).sum() / len(examples)
    theirs = policy_part + 0.3 * kl_part
    assert mine.total.item() / len(examples) == pytest.approx(theirs.item())
    for a, b in zip(torch.autograd.grad(mine.total, policy), torch.autograd.grad(theirs, policy), strict=True):
        torch.testing.assert_close(a / len(examples), b)
    # The mean over an update's learned tokens is the same without weights.
    plain = [replace(e, weight=1.0) for e in examples]
    tokens = segments(reduction="tokens", kl_coef=0.0)(plain, [[p] for p in policy], [])
    assert tokens.total.item() / len(examples) == pytest.approx(policy_part.item())


# ---- from a run folder -----------------------------------------------------------------------------------------------


def test_recorded_advantages_are_those_of_the_recorded_trees(tmp_path: Path) -> None:
    words = ["--recipe", "treerpo", "--max_problems", "4", "--problems_per_batch", "4", "--output_dir", str(tmp_path)]
    assert train.train([*words, "--explore.branch_factors", "[3, 3]"]) == 0
    trees = {row["problem"]["id"]: row for row in read_jsonl(tmp_path / "trees.jsonl")}
    scored = read_jsonl(tmp_path / "scored.jsonl")
    wanted: dict[tuple[str, int], float] = {}
    for id, row in trees.items():
        rewards = {r["leaf"]: float(r["verdict"]["status"] == "correct") for r in row["rollouts"]}

        def value(node: int, row: dict = row, rewards: dict = rewards) -> float:  # type: ignore[type-arg]
            below = [one["id"] for one in row["nodes"] if one["parent"] == node]
            return fmean(value(one) for one in below) if below else rewards[node]

        for parent in (None, *(one["id"] for one in row["nodes"])):
            group = [one["id"] for one in row["nodes"] if one["parent"] == parent]
            values = [value(one) for one in group]
            if len(group) > 1 and pvariance(values) > 1e-12:
                mean = fmean(values)
                wanted |= {
                    (id, n): (v - mean) / pstdev(values) for n, v in zip(group, values, strict=True) if v != mean
                }
    assert wanted
    assert {(row["problem_id"], row["node"]): row["advantage"] for row in scored} == pytest.approx(wanted)
