"""Rounds of Critical Plan Step Learning: right plays first, then pairs, on the loop and the learner as they are."""

from __future__ import annotations

import math
import re
from collections import Counter
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
from flow_dpo.learner.settings import ReferenceSettings
from flow_dpo.recipes.cpl.credit import ValuePairs
from flow_dpo.recipes.cpl.objective import StepApo
from flow_dpo.recipes.likelihood import Nll
from flow_dpo.recipes.rejection_sampling.credit import CorrectRollouts
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
    # Of each tree: right plays 0, 2 and 3, which shares its first turn with play 0, and two pairs.
    assert kinds == [ScoredCompletion] * 10 + [Pair] * 4
    assert examples == [*CorrectRollouts(max_per_problem=4)(trees), *ValuePairs()(trees)]
    assert examples == ValuePairs(fine_tune=True, max_per_problem=0)(trees)


def test_right_plays_above_the_cut_are_drawn_at_random() -> None:
    def kept(name: str) -> tuple[int, ...]:
        tree = drawn()
        tree.problem = replace(tree.problem, id=name)
        examples = ValuePairs(fine_tune=True, max_per_problem=1)([tree])
        return tuple(e.node for e in examples if isinstance(e, ScoredCompletion))

    counts = Counter(kept(f"p{number}") for number in range(300))
    assert set(counts) == {(0, 1), (3, 4), (0, 5)}
    assert min(counts.values()) > 60
    assert kept("p7") == kept("p7")


def test_both_losses_by_hand() -> None:
    policy = [
        [torch.tensor([-0.2, -0.6], requires_grad=True)],
        [torch.tensor([-0.2, -0.1], requires_grad=True), torch.tensor([-0.3, -1.0], requires_grad=True)],
    ]
    reference = [[torch.tensor([-9.0, -9.0])], [torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]
    objective = StepApo(
        beta=0.3,
        margin_weight=1.0,
    )
    loss = objective([SAID, PAIR], policy, reference)
    h = 0.3 * 0.3 - 2.0
    below = 1 / (1 + math.exp(h))
    assert loss.total.item() == pytest.approx(0.4 - math.log(1 - below), rel=1e-6)
    found = {name: value.item() for name, value in loss.measures.items()}
    alone = Dpo(beta=0.3, margin_weight=1.0)([PAIR], policy[1:], reference[1:]).measures
    assert found == pytest.approx({name: value.item() for name, value in alone.items()} | {"likelihood_loss": 0.4})
    assert found["loss"] == pytest.approx(-math.log(1 - below))
    assert set(loss.counts.values()) == {1}
    said, chosen, rejected = torch.autograd.grad(loss.total, [policy[0][0], *policy[1]])
    assert said.tolist() == pytest.approx([-0.5, -0.5])
    assert chosen.tolist() == pytest.approx([-0.3 * below] * 2)
    assert rejected.tolist() == pytest.approx([0.3 * below] * 2)


def test_one_kind_alone_is_its_own_objective() -> None:
    policy, reference = [[torch.tensor([-0.2, -0.6])]], [[torch.tensor([0.0, 0.0])]]
    assert StepApo()([SAID], policy, reference).total == Nll()([SAID], policy, []).total
    both = [[torch.tensor([-0.2]), torch.tensor([-0.3])]]
    plain = StepApo(beta=1.0, margin_weight=0.0)
    assert plain([PAIR], both, both).total == Dpo()([PAIR], both, both).total
    with pytest.raises(ObjectiveError, match="StepApo accepts Pair or ScoredCompletion, found str"):
        check_examples(StepApo(), ["text"])


def test_without_fine_tuning_it_is_dpo_and_its_measures() -> None:
    policy = [[torch.tensor([-0.2, -0.1]), torch.tensor([-0.3, -1.0])]]
    reference = [[torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]
    found = StepApo(beta=0.3, margin_weight=1.0)([PAIR], policy, reference)
    expected = Dpo(beta=0.3, margin_weight=1.0)([PAIR], policy, reference)
    assert (found.total, found.measures) == (expected.total, expected.measures)
    assert found.measures["margin"].item() == pytest.approx(0.3 * 0.3)
    with pytest.raises(ConfigError, match="beta above 0, found 0"):
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
    row = one.update(
        StepApo(
            beta=0.3,
            margin_weight=1.0,
        ),
        [*said, *pairs],
    )
    first = by_hand.update(Nll(), said)
    second = by_hand.update(dpo, pairs)
    assert (one.version, by_hand.version) == (2, 2)
    for a, b in zip(one.policy.weights("answer"), by_hand.policy.weights("answer"), strict=True):
        assert torch.equal(a, b)
    # Each measure is over its own kind: of the completions as they were, of the pairs after those were learned.
    assert row["learn/answer/likelihood_loss"] == pytest.approx(first["learn/answer/loss"])
    assert row["learn/answer/margin"] == pytest.approx(second["learn/answer/margin"])


def test_a_round_is_as_many_problems_as_are_played_ahead(tmp_path: Path) -> None:
    words = ["--recipe", "cpl", "--credit.fine_tune", "--max_problems", "16",
             "--problems_per_batch", "8", "--examples_per_update", "4"]  # fmt: skip
    assert train.train([*words, "--output_dir", str(tmp_path / "run")]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["problems_seen"] for row in rows] == [8, 16]
    trees = read_jsonl(tmp_path / "run" / "trees.jsonl")
    versions = [{node["policy_version"] for node in tree["nodes"]} for tree in trees]
    # The whole second round is searched with what the first one taught.
    assert versions[:8] == [{0}] * 8
    assert versions[8:] == [{rows[1]["policy_version"]}] * 8
    assert rows[1]["policy_version"] == rows[0]["learn/updates"] > 0
    assert rows[0]["learn/plan/likelihood_loss"] > 0


def test_a_round_begins_from_the_base_and_is_compared_with_what_was_fine_tuned() -> None:
    """Against a fresh learner that is handed the second round alone: the same weights, and its own reference."""

    def learner() -> Learner:
        policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)
        reference = ReferenceSettings(kind="snapshot", each_batch=True)
        settings = LearnerSettings(learning_rate=1e-2, examples_per_update=1, warmup_updates=4, reference=reference)
        return Learner(policy, settings)

    objective = StepApo(rounds=True)
    round_1, round_2 = (
        [SAID, PAIR],
        [replace(SAID, completion=completion(8, 11, version=-1)), replace(PAIR, margin=0.5)],
    )
    one, by_hand = learner(), learner()
    rounds = objective.learns(one)
    rounds.update(objective, round_1)
    rows = rounds.update(objective, round_2)
    by_hand.update(Nll(), round_2[:1])
    tuned = [weight.clone() for weight in by_hand.policy.weights("answer")]
    by_hand.update(Dpo(beta=0.3, margin_weight=1.0), round_2[1:])
    for name in ("answer", "reference_answer"):
        for a, b in zip(one.policy.weights(name), by_hand.policy.weights(name), strict=True):
            assert torch.equal(a, b), name
    assert all(map(torch.equal, tuned, one.policy.weights("reference_answer")))
    # A version that begins anew is one of its own: no engine takes it for the one before.
    assert (rounds.version, rows["learn/updates"], len(one.learned)) == (6, 2, 2)
    assert rows["learn/answer/pairs"] == 2
    assert {"learn/answer/likelihood_loss", "learn/answer/margin"} <= set(rows)
    # A batch without anything to fine-tune on is learned from where the policy is.
    rounds.update(objective, [PAIR])
    assert rounds.version == 7
    with pytest.raises(ConfigError, match=r"needs --learner\.reference\.kind snapshot"):
        objective.learns(Learner(Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)))


def test_rounds_refuse_a_lag(tmp_path: Path) -> None:
    words = ["--recipe", "cpl", "--credit.fine_tune", "--objective.rounds", "--lag", "1"]
    words += ["--learner.reference.kind", "snapshot", "--learner.reference.each_batch", "--max_problems", "4"]
    with pytest.raises(ConfigError, match=r"expected run\.lag 0, found 1"):
        train.train([*words, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--objective.rounds",), "expected --credit.fine_tune with --objective.rounds"),
        (("--flow.value_role", "--explore.valued_by", "plan"), "'value', found 'plan', which writes"),
        (("--flow.value_role", "--credit.valued_by", "answer"), "'value', found 'answer', which writes"),
    ],
)
def test_what_could_teach_nothing_is_refused_before_work(flags: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    reference = ("--learner.reference.kind", "snapshot", "--learner.reference.each_batch")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        train.train(
            ["--recipe", "cpl", "--max_problems", "2", *reference, *flags, "--output_dir", str(tmp_path / "run")]
        )
    assert not (tmp_path / "run").exists()


def test_rounds_refuse_a_temperature_of_logits(tmp_path: Path) -> None:
    words = ["--recipe", "cpl", "--max_problems", "2", "--objective.rounds", "--credit.fine_tune"]
    words += ["--learner.reference.kind", "snapshot", "--learner.reference.each_batch", "--logit_temperature", "0.6"]
    with pytest.raises(ConfigError, match=re.escape("logit_temperature of 1 with objective.rounds, found 0.6")):
        train.train([*words, "--output_dir", str(tmp_path / "run")])
