"""Are files of answers graded row by row, and bad ones named?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flow_dpo.cli.main import main
from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.grade_file import verify_file


def test_a_file_is_graded_row_by_row(tmp_path: Path) -> None:
    rows = [
        {"gold": "4", "model_output": "The answer is 4", "note": "\ud800", "answer": "kept"},
        {"gold": 5, "model_output": "\\boxed{6}", "policy": "percent", "is_correct": True},
        {"gold": "", "model_output": "7", "disputed": True, "is_correct": False},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    summary = verify_file(source, tmp_path / "graded.jsonl")
    graded = [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()]
    assert [row["status"] for row in graded] == ["correct", "wrong", "ungraded"]
    assert all(set(row) <= set(out) and out["reason"] is not None for row, out in zip(rows, graded, strict=True))
    assert graded[0]["answer"] == "kept"
    assert (summary["num_rows"], summary["num_ungraded"], summary["accuracy"]) == (3, 1, pytest.approx(1 / 3))
    assert (summary["accuracy_graded"], summary["ungraded_reasons"]) == (0.5, {"the gold answer is empty": 1})
    assert summary["against_labels"] == {"disputed": {"num_ungraded": 1}, "policy: percent": {"num_disagree": 1}}
    assert json.loads((tmp_path / "graded.summary.json").read_text()) == summary
    with pytest.raises(DataError, match="another file"):
        verify_file(source, source)


def test_the_command_takes_its_settings_as_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"gold": "x+1", "model_output": "\\boxed{1+x}"},
        {"gold": "4", "model_output": "\\boxed{4}\nThat was all."},
        {"gold": "1", "model_output": "\\boxed{9^{9^{9^{9}}}}"},
    ]
    source, out = tmp_path / "rows.jsonl", tmp_path / "graded"
    source.write_text("\n".join(map(json.dumps, rows)))
    command = ["verify", str(source), "--output", str(out)]
    assert main([*command, "--timeout_s", "0.5", "--num_workers", "1", "--which", "last_line"]) == 0
    graded = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [row["status"] for row in graded] == ["correct", "wrong", "ungraded"]
    assert graded[2]["reason"] == "timeout: no result within 0.5 s of processor time"
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1 / 3
    assert main([*command, "--num_workers", "0"]) == 1
    assert "--num_workers: expected num_workers of 1 at least, found 0" in capsys.readouterr().err
    assert main([*command[:3], str(source / "below")]) == 1
    assert "expected a folder in --output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("timeout_s", "num_workers", "which", "extractors", "output"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"gold": "1", "model_output": "1"}\n{"gold": "1", "mod', "row 2: expected JSON, found Unterminated string"),
        (
            '{"gold": "1", "output": "1"}',
            "row 1: expected a text in 'model_output', found None among the fields gold, out",
        ),
        ('{"gold": null, "model_output": "1"}', "expected a text in 'gold'"),
        ('{"gold": true, "model_output": "1"}', "expected a text in 'gold'"),
        ("[1]", "row 1: expected a JSON object, found list"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        verify_file(tmp_path / "rows.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match="expected a JSONL file"):
        verify_file(tmp_path / "absent.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
