"""Does Inspect AI read an evaluation's log, with the same numbers?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli.main import main
from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem, Verdict
from flow_dpo.evaluate import inspect_log
from flow_dpo.evaluate.evaluate import summary_of, write_predictions
from flow_dpo.runs.records import Prediction

VERDICTS = (
    Verdict(status="correct", answer="4"),
    Verdict(status="wrong", answer="5"),
    Verdict(status="ungraded", reason="took too long"),
    Verdict(status="correct", answer="4"),
)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Two problems, two draws each."""
    rows = [
        Prediction(
            id=f"sums/{number // 2}", draw=number % 2 + 1, question="2 + 2 = ?\u2028<b>", gold="4", dataset="sums/test",
            worked_solution="", solution=f"It is {verdict.answer}.", verdict=verdict, tokens=7, ended=number != 1,
            yes=None, token_ids=None,
        )
        for number, verdict in enumerate(VERDICTS)
    ]  # fmt: skip
    drawn = [(Problem(id=row.id, question=row.question, gold=row.gold), row.verdict) for row in rows]
    facts: dict[str, Any] = {
        "model": "seed", "dataset": "sums/test", "settings": {"mode": "flow", "greedy": False},
        "adapters": {"answer": "runs/x/adapters/answer/3"}, "versions": {"torch": "2.8", "trl": None},
        "decoding": {"greedy": False, "num_samples": 2}, "command": "flow-dpo evaluate",
    }  # fmt: skip
    write_predictions(tmp_path / "evaluation", rows, summary_of(drawn) | facts)
    return tmp_path / "evaluation"


def test_the_command_writes_the_same_bytes_again(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        words = ["export", "--source", str(evaluation), "--format", "inspect", "--output_dir", str(tmp_path / name)]
        assert main(words) == 0
        assert "4 samples written to" in capsys.readouterr().out
    [one], [two] = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    log = json.loads(one.read_text())
    assert log["version"] == 2
    assert [sample["scores"]["verifier"]["value"] for sample in log["samples"]] == ["C", "I", "N", "C"]
    assert [sample["epoch"] for sample in log["samples"]] == [1, 2, 1, 2]
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert main(words) == 1
    assert "already exists" in capsys.readouterr().err


def test_what_is_no_evaluation_is_refused(evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="expected an evaluation"):
        inspect_log.export(tmp_path, tmp_path / "out")
    (evaluation / "predictions.jsonl").unlink()
    assert (
        main(["export", "--source", str(evaluation), "--format", "inspect", "--output_dir", str(tmp_path / "o")]) == 1
    )
    assert "expected an evaluation" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_inspect_reads_it(evaluation: Path, tmp_path: Path) -> None:
    log_of = pytest.importorskip("inspect_ai.log")
    path, _ = inspect_log.export(evaluation, tmp_path / "out")
    log = log_of.read_eval_log(str(path))
    assert log.status == "success"
    assert log.eval.model == "seed"
    assert log.eval.dataset.samples == 2
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    first = log.samples[0]
    assert (first.id, first.epoch, first.target) == ("sums/0", 1, "4")
    assert first.input == "2 + 2 = ?\u2028<b>"
    assert first.output.completion == "It is 4."
    assert first.output.choices[0].stop_reason == "stop"
    assert log.samples[1].output.choices[0].stop_reason == "max_tokens"
    assert first.scores["verifier"].answer == "4"
    # What Inspect counts of the scores is what the summary says.
    to_float = pytest.importorskip("inspect_ai.scorer").value_to_float()
    assert sum(to_float(sample.scores["verifier"].value) for sample in log.samples) / len(log.samples) == 0.5
    # And what it writes again is the same log: nothing was dropped on the way.
    log_of.write_eval_log(log, str(tmp_path / "again.json"), format="json")
    again = log_of.read_eval_log(str(tmp_path / "again.json"))
    assert [sample.model_dump() for sample in again.samples] == [sample.model_dump() for sample in log.samples]
    assert log_of.read_eval_log_sample_summaries(str(path))[0].id == "sums/0"
