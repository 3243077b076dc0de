"""Is what a run of a recipe recorded as taught what its trees teach, recomputed by loops over plain JSON?

Nothing of a recipe is imported: a tree is nodes with parents, tokens and log-probabilities, and rollouts with verdicts.
What a recipe draws at random is read off the record, after a look at how many there are of it, and from what.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import fmean, pstdev

import pytest

from tests.support.recipe_runs import Ids, Recorded, Row, Runs, above, below, each, prompt, reward, tokens

Scored = dict[tuple[str, int], tuple[float, float]]
"""Problem and node to advantage and weight."""
Pairs = dict[tuple[str, int, int], tuple[float, float]]
"""Problem, chosen and rejected node to margin and weight."""
SURE = 0.9
"""From this probability on SPO learns no token."""


def name(tree: Row) -> str:
    return tree["problem"]["id"]


def statuses(tree: Row) -> list[str]:
    return [rollout["verdict"]["status"] for rollout in tree["rollouts"]]


def standard(values: list[tuple[float, float]]) -> list[float]:
    """Standard scores of values, each of which counts so often."""
    total = sum(count for _, count in values)
    mean = sum(value * count for value, count in values) / total
    return [(v - mean) / math.sqrt(sum(n * (x - mean) ** 2 for x, n in values) / total) for v, _ in values]


# ---- groups of whole answers -----------------------------------------------------------------------------------------


def mixed(run: Recorded) -> Iterator[tuple[str, list[float], list[int]]]:
    """Of each group that is told apart its rewards, and the lengths of its answers."""
    for tree in run.trees:
        rewards = [reward(rollout) for rollout in tree["rollouts"]]
        if 0 < sum(rewards) < len(rewards):
            yield name(tree), rewards, [len(tokens(tree, at)) for at in range(len(rewards))]


def by_group(run: Recorded, rule: Callable[[list[float], int], float]) -> Scored:
    found = {(id, at): (rule(rewards, at), 1.0) for id, rewards, _ in mixed(run) for at in range(len(rewards))}
    assert len({round(value, 9) for value, _ in found.values()}) > 2, "groups differ in how many were right"
    return found


def grpo(run: Recorded) -> Scored:
    return by_group(run, lambda rewards, at: (rewards[at] - fmean(rewards)) / pstdev(rewards))


def dr_grpo(run: Recorded) -> Scored:
    return by_group(run, lambda rewards, at: rewards[at] - fmean(rewards))


def rloo(run: Recorded) -> Scored:
    return by_group(run, lambda rewards, at: rewards[at] - fmean(rewards[:at] + rewards[at + 1 :]))


def dapo(run: Recorded) -> Scored:
    """Of the 128 tokens that an answer may have the last three fifths take up to a half."""
    found: Scored = {}
    for id, right, lengths in mixed(run):
        taken = [0.5 * max(0.0, length - 0.4 * 128) / (0.6 * 128) for length in lengths]
        rewards = [a - b for a, b in zip(right, taken, strict=True)]
        found |= {(id, at): ((r - fmean(rewards)) / pstdev(rewards), 1.0) for at, r in enumerate(rewards)}
    return found


def reinforce_pp(run: Recorded) -> Scored:
    trees = [(name(tree), reward(tree["rollouts"][0]), len(tokens(tree, 0))) for tree in run.trees]
    assert {len(tree["rollouts"]) for tree in run.trees} == {1}
    scores = standard([(float(value), float(length)) for _, value, length in trees])
    return {(id, 0): (score, 1.0) for (id, _, _), score in zip(trees, scores, strict=True)}


def reinforce_baseline(run: Recorded) -> Scored:
    found = [
        (id, at, value - fmean(rewards), length)
        for id, rewards, lengths in mixed(run)
        for at, (value, length) in enumerate(zip(rewards, lengths, strict=True))
    ]
    scores = standard([(value, float(length)) for _, _, value, length in found])
    return {(id, at): (score, 1.0) for (id, at, _, _), score in zip(found, scores, strict=True)}


def rejection_sampling(run: Recorded) -> Scored:
    """The first two different right answers."""
    found: Scored = {}
    for tree in run.trees:
        first: dict[Ids, int] = {}
        for at, status in enumerate(statuses(tree)):
            if status == "correct":
                first.setdefault(tokens(tree, at), at)
        found |= {(name(tree), at): (1.0, 1.0) for at in [*first.values()][:2]}
    assert max(Counter(id for id, _ in found).values()) == 2
    return found


# ---- steps and segments ----------------------------------------------------------------------------------------------


def differences(run: Recorded) -> list[tuple[Row, int, float]]:
    """Of every step between two states that were valued, the difference; after the last step the reward."""
    found: list[tuple[Row, int, float]] = []
    for tree in run.trees:
        ends: dict[Ids, list[float]] = {}
        for rollout in tree["rollouts"]:
            if rollout["probe"]:
                ends.setdefault(prompt(tree, rollout["start"]), []).append(reward(rollout))
        for rollout in tree["rollouts"]:
            steps = above(tree, rollout["leaf"])
            for at, step in enumerate([] if rollout["probe"] else steps):
                before = ends.get(prompt(tree, step))
                after = fmean(ends[prompt(tree, steps[at + 1])]) if at + 1 < len(steps) else reward(rollout)
                if before is not None:
                    assert len(before) in (3, 4), "as many as were asked for"
                    found.append((tree, step, after - fmean(before)))
    return found


def vineppo(run: Recorded) -> Scored:
    found = differences(run)
    paths = sum(not rollout["probe"] for tree in run.trees for rollout in tree["rollouts"])
    assert len(found) > 2 * paths, "every step of every path, and paths of several steps"
    scores = standard([(value, float(len(tokens(tree, step)))) for tree, step, value in found])
    return {(name(tree), step): (score, 1.0) for (tree, step, _), score in zip(found, scores, strict=True)}


def unsure(tree: Row, node: int) -> int:
    return sum(math.exp(value) < SURE for value in tree["nodes"][node]["logprobs"])


def spo_chain(run: Recorded) -> Scored:
    """Whitened by unsure tokens, which all weights together share out, a unit a path."""
    found = [(tree, step, value, unsure(tree, step)) for tree, step, value in differences(run)]
    paths = sum(not rollout["probe"] for tree in run.trees for rollout in tree["rollouts"])
    scores = standard([(value, float(count)) for _, _, value, count in found])
    total = sum(count for *_, count in found)
    assert min(count for *_, count in found) > 0, "a segment that was valued begins with an unsure token"
    assert any(count > 1 for *_, count in found)
    return {
        (name(tree), step): (score, count * paths / total)
        for (tree, step, _, count), score in zip(found, scores, strict=True)
    }


def backed_up(tree: Row) -> dict[int, float]:
    """A leaf's reward, and the mean of a node's children."""
    ends = {rollout["leaf"]: reward(rollout) for rollout in tree["rollouts"]}

    def value(node: int) -> float:
        children = below(tree, node)
        return fmean(map(value, children)) if children else ends[node]

    return {node["id"]: value(node["id"]) for node in tree["nodes"]}


def against_siblings(tree: Row, *, divided: bool) -> dict[int, float]:
    """Each node's value less its family's mean; what has no siblings has what is above it."""
    values, found = backed_up(tree), dict[int, float]()
    for node in tree["nodes"]:
        family = [values[one] for one in below(tree, node["parent"])]
        if len(family) == 1:
            found[node["id"]] = 0.0 if node["parent"] is None else found[node["parent"]]
        else:
            spread = pstdev(family) if divided else 1.0
            tied = max(family) - min(family) < 1e-9
            found[node["id"]] = 0.0 if tied else (values[node["id"]] - fmean(family)) / spread
    return {node: value for node, value in found.items() if abs(value) > 1e-9}


def treerpo(run: Recorded) -> Scored:
    return {
        (name(tree), node): (value, 1.0)
        for tree in run.trees
        for node, value in against_siblings(tree, divided=True).items()
    }


def spo_tree(run: Recorded) -> Scored:
    """At most eight of a tree's, drawn; of these those with an unsure token, whitened and weighed by them."""
    found: list[tuple[Row, int, float, int]] = []
    num_drawn = 0
    for tree in run.trees:
        every = against_siblings(tree, divided=False)
        kept = {row["node"] for row in run.scored if row["problem_id"] == name(tree)}
        counts = {node: unsure(tree, node) for node in every}
        num_sure = sum(not count for count in counts.values())
        most = min(8, len(every))
        num_drawn += most
        assert most - num_sure <= len(kept) <= most
        assert kept <= {node for node, count in counts.items() if count}
        found += [(tree, node, every[node], counts[node]) for node in sorted(kept)]
    assert max(Counter(name(tree) for tree, *_ in found).values()) <= 8 < num_drawn
    scores = standard([(value, float(count)) for _, _, value, count in found])
    unit = num_drawn / sum(count for *_, count in found)
    return {(name(t), node): (score, n * unit) for (t, node, _, n), score in zip(found, scores, strict=True)}


def treerl(run: Recorded) -> Scored:
    """Six leaves of a tree are learned, one right among them; values are of all leaves."""
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for tree in run.trees:
        rewards = {rollout["leaf"]: reward(rollout) for rollout in tree["rollouts"]}
        if len(set(rewards.values())) < 2:
            continue
        kept = {row["node"] for row in run.scored if row["problem_id"] == name(tree)} & set(rewards)
        assert len(kept) == 6
        assert 1.0 in {rewards[leaf] for leaf in kept}
        gains = {
            leaf: mine - fmean(other for one, other in rewards.items() if one != leaf) for leaf, mine in rewards.items()
        }
        paths = {leaf: above(tree, leaf) for leaf in rewards}

        def value(node: int, gains: dict = gains, paths: dict = paths, kept: set = kept) -> float:  # type: ignore[type-arg]
            through = [leaf for leaf, path in paths.items() if node in path]
            return fmean(gains[leaf] for leaf in through) / math.sqrt(len(kept & set(through)))

        local: dict[int, float] = {}
        for leaf in sorted(kept):
            length = sum(len(tokens(tree, node)) for node in paths[leaf])
            for node in paths[leaf]:
                parent = tree["nodes"][node]["parent"]
                local[node] = value(node) - (0.0 if parent is None else value(parent))
                if abs(local[node]) < 1e-8 and parent is not None:
                    local[node] = local[parent]
                share = len(tokens(tree, node)) / length
                before = found.get((name(tree), node), (0.0, 0.0))[1]
                found[name(tree), node] = (value(node) + local[node], before + share)
    found = {key: one for key, one in found.items() if abs(one[0]) > 1e-8}
    mean = fmean(weight for _, weight in found.values())
    return {key: (advantage, weight / mean) for key, (advantage, weight) in found.items()}


SCORED: dict[str, Callable[[Recorded], Scored]] = {
    "grpo": grpo, "gspo": grpo, "cispo": grpo, "dr-grpo": dr_grpo, "rloo": rloo, "dapo": dapo,
    "reinforce-pp": reinforce_pp, "reinforce-baseline": reinforce_baseline, "rejection-sampling": rejection_sampling,
    "vineppo": vineppo, "spo-chain": spo_chain, "spo-tree": spo_tree, "treerpo": treerpo, "treerl": treerl,
}  # fmt: skip


@pytest.mark.parametrize("recipe", each(SCORED))
def test_advantages_of_a_run(recipe: str, runs: Runs) -> None:
    run = runs(recipe)
    wanted = SCORED[recipe](run)
    found = {(row["problem_id"], row["node"]): (row["advantage"], row["weight"]) for row in run.scored}
    assert found == {key: pytest.approx(value, rel=1e-6) for key, value in wanted.items()}
    assert len(found) == len(run.scored) > 4
    assert not run.pairs
    for row in run.scored:
        tree = run.tree(row["problem_id"])
        assert tuple(row["prompt_ids"]) == prompt(tree, row["node"])
        assert tuple(row["completion_ids"]) == tokens(tree, row["node"])
        assert row["policy_version"] == tree["nodes"][row["node"]]["policy_version"] == 0


# ---- pairs -----------------------------------------------------------------------------------------------------------


def outcome_pairs(run: Recorded) -> Pairs:
    """At each node of the first rollout: every sibling that led to a right end against every one that led to a wrong
    one."""
    found: Pairs = {}
    for tree in run.trees:
        ends = statuses(tree)
        for node in above(tree, tree["rollouts"][0]["leaf"]):
            family = below(tree, tree["nodes"][node]["parent"])
            for good, bad in itertools.permutations(family, 2):
                led = [ends[tree["nodes"][one]["rollout"]] for one in (good, bad)]
                if led == ["correct", "wrong"] and tokens(tree, good) != tokens(tree, bad):
                    found[name(tree), good, bad] = (1.0, 1.0)
    return found


def iterative_rpo(run: Recorded) -> Pairs:
    """Right and wrong answers side by side, from the beginning again where one of the two ends, ten times."""
    found = Counter[tuple[str, int, int]]()
    for tree in run.trees:
        right, wrong = ([at for at, s in enumerate(statuses(tree)) if s == kind] for kind in ("correct", "wrong"))
        if right and wrong:
            found.update((name(tree), right[k % len(right)], wrong[k % len(wrong)]) for k in range(10))
    return {key: (1.0, float(count)) for key, count in found.items()}


def step_dpo(run: Recorded) -> Pairs:
    """The first step of a wrong path after which no completion was right, against the first steps of the right ones
    from the state before it."""
    found: Pairs = {}
    for tree in run.trees:
        probes = [(prompt(tree, r["start"]), r["start"], reward(r)) for r in tree["rollouts"] if r["probe"]]
        seen = set[tuple[Ids, Ids, Ids]]()
        for rollout in tree["rollouts"]:
            steps = [] if rollout["probe"] or reward(rollout) else above(tree, rollout["leaf"])
            alive = [any(r for state, _, r in probes if state == prompt(tree, step)) for step in steps] + [False]
            if not alive[0]:
                continue
            wrong = steps[alive.index(False) - 1]
            for state, start, right in probes:
                key = (state, tokens(tree, start), tokens(tree, wrong))
                if state == prompt(tree, wrong) and right and key[1] != key[2] and key not in seen:
                    seen.add(key)
                    found[name(tree), start, wrong] = (1.0, 1.0)
    return found


def rpo(run: Recorded) -> Pairs:
    """Of all right-wrong combinations at the states of the first right rollout, three a problem, drawn; each problem
    weighs as much as one with three."""
    found: Pairs = {}
    for tree in run.trees:
        paths = [rollout for rollout in tree["rollouts"] if not rollout["probe"]]
        reference = next((one for one in paths if reward(one)), None)
        probes = [rollout for rollout in tree["rollouts"] if rollout["probe"]]
        states = [] if reference is None else [prompt(tree, node) for node in above(tree, reference["leaf"])]
        assert Counter(prompt(tree, one["start"]) for one in probes) == dict.fromkeys(states, 6)
        every = set[tuple[int, int]]()
        for state in states:
            first: dict[tuple[float, Ids], int] = {}
            for one in probes:
                if prompt(tree, one["start"]) == state:
                    first.setdefault((reward(one), tokens(tree, one["start"])), one["start"])
            right, wrong = ([at for (value, _), at in first.items() if value == kind] for kind in (1.0, 0.0))
            every |= {(a, b) for a in right for b in wrong if tokens(tree, a) != tokens(tree, b)}
        kept = {(row["node"], row["rejected_node"]) for row in run.pairs if row["problem_id"] == name(tree)}
        assert kept <= every
        assert len(kept) == min(3, len(every))
        found |= {(name(tree), *pair): (1.0, 3 / len(kept)) for pair in kept}
    assert max(Counter(key[0] for key in found).values()) == 3
    return found


PAIRS: dict[str, Callable[[Recorded], Pairs]] = {
    "flow-dpo-paper": outcome_pairs, "online-dpo": outcome_pairs, "iterative-rpo": iterative_rpo,
    "step-dpo": step_dpo, "rpo": rpo,
}  # fmt: skip


@pytest.mark.parametrize("recipe", each(PAIRS))
def test_pairs_of_a_run(recipe: str, runs: Runs) -> None:
    run = runs(recipe)
    wanted = PAIRS[recipe](run)
    found = {(p["problem_id"], p["node"], p["rejected_node"]): (p["margin"], p["weight"]) for p in run.pairs}
    assert found == {key: pytest.approx(value) for key, value in wanted.items()}
    assert len(found) == len(run.pairs) > 1
    assert not run.scored
    for row in run.pairs:
        tree = run.tree(row["problem_id"])
        # 1. Two sides of one request; RPO's is the question, and a side all that was written since.
        written = [(*prompt(tree, row[side]), *tokens(tree, row[side])) for side in ("node", "rejected_node")]
        asked = tuple(row["prompt_ids"])
        assert asked == prompt(tree, 0 if recipe == "rpo" else row["node"])
        assert [(*asked, *row[side]) for side in ("chosen_ids", "rejected_ids")] == written
        # 2. What they led to.
        ends = [statuses(tree)[tree["nodes"][row[side]]["rollout"]] for side in ("node", "rejected_node")]
        assert ends == ["correct", "wrong"]
