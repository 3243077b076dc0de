"""Is every kind of row written and read back equal, and is any other kind or version refused in one sentence?"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli.train import parse_train
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Completion, Pair, Request, ScoredCompletion
from flow_dpo.data import typed_json
from flow_dpo.report.sources import ComparisonSource, read_source
from flow_dpo.runs import records, run_folder
from flow_dpo.runs.adapters import run_settings
from flow_dpo.runs.headers import RunFacts, read_header
from flow_dpo.runs.records import (
    DoneJob,
    Judgement,
    LearnedRow,
    Metrics,
    PairRow,
    Prediction,
    ScoredRow,
    Trace,
    append_rows,
    iter_rows,
    read_rows,
    to_json,
)
from flow_dpo.runs.spans import SpanRow
from flow_dpo.runs.tree_records import example_row, tree_row
from flow_dpo.runs.tree_rows import TokenRow, TreeRow
from tests.support.record_examples import (
    JUDGEMENT,
    LEARNED,
    METRICS,
    PAIR,
    PREDICTION,
    SCORED,
    SPAN,
    TOKEN,
    TRACE,
    TREE,
)
from tests.support.tree_builders import IdTexts, two_chunk_tree

STUDIES = Path(__file__).parent.parent.parent / "studies"
JOB: dict[str, Any] = {"schema": "job/1", "name": "flow", "words": ["train"], "seconds": 1.5}
ROWS: list[tuple[type[Any], dict[str, Any]]] = [
    (Metrics, METRICS), (TreeRow, TREE), (PairRow, PAIR), (ScoredRow, SCORED), (Trace, TRACE),
    (Prediction, PREDICTION), (Judgement, JUDGEMENT), (DoneJob, JOB), (SpanRow, SPAN),
    (LearnedRow, LEARNED), (TokenRow, TOKEN),
]  # fmt: skip
EACH_KIND = pytest.mark.parametrize(("kind", "row"), ROWS, ids=[kind.SCHEMA for kind, _ in ROWS])


@dataclass(frozen=True)
class Odd:
    """A kind that JSON cannot hold."""

    names: set[str]


def with_defaults(row: dict[str, Any]) -> dict[str, Any]:
    """The row, with what a problem says where nothing is given."""
    found = json.loads(json.dumps(row))
    if "problem" in found:
        found["problem"] = {"source": "", "solution": "", "level": "", "subject": "", **found["problem"]}
    return found


@EACH_KIND
def test_a_row_is_read_back_as_it_was_written(kind: type[Any], row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [made] = read_rows(path, kind)
    append_rows(path, [made])
    assert read_rows(path, kind) == [made, made]
    assert json.loads(path.read_text().splitlines()[1]) == with_defaults(row)


@EACH_KIND
def test_other_kinds_and_versions_are_refused_in_one_sentence(
    kind: type[Any], row: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    name, _, version = kind.SCHEMA.partition("/")
    newer = f"{name}/{int(version) + 1}"
    for schema, found in [(None, "none"), (newer, repr(newer)), ("other/1", "'other/1'")]:
        changed = {key: value for key, value in row.items() if key != "schema"} | ({"schema": schema} if schema else {})
        path.write_text(json.dumps(row) + "\n" + json.dumps(changed) + "\n")
        with pytest.raises(DataError) as caught:
            read_rows(path, kind)
        assert str(caught.value) == (
            f"{path}, line 2: expected the schema {kind.SCHEMA!r}, found {found}: another kind of file, or one that "
            "another version of flow-dpo wrote; make it again, or use the version that wrote it"
        )


@EACH_KIND
def test_columns_that_are_missing_or_unknown_are_named(kind: type[Any], row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for name in row.keys() - {"schema", "worked_solution", "mean_logprob", "choices", "special"}:  # these may be absent
        path.write_text(json.dumps({key: value for key, value in row.items() if key != name}) + "\n")
        with pytest.raises(DataError, match=rf"line 1: expected .*{name}"):
            read_rows(path, kind)
    path.write_text(json.dumps({**row, "sure": "very"}) + "\n")
    with pytest.raises(DataError, match=r"line 1: expected a .*'sure'"):
        read_rows(path, kind)


def test_a_file_of_two_kinds_is_read_by_each_rows_schema(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(TREE) + "\n" + json.dumps(TRACE) + "\n")
    assert [type(row) for _, row in iter_rows(path, (TreeRow, Trace))] == [TreeRow, Trace]
    with pytest.raises(DataError, match="expected the schema 'tree/2' or 'pair/1', found 'trace/1'"):
        list(iter_rows(path, (TreeRow, PairRow)))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("nodes", 0, "parent"), 0, "nodes 0: expected the id 0, found 0 below 0"),
        (("nodes", 0, "rollout"), 1, "nodes 0: expected a whole number from 0 to 0 in 'rollout', found 1"),
        (("nodes", 0, "logprobs"), [None], "nodes 0: expected a list, a number each, in 'logprobs'"),
        (("nodes", 0, "logprobs"), [10**400], "in 'logprobs'"),
        (("nodes", 0, "choice_logprobs"), [-1, -2], "nodes 0: expected 0 or 1 as the 'choice' between two words"),
        (("nodes", 0, "finish_reason"), "tired", "nodes 0: expected one of 'stop', 'stop_string', 'length', 'choice'"),
        (("rollouts", 0, "leaf"), 1, "rollouts 0: expected a whole number from 0 to 0 in 'leaf', found 1"),
        (("rollouts", 0, "verdict"), {"status": "maybe"}, "rollouts 0, verdict: expected one of 'correct'"),
        (("rollouts",), [], "expected nodes and rollouts, found 1 and 0"),
        (("nodes", 0, "prompt", "token_ids"), [-1], "nodes 0, prompt: expected a list of token ids"),
        (
            ("nodes", 0, "prompt", "after"),
            0,
            "nodes 0, prompt: expected a whole number from 0 to -1 in 'after'",
        ),
        (("nodes", 0, "prompt", "kept"), 1, "nodes 0, prompt: expected a node in 'after', found None with 1"),
        (("nodes", 0, "piece_lengths"), [1], "nodes 0: expected a number for each of the 2 tokens"),
        (("choices",), {"stop": [5]}, "choices: expected a list, a text each, in 'stop'"),
        (("problem", "gold"), 1, "problem: expected a text in 'gold', found 1"),
        (("nodes",), {"0": {}}, "expected a list in 'nodes'"),
    ],
)
def test_what_is_wrong_in_a_tree_is_named(place: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    row = json.loads(json.dumps(TREE))
    inner = row
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"trees\.jsonl, line 1[,:] .*{message}"):
        read_rows(path, TreeRow)


def test_the_loops_values_become_rows_that_are_read_back_equal(tmp_path: Path) -> None:
    tree = two_chunk_tree("correct", "wrong", "ungraded", "wrong", "wrong")
    texts = {"prompt": "p", "chosen": "c", "rejected": "r", "completion": "c"}
    made = tree_row(tree, IdTexts())
    pairs = [example_row(pair, tree, texts) for pair in OutcomePairs()([tree])]
    node = tree.nodes[2]
    scored = ScoredCompletion(request=node.request, completion=node.completion, advantage=0.5, node=2, depth=2)
    for kind, rows in ((TreeRow, [made]), (PairRow, pairs), (ScoredRow, [example_row(scored, tree, texts)])):
        append_rows(tmp_path / kind.__name__, rows)
        assert read_rows(tmp_path / kind.__name__, kind) == rows


def test_json_holds_every_node_and_verdict() -> None:
    tree = two_chunk_tree("correct", "wrong", "ungraded")
    row = json.loads(json.dumps(to_json(tree_row(tree, IdTexts()))))
    assert [node["text"] for node in row["nodes"]][:3] == ["5,6,", "91,", "7,"]
    assert [node["token_ids"] for node in row["nodes"]][:3] == [[5, 6], [91], [7]]
    # The second chunk's prompt is the first's with its completion; Stop's second question keeps what it shares.
    assert [node["prompt"] for node in row["nodes"]][:4] == [
        {"kept": 0, "token_ids": [1]},
        {"kept": 0, "token_ids": [2, 5, 6]},
        {"after": 0, "kept": 3},
        {"after": 1, "kept": 3, "token_ids": [7]},
    ]
    assert row["choices"] == {"stop": ["90,", "91,"]}
    assert [r["verdict"] and r["verdict"]["status"] for r in row["rollouts"]] == [
        "correct",
        "wrong",
        "ungraded",
        None,
        None,
    ]
    assert row["problem"]["gold"] == "2"


def test_a_prompt_is_put_together_from_what_each_adds() -> None:
    tree = two_chunk_tree("correct", "wrong", "ungraded")
    row = tree_row(tree, IdTexts())
    assert [row.prompt_ids(node.id) for node in tree.nodes] == [node.request.prompt_ids for node in tree.nodes]
    with pytest.raises(ValueError, match="the prompt of node 3 was not recorded"):
        replace(row, nodes=tuple(replace(node, prompt=None) for node in row.nodes)).prompt_ids(3)


def test_trees_of_the_version_before_are_read(tmp_path: Path) -> None:
    node = {name: value for name, value in TREE["nodes"][0].items() if name not in ("prompt", "piece_lengths")}
    older = {**TREE, "schema": "tree/1", "nodes": [node], "first_prompt_ids": {"answer": [1]}}
    del older["choices"]
    (tmp_path / "trees.jsonl").write_text(json.dumps(older) + "\n")
    [row] = read_rows(tmp_path / "trees.jsonl", TreeRow)
    assert (row.first_prompt_ids, row.nodes[0].prompt, row.nodes[0].piece_lengths) == ({"answer": (1,)}, None, ())


def test_examples_of_the_learners_pool_are_read_back_equal() -> None:
    request = Request(role="stop", prompt_ids=(1, 2), choices=(5, 6))
    one = Completion(
        token_ids=(5,), logprobs=(-0.25,), sampled_logprobs=(-0.25,), finish_reason="choice", policy_version=-1,
        choice=0, choice_logprobs=(-0.25, -1.5),
    )  # fmt: skip
    other = Completion(
        token_ids=(6,), logprobs=(-1.5,), sampled_logprobs=(-1.5,), finish_reason="choice", policy_version=3, choice=1
    )
    for example in (
        Pair(request=request, chosen=one, rejected=other, margin=1.0, tags=("finished",)),
        ScoredCompletion(request=request, completion=one, advantage=-0.5, problem_id="p"),
    ):
        row = json.loads(json.dumps(typed_json.write(example)))
        assert typed_json.read(type(example), row, "here") == example
        with pytest.raises(DataError, match="here, request: expected a list, a whole number each, in 'prompt_ids'"):
            typed_json.read(type(example), row | {"request": {**row["request"], "prompt_ids": "1 2"}}, "here")


def test_a_run_of_another_version_is_refused_wherever_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run:\n  explore_ahead: 4\n")
    (tmp_path / "trees.jsonl").write_text("")
    (tmp_path / "run.json").write_text(json.dumps({"versions": {"flow-dpo": "0.1.0"}, "model": "seed"}))
    readers = (
        run_folder.read_facts,
        run_settings,
        lambda path: read_source(path, "run"),
        lambda path: parse_train("t", ["--output_dir", str(path), "--resume"], {}),
    )
    for reader in readers:
        with pytest.raises(DataError, match=r"run\.json: expected the schema 'run/1', found none: .*; make it again"):
            reader(tmp_path)


def test_facts_are_kept_with_their_schema(tmp_path: Path) -> None:
    folder = run_folder.RunFolder.create(tmp_path / "run", {}, {"model": "seed", "own": [1]})
    folder.note({"num_problems": 3})
    found = run_folder.read_facts(folder.path)
    assert (found["model"], found["own"], found["num_problems"], "schema" in found) == ("seed", [1], 3, False)
    assert json.loads((folder.path / "run.json").read_text())["schema"] == RunFacts.SCHEMA
    assert read_header(tmp_path / "none.json", RunFacts, absent={}) == {}


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("comparison.json")), ids=lambda path: path.parent.name)
def test_published_comparisons_are_read(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "comparison.json")
    found = read_source(tmp_path, "study")
    assert isinstance(found, ComparisonSource)
    assert found.found["arms"]


def test_metrics_keep_every_number_and_refuse_what_is_none() -> None:
    row = {name: value for name, value in METRICS.items() if name != "schema"} | {"learn/answer/loss": None}
    assert Metrics.of(row).row() == row
    assert list(to_json(Metrics.of(row))) == ["schema", *row]
    with pytest.raises(DataError, match="expected a number or null in 'a', found 'b'"):
        records.from_json(Metrics, METRICS | {"a": "b"}, "here")
    with pytest.raises(DataError, match="expected a number in progressive/low, found none"):
        records.from_json(Metrics, METRICS | {"progressive/low": None}, "here")


def test_what_hints_cannot_say_is_an_error_of_the_programmer() -> None:
    with pytest.raises(TypeError, match="expected a type hint that JSON can be read by"):
        typed_json.read(Odd, {"names": []}, "here")
