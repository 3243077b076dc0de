"""Do the programs in examples/ run, and is the loop in one file the product's loop?"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import flow_dpo

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


class Keeper:
    """What the product's loop reported."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pairs: list[list[Any]] = []

    def on_batch(self, row: dict[str, Any], trees: Any, examples: Any) -> None:
        self.rows.append(row)
        self.pairs.append(list(examples))


def key(pair: Any) -> tuple[Any, ...]:
    return (
        pair.request.role, pair.request.prompt_ids, pair.chosen.token_ids, pair.rejected.token_ids,
    )  # fmt: skip


def test_the_loop_in_one_file_is_the_products_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch by batch the same pairs in token ids and the same losses; those after an update show that it was equal."""
    loop, per_update = example("flow_dpo_loop"), 6
    monkeypatch.setattr(loop, "PAIRS_PER_UPDATE", per_update)
    mine = list(loop.run(max_problems=8, problems_per_batch=2))
    keeper = Keeper()
    with flow_dpo.open_runtime("seed", recipe="flow-dpo-paper") as runtime:
        flow_dpo.learn(
            flow_dpo.load_recipe("flow-dpo-paper", "seed"),
            flow_dpo.load_problems("seed", max_problems=8),
            runtime.workers,
            runtime.learner(replace(runtime.learner_settings, examples_per_update=per_update)),
            callbacks=[keeper],
            problems_per_batch=2,
        )
    assert len(mine) == len(keeper.rows) == 4
    pool, every_loss = [], []
    for (pairs, losses), row, expected in zip(mine, keeper.rows, keeper.pairs, strict=True):
        assert [key(pair) for pair in pairs] == [key(pair) for pair in expected]
        assert len(losses) == row["learn/updates"]
        pool += pairs
        sums: dict[str, list[float]] = {}
        for each in losses:  # the row has the mean over the pairs of all updates of its batch
            batch, pool = pool[:per_update], pool[per_update:]
            for role, loss in each.items():
                sums.setdefault(role, []).extend([loss] * sum(pair.request.role == role for pair in batch))
        for role, values in sums.items():
            assert sum(values) / len(values) == pytest.approx(row[f"learn/{role}/loss"], abs=1e-5)
        every_loss += [loss for each in losses for loss in each.values()]
    assert len(every_loss) >= 4
    assert any(abs(loss - math.log(2)) > 1e-3 for loss in every_loss), "no loss after a first update was seen"


def test_train_evaluate_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("train").main(max_problems=6, output_dir=str(tmp_path))
    shown = capsys.readouterr().out
    assert "accuracy on held-out problems" in shown
    assert "verified solutions" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"run", "traces"}


def test_a_grader_of_ones_own_trains(tmp_path: Path) -> None:
    result = example("custom_grader").main(max_problems=8, output_dir=str(tmp_path / "run"))
    assert result.progressive.num_graded == 8
    pairs = [json.loads(line) for line in (result.path / "pairs.jsonl").read_text().splitlines()]
    assert {(pair["chosen_verdict"]["status"], pair["rejected_verdict"]["status"]) for pair in pairs} == {
        ("correct", "wrong")
    }
    facts = json.loads((result.path / "run.json").read_text())
    assert facts["given"]["grader"].endswith(":PatternGrader")
    for line in (result.path / "trees.jsonl").read_text().splitlines():
        tree = json.loads(line)
        assert tree["problem"]["gold"].endswith("\\b")
