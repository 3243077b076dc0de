"""Is a model fine-tuned on the very tokens that evaluation asks and a flow sampled, and can the result be measured?"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flow_dpo.cli import generate
from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.cli.sft import fine_tune, parse_sft
from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.explore import Siblings
from flow_dpo.core.protocols import Backends
from flow_dpo.core.types import Problem, Request, TokenIds, Verdict
from flow_dpo.engines.scripted import ScriptedEngine
from flow_dpo.evaluate.evaluate import EvaluationSettings, evaluate
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LoraSettings
from flow_dpo.models.load import ModelSettings, load_model
from flow_dpo.recipes.presets import preset
from flow_dpo.recipes.scales import WORKED_EXAMPLES
from flow_dpo.runs import resolve, run_folder
from flow_dpo.runs.adapters import one_pass
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.settings import default_settings
from flow_dpo.traces import sft
from flow_dpo.traces.trace import Trace, TraceFile, TraceFolder, read_traces
from flow_dpo.verify.grader import AnswerGrader
from flow_dpo.workers.in_process import InProcessWorkers
from tests.support.chat_models import TEMPLATES, chat_model_folder
from tests.support.once import Once

QUESTION = "Anna has 12 apples. She buys 7 apples. How many apples does Anna have now?"
SOLUTION = "She buys 7: 12 + 7 = 19\nAnswer: 19"


def trace(ids: TokenIds, *, name: str = "apples/1") -> Trace:
    return Trace(
        problem_id=name, question=QUESTION, gold="19", dataset="apples/train", level="", subject="",
        messages=({"role": "user", "content": QUESTION},), solution=SOLUTION, token_ids=ids, ended=True,
        verdict=Verdict(status="correct", answer="19"), source="self_generated", draw=1, draws_used=1, tokens_spent=9,
    )  # fmt: skip


class Right:
    """A verifier to which everything is right."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> None:
        """Nothing takes long."""

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        return [Verdict(status="correct", answer="x") for _ in items]


@pytest.mark.parametrize("kind", ["seed", *sorted(TEMPLATES)])
def test_the_prompt_is_the_one_that_evaluation_asks(kind: str, tmp_path: Path) -> None:
    """The ids that an engine is asked in `evaluate --mode single`, worked examples and all."""
    name = "seed" if kind == "seed" else str(chat_model_folder(kind, tmp_path / "model"))
    loaded = load_model(ModelSettings(model_name_or_path=name))
    flow = preset("flow-dpo-paper", "seed" if kind == "seed" else "small").recipe.flow
    assert isinstance(flow, AnswerStop)
    flow = replace(flow, prompts=replace(flow.prompts, examples=WORKED_EXAMPLES))
    asked: list[Request] = []

    def speak(request: Request, seed: int, excluded: TokenIds) -> TokenIds:
        asked.append(request)
        return (min(loaded.end_ids),)

    grader = AnswerGrader(Right(), loaded.renderer)
    engine = ScriptedEngine(speak, end_ids=loaded.end_ids)
    workers = InProcessWorkers(Backends(engine=engine, renderer=loaded.renderer, grader=grader))
    problem = Problem(id="p", question=QUESTION, gold="19")
    settings = EvaluationSettings(mode="single")
    evaluate(one_pass(flow), Siblings(), [problem], workers, loaded.renderer, grader, {}, settings)
    # Ids that no text encodes to, so that a second encoding would show.
    ids = (*loaded.renderer.encode(SOLUTION), *loaded.renderer.encode("a"), *loaded.renderer.encode("b"))
    header = {"tokenizer": loaded.renderer.fingerprint()}
    [row] = sft.examples([trace(ids)], header, one_pass(flow), loaded)
    [request] = asked
    assert row["input_ids"] == (*request.prompt_ids, *ids, row["input_ids"][-1])
    assert row["input_ids"][-1] in loaded.end_ids
    assert row["labels"] == (-100,) * len(request.prompt_ids) + row["input_ids"][len(request.prompt_ids) :]
    text = loaded.renderer.to_text([request.prompt_ids])
    assert WORKED_EXAMPLES[1].solution.split()[-1] in text
    # From another vocabulary only the words can be taken.
    [foreign] = sft.examples([trace((1, 2, 3))], {"tokenizer": "other"}, one_pass(flow), loaded)
    assert foreign["input_ids"] == (*request.prompt_ids, *loaded.renderer.encode(SOLUTION), row["input_ids"][-1])


@pytest.fixture(scope="module")
def made(once: Once) -> tuple[Path, Path]:
    """Traces of the seed, and the seed fine-tuned on them."""
    folder = once("sft", make)
    return folder / "traces", folder / "sft"


def make(folder: Path) -> None:
    assert generate.generate(
        ["--max_problems", "12", "--num_samples", "2", "--mode", "single", "--output_dir", str(folder / "traces")]
    ) == 0  # fmt: skip
    words = ["--traces", str(folder / "traces"), "--output_dir", str(folder / "sft"), "--learning_rate", "2e-3",
             "--num_train_epochs", "4", "--per_device_train_batch_size", "2", "--merge"]  # fmt: skip
    assert fine_tune(words) == 0


def test_fine_tuning_learns_the_traces(made: tuple[Path, Path]) -> None:
    traces, folder = made
    facts = json.loads((folder / "run.json").read_text())
    file = read_traces(traces)
    losses = [row["loss"] for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert facts["last_loss"] < facts["first_loss"]
    assert min(losses) <= facts["last_loss"] <= max(losses)
    low, high = facts["loss_change"]
    assert (facts["num_updates"], low < facts["last_loss"] - facts["first_loss"] < high) == (len(losses), True)
    assert f"of {len(losses)} updates' tokens" in (folder / "README.md").read_text()
    assert facts["num_traces"] == len(file.traces)
    assert facts["cost"]["tokens_learned"] == 4 * sum(len(trace.token_ids) + 1 for trace in file.traces)
    assert facts["sources"] == ["self_generated"]
    shape = json.loads((folder / "adapter_config.json").read_text())
    assert (shape["r"], shape["lora_alpha"], shape["lora_dropout"]) == (16, 16, 0.05)
    kept = resolve.read_settings(folder / "config.yaml")
    assert kept["training"]["learning_rate"] == 2e-3
    assert kept["flow"]["chunk_tokens"] == 16


def test_nobody_is_told_of_a_fine_tuning(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from trl.trainer import base_trainer

    refused: list[bool] = []
    monkeypatch.setattr(
        base_trainer, "send_telemetry", lambda *_, **__: refused.append(constants.HF_HUB_DISABLE_TELEMETRY)
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.delenv("CI", raising=False)  # where it is set TRL keeps quiet by itself
    words = ["--traces", str(made[0]), "--output_dir", str(tmp_path / "sft"), "--num_train_epochs", "1"]
    assert fine_tune(words) == 0
    assert refused, "TRL tells no longer, or another way: look again"
    assert all(refused)
    assert constants.HF_HUB_DISABLE_TELEMETRY is False


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # PEFT asks transformers by an old name
def test_it_goes_on_from_an_adapter_of_another_kind(made: tuple[Path, Path], tmp_path: Path) -> None:
    """At a learning rate of next to nothing what comes out is what went in, with its shape."""
    policy = Policy(load_model("seed").model, ("answer",), LoraSettings(lora_r=4, use_rslora=True, use_dora=True))
    with torch.no_grad():
        for weight in policy.weights("answer"):
            weight += 0.01
    policy.save_adapter("answer", tmp_path / "before")
    words = ["--traces", str(made[0]), "--lora.init_from", str(tmp_path / "before"), "--learning_rate", "1e-12"]
    assert fine_tune([*words, "--num_train_epochs", "1", "--output_dir", str(tmp_path / "after")]) == 0
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after"))
    assert sorted(before) == sorted(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-7)
    shape = json.loads((tmp_path / "after" / "adapter_config.json").read_text())
    assert (shape["r"], shape["use_rslora"], shape["use_dora"], shape["lora_dropout"]) == (4, True, True, 0.05)
    out = tmp_path / "evaluation"
    words = ["--mode", "single", "--adapter", str(tmp_path / "after"), "--max_problems", "4", "--output_dir", str(out)]
    assert cli_evaluate(words) == 0


def test_the_model_card_names_its_base(made: tuple[Path, Path]) -> None:
    _, header, text = (made[1] / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["library_name"] == "peft"
    assert card["base_model"] == json.loads((made[1] / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert "self_generated" in text
    assert "the first correct" in text


def test_the_adapter_and_the_merged_model_are_one(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Evaluated as an adapter of Answer and as a model of its own, the words are the same; the base's are others."""
    words = ["--mode", "single", "--max_problems", "12", "--dataset_split", "train"]
    merged = ["--model_name_or_path", str(made[1] / "merged"), "--preset", "seed", "--dtype", "float32"]
    for name, source in [("adapter", ["--adapter", str(made[1])]), ("merged", merged), ("base", [])]:
        assert cli_evaluate([*words, *source, "--output_dir", str(tmp_path / name)]) == 0
    read = {
        name: [row["solution"] for row in read_jsonl(tmp_path / name / "predictions.jsonl")]
        for name in ("adapter", "merged", "base")
    }
    assert read["adapter"] == read["merged"]
    assert read["adapter"] != read["base"]
    summary = json.loads((tmp_path / "adapter" / "summary.json").read_text())
    assert summary["adapters"] == {"answer": str(made[1])}


def test_the_merged_weights_are_base_and_adapter(made: tuple[Path, Path]) -> None:
    base = load_model(ModelSettings()).model
    merged = AutoModelForCausalLM.from_pretrained(made[1] / "merged", dtype=torch.float32)
    moved = [not torch.equal(one, other) for one, other in zip(base.parameters(), merged.parameters(), strict=True)]
    assert any(moved)
    assert not all(moved)


def test_defaults_are_the_papers() -> None:
    """arXiv 2410.22304, the table of hyper-parameters, "Compile"."""
    parsed, _ = parse_sft([])
    training, lora = parsed["training"], parsed["lora"]
    assert training.learning_rate == 2e-4
    assert training.num_train_epochs == 3
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert training.gradient_accumulation_steps == 2
    assert (training.warmup_ratio, training.max_grad_norm) == (0.1, 1.0)
    assert (lora.lora_r, lora.lora_alpha, lora.lora_dropout) == (16, 16, 0.05)
    assert lora.lora_target_modules == "all-linear"


def test_a_warm_up_over_all_updates_is_a_share_for_transformers() -> None:
    """It reads 1 as a single update."""
    parsed, _ = parse_sft(["--warmup_ratio", "1"])
    found = sft._arguments(load_model("seed"), parsed["training"], parsed["sft"])
    assert 0.999 < found["warmup_steps"] < 1


def test_settings_of_the_traces_come_along(tmp_path: Path) -> None:
    flow = AnswerStop(chunk_tokens=7, prompts=AnswerStopPrompts(answer_system="Be brief."))
    settings = {
        "recipe": "flow-dpo-paper",
        "flow": flow,
        "model": ModelSettings(model_name_or_path="somebody/else"),
        "explore": {"top_p": 0.5},
    }
    TraceFolder(tmp_path / "t", {"settings": run_folder.plain(settings)}).append([trace((5,))], {})
    parsed, travelling = parse_sft(["--traces", str(tmp_path / "t")])
    assert parsed["flow"] == flow
    assert parsed["model"].model_name_or_path == "somebody/else"
    assert travelling == {"explore": {"top_p": 0.5}}


def test_bad_input_is_refused(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"expected 999 traces.*--num_traces"):
        fine_tune(["--traces", str(made[0]), "--num_traces", "999", *out])
    with pytest.raises(ConfigError, match="name one with --traces"):
        fine_tune(out)
    with pytest.raises(ConfigError, match="already holds a run"):
        fine_tune(["--traces", str(made[0]), "--output_dir", str(made[1])])
    with pytest.raises(DataError, match="adapter_config"):
        cli_evaluate(["--adapter", str(tmp_path)])
    loaded = load_model(ModelSettings())
    long = trace(tuple(loaded.renderer.encode(SOLUTION)) * 40)
    header = {"tokenizer": loaded.renderer.fingerprint()}
    with pytest.raises(DataError, match=r"context window of .* apples/1"):
        sft.examples([long], header, one_pass(default_flow()), loaded)
    file = TraceFile(path=tmp_path, traces=(trace((1,)), trace((2,), name="b")), header={})
    assert [t.problem_id for t in sft.choose(file, sft.SftSettings(num_traces=1))] == ["apples/1"]
    monkeypatch.setitem(sys.modules, "trl", None)
    for name in [name for name in sys.modules if name.startswith("trl.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[trl\]'"):
        fine_tune(["--traces", str(made[0]), *out])
    assert not (tmp_path / "out").exists()


def default_flow() -> Any:
    return default_settings("flow-dpo", "seed").recipe.flow
