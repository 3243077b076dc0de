"""Do reward functions and callbacks, flow-dpo's and transformers', reach the run through the trainer?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

import flow_dpo

SMALL = {"run.problems_per_batch": 4, "learner.examples_per_update": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Hears(TrainerCallback):
    """What transformers would tell."""

    def __init__(self) -> None:
        self.evaluated: list[tuple[int, float, float]] = []
        self.learning_rates: set[Any] = set()
        self.rewards: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "problems_seen" in logs:
            self.rewards.append((logs["problems_seen"], logs["reward"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        if "eval_accuracy" in metrics:
            found = metrics["eval_accuracy"], metrics["eval_single_accuracy"]
            self.evaluated.append((state.global_step, *found))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.learning_rates.add(args.learning_rate)


class Notes:
    """One of flow-dpo's own."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_run_begin(self, run: Any) -> None:
        self.events.append("begin")

    def on_batch(self, row: dict[str, Any], trees: Sequence[Any], examples: Sequence[Any]) -> None:
        self.events.append("batch")

    def on_run_end(self, run: Any, error: BaseException | None) -> None:
        self.events.append("end")


def test_rewards_of_a_column_and_callbacks_of_both_kinds_with_early_stopping(tmp_path: Path) -> None:
    problems = flow_dpo.load_problems("seed", max_problems=32)
    rows = [
        {"prompt": problem.question, "answer": problem.gold, "target_length": 40 + index}
        for index, problem in enumerate(problems)
    ]
    called: list[set[str]] = []

    def length(prompts: Any, completions: Any, target_length: Any, **columns: Any) -> list[float | None]:
        called.append({*columns})
        assert len(prompts) == len(completions) == len(target_length)
        return [-abs(len(text) - wanted) / 100 for text, wanted in zip(completions, target_length, strict=True)]

    hears, notes = Hears(), Notes()
    args = flow_dpo.FlowDPOConfig(
        output_dir=tmp_path / "run", learning_rate=1e-3, reward_weights=[2.0], eval_strategy="steps", eval_steps=1,
        disable_tqdm=True, settings=SMALL | {"grading.correct_from": -0.6},
    )  # fmt: skip
    trainer = flow_dpo.FlowDPOTrainer(
        "seed", reward_funcs=length, args=args, train_dataset=rows, eval_dataset=rows[:3],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2), notes, hears],
    )  # fmt: skip
    run = trainer.train()
    # 1. The pairs are of rewards that no verifier gives, and the column came to the function.
    pairs = [json.loads(line) for line in (run.path / "pairs.jsonl").read_text().splitlines()]
    assert pairs
    assert all(pair["chosen_verdict"]["value"] > pair["rejected_verdict"]["value"] for pair in pairs)
    assert called
    # 2. Early stopping ends the run once the accuracy has not risen twice in a row, and before the problems do.
    assert run.progressive.num_seen < len(rows)
    accuracies = [accuracy for _, accuracy, _ in hears.evaluated]
    best = max(accuracies)
    assert accuracies.index(best) <= len(accuracies) - 3
    # 3. What transformers' callback heard is what the run folder says.
    written = [json.loads(line) for line in (run.path / "evaluations.jsonl").read_text().splitlines()]
    by_name = {name: [row["accuracy"] for row in written if row["name"] == name] for name in ("flow", "single")}
    assert accuracies == by_name["flow"]
    assert [accuracy for _, _, accuracy in hears.evaluated] == by_name["single"]
    assert [step for step, _, _ in hears.evaluated] == [row["version"] for row in written if row["name"] == "flow"]
    assert hears.learning_rates == {1e-3}
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert hears.rewards
    assert set(hears.rewards) <= {(row["problems_seen"], row["reward"]) for row in metrics}
    assert notes.events[0] == "begin"
    assert notes.events[-1] == "end"
    # 4. The same rewards grade afterwards.
    assert trainer.evaluate()["eval_accuracy"] == by_name["flow"][-1]
    traces = trainer.generate_traces(rows[:4], output_dir=tmp_path / "traces", num_samples=4)
    assert all((trace.verdict.value or 0) >= -0.6 for trace in traces.traces)


def test_weights_without_rewards_and_callbacks_of_neither_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(flow_dpo.FlowDpoError, match="expected reward_funcs with reward_weights"):
        flow_dpo.FlowDPOTrainer("seed", args=flow_dpo.FlowDPOConfig(reward_weights=[1.0]))
    args = flow_dpo.FlowDPOConfig(output_dir=tmp_path / "run")
    trainer = flow_dpo.FlowDPOTrainer("seed", args=args, callbacks=[object()])
    with pytest.raises(flow_dpo.FlowDpoError, match="expected callbacks of transformers"):
        trainer.train()
    assert not (tmp_path / "run").exists()
