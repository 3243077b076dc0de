"""Step-DPO: are the states of wrong solutions probed, and is the first error the one that is paired?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Group
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, TokenIds, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.single import Single
from flow_dpo.recipes.step_dpo.credit import FirstErrorPairs, first_error
from flow_dpo.recipes.step_dpo.explore import WrongRollouts
from flow_dpo.runs.files import read_jsonl
from tests.core.test_explore import ANSWER_PROMPT, END, PROBLEMS, Bare, next_probs
from tests.support.graders import FunctionGrader
from tests.support.tree_builders import completion, graded, problem, request, valued

END_OF_PATH = Solution(pieces=((5,),), ended=True)


def right(ids: TokenIds) -> bool:
    """Made-up truth: one 2 exactly."""
    return ids.count(2) == 1


def verdicts(items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
    ids = [tuple(token for piece in solution.pieces for token in piece) for _, solution in items]
    return [Verdict(status="correct" if right(one) else "wrong") for one in ids]  # type: ignore[arg-type]


def searched(settings: WrongRollouts, num: int) -> list[Tree]:
    grader = FunctionGrader(verdicts)
    runner = RolloutRunner(TabularEngine(next_probs, end_ids={END}), Bare(), grader)
    trees = settings(Single(max_tokens=4), runner, PROBLEMS[:num], seed=0)
    grader.grade(trees)
    return trees


def said(tree: Tree, rollout: int) -> TokenIds:
    return tuple(t for node in tree.path(tree.rollouts[rollout].leaf) for t in node.completion.token_ids)


def boundaries(ids: TokenIds) -> list[int]:
    """A step ends behind each 1 that a 1 or 2 follows."""
    words = [at for at, token in enumerate(ids) if token in (1, 2)]
    return [0, *(at + 1 for at in words if ids[at] == 1 and at < words[-1])]


def test_states_of_wrong_rollouts_alone_are_probed_and_probes_are_cut_into_steps() -> None:
    for tree in searched(WrongRollouts(num_rollouts=3, num_completions=2), 200):
        paths = [r.id for r in tree.rollouts if not r.probe]
        assert len(paths) == 3
        wrong = [id for id in paths if not right(said(tree, id))]
        states = {said(tree, id)[:at] for id in wrong for at in boundaries(said(tree, id))}
        probed = Counter(tree.nodes[r.start].request.prompt_ids[1:] for r in tree.rollouts if r.probe)
        assert probed == dict.fromkeys(states, 2)
        for rollout in tree.rollouts:
            if rollout.probe:
                whole = said(tree, rollout.id)
                begun = len(tree.nodes[rollout.start].request.prompt_ids) - 1
                cut = [len(n.request.prompt_ids) - 1 for n in tree.nodes[rollout.start : rollout.leaf + 1]]
                assert cut == [begun, *(at for at in boundaries(whole) if at > begun)]


def test_pairs_of_an_exploration_are_first_errors_by_enumeration() -> None:
    """By the probes' own ends: the state before holds a right one, that after none, and none earlier is such."""
    num = 0
    for tree in searched(WrongRollouts(num_rollouts=3, num_completions=3), 300):
        ends: dict[TokenIds, list[bool]] = {}
        for rollout in tree.rollouts:
            if rollout.probe:
                state = tree.nodes[rollout.start].request.prompt_ids[1:]
                ends.setdefault(state, []).append(right(said(tree, rollout.id)))
        wanted: set[tuple[TokenIds, TokenIds, TokenIds]] = set()
        for path in (r for r in tree.rollouts if not r.probe and not right(said(tree, r.id))):
            ids = said(tree, path.id)
            states = [ids[:at] for at in boundaries(ids)]
            alive = [any(ends[state]) for state in states] + [False]
            if not alive[0]:
                continue
            at = alive.index(False) - 1
            wrong = ids[len(states[at]) : len(states[at + 1]) if at + 1 < len(states) else None]
            for rollout in tree.rollouts:
                node = tree.nodes[rollout.start]
                here = rollout.probe and node.request.prompt_ids == (ANSWER_PROMPT, *states[at])
                if here and right(said(tree, rollout.id)) and node.completion.token_ids != wrong:
                    wanted.add((states[at], node.completion.token_ids, wrong))
        pairs = FirstErrorPairs()([tree])
        found = [(p.request.prompt_ids[1:], p.chosen.token_ids, p.rejected.token_ids) for p in pairs]
        assert len(found) == len(set(found))
        assert set(found) == wanted
        num += len(found)
    assert num > 50


def drawn(*probes: str) -> Tree:
    """A wrong path of steps 5 6 | 7 | 8, and two probes from each of its three states, first steps 4, 9."""
    tree = Tree(problem=problem())
    q, a, b = request("answer", 1), request("answer", 1, 5, 6), request("answer", 1, 5, 6, 7)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (a, completion(7), ()), (b, completion(8), ())], END_OF_PATH)
    for parent, state in ((None, q), (0, a), (1, b)):
        for first in (4, 9):
            rest = replace(state, prompt_ids=(*state.prompt_ids, first))
            turns = [(state, completion(first), ()), (rest, completion(3), ())]
            tree.add_rollout(parent, turns, END_OF_PATH, probe=True)
    return graded(tree, "wrong", *probes)  # type: ignore[arg-type]


def test_the_first_error_by_hand() -> None:
    tree = drawn("correct", "wrong", "correct", "correct", "wrong", "wrong")
    # Values 1/2, 1, 0: step 7 lost it. Both completions before it were right.
    assert first_error(tree, tree.rollouts[0]) == 1
    pairs = FirstErrorPairs()([tree])
    assert [(p.request.prompt_ids, p.chosen.token_ids, p.rejected.token_ids, p.margin) for p in pairs] == [
        ((1, 5, 6), (4,), (7,), 1.0), ((1, 5, 6), (9,), (7,), 1.0),
    ]  # fmt: skip
    assert [(p.chosen_node, p.rejected_node, p.depth) for p in pairs] == [(7, 1, 1), (9, 1, 1)]
    assert len(FirstErrorPairs(max_per_error=1)([tree])) == 1
    for never in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="expected threshold of 0 or more and below 1"):
            FirstErrorPairs(threshold=never)
    # The last step is wrong where its state is not lost; then the reward is the value after it.
    tree = drawn("correct", "wrong", "correct", "wrong", "wrong", "correct")
    assert first_error(tree, tree.rollouts[0]) == 2
    assert [p.chosen.token_ids for p in FirstErrorPairs()([tree])] == [(9,)]
    # Nothing right from the beginning, or nothing known: no pair.
    assert FirstErrorPairs()([drawn(*["wrong"] * 6)]) == []
    assert FirstErrorPairs()([drawn(*["ungraded"] * 6)]) == []
    # At a threshold of 1/2 the beginning is not right enough.
    assert FirstErrorPairs(threshold=0.5)([drawn("correct", "wrong", "correct", "correct", "wrong", "wrong")]) == []
    # The state before 7 is right in one of two, so 5 6 stands, and 7 is the error; real-valued rewards have margins.
    tree = valued(drawn(*["wrong"] * 6), 0.25, 0.5, 0.0, 0.75, 0.0, 0.0, 0.0)
    assert [(p.chosen.token_ids, p.margin) for p in FirstErrorPairs()([tree])] == [((4,), 0.5)]


def test_alone_is_one_rollout() -> None:
    assert WrongRollouts(temperature=0.8).alone(greedy=False) == Group(num_rollouts=1, temperature=0.8)


def test_recorded_pairs_are_those_of_the_recorded_trees(tmp_path: Path) -> None:
    words = ["--recipe", "step-dpo", "--max_problems", "6", "--problems_per_batch", "6", "--output_dir", str(tmp_path)]
    assert train.train(words) == 0
    wanted: set[tuple[str, int, int]] = set()
    for row in read_jsonl(tmp_path / "trees.jsonl"):
        nodes: list[dict[str, Any]] = row["nodes"]

        def before(node: int, nodes: list[dict[str, Any]] = nodes) -> TokenIds:
            parent = nodes[node]["parent"]
            return () if parent is None else (*before(parent), *nodes[parent]["token_ids"])

        probes = [r for r in row["rollouts"] if r["probe"]]
        correct = {r["id"]: r["verdict"]["status"] == "correct" for r in row["rollouts"]}
        for path in row["rollouts"]:
            if path["probe"] or correct[path["id"]]:
                continue
            steps = range(path["start"], path["leaf"] + 1)
            alive = [any(correct[p["id"]] for p in probes if before(p["start"]) == before(step)) for step in steps]
            error = next((at for at, after in enumerate([*alive[1:], False]) if not after), None)
            if alive[0] and error is not None:
                seen = set[TokenIds]()
                for p in probes:
                    first = tuple(nodes[p["start"]]["token_ids"])
                    same = before(p["start"]) == before(steps[error])
                    if same and correct[p["id"]] and first not in seen:
                        seen.add(first)
                        if first != tuple(nodes[steps[error]]["token_ids"]):
                            wanted.add((row["problem"]["id"], p["start"], steps[error]))
    pairs = read_jsonl(tmp_path / "pairs.jsonl")
    assert pairs
    assert {(p["problem_id"], p["node"], p["rejected_node"]) for p in pairs} == wanted
