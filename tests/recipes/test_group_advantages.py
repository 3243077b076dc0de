"""Are the advantages of RLOO, REINFORCE++ and DAPO those of their papers, and is a batch filled as DAPO fills it?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Solution, Status
from flow_dpo.learner.pool import Queue
from flow_dpo.recipes import presets
from flow_dpo.recipes.group_advantages import GroupAdvantages
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.presets import RECIPES
from flow_dpo.recipes.state_values import refuse_without_siblings
from flow_dpo.runs.files import read_jsonl
from tests.support.tree_builders import completion, graded, problem, request, valued

ENDED = Solution(pieces=((5,),), ended=True)


def group(name: str, statuses: Sequence[Status], lengths: Sequence[int] | None = None) -> Tree:
    """Answers of one completion each."""
    tree = Tree(problem=problem(name))
    for index, length in enumerate(lengths or [2] * len(statuses)):
        tree.add_rollout(None, [(request("answer", 1), completion(*range(5 + index, 5 + index + length)), ())], ENDED)
    return graded(tree, *statuses)


def advantages(credit: GroupAdvantages, *trees: Tree) -> dict[tuple[str, int], float]:
    return {(e.problem_id, e.node): e.advantage for e in credit(trees)}


def test_rloo_compares_with_the_others_by_hand() -> None:
    """1 against the mean 0 of three, and 0 against the mean 1/3 of the others."""
    credit = GroupAdvantages(baseline="others", scale=False)
    assert list(advantages(credit, group("a", ("correct", "wrong", "wrong", "wrong"))).values()) == pytest.approx(
        [1.0, -1 / 3, -1 / 3, -1 / 3]
    )
    assert credit([group("a", ("correct", "correct"))]) == []
    assert credit([group("a", ("correct", "ungraded"))]) == [], "nothing to compare with"
    # TRL's RLOOTrainer leaves what could not be graded out of sum and count.
    found = advantages(credit, group("a", ("correct", "ungraded", "wrong", "wrong")))
    assert found == {("a", 0): 1.0, ("a", 2): -0.5, ("a", 3): -0.5}


def test_rloo_is_trls_formula_on_real_valued_rewards() -> None:
    rewards = torch.tensor([[0.1, 0.7, -0.3, 2.0], [1.0, 0.0, 0.5, 0.25]])
    baselines = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    trees = [valued(group(name, ("wrong",) * 4), *row.tolist()) for name, row in zip("ab", rewards, strict=True)]
    found = advantages(GroupAdvantages(baseline="others", scale=False), *trees)
    wanted = (rewards - baselines).flatten().tolist()
    assert list(found.values()) == pytest.approx(wanted)


@pytest.mark.parametrize("with_group", [False, True])
def test_reinforce_pp_is_whitened_over_the_batchs_tokens_as_openrlhf_has_it(with_group: bool) -> None:
    """Its formula: every token has its answer's reward (less the group's mean in the variant), and mean and variance
    are over all tokens of the batch."""
    lengths, rewards = [[2, 3, 1], [4, 1, 2]], torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    trees = [
        group(name, ["correct" if r else "wrong" for r in row], length)
        for name, row, length in zip("ab", rewards.tolist(), lengths, strict=True)
    ]
    recipe = RECIPES["reinforce-baseline" if with_group else "reinforce-pp"]["paper"].recipe
    found = advantages(recipe.credit, *trees)  # type: ignore[arg-type]
    shaped = rewards - rewards.mean(-1, keepdim=True) if with_group else rewards
    tokens = torch.cat([shaped[i, j].repeat(lengths[i][j]) for i in range(2) for j in range(3)])
    rstd = ((tokens - tokens.mean()) ** 2).mean().clamp(min=1e-8).rsqrt()
    assert list(found.values()) == pytest.approx(((shaped - tokens.mean()) * rstd).flatten().tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ("grpo", "--num_rollouts", "1"),
        ("rloo", "--num_rollouts", "1"),
        ("dapo", "--num_rollouts", "1"),
        ("reinforce-pp", "--credit.drop_tied"),
        ("reinforce-pp", "--problems_per_batch", "1"),
        ("spo-tree", "--explore.branch_factors", "[1, 1]"),
        ("treerl", "--num_rollouts", "1", "--explore.num_forks", "0"),
        ("vineppo", "--num_completions", "0"),
        ("spo-chain", "--num_completions", "0"),
        ("spo-tree", "--objective.mask_above", "0"),
        ("online-dpo", "--num_rollouts", "1"),
        ("iterative-rpo", "--num_rollouts", "1"),
        ("flow-dpo-paper", "--num_alternatives", "0"),
        ("rpo", "--num_completions", "1"),
        ("step-dpo", "--num_completions", "0"),
    ],
)
def test_what_could_never_teach_is_refused_before_anything_is_sampled(flags: tuple[str, ...], tmp_path: Path) -> None:
    """A group of one is its own mean: every problem would tie, and a batch that is to be filled would never be. A pair
    is of two."""
    with pytest.raises(ConfigError, match=r"(1 or more|2 or more|one mask), found"):
        train.train(["--recipe", *flags, "--max_problems", "4", "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_reinforce_pp_learns_from_answers_that_are_alone() -> None:
    """One answer a question: a batch of 1, 1, 0 with as many tokens each has scores 1/sqrt(2) twice and -sqrt(2)."""
    credit = RECIPES["reinforce-pp"]["seed"].recipe.credit
    trees = [group(name, [status]) for name, status in zip("abc", ("correct", "correct", "wrong"), strict=True)]  # type: ignore[list-item]
    found = advantages(credit, *trees)  # type: ignore[arg-type]
    assert list(found.values()) == pytest.approx([2**-0.5, 2**-0.5, -(2**0.5)])
    assert credit([group("a", ["correct"]), group("b", ["correct"])]) == [], "all alike: nothing to learn"


def test_long_answers_are_punished_softly_by_hand() -> None:
    """At most 3 tokens (`request.max_tokens`), the last third of them punished by up to 0.5: answers of 1, 2, 3 tokens
    lose 0, 0 and 0.5; over the last two thirds 0, 0.25 and 0.5."""
    tree = group("a", ("correct", "wrong", "correct"), (1, 2, 3))
    found = advantages(GroupAdvantages(scale=False, overlong_share=1 / 3), tree)
    assert found == {("a", 0): 0.5, ("a", 1): -0.5}, "rewards 1, 0 and 0.5: the last is the mean"
    found = advantages(GroupAdvantages(scale=False, overlong_share=2 / 3), tree)
    mean = fmean([1.0, -0.25, 0.5])
    assert list(found.values()) == pytest.approx([1 - mean, -0.25 - mean, 0.5 - mean])


def test_dapos_punishment_is_its_equation_on_rewards_of_1_and_0() -> None:
    """Equation 13 with 20,480 tokens, the last 4,096 of them punished, on rewards of 1 and -1, is twice ours."""
    credit = RECIPES["dapo"]["paper"].recipe.credit
    assert isinstance(credit, GroupAdvantages)
    lengths, tree = (100, 16_384, 18_432, 20_480), Tree(problem=problem("a"))
    for length in lengths:
        asked = replace(request("answer", 1), max_tokens=20_480)
        tree.add_rollout(None, [(asked, completion(*[5] * length), ())], ENDED)
    graded(tree, "correct", "wrong", "correct", "wrong")
    theirs = [1 + 0, -1 + 0, 1 - 0.5, -1 - 1.0]
    found = [*advantages(replace(credit, scale=False), tree).values()]
    assert [2 * one for one in found] == pytest.approx([one - fmean(theirs) for one in theirs])
    scaled = [*advantages(credit, tree).values()]
    assert scaled == pytest.approx([(one - fmean(theirs)) / pstdev(theirs) for one in theirs])


@pytest.mark.parametrize("scale", ["paper", "chat", "small", "seed"])
def test_cispo_has_all_of_dapo_but_its_surrogate(scale: str) -> None:
    """MiniMax-M1, section 3.1: DAPO's dynamic sampling and length penalty, its means over tokens, 16 updates."""
    dapo, cispo = RECIPES["dapo"][scale], RECIPES["cispo"][scale]
    assert (cispo.recipe.credit, cispo.recipe.explore) == (dapo.recipe.credit, dapo.recipe.explore)
    assert cispo.learner.passes == dapo.learner.passes
    lower = {"surrogate": "weight", "clip_low": 1.0, "clip_high": 4.0}
    assert isinstance(dapo.recipe.objective, ClippedPolicyGradient)
    assert cispo.recipe.objective == replace(dapo.recipe.objective, **lower)


def test_whether_a_group_is_told_apart_is_the_verdicts_to_say_not_its_lengths() -> None:
    """DAPO leaves out groups that are all right or all wrong, though their lengths are rewarded differently."""
    tree = group("a", ("wrong", "wrong", "wrong"), (1, 2, 3))
    credit = GroupAdvantages(overlong_share=2 / 3)
    assert credit([tree]) == []
    kept = advantages(GroupAdvantages(overlong_share=2 / 3, drop_tied=False), tree)
    mean, spread = fmean([0, -0.25, -0.5]), pstdev([0, -0.25, -0.5])
    assert kept == {("a", 0): pytest.approx(-mean / spread), ("a", 2): pytest.approx((-0.5 - mean) / spread)}
    with pytest.raises(ConfigError, match="overlong_share of 0 to 1"):
        GroupAdvantages(overlong_share=1.5)


def test_dynamic_sampling_by_enumeration() -> None:
    """Every sequence of three batches of two groups of two answers, each group all right, mixed or all wrong: an update
    is made of the first four answers of mixed groups since the last one, all of one version; never of others."""
    kinds: dict[str, tuple[Status, Status]] = {
        "r": ("correct", "correct"), "m": ("correct", "wrong"), "w": ("wrong", "wrong")
    }  # fmt: skip
    seen = set[int]()
    for sequence in itertools.product(itertools.product(kinds, repeat=2), repeat=3):
        pool, version, expected, gathered = Queue(size=4, short_batch="fill"), 0, list[str](), list[str]()
        learned = list[str]()
        for number, batch in enumerate(sequence):
            names = [f"{number}{place}" for place in range(2)]
            trees = [group(name, kinds[kind]) for name, kind in zip(names, batch, strict=True)]
            pool.take(GroupAdvantages()(trees))
            gathered += [name for name, kind in zip(names, batch, strict=True) if kind == "m"]
            while found := pool.batch():
                learned += dict.fromkeys(e.problem_id for e in found)
                pool.learned()
                version += 1
            if len(gathered) >= 2:  # by hand: two groups make an update, and a third is of the version before it
                expected += gathered[:2]
                gathered = []
        assert learned == expected
        assert len(pool.examples) == 2 * len(gathered)
        seen.add(version)
    assert seen == {0, 1, 2, 3}


def test_what_a_short_batch_does() -> None:
    """Of 5 and then 6 answers, in updates of 4."""

    def learned(**settings: object) -> list[list[int]]:
        pool, found = Queue(size=4, **settings), list[list[int]]()  # type: ignore[arg-type]
        for start, stop in ((0, 5), (5, 11)):
            examples = [e for n in range(start, stop) for e in GroupAdvantages()([group(str(n), ("correct", "wrong"))])]
            pool.take(examples[::2])
            while batch := pool.batch():
                found.append([int(e.problem_id) for e in batch])
                pool.learned()
        return found

    assert learned() == [[0, 1, 2, 3], [4, 5, 6, 7]], "8 to 10 wait, and 4 was sampled by another version than 5"
    assert learned(short_batch="learn") == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10]], "all, in parts of about 4"
    assert learned(short_batch="fill") == [[0, 1, 2, 3], [5, 6, 7, 8]], "4, 9 and 10 are dropped"
    assert learned(short_batch="fill", minibatches=2) == [[0, 1, 2, 3], [4, 5, 6, 7]], "8 are gathered first"
    assert learned(minibatches=2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_update_is_of_four_problems_and_no_segment_waits(tmp_path: Path) -> None:
    words = ["--recipe", "spo-tree", "--max_problems", "16", "--problems_per_batch", "8", "--output_dir", str(tmp_path)]
    assert train.train([*words, "--explore.branch_factors", "[2, 2]"]) == 0
    learned = [row["problem_id"] for row in read_jsonl(tmp_path / "scored.jsonl")]
    batches = [list(dict.fromkeys(id for id in learned if int(id.split("/")[-1]) // 8 == i)) for i in range(2)]
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["learn/waiting"] for row in rows] == [0, 0]
    assert [row["learn/updates"] for row in rows] == [max(1, round(len(problems) / 4)) for problems in batches]


def test_epochs_pass_over_all_minibatches() -> None:
    pool = Queue(size=0, minibatches=3, updates=2)
    examples = [e for n in range(4) for e in GroupAdvantages()([group(str(n), ("correct", "wrong"))])]
    pool.take(examples)
    found = list[int]()
    while batch := pool.batch():
        found.append(len(batch))
        pool.learned()
    assert found == [3, 3, 2, 3, 3, 2]
    assert (pool.examples, pool.num_updates) == ([], 6)


def test_a_runs_advantages_and_loss_recomputed_from_its_folder(tmp_path: Path) -> None:
    """DAPO on the seed, one update a batch: advantages from the trees alone, and a loss that is their mean over tokens,
    for every ratio is 1."""
    words = ["--recipe", "dapo", "--max_problems", "16", "--problems_per_batch", "8", "--examples_per_update", "0"]
    words += ["--minibatches", "1", "--learner.rows.max_tokens", "512", "--overlong_share", "0.6"]
    words += ["--output_dir", str(tmp_path)]
    assert train.train(words) == 0
    expected: dict[tuple[str, int], float] = {}
    lengths: dict[tuple[str, int], int] = {}
    for tree in read_jsonl(tmp_path / "trees.jsonl"):
        right = [float(rollout["verdict"]["status"] == "correct") for rollout in tree["rollouts"]]
        sizes = [len(tree["nodes"][rollout["leaf"]]["token_ids"]) for rollout in tree["rollouts"]]
        if len(set(right)) < 2:
            continue
        taken = [0.5 * max(0.0, size - 0.4 * 128) / (0.6 * 128) for size in sizes]
        rewards = [a - b for a, b in zip(right, taken, strict=True)]
        for node, reward in enumerate(rewards):
            key = (tree["problem"]["id"], node)
            expected[key], lengths[key] = (reward - fmean(rewards)) / pstdev(rewards), sizes[node]
    scored = read_jsonl(tmp_path / "scored.jsonl")
    found = {(row["problem_id"], row["node"]): row["advantage"] for row in scored}
    assert found == {key: pytest.approx(value) for key, value in expected.items()}
    assert len({round(value, 6) for value in found.values()}) > 10, "lengths tell the right ones apart"
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    for number, row in enumerate(rows):
        mine = [key for key in expected if number * 8 <= int(key[0].rpartition("/")[2]) < number * 8 + 8]
        assert row["learn/answer/rows"] > 1
        assert row["learn/answer/pairs"] == len(mine)
        tokens = sum(lengths[key] for key in mine)
        wanted = -sum(expected[key] * lengths[key] for key in mine) / tokens
        assert row["learn/answer/loss"] == pytest.approx(wanted, abs=1e-4)


def test_what_may_teach_is_not_refused() -> None:
    """Siblings of a search or of forks: `num_rollouts` is of something else there, 1 of each child or chain."""
    search, forks = presets.load_recipe("cpl", "small"), presets.load_recipe("treerl", "small")
    for recipe in (search, replace(forks, explore=replace(forks.explore, num_rollouts=1))):  # type: ignore[type-var]
        assert recipe.explore.num_rollouts == 1  # type: ignore[attr-defined]
        refuse_without_siblings(replace(recipe, credit=OutcomePairs()))
