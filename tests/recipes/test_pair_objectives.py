"""Objectives that a flag puts in the place of a recipe's own: by hand, by TRL on the same tensors, by flag."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.objective import Loss
from flow_dpo.core.types import Pair, ScoredCompletion
from flow_dpo.recipes import presets
from flow_dpo.recipes.likelihood import Nll
from flow_dpo.recipes.pair_objectives import (
    OBJECTIVES,
    Hinge,
    Ipo,
    Kto,
    Orpo,
    PairObjective,
    RobustDpo,
    SimPo,
    SmoothedDpo,
)
from flow_dpo.runs.files import read_jsonl
from tests.core.test_objectives import as_trl_has_it, ours, trl_trainer
from tests.support.packed_builders import answer_pair
from tests.support.tree_builders import completion, request

PAIR = answer_pair((5,), (6, 7), (8, 9))
REFERENCE = [[torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]


def policy() -> list[list[torch.Tensor]]:
    """Log-ratios 0.2 and -0.1, mean log-probabilities -0.15 and -0.65."""
    return [[torch.tensor(x, requires_grad=True) for x in ([-0.2, -0.1], [-0.3, -1.0])]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


def slope(mean: float) -> float:
    """d log odds / d mean."""
    return 1 / (1 - math.exp(mean))


ODDS = odds(-0.15) - odds(-0.65)
# Each with its loss, and the gradient by any token of the chosen and of the rejected completion, two tokens each.
BY_HAND: list[tuple[PairObjective, float, float, float]] = [
    (SmoothedDpo(beta=0.5), -math.log(sigmoid(0.15)), -0.5 * sigmoid(-0.15), 0.5 * sigmoid(-0.15)),
    (
        SmoothedDpo(beta=0.5, label_smoothing=0.2),
        -0.8 * math.log(sigmoid(0.15)) - 0.2 * math.log(sigmoid(-0.15)),
        0.5 * (sigmoid(0.15) - 0.8),
        -0.5 * (sigmoid(0.15) - 0.8),
    ),
    (
        RobustDpo(beta=0.5, label_smoothing=0.2),
        (-0.8 * math.log(sigmoid(0.15)) + 0.2 * math.log(sigmoid(-0.15))) / 0.6,
        -0.5 * (0.8 * sigmoid(-0.15) + 0.2 * sigmoid(0.15)) / 0.6,
        0.5 * (0.8 * sigmoid(-0.15) + 0.2 * sigmoid(0.15)) / 0.6,
    ),
    (Hinge(beta=2.0), 1 - 0.6, -2.0, 2.0),
    (Hinge(beta=4.0), 0.0, 0.0, 0.0),  # its margin is 1.2
    (Ipo(beta=2.0), (0.15 - 0.25) ** 2, 2 * (0.15 - 0.25) / 2, -2 * (0.15 - 0.25) / 2),
    (
        SimPo(beta=2.0, target_margin=0.5),
        -math.log(sigmoid(2 * 0.5 - 0.5)),
        -2 * sigmoid(-0.5) / 2,
        2 * sigmoid(-0.5) / 2,
    ),
    (
        Orpo(beta=0.1),
        0.15 - 0.1 * math.log(sigmoid(ODDS)),
        -0.5 - 0.1 * sigmoid(-ODDS) * slope(-0.15) / 2,
        0.1 * sigmoid(-ODDS) * slope(-0.65) / 2,
    ),
    # The point is at (0.2 - 0.1) / 2 = 0.05 and has no gradient.
    (
        Kto(beta=2.0, desirable_weight=1.5),
        (1.5 * (1 - sigmoid(0.3)) + (1 - sigmoid(0.3))) / 2,
        -1.5 * 2 * sigmoid(0.3) * sigmoid(-0.3) / 2,
        2 * sigmoid(0.3) * sigmoid(-0.3) / 2,
    ),
    (
        SmoothedDpo(beta=0.5, sft_weight=0.3),
        -math.log(sigmoid(0.15)) + 0.3 * 0.15,
        -0.5 * sigmoid(-0.15) - 0.15,
        0.5 * sigmoid(-0.15),
    ),
]


@pytest.mark.parametrize(("objective", "loss", "chosen", "rejected"), BY_HAND, ids=lambda value: type(value).__name__)
def test_value_and_gradient_by_hand(objective: PairObjective, loss: float, chosen: float, rejected: float) -> None:
    mine = policy()
    reference = REFERENCE if objective.reads_reference else []
    found = objective([PAIR], mine, reference)
    assert found.total.item() == pytest.approx(loss, rel=1e-5, abs=1e-7)
    gradients = torch.autograd.grad(found.total, mine[0])
    assert gradients[0].tolist() == pytest.approx([chosen] * 2, rel=1e-4, abs=1e-7)
    assert gradients[1].tolist() == pytest.approx([rejected] * 2, rel=1e-4, abs=1e-7)
    assert ("chosen_ratio" in found.measures) == objective.reads_reference
    assert float(found.measures["accuracy"]) == 1.0


def test_a_reference_point_below_zero_is_zero() -> None:
    mine = [[torch.tensor([-0.4, -0.3]), torch.tensor([-0.3, -1.0])]]  # log-ratios -0.2 and -0.1
    found = Kto(beta=2.0)([PAIR], mine, REFERENCE)
    assert found.total.item() == pytest.approx(((1 - sigmoid(-0.4)) + (1 - sigmoid(0.2))) / 2, rel=1e-5)


def test_certain_completions_have_finite_odds() -> None:
    sure = [[torch.zeros(2, requires_grad=True), torch.full((2,), -3.0)]]
    found = Orpo()([PAIR], sure, [])
    assert math.isfinite(found.total.item())
    assert torch.isfinite(torch.autograd.grad(found.total, sure[0][0])[0]).all()


@pytest.mark.parametrize("name", presets.OBJECTIVE_LINES)
def test_what_is_scored_beside_pairs_is_learned_by_its_likelihood(name: str) -> None:
    objective = OBJECTIVES[name]
    word = ScoredCompletion(request=request("stop", 5), completion=completion(90), advantage=1.0, weight=2.0)
    mine, theirs = [*policy(), [torch.tensor([-0.7])]], [*REFERENCE, ()]
    both = objective([PAIR, word], mine, theirs if objective.reads_reference else [])
    pair = objective([PAIR], mine[:1], REFERENCE if objective.reads_reference else [])
    alone = objective([word], mine[1:], [()] if objective.reads_reference else [])
    assert alone.total.item() == pytest.approx(1.4) == Nll()([word], mine[1:], []).total.item()
    assert both.total.item() == pytest.approx(pair.total.item() + 1.4)
    assert both.counts["margin"] == both.counts["likelihood_loss"] == 1
    # A batch may be split anyhow, and a pair's weight is a factor.
    heavy = objective([replace(PAIR, weight=3.0)] * 2, policy() * 2, REFERENCE * 2 if objective.reads_reference else [])
    assert heavy.total.item() == pytest.approx(6 * pair.total.item(), rel=1e-5)


def test_settings_that_make_no_sense() -> None:
    for make in (
        lambda: Ipo(beta=0.0),
        lambda: SmoothedDpo(label_smoothing=0.5),
        lambda: RobustDpo(label_smoothing=-0.1),
        lambda: SimPo(target_margin=-1.0),
        lambda: Kto(undesirable_weight=-1.0),
        lambda: Orpo(sft_weight=-0.1),
    ):
        with pytest.raises(ConfigError, match="expected"):
            make()


# ---- TRL's formulas -------------------------------------------------------------------------------------------------


def drawn(num: int = 6) -> tuple[list[Pair], list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """Pairs of several lengths, far off policy."""
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    lengths = [[rng.randint(1, 7) for _ in range(2)] for _ in range(num)]
    pairs = [answer_pair((5,), tuple(range(10, 10 + a)), tuple(range(30, 30 + b))) for a, b in lengths]
    make = lambda: [[-2 * torch.rand(n, generator=generator) - 0.01 for n in pair] for pair in lengths]  # noqa: E731
    mine = [[p.requires_grad_() for p in pair] for pair in make()]
    return pairs, mine, make()


def same(found: Loss, wanted: torch.Tensor, mine: list[list[torch.Tensor]]) -> None:
    """Value and gradient of the mean over the pairs."""
    tensors = [p for pair in mine for p in pair]
    mean = found.total / len(mine)
    assert mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    ours_, theirs = (torch.autograd.grad(value, tensors, retain_graph=True) for value in (mean, wanted))
    torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-7)


def stacked(pieces: list[list[torch.Tensor]], side: int, *, mean: bool) -> Any:
    return torch.stack([pair[side].mean() if mean else pair[side].sum() for pair in pieces])


@pytest.mark.filterwarnings("ignore")  # TRL's own warnings are not ours to mend
def test_simpo_and_cdpo_are_trls_cpo_loss() -> None:
    from trl.experimental.cpo import CPOTrainer

    pairs, mine, theirs = drawn()
    trainer: Any = SimpleNamespace(
        alpha=0.0, beta=2.5, label_smoothing=0.0, simpo_gamma=0.7, loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    means = [stacked(mine, side, mean=True) for side in (0, 1)]
    same(SimPo(beta=2.5, target_margin=0.7)(pairs, mine, []), CPOTrainer.cpo_loss(trainer, *means)[0].mean(), mine)
    # Handed log-ratios, its sigmoid loss is DPO's with smoothed labels, which TRL's DPOTrainer has no more.
    ratios = [stacked(mine, side, mean=False) - stacked(theirs, side, mean=False) for side in (0, 1)]
    trainer = SimpleNamespace(**(vars(trainer) | {"beta": 0.3, "label_smoothing": 0.15, "loss_type": "sigmoid"}))
    wanted = CPOTrainer.cpo_loss(trainer, *ratios)[0].mean()
    same(SmoothedDpo(beta=0.3, label_smoothing=0.15)(pairs, mine, theirs), wanted, mine)
    same(Dpo(beta=0.3, label_smoothing=0.15)(pairs, mine, theirs), wanted, mine)


@pytest.mark.filterwarnings("ignore")
def test_orpo_is_trls_odds_ratio_loss_and_the_likelihood() -> None:
    from trl.experimental.orpo import ORPOTrainer

    pairs, mine, _ = drawn()
    trainer: Any = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = (stacked(mine, side, mean=True) for side in (0, 1))
    wanted = (-chosen - ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]).mean()
    same(Orpo(beta=0.25)(pairs, mine, []), wanted, mine)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (Hinge(beta=0.7), {"beta": 0.7, "loss_type": ["hinge"]}),
        (RobustDpo(beta=0.7, label_smoothing=0.2), {"beta": 0.7, "loss_type": ["robust"], "label_smoothing": 0.2}),
    ],
    ids=["hinge", "robust"],
)
def test_loss_and_gradient_are_those_of_trls_trainer(objective: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = trl_trainer(tmp_path, **settings)
    pairs = drawn(4)[0]
    compare(trainer, objective, pairs, trainer.compute_loss(trainer.model, as_trl_has_it(pairs)))


@pytest.mark.filterwarnings("ignore")
def test_kto_is_trls_on_a_batch_of_the_pairs_two(tmp_path: Path) -> None:
    """TRL estimates the point of the batch's completions, each at another's prompt: of a pair's two, each at the
    other's, which is its own."""
    trl: Any = pytest.importorskip("trl")
    trainer = trl_trainer(
        tmp_path, trainer=trl.KTOTrainer, config=trl.KTOConfig, beta=0.7, desirable_weight=1.3,
        per_device_train_batch_size=2, train_sampling_strategy="sequential",
    )  # fmt: skip
    pairs = drawn(4)[0]
    losses = []
    for pair in pairs:
        batch = as_trl_has_it([pair])
        swapped = {f"KL_{name}": value.flip(0) for name, value in batch.items()}
        losses.append(trainer.compute_loss(trainer.model, {**batch, **swapped, "label": torch.tensor([True, False])}))
    compare(trainer, Kto(beta=0.7, desirable_weight=1.3), pairs, torch.stack(losses).mean())


def compare(trainer: Any, objective: Any, pairs: list[Pair], wanted: torch.Tensor) -> None:
    parameters = [p for n, p in trainer.model.named_parameters() if "lora_" in n]
    wanted_gradient = torch.autograd.grad(wanted, parameters)
    with torch.no_grad(), trainer.model.disable_adapter():
        reference = ours(trainer.model, pairs)
    mean = objective(pairs, ours(trainer.model, pairs), reference).total / len(pairs)
    assert mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    largest = max(float(g.abs().max()) for g in wanted_gradient)
    torch.testing.assert_close(torch.autograd.grad(mean, parameters), wanted_gradient, rtol=1e-5, atol=1e-5 * largest)


# ---- by a flag ------------------------------------------------------------------------------------------------------


def test_the_flag_names_what_the_table_says() -> None:
    assert list(presets.OBJECTIVE_LINES) == list(OBJECTIVES)
    with_pairs = [name for name in presets.RECIPES if Pair in presets.load_recipe(name).objective.accepts]
    for recipe in with_pairs:
        words = ["--recipe", recipe, "--objective", "simpo", "--objective.beta", "2.5"]
        found = train.parse_train("flow-dpo train", words, {})
        assert (found.objective_source, found.recipe.objective) == ("simpo", SimPo(beta=2.5))
    for recipe in set(presets.RECIPES) - set(with_pairs):
        with pytest.raises(ConfigError, match=rf"--objective kto learns pairs, and {recipe} makes none; choose one of"):
            train.parse_train("flow-dpo train", ["--recipe", recipe, "--objective", "kto"], {})


@pytest.mark.parametrize(("recipe", "name"), [("flow-dpo", "kto"), ("flow-dpo-paper", "simpo"), ("rpo", "orpo")])
def test_a_run_learns_by_it_and_goes_on(recipe: str, name: str, tmp_path: Path) -> None:
    words = ["--recipe", recipe, "--objective", name, "--max_problems", "4", "--problems_per_batch", "2"]
    assert train.train([*words, "--examples_per_update", "1", "--output_dir", str(tmp_path)]) == 0
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[0]["learn/updates"] > 0
    last = max((tmp_path / "checkpoints").iterdir())
    (last / "loop.json").write_text("{}")
    assert train.train(["--output_dir", str(tmp_path), "--resume"]) == 0  # of no code that is not the package's
    again = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["learn/version"] for row in again] == [row["learn/version"] for row in rows]
