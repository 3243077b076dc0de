"""Does the trainer do what the command line does, with names that a user of TRL knows?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import flow_dpo
from flow_dpo.models.load import SEED_FOLDER
from tests.support.run_equality import assert_same_run

SMALL = {"run.problems_per_batch": 4, "learner.examples_per_update": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(folder: Path, **more: Any) -> flow_dpo.FlowDPOConfig:
    return flow_dpo.FlowDPOConfig(**{"output_dir": folder, "disable_tqdm": True, "settings": SMALL, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Stops:
    """Interrupts a run after so many batches, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_batch(self, row: dict[str, Any], trees: Sequence[Any], examples: Sequence[Any]) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_the_same_bytes_as_the_command_line_through_an_interruption_and_with_evaluations(tmp_path: Path) -> None:
    from flow_dpo.cli.main import main

    words = ["--max_problems", "12", "--problems_per_batch", "4", "--examples_per_update", "4", "--beta", "0.5"]
    saved = ["--save_updates", "2", "--eval_steps", "2", "--eval_problems", "3"]
    assert main(["train", *words, *saved, "--output_dir", str(tmp_path / "typed")]) == 0

    held_out = flow_dpo.load_problems("seed", split="test", max_problems=3).problems
    args = config(
        tmp_path / "given", max_problems=12, beta=0.5, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        save_steps=2, eval_strategy="steps", eval_steps=1, settings={"run.problems_per_batch": 4},
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        flow_dpo.FlowDPOTrainer(
            "seed", args=args, train_dataset="seed", eval_dataset=held_out, callbacks=[Stops(2)]
        ).train()
    trainer = flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset="seed", eval_dataset=held_out)
    result = trainer.train(resume_from_checkpoint=True)
    assert result.path == tmp_path / "given"
    assert_same_run(tmp_path / "typed", tmp_path / "given")
    configs = [(tmp_path / name / "config.yaml").read_text().replace(name, "") for name in ("typed", "given")]
    assert configs[0] == configs[1]
    # Evaluations stand at versions in their order, each of the flow and of the single pass.
    rows = lines(tmp_path / "given" / "evaluations.jsonl")
    versions = [row["version"] for row in rows if row["name"] == "flow"]
    assert versions == sorted(set(versions))
    assert len(versions) >= 3
    assert versions == [row["version"] for row in rows if row["name"] == "single"]
    assert {row["num_problems"] for row in rows} == {3}
    # The command line has the same, less often.
    typed = lines(tmp_path / "typed" / "evaluations.jsonl")
    assert len(typed) >= 2
    assert all(row in rows for row in typed)
    # The last one is what evaluate() finds afterwards, from the folder.
    found = trainer.evaluate()
    assert versions[-1] == trainer.state.global_step
    assert found["eval_accuracy"] == rows[-2]["accuracy"]
    assert found["eval_tokens"] == rows[-2]["tokens"]
    assert found["eval_single_accuracy"] == rows[-1]["accuracy"]
    assert found["eval_single_tokens"] == rows[-1]["tokens"]
    history = trainer.state.log_history
    assert [row["step"] for row in history if "eval_accuracy" in row] == versions
    assert history[-1]["step"] == trainer.state.global_step > 0


def test_what_samples_is_the_same_before_and_after_training(tmp_path: Path) -> None:
    """An untrained model is evaluated with the trainer's own settings, under full or short names."""
    rows = [{"a": problem.question, "b": problem.gold} for problem in flow_dpo.load_problems("seed", max_problems=3)]
    columns = {"question_column": "a", "data.answer_column": "b"}
    args = config(tmp_path / "run", settings={**columns, "max_attempts": 1, "evaluation.greedy": False, "beta": 0.5})
    trainer = flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate(max_problems=2)
    assert before["eval_num_problems"] == 2
    expected = flow_dpo.evaluate_flow(
        "seed", [flow_dpo.Problem(id=f"given/{i}", question=row["a"], gold=row["b"]) for i, row in enumerate(rows[:2])],
        greedy=False, settings={"flow.max_attempts": 1},
    )  # fmt: skip
    assert before["eval_tokens"] == expected["tokens"]
    assert not (tmp_path / "run").exists()
    with pytest.raises(flow_dpo.FlowDpoError, match="expected an eval_dataset, found none: the training problems"):
        flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset=rows).evaluate()


def test_another_recipe_with_an_adapter_shape_a_tokenizer_and_an_evaluation_at_the_end(tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer

    problems = flow_dpo.load_problems("seed", max_problems=8)
    rows = Dataset.from_list([{"prompt": problem.question, "answer": problem.gold} for problem in problems])
    args = flow_dpo.FlowDPOConfig(
        output_dir=tmp_path / "run", num_generations=4, per_device_train_batch_size=4, num_train_epochs=0.5, seed=3,
        eval_strategy="epoch", eval_on_start=True, disable_tqdm=True, settings={"problems_per_batch": 4},
    )  # fmt: skip
    trainer = flow_dpo.FlowDPOTrainer(
        "seed", args=args, recipe="grpo", train_dataset=rows, eval_dataset=rows.select([6, 7]),
        peft_config=LoraConfig(r=4, lora_alpha=8), processing_class=AutoTokenizer.from_pretrained(SEED_FOLDER),
    )  # fmt: skip
    run = trainer.train()
    assert run.progressive.num_seen == 4
    assert [len(tree["rollouts"]) for tree in lines(run.path / "trees.jsonl")] == [4] * 4
    for adapter in run.adapters.values():
        assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 4
    measured = [(row["name"], row["version"], row["num_problems"]) for row in lines(run.path / "evaluations.jsonl")]
    assert trainer.state.global_step > 0
    assert measured == [("flow", 0, 2), ("flow", trainer.state.global_step, 2)]
    assert "eval_single_accuracy" not in trainer.evaluate()
    assert trainer.save_model() == run.path


def test_a_run_of_a_share_and_of_objects_is_evaluated_sampled_and_merged_by_its_trainer(tmp_path: Path) -> None:
    """Its folder has no name for either: a share of a named set is handed over, and a recipe of one's own is one."""
    from flow_dpo.hub.merged import write_merged

    recipe = replace(flow_dpo.load_recipe("flow-dpo", "seed"), credit=flow_dpo.OutcomePairs())
    args = config(tmp_path / "run", num_train_epochs=0.5, max_problems=16, eval_strategy="epoch")
    held_out = flow_dpo.load_problems("seed", split="test", max_problems=4)
    trainer = flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset="seed", eval_dataset=held_out, recipe=recipe)
    run = trainer.train()
    assert run.progressive.num_seen == 8
    # 1. With what the run has calibrated of the flow, as while it was under way.
    rows = lines(run.path / "evaluations.jsonl")
    found = trainer.evaluate()
    assert [found["eval_tokens"], found["eval_single_tokens"]] == [row["tokens"] for row in rows]
    trainer.eval_dataset = None
    named = trainer.evaluate(max_problems=4, trained_on=str(run.path))
    assert named["eval_tokens"] == found["eval_tokens"], "the test split of the set by its name"
    assert named["eval_overlap"]["num_training_problems"] == 8
    with pytest.raises(flow_dpo.FlowDpoError, match="given as an object, found none; pass it again with flow="):
        flow_dpo.evaluate_flow(run.path, "seed")
    # 2. Traces of its recipe, and whole models.
    traces = trainer.generate_traces(output_dir=tmp_path / "traces", num_samples=4)
    assert {trace.dataset for trace in traces.traces} == {"seed/train"}
    assert traces.header["dataset"] == "seed/train"
    assert set(write_merged(run.path, run.adapters, tmp_path / "merged")) == {"answer", "stop"}
