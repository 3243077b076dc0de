"""MALT: does each role read what the others wrote, and are values and examples those drawn by hand?"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Message, Pair, Problem, ScoredCompletion, Solution, TokenIds
from flow_dpo.recipes.malt.credit import ThresholdedValues
from flow_dpo.recipes.malt.flow import GenerateVerifyRefine, RefinePrompts
from flow_dpo.recipes.presets import load_recipe
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import iter_rows
from flow_dpo.runs.tree_rows import TreeRow
from tests.support.tree_builders import completion, graded, problem, request

QUESTION = Problem(id="p", question="1 {solution} = ?", gold="2")


def test_each_role_reads_the_ids_of_those_before_it() -> None:
    prompts = RefinePrompts(verify_user="{question}|{solution}|", refine_user="{question}|{solution}|{critique}",
                            refine_start="{solution}!")  # fmt: skip
    flow = GenerateVerifyRefine(max_tokens=9, critique_tokens=4, prompts=prompts)
    state = flow.start(QUESTION)
    asked: list[tuple[str, tuple[Message, ...], tuple[Any, ...], int]] = []
    for ids in ((5, 6), (7,), (8, 9)):
        turn = flow.turn(state)
        assert turn is not None
        asked.append((turn.role, turn.messages[1:], turn.continuation, turn.max_tokens))
        assert flow.solution(state) == Solution(pieces=(), ended=False)
        state = flow.advance(state, completion(*ids))
    question = "1 {solution} = ?"  # a brace of the question is text
    assert asked == [
        ("generate", (Message(role="user", content=(question,)),), (), 9),
        ("verify", (Message(role="user", content=(question, "|", (5, 6), "|")),), (), 4),
        ("refine", (Message(role="user", content=(question, "|", (5, 6), "|", (7,))),), ((5, 6), "!"), 9),
    ]
    assert flow.turn(state) is None
    assert flow.solution(state) == Solution(pieces=((8, 9),), ended=False)
    with pytest.raises(ConfigError, match="solution"):
        RefinePrompts(verify_user="{question}")


def drawn(*statuses: str) -> Tree:
    """One solution, two critiques of it, two refinements of each; and another solution with one of each."""
    tree = Tree(problem=problem())
    q, a = request("generate", 1), request("verify", 1, 5)
    for parent, turns in (
        (None, [(q, completion(5)), (a, completion(6)), (request("refine", 5, 6), completion(10))]),
        (1, [(request("refine", 5, 6), completion(11))]),
        (0, [(a, completion(7)), (request("refine", 5, 7), completion(12))]),
        (4, [(request("refine", 5, 7), completion(13))]),
        (None, [(q, completion(8)), (request("verify", 1, 8), completion(9)), (request("refine", 8), completion(14))]),
    ):
        tree.add_rollout(parent, [(*turn, ()) for turn in turns], Solution(pieces=((5,),), ended=True))
    return graded(tree, *statuses)  # type: ignore[arg-type]


def test_values_pairs_and_targets_by_hand() -> None:
    # Refinements 1 1 | 1 0 | 0: critiques 1, 1/2 and 0, solutions 3/4 and 0.
    tree = drawn("correct", "correct", "correct", "wrong", "wrong")
    found = ThresholdedValues(pair_roles=("generate", "verify", "refine"))([tree])
    scored = [(e.request.role, e.completion.token_ids) for e in found if isinstance(e, ScoredCompletion)]
    assert scored == [("generate", (5,)), ("verify", (6,)), ("refine", (10,)), ("refine", (11,)), ("refine", (12,))]
    pairs = [(e.request.role, e.chosen.token_ids, e.rejected.token_ids, e.margin) for e in found if isinstance(e, Pair)]
    # The critique of 1/2 is bad: good is what exceeds the threshold.
    assert pairs == [("generate", (5,), (8,), 0.75), ("verify", (6,), (7,), 0.5), ("refine", (12,), (13,), 1.0)]
    # The paper's roles: the one that generates learns by likelihood alone.
    assert {e.request.role for e in ThresholdedValues()([tree]) if isinstance(e, Pair)} == {"verify", "refine"}
    good = ThresholdedValues(threshold=0.4, sft_roles=("verify",), pair_roles=())([tree])
    assert [e.completion.token_ids for e in good if isinstance(e, ScoredCompletion)] == [(6,), (7,)]
    for strange in ({"threshold": 1.0}, {"threshold": -0.1}, {"sft_roles": (), "pair_roles": ()}):
        with pytest.raises(ConfigError, match=r"threshold|nothing would be learned"):
            ThresholdedValues(**strange)  # type: ignore[arg-type]
    # What was not graded is in no mean: the first critique rests on one refinement.
    partly = ThresholdedValues(pair_roles=())([drawn("ungraded", "wrong", "wrong", "wrong", "ungraded")])
    assert partly == []


def test_the_loss_is_dpo_and_likelihood_by_hand() -> None:
    pair = Pair(request=request("verify", 1), chosen=completion(5, 6), rejected=completion(7), margin=1.0)
    scored = ScoredCompletion(request=request("verify", 1), completion=completion(8, 9), advantage=1.0)
    policy = [[torch.tensor([-0.2, -0.1]), torch.tensor([-1.3])], [torch.tensor([-0.4, -0.8])]]
    for one in itertools.chain(*policy):
        one.requires_grad_()
    reference = [[torch.tensor([-0.3, -0.2]), torch.tensor([-1.2])], []]
    settings = load_recipe("malt", "paper").objective
    examples: list[Example] = [pair, scored]
    loss = settings(examples, policy, reference)
    h = 0.2 * (0.2 + 0.1)
    assert loss.total.item() == pytest.approx(math.log1p(math.exp(-h)) + 0.6)
    slope = -0.2 / (1 + math.exp(h))
    chosen, rejected, target = torch.autograd.grad(loss.total, [*policy[0], *policy[1]])
    assert chosen.tolist() == pytest.approx([slope, slope])
    assert rejected.tolist() == pytest.approx([-slope])
    assert target.tolist() == pytest.approx([-0.5, -0.5])
    assert dict(loss.counts)["likelihood_loss"] == 1
    alone = settings([scored], policy[1:], reference[1:])
    assert alone.total.item() == pytest.approx(0.6)


def test_recorded_examples_are_those_of_the_recorded_trees(tmp_path: Path) -> None:
    words = ["--recipe", "malt", "--max_problems", "3", "--problems_per_batch", "3", "--output_dir", str(tmp_path)]
    assert train.train([*words, "--explore.branch_factors", "[3, 2, 2]"]) == 0
    wanted: set[tuple[str, int, int]] = set()
    good: set[tuple[str, int]] = set()
    for _, row in iter_rows(tmp_path / "trees.jsonl", TreeRow):
        rewards = {r.leaf: float(r.status == "correct") for r in row.rollouts}
        assert len(rewards) == 12

        def value(id: int, row: TreeRow = row, rewards: dict[int, float] = rewards) -> float:
            below = [one.id for one in row.nodes if one.parent == id]
            return fmean(value(one) for one in below) if below else rewards[id]

        asked: dict[tuple[str, TokenIds], dict[TokenIds, list[int]]] = {}
        for one in row.nodes:
            asked.setdefault((one.role, row.prompt_ids(one.id)), {}).setdefault(one.token_ids, []).append(one.id)
        for family in asked.values():
            means = {ids[0]: fmean(value(id) for id in ids) for ids in family.values()}
            good |= {(row.problem.id, id) for id, mean in means.items() if mean > 0.5}
            bad = [id for id, mean in means.items() if mean <= 0.5 and row.nodes[id].role != "generate"]
            wanted |= {(row.problem.id, id, other) for id in means if means[id] > 0.5 for other in bad}
    assert len(wanted) > 2
    pairs, scored = (read_jsonl(tmp_path / name) for name in ("pairs.jsonl", "scored.jsonl"))
    assert {(p["problem_id"], p["node"], p["rejected_node"]) for p in pairs} == wanted
    assert {(s["problem_id"], s["node"]) for s in scored} == good
