"""Does lm-evaluation-harness score what the flow writes? Are tasks that a flow cannot answer refused?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import flow_dpo
from flow_dpo.cli.main import main

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # lm-eval and what it imports warn of their own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    flow_dpo.train("seed", max_problems=12, output_dir=folder, quiet=True, problems_per_batch=6, examples_per_update=8)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks on ten problems of the seed: one whose answers are written, one of multiple choice."""
    folder = tmp_path_factory.mktemp("tasks")
    problems = list(flow_dpo.load_problems("seed", split="test", max_problems=10))
    rows = [{"question": one.question, "answer": one.gold} for one in problems]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "test_split": "test", "doc_to_text": "{{question}}",
    }  # fmt: skip
    written = {
        **shared, "task": "seed_sums", "output_type": "generate_until", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {
                "name": "last",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": r"(?:Answer: |####? ?)(\S+)"},
                    {"function": "take_first"},
                ],
            }
        ],
    }  # fmt: skip
    chosen = {
        **shared, "task": "seed_choice", "output_type": "multiple_choice", "doc_to_target": 0,
        "doc_to_choice": ["{{answer}}", "no"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    for task in (written, chosen):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_the_flow_answers_and_lm_eval_scores(
    run: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lm-eval", "--run", str(run), "--include_path", str(tasks), "--output_dir"]
    assert main([*words, str(tmp_path / "out"), "--tasks", "seed_sums", "--limit", "8"]) == 0
    header = json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert header["schema"] == "lm_eval/1"
    assert set(header["adapters"]) == {"answer", "stop"}
    assert header["settings"]["run"] == str(run)
    own = json.loads((tmp_path / "out" / "results.json").read_text())
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples_seed_sums.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    # What it scored is what the evaluation of the same problems writes.
    flow_dpo.evaluate_flow(run, max_problems=8, output_dir=tmp_path / "evaluation")
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    first_attempts = sum(sample["resps"][0][0] in row["solution"] for sample, row in zip(samples, rows, strict=True))
    assert first_attempts >= 6, "greedy first attempts are the same; later ones are drawn"
    score = own["results"]["seed_sums"]["exact_match,last"]
    right = sum(sample["filtered_resps"][0] == sample["target"] for sample in samples)
    assert score == right / 8
    assert header["results"]["seed_sums"]["exact_match,last"] == score
    assert f"seed_sums exact_match,last: {score:.4g}" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "single"), "--tasks", "seed_*ms", "--limit", "4", "--mode", "single"]) == 0
    # Probabilities, unknown tasks and a folder in use are refused.
    for more, error in (
        (["--tasks", "seed_choice"], "which a flow does not have"),
        (["--tasks", "seed_sum"], "did you mean seed_sums"),
        ([], "--tasks"),
    ):
        assert main([*words, str(tmp_path / "other"), *more]) == 1
        assert error in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out"), "--tasks", "seed_sums"]) == 1
    assert "already holds results" in capsys.readouterr().err


def test_an_adapter_runs_in_lm_eval_as_it_is(run: Path, tasks: Path, tmp_path: Path) -> None:
    """The command that stands in docs/lm-eval.md, with the seed model."""
    [adapter] = run.glob("adapters/answer/*")
    seed = Path(flow_dpo.__file__).parent / "data" / "seed" / "model"
    words = ["--model", "hf", "--model_args", f"pretrained={seed},peft={adapter}", "--tasks", "seed_choice"]
    words += ["--include_path", str(tasks), "--limit", "4", "--output_path", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *words], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [found] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(found.read_text())["results"]["seed_choice"]["acc,none"] is not None
