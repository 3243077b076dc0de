"""Are rows with columns trained on, evaluated and sampled from Python as a data set that is named is?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

import flow_dpo
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.data.problems import DataSettings
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.given_objects import HANDED_OVER, ChosenProblems, GivenObjects, problem_set
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


def test_lists_of_problems_are_chosen_as_rows_are_and_a_chosen_set_is_not_again() -> None:
    every = flow_dpo.load_problems("seed", max_problems=8)
    settings = DataSettings(skip_problems=5, max_problems=2)
    found = problem_set(list(every), settings)
    assert found is not None
    assert found.problems == every.problems[5:7]
    shuffled = problem_set(list(every), DataSettings(shuffle_seed=1))
    assert shuffled is not None
    assert set(shuffled.problems) == set(every.problems) != list(shuffled.problems)
    assert shuffled.problems != every.problems
    for again in (settings, DataSettings(shuffle_seed=1)):
        with pytest.raises(ConfigError, match=r"found a ProblemSet, .*load_problems, or pass list\(problems\)"):
            problem_set(every, again)
    # A trainer's own set, which these settings have chosen.
    chosen = ChosenProblems(problems=every.problems[5:], fingerprint="")
    found = problem_set(chosen, replace(settings, max_problems=None))
    assert found is not None
    assert found.problems == every.problems[5:]
    no_gold = flow_dpo.Problem(id="a", question="2 + 2 = ?", gold="")
    assert problem_set([no_gold], DataSettings()) is not None, "a grader of one's own may need none"


def test_what_was_handed_over_is_recorded_by_its_own_source_or_by_none(tmp_path: Path) -> None:
    settings = DataSettings(dataset_name="openai/gsm8k", dataset_split="test")
    one, other = (flow_dpo.Problem(id=name, question="2 + 2 = ?", gold="4", source=name) for name in ("a/dev", "b"))
    for problems, expected in (
        ([one], "a/dev"), ([one, other], HANDED_OVER), ([replace(one, source="")], HANDED_OVER),
        ([replace(one, source="given/test")], HANDED_OVER), (None, "openai/gsm8k/test"),
    ):  # fmt: skip
        assert GivenObjects(problems=problem_set(problems, DataSettings())).dataset(settings) == expected
    rows = [{"prompt": row["ask"], "answer": row["right"]["value"]} for row in ROWS[:2]]
    flow_dpo.evaluate_flow("seed", rows, output_dir=tmp_path / "evaluation", mode="single")
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert (summary["dataset"], summary["handed_over"], summary["num_problems"]) == ("handed over", True, 2)
    with pytest.raises(DataError, match="expected at least one trace"):
        flow_dpo.generate_traces("seed", [{**rows[0], "answer": "-7.25"}], output_dir=tmp_path / "traces")
    header = json.loads((tmp_path / "traces" / "traces.json").read_text())
    assert (header["dataset"], header["settings"]["data"]["dataset_name"]) == ("handed over", "given")


def test_an_open_runtime_is_measured_on_what_is_named_and_refuses_the_rest(tmp_path: Path) -> None:
    (tmp_path / "sums").mkdir()
    for split, asked in (("train", "2 + 3"), ("test", "4 + 4"), ("dev", "1 + 1")):
        rows = [{"question": f"{asked} + {n} = ?", "answer": str(n)} for n in range(3)]
        (tmp_path / "sums" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sums = str(tmp_path / "sums")
    (tmp_path / "traces.jsonl").touch()
    own = flow_dpo.load_problems(sums, split="train")
    with flow_dpo.open_runtime("seed", problems=own) as runtime:

        def measured(*given: Any, **more: Any) -> dict[str, Any]:
            return flow_dpo.evaluate_flow(runtime, *given, mode="single", **more)

        found = measured(sums, max_problems=2)
        assert (found["dataset"], found["num_problems"], found["overlap"]) == (f"{sums}/test", 2, None)
        found = measured(sums, dataset_split="dev", skip_problems=2)
        assert (found["dataset"], found["num_problems"]) == (f"{sums}/dev", 1)
        found = measured(max_problems=1)
        assert (found["dataset"], found["num_problems"]) == ("sums/train", 1)
        for given, more, words in (
            ((sums,), {"output_dir": str(tmp_path / "out")}, "expected no output_dir with an open runtime"),
            ((sums,), {"trained_on": "no/such/run"}, "expected a run folder or traces in no/such/run"),
            ((sums,), {"exclude_overlap": True}, "expected trained_on with exclude_overlap"),
            ((), {"dataset_config": "main"}, "expected a data set to read with dataset_config"),
            ((), {"data.dataset_split": "test"}, "expected a data set to read with dataset_split"),
            ((), {"dataset_name": sums}, "expected the data set as an argument"),
            ((), {"dataset_name": "seed"}, "expected the data set as an argument"),
        ):
            with pytest.raises((ConfigError, DataError), match=words):
                measured(*given, **more)
        assert not (tmp_path / "out").exists()
    with (
        flow_dpo.open_runtime("seed") as runtime,
        pytest.raises(ConfigError, match="expected a data set, as the runtime was opened without problems"),
    ):
        flow_dpo.evaluate_flow(runtime)
