"""Process-reward labels: are they those drawn by hand, and what TRL's PRM trainer reads?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from flow_dpo.cli import train
from flow_dpo.cli.export import export as cli_export
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Solution
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import Metrics, from_json, iter_rows
from flow_dpo.runs.tree_records import tree_row
from flow_dpo.runs.tree_rows import TreeRow
from flow_dpo.traces.step_labels import step_rows
from tests.support.chat_models import chat_tokenizer
from tests.support.record_examples import METRICS
from tests.support.tree_builders import IdTexts, completion, graded, problem, request

END = Solution(pieces=((5,),), ended=True)


def drawn(*statuses: str) -> Tree:
    """Two paths, 5 6 | 7 | 8 and 5 6 | 9, and probes: two from the question, three behind 5 6, two behind 5 6 7."""
    tree = Tree(problem=problem())
    q, a, b = request("answer", 1), request("answer", 1, 5, 6), request("answer", 1, 5, 6, 7)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (a, completion(7), ()), (b, completion(8), ())], END)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (a, completion(9), ())], END)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (a, completion(9), ())], END)  # the same again
    for parent, state, num in ((None, q, 2), (0, a, 3), (1, b, 2)):
        for index in range(num):
            tree.add_rollout(parent, [(state, completion(4, index), ())], END, probe=True)
    return graded(tree, *statuses)  # type: ignore[arg-type]


def run_of(tree: Tree, folder: Path) -> Path:
    run = run_folder.RunFolder.create(folder, {}, {"model": "tiny"})
    run.record(from_json(Metrics, METRICS, "here"), [tree_row(tree, IdTexts())])
    return run.path


def test_hard_and_soft_labels_by_hand(tmp_path: Path) -> None:
    probes = ("correct", "wrong", "wrong", "wrong", "correct", "wrong", "wrong")
    rows = step_rows(run_of(drawn("wrong", "correct", "correct", *probes), tmp_path / "run"))
    # Behind 5 6 one of three ended right, behind 5 6 7 none of two; equal paths are one row.
    assert [(row["rollout"], row["step_ids"]) for row in rows] == [(0, [[5, 6], [7], [8]]), (1, [[5, 6], [9]])]
    assert [row["labels"] for row in rows] == [[True, False, False], [True, True]]
    assert [row["values"] for row in rows] == [[1 / 3, 0.0, 0.0], [1 / 3, 1.0]]
    assert [row["num_completions"] for row in rows] == [[3, 2, 1], [3, 1]]
    assert rows[0]["completions"] == ["5,6,", "7,", "8,"]
    assert rows[0]["prompt"] == problem().question
    assert rows[0]["nodes"] == [0, 1, 2]


def test_a_row_ends_before_what_is_not_known(tmp_path: Path) -> None:
    ungraded = ("correct", "wrong", "wrong", "wrong", "correct", "ungraded", "ungraded")
    rows = step_rows(run_of(drawn("wrong", "ungraded", "ungraded", *ungraded), tmp_path / "run"))
    assert [row["labels"] for row in rows] == [[True], [True]]
    with pytest.raises(DataError, match="none of them was graded"):
        step_rows(run_of(drawn(*["ungraded"] * 10), tmp_path / "none"))
    bare = Tree(problem=problem())
    bare.add_rollout(None, [(request("answer", 1), completion(5), ())], END)
    with pytest.raises(DataError, match="no rollout from a state between steps was recorded; train with"):
        step_rows(run_of(graded(bare, "correct"), tmp_path / "bare"))
    with pytest.raises(ConfigError, match="expected --format preference or steps"):
        cli_export(["--source", str(tmp_path / "bare"), "--format", "messages", "--output_dir", str(tmp_path / "x")])


def tokenized(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """A row as TRL's `PRMTrainer.tokenize_row` documents it: a newline after each step, whose label stands there."""
    newline = tokenizer.encode("\n", add_special_tokens=False)
    ids = list(tokenizer.encode(row["prompt"], add_special_tokens=False))
    labels = [-100] * len(ids)
    for text, label in zip(row["completions"], row["labels"], strict=True):
        step = [*tokenizer.encode(text, add_special_tokens=False), *newline]
        ids += step
        labels += [-100] * (len(step) - 1) + [int(label)]
    return ids, labels


def test_a_runs_labels_are_its_probes_ends_and_have_the_layout_that_trl_reads(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--recipe", "vineppo", "--max_problems", "3", "--explore.num_rollouts", "3", "--output_dir", str(run)]
    assert train.train(words) == 0
    out = tmp_path / "steps"
    assert cli_export(["--source", str(run), "--format", "steps", "--output_dir", str(out)]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of datasets' own
        found = load_dataset("json", data_files=str(out / "train.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    assert isinstance(found, Dataset)
    kinds = {name: found.features[name] for name in ("prompt", "completions", "labels", "values")}
    assert kinds["prompt"].dtype == "string"
    assert [kinds[name].feature.dtype for name in ("completions", "labels", "values")] == ["string", "bool", "float64"]
    trees = {tree.problem.id: tree for _, tree in iter_rows(run / "trees.jsonl", TreeRow)}
    num_wrong = 0
    for row in read_jsonl(out / "train.jsonl"):
        tree = trees[row["problem_id"]]
        after = [tree.prompt_ids(node) for node in row["nodes"][1:]]
        for at, state in enumerate(after):
            ends = [p.status == "correct" for p in tree.rollouts if p.probe and tree.prompt_ids(p.start) == state]
            assert (row["values"][at], row["num_completions"][at]) == (sum(ends) / len(ends), len(ends))
            assert row["labels"][at] == any(ends)
        assert row["values"][-1] == float(row["status"] == "correct") == float(row["labels"][-1])
        assert len(row["nodes"]) == len(row["labels"])
        assert row["prompt"] == tree.problem.question
        num_wrong += row["labels"].count(False)
        ids, labels = tokenized(row, chat_tokenizer("qwen2"))
        assert len(ids) == len(labels)
        assert [label for label in labels if label != -100] == [int(label) for label in row["labels"]]
    assert num_wrong
