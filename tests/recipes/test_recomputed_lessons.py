"""CPL, MALT, ReGenesis and DOTS: is what a run recorded as learned what its trees teach, and as many rollouts as said?

Recomputed by loops over plain JSON, as in `test_recomputed_credits`: these learn one thing for the request of another,
or two kinds of things.
"""

from __future__ import annotations

from statistics import fmean

import pytest

from tests.recipes.test_cpl_run import counted
from tests.support.recipe_runs import Ids, Row, Runs, above, below, prompt, reward, tokens


def name(tree: Row) -> str:
    return tree["problem"]["id"]


def roles(tree: Row, nodes: list[int]) -> list[str]:
    return [tree["nodes"][node]["role"] for node in nodes]


def test_what_cpl_learns_in_a_run(runs: Runs) -> None:
    """Values of states by the mean of what ended or was predicted below, right solutions, and pairs."""
    run = runs("cpl")
    values: dict[tuple[str, int], tuple[str, float]] = {}
    drawn = 0
    for tree in run.trees:
        found: dict[int, list[float]] = {}
        answered, right = list[int](), dict[tuple[Ids, ...], list[int]]()
        for rollout in tree["rollouts"]:
            path = above(tree, rollout["leaf"])
            value = 2 * reward(rollout) - 1 if rollout["value"] is None else rollout["value"]
            for node in path:
                found.setdefault(node, []).append(value)
            if rollout["value"] is None and rollout["verdict"]["reason"] != "no answer":
                answered += path
            if rollout["value"] is None and reward(rollout):
                right.setdefault(tuple(tokens(tree, node) for node in path), path)
        # 1. The word that each state's mean leans to, of states on the way to an answer.
        for node in set(answered):
            if tree["nodes"][node]["role"] == "value":
                mean = fmean(found[node])
                word = tree["choices"]["value"][0 if mean >= 0 else 1]
                values[name(tree), node] = (word, (1 + abs(mean)) / 2)
        # 2. A right solution, drawn, with all that led to it.
        scored = {row["node"] for row in run.scored if row["problem_id"] == name(tree) and row["role"] != "value"}
        kept = [path for path in right.values() if set(path) - set(values_of(tree, path)) <= scored]
        assert scored == {node for path in kept for node in path if tree["nodes"][node]["role"] != "value"}
        assert len(kept) == min(1, len(right))
        drawn += len(right) > 1
    rows = {(r["problem_id"], r["node"]): (r["completion"], r["advantage"]) for r in run.scored if r["role"] == "value"}
    assert rows == {key: (word, pytest.approx(value, abs=1e-6)) for key, (word, value) in values.items()}
    assert {word for word, _ in values.values()} == {"Yes", "No"}
    assert drawn, "some problem had several right solutions"
    assert {(r["advantage"], r["weight"]) for r in run.scored if r["role"] != "value"} == {(1.0, 1.0)}
    pairs = {(p["problem_id"], p["node"], p["rejected_node"]): p["margin"] for p in run.pairs}
    wanted = {(name(tree), *pair): margin for tree in run.trees for pair, margin in counted(tree).items()}
    assert pairs == pytest.approx(wanted, abs=2e-6)
    assert pairs


def values_of(tree: Row, path: list[int]) -> list[int]:
    return [node for node, role in zip(path, roles(tree, path), strict=True) if role == "value"]


@pytest.mark.slow  # `test_malt` recomputes the nodes
def test_what_malt_learns_in_a_run(runs: Runs) -> None:
    """Of equal completions of one request the mean; above a half each is learned, and preferred to all below."""
    run = runs("malt")
    good, wanted = set[tuple[str, int]](), dict[tuple[str, int, int], float]()
    for tree in run.trees:
        ends = {rollout["leaf"]: reward(rollout) for rollout in tree["rollouts"]}
        assert len(ends) == 4 * 1 * 3

        def value(node: int, tree: Row = tree, ends: dict[int, float] = ends) -> float:
            return fmean(map(value, below(tree, node))) if below(tree, node) else ends[node]

        asked: dict[tuple[str, Ids], dict[Ids, list[int]]] = {}
        for node in range(len(tree["nodes"])):
            key = (tree["nodes"][node]["role"], prompt(tree, node))
            asked.setdefault(key, {}).setdefault(tokens(tree, node), []).append(node)
        for (role, _), family in asked.items():
            means = {nodes[0]: fmean(map(value, nodes)) for nodes in family.values()}
            good |= {(name(tree), node) for node, mean in means.items() if mean > 0.5}
            if role != "generate":
                wanted |= {
                    (name(tree), a, b): means[a] - means[b] for a in means for b in means if means[a] > 0.5 >= means[b]
                }
    assert {(row["problem_id"], row["node"]) for row in run.scored} == good
    assert {(row["advantage"], row["weight"]) for row in run.scored} == {(1.0, 1.0)}
    pairs = {(p["problem_id"], p["node"], p["rejected_node"]): p["margin"] for p in run.pairs}
    assert pairs == pytest.approx(wanted)
    assert len({round(margin, 6) for margin in pairs.values()}) > 1
    assert {row["role"] for row in run.pairs} >= {"verify", "refine"}


def test_what_regenesis_learns_in_a_run(runs: Runs) -> None:
    """The first right path for the plain question; hints where none of eight was right."""
    run = runs("regenesis")
    wanted, hinted, more = list[tuple[str, int]](), 0, 0
    for tree in run.trees:
        first = [tree["nodes"][rollout["start"]]["tags"] for rollout in tree["rollouts"][1:9]]
        assert len({tuple(tags) for tags in first}) == 8, "no guideline twice"
        assert all(len(above(tree, rollout["leaf"])) == 3 for rollout in tree["rollouts"][1:])
        anything = any(reward(rollout) for rollout in tree["rollouts"][1:9])
        assert len(tree["rollouts"]) == 1 + (8 if anything else 16)
        hinted += not anything
        paths: dict[Ids, int] = {}
        for rollout in tree["rollouts"][1:]:
            if reward(rollout):
                paths.setdefault(tokens(tree, rollout["leaf"]), rollout["leaf"])
        more += len(paths) > 1
        wanted += [(name(tree), leaf) for leaf in [*paths.values()][:1]]
    assert [(row["problem_id"], row["node"]) for row in run.scored] == wanted
    assert hinted
    assert more, "some problem had several right paths"
    for row in run.scored:
        tree = run.tree(row["problem_id"])
        assert tuple(row["prompt_ids"]) == prompt(tree, 0)
        assert tuple(row["completion_ids"]) == tokens(tree, row["node"])
        assert (row["role"], row["policy_version"], row["advantage"], row["weight"]) == ("answer", -1, 1.0, 1.0)


def test_what_dots_learns_in_a_run(runs: Runs) -> None:
    """Six ways twice, the best three twice more, by the share that was right, then by brevity, then by their order; the
    best of these is explained to the planner, where there were right and wrong ones."""
    run = runs("dots")
    lessons = 0
    for tree in run.trees:
        searched = [rollout for rollout in tree["rollouts"][1:] if "taught" not in tags(tree, rollout)]
        found: dict[str, list[float]] = {}
        for rollout in searched:
            found.setdefault(tags(tree, rollout)[0], []).append(reward(rollout))
        order = [*found]

        def rank(way: str, num: int, found: dict[str, list[float]] = found, order: list[str] = order) -> tuple:  # type: ignore[type-arg]
            return (-fmean(found[way][:num]), way.count("+"), order.index(way))

        # 1. What is visited.
        kept = sorted(order, key=lambda way: rank(way, 2))[:3]
        assert len(order) == 6
        assert {way: len(ends) for way, ends in found.items()} == {way: 4 if way in kept else 2 for way in order}
        # 2. What is taught.
        best = min(kept, key=lambda way: rank(way, 4))
        mine = [row for row in run.scored if row["problem_id"] == name(tree)]
        ends = [end for way in order for end in found[way]]
        if not 0 < sum(ends) < len(ends):
            assert len(tree["rollouts"]) == 1 + len(searched)
            assert mine == []
            continue
        lessons += 1
        why, which = above(tree, tree["rollouts"][-1]["leaf"])
        assert [tree["nodes"][node]["tags"] for node in (why, which)] == [["taught", best]] * 2
        assert [row["node"] for row in mine] == [why, which]
        assert [tuple(row["completion_ids"]) for row in mine] == [tokens(tree, why), tokens(tree, which)]
        assert [tuple(row["prompt_ids"]) for row in mine] == [prompt(tree, 0), prompt(tree, which)]
        assert {(row["role"], row["advantage"], row["weight"]) for row in mine} == {("plan", 1.0, 1.0)}
    assert lessons > 2


def tags(tree: Row, rollout: Row) -> list[str]:
    return tree["nodes"][rollout["start"]]["tags"]
