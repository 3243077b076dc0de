"""Does what samples with a run read a data set's rows as the run did?"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from flow_dpo.cli import compare
from flow_dpo.cli.evaluate import parse_evaluate
from flow_dpo.cli.generate import parse_generate
from flow_dpo.cli.train import train
from flow_dpo.core.errors import DataError
from flow_dpo.data.problems import CHOICE, DataSettings, load

TEMPLATE = "{context}\n\n{question}"


def rows(path: Path, **more: str) -> Path:
    """A file of problems in which the question alone is not enough."""
    lines = [
        {"context": f"Tom has {n} stamps.", "question": "How many stamps does Tom have?", "answer": str(n), **more}
        for n in range(2, 10)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_run_s_way_of_reading_rows_comes_with_it(tmp_path: Path) -> None:
    """Every setting but those that choose problems."""
    file, run = rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    words = ["--dataset_name", str(file), "--question_template", TEMPLATE, "--bad_rows", "refuse"]
    chosen = ["--max_problems", "2", "--skip_problems", "1", "--data.shuffle_seed", "3"]
    assert train([*words, *chosen, "--output_dir", str(run)]) == 0
    expected = replace(DataSettings(), dataset_name=str(file), question_template=TEMPLATE, bad_rows="refuse")
    for parse in (parse_evaluate, parse_generate):
        found: DataSettings = parse(["--run", str(run)])["data"]
        for each in fields(DataSettings):
            if each.name not in CHOICE:
                assert getattr(found, each.name) == getattr(expected, each.name), each.name
        assert found.shuffle_seed is None
        assert load(replace(found, dataset_split="train", max_problems=1)).problems[0].question.startswith("Tom has")


def test_another_test_set_is_read_by_itself_and_one_that_cannot_be_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    own, other = rows(tmp_path / "own.jsonl"), tmp_path / "other.jsonl"
    other.write_text('{"question": "What is 2 + 3?", "answer": "5"}\n')
    words = [
        "--dataset_name", str(own), "--question_template", TEMPLATE, "--max_problems", "2",
        "--compare.output_dir", str(tmp_path / "out"), "--compare.arms", "[zero_shot]",
        "--compare.tests.test_dataset_name", str(other), "--compare.tests.test_split", "train",
    ]  # fmt: skip
    assert compare._problem_sets(compare.parse(words))["held_out"] == DataSettings(
        dataset_name=str(other), dataset_split="train", max_problems=compare.parse(words)["compare"].tests.test_problems
    )
    other.write_text('{"prompt": "What is 2 + 3?", "solution": "5", "odd": 1}\n')
    with pytest.raises(DataError):
        compare.compare(words)
    assert not (tmp_path / "out").exists()
