"""Do `datasets` and TRL's stable trainers take what is exported, as it is?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from flow_dpo.cli.export import export as cli_export
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Verdict
from flow_dpo.models.render import Renderer
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import Metrics, PairRow, from_json
from flow_dpo.runs.tree_records import example_row
from flow_dpo.traces import sft
from flow_dpo.traces.export import card
from flow_dpo.traces.trace import Trace, TraceFolder
from tests.support.chat_models import chat_model_folder, chat_tokenizer
from tests.support.record_examples import METRICS
from tests.support.tree_builders import two_chunk_tree

RENDERER = Renderer(chat_tokenizer("qwen2"))


def trace(number: int) -> Trace:
    solution = f"{number} + 7 = {number + 7}\nAnswer: {number + 7}"
    return Trace(
        problem_id=f"apples/{number}",
        question=f"Anna has {number} apples. She buys 7 more. How many?",
        gold=str(number + 7),
        dataset="apples/train",
        level="",
        subject="",
        messages=(
            {"role": "system", "content": "Solve the problem."},
            {"role": "user", "content": f"Anna has {number} apples. She buys 7 more. How many?"},
        ),
        solution=solution,
        token_ids=RENDERER.encode(solution),
        ended=True,
        verdict=Verdict(status="correct", answer=str(number + 7)),
        source="trained_flow",
        draw=1,
        draws_used=1,
        tokens_spent=30,
    )


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = TraceFolder(tmp_path_factory.mktemp("made") / "traces", {"model": "tiny", "selection": "the first"})
    folder.append([trace(number) for number in range(4)], {"cost": {"tokens_sampled": 120}})
    return folder.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose pairs are those of a tree drawn by hand, written as a run writes them."""
    tree = two_chunk_tree("correct", "wrong", "wrong", "wrong", "wrong")
    folder = run_folder.RunFolder.create(tmp_path_factory.mktemp("made") / "run", {}, {"model": "tiny"})
    decode = RENDERER.tokenizer.decode
    rows = [
        example_row(
            pair,
            tree,
            {
                "prompt": str(decode(list(pair.request.prompt_ids))),
                "chosen": str(decode(list(pair.chosen.token_ids))),
                "rejected": str(decode(list(pair.rejected.token_ids))),
            },
        )
        for pair in OutcomePairs()([tree])
    ]
    assert len(rows) == 4
    folder.record(from_json(Metrics, METRICS, "here"), [], pairs=[row for row in rows if isinstance(row, PairRow)])
    return folder.path


@contextmanager
def others_warn() -> Iterator[None]:
    """Warnings inside other libraries are theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def exported(source: Path, folder: Path, *words: str) -> Dataset:
    assert cli_export(["--source", str(source), "--output_dir", str(folder), *words]) == 0
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    [file] = card["configs"][0]["data_files"]
    assert all(f"`{name}`" in text for name in read_jsonl(folder / file["path"])[0])
    with others_warn():
        loaded = load_dataset(
            "json", data_files=str(folder / file["path"]), split="train", cache_dir=str(folder / "cache")
        )
    assert isinstance(loaded, Dataset)
    return loaded


def step(trainer: type[Any], config: type[Any], model: Path, rows: Dataset, folder: Path, **more: Any) -> Any:
    """One step of a trainer on the rows as they are; the trainer, after its weights have moved."""
    with others_warn():
        args = config(
            output_dir=str(folder), max_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none",
            save_strategy="no", logging_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, **more,
        )  # fmt: skip
        made = trainer(
            model=AutoModelForCausalLM.from_pretrained(model), args=args, train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(model),
        )  # fmt: skip
        before = [p.detach().clone() for p in made.model.parameters()]
        made.train()
    assert any(not old.equal(new) for old, new in zip(before, made.model.parameters(), strict=True))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model_folder("qwen2", tmp_path_factory.mktemp("model"))


def test_messages_train_in_trl(traces: Path, model: Path, tmp_path: Path) -> None:
    rows = exported(traces, tmp_path / "out", "--format", "messages")
    assert rows[2]["messages"][-1] == {"role": "assistant", "content": "2 + 7 = 9\nAnswer: 9"}
    step(SFTTrainer, SFTConfig, model, rows, tmp_path)


def test_prompt_and_completion_train_in_trl_on_the_completion(traces: Path, model: Path, tmp_path: Path) -> None:
    rows = exported(traces, tmp_path / "out")
    assert [message["role"] for message in rows[2]["prompt"]] == ["system", "user"]
    assert rows[2]["tokens_spent"] == 30
    made = step(SFTTrainer, SFTConfig, model, rows, tmp_path)
    first = made.train_dataset[2]
    learned = [token for token, label in zip(first["input_ids"], first["labels"], strict=True) if label != -100]
    assert RENDERER.to_text([tuple(learned)]).strip() == "2 + 7 = 9\nAnswer: 9"


def test_pairs_train_in_trl_and_keep_their_columns(run: Path, model: Path, tmp_path: Path) -> None:
    rows = exported(run, tmp_path / "out")
    assert {"role", "node", "rejected_node", "depth", "chosen_verdict", "rejected_verdict", "tags"} <= set(rows[0])
    assert rows[0]["chosen_verdict"]["status"] == "correct"
    assert set(rows["role"]) == {"answer", "stop"}
    answers = rows.filter(lambda row: row["role"] == "answer", load_from_cache_file=False)
    step(DPOTrainer, DPOConfig, model, answers, tmp_path)


def test_bad_input_is_refused(traces: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "README.md").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "pairs.jsonl").touch()
    (tmp_path / "bare").mkdir()
    bare = {"schema": "pair/1", "prompt": "x", "chosen": "y"}
    (tmp_path / "bare" / "pairs.jsonl").write_text(json.dumps(bare) + "\n")
    cases: list[tuple[list[str], type[Exception], str]] = [
        ([], DataError, "name one with --source"),
        (["--source", str(tmp_path / "nowhere")], DataError, "nowhere"),
        (["--source", str(run), "--format", "messages"], ConfigError, "--format preference"),
        (["--source", str(traces), "--format", "preference"], ConfigError, "--format messages or prompt_completion"),
        (["--source", str(tmp_path / "empty")], DataError, "no pair yet"),
        (["--source", str(tmp_path / "bare")], DataError, "line 1.*without rejected, .*role"),
        (["--source", str(traces), "--output_dir", str(tmp_path / "used")], ConfigError, "already holds an export"),
        (["--source", str(traces), "--format", "parquet"], ConfigError, "format"),
    ]
    for words, error, message in cases:
        with pytest.raises(error, match=message):
            cli_export([*words, *([] if "--output_dir" in words else ["--output_dir", str(tmp_path / "o")])])
    assert not (tmp_path / "o").exists()


def test_what_stands_in_a_card_is_text() -> None:
    """No template, line or header of its own, whatever a model or a data set is called."""
    hostile = "x\n---\n{{ 7 * 7 }}: [a"
    text = card("messages", [{"messages": []}], {"model": hostile, "problems": None})
    assert "\n- model: x --- {{ 7 * 7 }}: [a\n" in text
    assert "problems:" not in text
    facts: dict[str, Any] = {
        "num_traces": 1, "num_problems": 1, "sources": ["made"], "cost": {"tokens_learned": 1, "seconds": 1.0},
        "first_loss": 0.5, "last_loss": 0.25, "num_updates": 2,
    }  # fmt: skip
    header = {"selection": hostile, "dataset": hostile}
    made = sft.card(hostile, facts, header, Path("runs/sft"), merged=True)
    assert yaml.safe_load(made.split("\n---\n", 1)[0].removeprefix("---\n"))["base_model"] == hostile
    assert made.count("x --- {{ 7 * 7 }}: [a") == 2
    assert "runs/sft/merged" in made
