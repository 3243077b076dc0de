"""Rounds of Critical Plan Step Learning: right plays first, then pairs, on the loop and the learner as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError, ObjectiveError
from flow_dpo.core.objective import check_examples
from flow_dpo.core.types import Pair, ScoredCompletion
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.recipes.cpl.credit import ValuePairs
from flow_dpo.recipes.cpl.objective import StepApo
from flow_dpo.recipes.rejection_sampling.credit import CorrectRollouts
from flow_dpo.recipes.rejection_sampling.objective import Nll
from flow_dpo.runs.files import read_jsonl
from tests.recipes.test_cpl import drawn
from tests.support.packed_builders import ROLES, answer_pair
from tests.support.tiny_models import tiny_model
from tests.support.tree_builders import completion, request

PAIR = replace(answer_pair((5, 6), (7, 8), (9, 10)), margin=2.0)
SAID = ScoredCompletion(
    request=request("answer", 5, 6), completion=completion(7, 8, version=-1), advantage=1.0, problem_id="p"
)


def test_all_that_is_said_again_comes_before_the_first_pair() -> None:
    trees = [drawn(), drawn()]
    examples = ValuePairs(fine_tune=True)(trees)
    kinds = [type(example) for example in examples]
    assert kinds == [ScoredCompletion] * 4 + [Pair] * 8  # of each tree: one right play of two turns, and four pairs
    assert examples == [*CorrectRollouts()(trees), *ValuePairs()(trees)]
    # The right plays of the drawn tree are 0, 2 and 3, which shares its first turn with play 0.
    assert len(ValuePairs(fine_tune=True, max_per_problem=0)(trees[:1])) == 2 + 2 + 1 + 4


def test_both_losses_by_hand() -> None:
    policy = [
        [torch.tensor([-0.2, -0.6], requires_grad=True)],
        [torch.tensor([-0.2, -0.1], requires_grad=True), torch.tensor([-0.3, -1.0], requires_grad=True)],
    ]
    reference = [[torch.tensor([-9.0, -9.0])], [torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]
    objective = StepApo(beta=0.3, margin_weight=1.0, sft=True)
    loss = objective([SAID, PAIR], policy, reference)
    h = 0.3 * 0.3 - 2.0
    below = 1 / (1 + math.exp(h))
    assert loss.total.item() == pytest.approx(0.4 - math.log(1 - below), rel=1e-6)
    found = {name: value.item() for name, value in loss.measures.items()}
    assert found == pytest.approx(
        {"loss": 0.4 - math.log(1 - below), "likelihood_loss": 0.4, "preference_loss": -math.log(1 - below),
         "said_rate": 1.0}
    )  # fmt: skip
    said, chosen, rejected = torch.autograd.grad(loss.total, [policy[0][0], *policy[1]])
    assert said.tolist() == pytest.approx([-0.5, -0.5])
    assert chosen.tolist() == pytest.approx([-0.3 * below] * 2)
    assert rejected.tolist() == pytest.approx([0.3 * below] * 2)


def test_one_kind_alone_is_its_own_objective() -> None:
    policy, reference = [[torch.tensor([-0.2, -0.6])]], [[torch.tensor([0.0, 0.0])]]
    assert StepApo(sft=True)([SAID], policy, reference).total == Nll()([SAID], policy, []).total
    both = [[torch.tensor([-0.2]), torch.tensor([-0.3])]]
    plain = StepApo(beta=1.0, margin_weight=0.0, sft=True)
    assert plain([PAIR], both, both).total == Dpo()([PAIR], both, both).total
    with pytest.raises(ObjectiveError, match="StepApo accepts Pair or ScoredCompletion, found str"):
        check_examples(StepApo(sft=True), ["text"])


def test_without_fine_tuning_it_is_dpo_and_its_measures() -> None:
    policy = [[torch.tensor([-0.2, -0.1]), torch.tensor([-0.3, -1.0])]]
    reference = [[torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]
    found = StepApo(beta=0.3, margin_weight=1.0)([PAIR], policy, reference)
    expected = Dpo(beta=0.3, margin_weight=1.0)([PAIR], policy, reference)
    assert (found.total, found.measures) == (expected.total, expected.measures)
    assert found.measures["margin"].item() == pytest.approx(0.3 * 0.3)
    with pytest.raises(ObjectiveError, match=r"without --objective\.sft, found 1 scored completions in 2 examples"):
        StepApo()([SAID, PAIR], [[torch.tensor([-0.2, -0.6])], *policy], [[torch.tensor([0.0, 0.0])], *reference])
    with pytest.raises(ConfigError, match="beta must be above 0, found 0"):
        StepApo(beta=0.0)


def test_a_round_is_fine_tuning_and_then_preferences() -> None:
    """The learner as it is, with a batch of each kind, against two calls with the two objectives."""

    def learner() -> Learner:
        policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)
        return Learner(policy, LearnerSettings(learning_rate=1e-2, examples_per_update=2))

    other = replace(SAID, completion=completion(8, 11, version=-1))
    said, pairs = [SAID, other], [PAIR, replace(PAIR, margin=0.5)]
    dpo = Dpo(beta=0.3, margin_weight=1.0)
    one, by_hand = learner(), learner()
    row = one.update(StepApo(beta=0.3, margin_weight=1.0, sft=True), [*said, *pairs])
    by_hand.update(Nll(), said)
    by_hand.update(dpo, pairs)
    assert (one.version, by_hand.version) == (2, 2)
    for a, b in zip(one.policy.weights("answer"), by_hand.policy.weights("answer"), strict=True):
        assert torch.equal(a, b)
    assert row["learn/answer/said_rate"] == 0.5
    assert row["learn/answer/loss"] == pytest.approx(
        row["learn/answer/likelihood_loss"] + row["learn/answer/preference_loss"]
    )


def test_a_round_is_as_many_problems_as_are_played_ahead(tmp_path: Path) -> None:
    words = ["--recipe", "cpl", "--credit.fine_tune", "--objective.sft", "--max_problems", "32",
             "--problems_per_batch", "16", "--examples_per_update", "4"]  # fmt: skip
    assert train.train([*words, "--output_dir", str(tmp_path / "run")]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["problems_seen"] for row in rows] == [16, 32]
    trees = read_jsonl(tmp_path / "run" / "trees.jsonl")
    versions = [{node["policy_version"] for node in tree["nodes"]} for tree in trees]
    # The whole second round is searched with what the first one taught.
    assert versions[:16] == [{0}] * 16
    assert versions[16:] == [{rows[1]["policy_version"]}] * 16
    assert rows[1]["policy_version"] == rows[0]["learn/updates"] > 0
    assert rows[0]["learn/plan/said_rate"] > 0
