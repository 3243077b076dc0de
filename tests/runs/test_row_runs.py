"""Are rows with columns trained on, evaluated and sampled from Python as a data set that is named is?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

import flow_dpo
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.runs.files import read_jsonl
from flow_dpo.traces.export import ExportSettings, export
from flow_dpo.traces.sft import example_ids
from flow_dpo.traces.trace import read_traces

ROWS: list[dict[str, Any]] = [
    {"ask": f"Mia has {n} shells. She buys 4 shells. How many has she?", "right": {"value": n + 4}, "most": n + 2}
    for n in range(2, 6)
]
COLUMNS: dict[str, Any] = {"question_column": "ask", "answer_column": "right.value"}
SMALL: dict[str, Any] = {"run.problems_per_batch": 2, "explore.num_rollouts": 2}


def short(completions: list[str], most: list[int]) -> list[float]:
    return [float(text.count("\n") < limit) for text, limit in zip(completions, most, strict=True)]


def test_rows_of_any_kind_give_the_bytes_of_a_file(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "rows": ROWS,
        "table": Dataset.from_list(ROWS),
        "stream": IterableDataset.from_generator(lambda: iter(ROWS)),
    }
    for name, data in kinds.items():
        flow_dpo.train(
            "seed", data, recipe="grpo", output_dir=tmp_path / name, quiet=True, max_problems=3, **COLUMNS,
            settings={**SMALL, "data.shuffle_seed": 1},
        )  # fmt: skip
    trees = [(tmp_path / name / "trees.jsonl").read_bytes() for name in kinds]
    assert trees[0] == trees[1] == trees[2]
    problems = [row["problem"] for row in read_jsonl(tmp_path / "rows" / "trees.jsonl")]
    every = [(row["ask"], str(row["right"]["value"])) for row in ROWS]
    found = [(each["question"], each["gold"]) for each in problems]
    assert set(found) < set(every)
    assert found != every[:3], "they are shuffled"
    # The same rows go on with it, others are refused.
    again: dict[str, Any] = {"recipe": "grpo", "output_dir": tmp_path / "rows", "quiet": True, "resume": True}
    flow_dpo.train("seed", ROWS, **again)
    assert (tmp_path / "rows" / "trees.jsonl").read_bytes() == trees[0]
    with pytest.raises(ConfigError, match="--allow data"):
        flow_dpo.train("seed", [{**row, "ask": row["ask"] + "!"} for row in ROWS], **again)


def test_rows_are_evaluated_and_refused_by_name() -> None:
    table: Any = Dataset.from_list(ROWS)
    found = flow_dpo.evaluate_flow("seed", table, **COLUMNS, greedy=True, max_problems=2)
    assert found["num_problems"] == 2
    rewarded = flow_dpo.evaluate_flow(
        "seed", [{"prompt": r["ask"], "most": r["most"]} for r in ROWS], reward_funcs=short
    )
    assert 0 <= rewarded["reward"] <= 1
    with pytest.raises(DataError, match="--question_column"):
        flow_dpo.evaluate_flow("seed", ROWS)
    with pytest.raises(ConfigError, match=r"rows with columns, or flow_dpo.Problem objects, found 5"):
        flow_dpo.evaluate_flow("seed", [5])  # type: ignore[list-item]


def test_traces_that_a_function_graded_need_no_gold_answer(tmp_path: Path) -> None:
    rows = [{"prompt": row["ask"], "most": 99} for row in ROWS]
    made = flow_dpo.generate_traces("seed", rows, output_dir=tmp_path / "traces", reward_funcs=short, num_samples=1)
    assert len(made.traces) == 4
    assert {trace.gold for trace in made.traces} == {""}
    assert {trace.verdict.value for trace in made.traces} == {1.0}
    assert read_traces(tmp_path / "traces").traces == made.traces
    folder, num = export(ExportSettings(source=str(tmp_path / "traces"), output_dir=str(tmp_path / "out")))
    assert num == 4
    [first, *_] = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"] in first["prompt"][-1]["content"]
    assert first["completion"][0]["content"] == made.traces[0].solution
    flow = flow_dpo.load_recipe("flow-dpo", "seed").flow
    with flow_dpo.open_runtime("seed") as runtime:
        ids = example_ids(made.traces[0], flow, runtime.renderer, end_id=0, sampled=True)
    assert ids["input_ids"][-1] == 0
