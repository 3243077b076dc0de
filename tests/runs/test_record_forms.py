"""Is a shorter record the same run, is all that it holds what the full one holds, and can everything still read it?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Solution
from flow_dpo.report.run_data import count_run
from flow_dpo.report.viewer.tree_view import tree_view
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.records import from_json, read_rows, to_json
from flow_dpo.runs.tree_records import tree_row
from flow_dpo.runs.tree_rows import TokenRow, TreeRow
from tests.support.once import Once
from tests.support.run_equality import without_seconds
from tests.support.tree_builders import IdTexts, completion, graded, problem, request


def drawn() -> Tree:
    """A trunk, a probe amid the tree, another rollout and two probes at the end."""
    tree, end = Tree(problem=problem()), Solution(pieces=(), ended=True)
    for at, probe in enumerate((False, True, False, True, True)):
        turns = [(request("answer", 5), completion(10 + at, 20 + at), ())] * (1 + at % 2)
        tree.add_rollout(None, turns, end, probe=probe)
    graded(tree, "correct", "wrong", "wrong", "correct", "wrong")
    for rollout in tree.rollouts:
        tree.rollouts[rollout.id] = replace(rollout, text=f"text {rollout.id}")
    return tree


def test_only_probes_at_the_end_are_left_out_so_that_ids_stay() -> None:
    full, shorter, compact = (tree_row(drawn(), IdTexts(), form) for form in ("full", "no-probes", "compact"))
    assert (full.num_left_out, shorter.num_left_out, compact.num_left_out) == (None, 2, 2)
    assert "num_left_out" not in to_json(full)
    assert (shorter.nodes, shorter.rollouts) == (full.nodes[:4], full.rollouts[:3])
    assert [node.id for node in compact.nodes] == [0, 1, 2, 3]
    # Ids, verdicts and places stand; log-probabilities do not, nor texts that the texts of tokens make up.
    assert compact.nodes == tuple(
        replace(node, logprobs=(), text=node.text if node.piece_lengths else "") for node in shorter.nodes
    )
    assert [rollout.text for rollout in compact.rollouts] == ["text 0", "", ""]
    for row in (full, shorter, compact):
        assert from_json(TreeRow, json.loads(json.dumps(to_json(row))), "here") == row


@pytest.fixture(scope="module")
def runs(once: Once) -> dict[str, Path]:
    """RPO, whose pairs are of probes, in each form."""
    forms = ("full", "no-probes", "compact")

    def make(folder: Path) -> None:
        for form in forms:
            words = ["--recipe", "rpo", "--max_problems", "8", "--problems_per_batch", "4", "--records", form]
            train.train([*words, "--output_dir", str(folder / form)])

    folder = once("record_forms", make)
    return {form: folder / form for form in forms}


def test_a_shorter_record_is_of_the_same_run(runs: dict[str, Path]) -> None:
    full = runs["full"]
    sizes = {form: (run / "trees.jsonl").stat().st_size for form, run in runs.items()}
    assert sizes["compact"] < 0.75 * sizes["no-probes"] < 0.6 * sizes["full"]
    for form in ("no-probes", "compact"):
        for name in ("pairs.jsonl", "learned.jsonl", "tokens.jsonl"):
            assert (runs[form] / name).read_bytes() == (full / name).read_bytes()
        rows = [without_seconds(read_jsonl(run / "metrics.jsonl")) for run in (full, runs[form])]
        assert rows[0] == rows[1]
        with pytest.raises(ConfigError, match="records"):
            train.train(["--resume", "--output_dir", str(runs[form]), "--records", "full"])


@pytest.mark.parametrize("form", ["no-probes", "compact"])
def test_reader_report_and_viewer_read_it(runs: dict[str, Path], form: str, tmp_path: Path) -> None:
    whole, run = count_run(runs["full"], 8), count_run(runs[form], 8)
    assert run.num_examples == whole.num_examples
    assert sum(run.num_examples.values()) > 0
    assert (run.rewards, run.cut, run.wrong_step) == (whole.rewards, whole.cut, whole.wrong_step)
    tokens = {row.id: (row.text, row.special) for row in read_rows(runs[form] / "tokens.jsonl", TokenRow)}
    pairs = read_jsonl(runs[form] / "pairs.jsonl")
    left_out = 0
    trees = zip(*(read_jsonl(runs[name] / "trees.jsonl") for name in ("full", form)), strict=True)
    for full, row in trees:
        mine = [pair for pair in pairs if pair["problem_id"] == row["problem"]["id"]]
        seen, whole_view = tree_view(row, mine, [], tokens), tree_view(full, mine, [], tokens)
        assert [node["text"] for node in seen["nodes"]] == [node["text"] for node in full["nodes"]][: len(row["nodes"])]
        assert [node["pieces"] for node in seen["nodes"]] == [
            node["pieces"] for node in whole_view["nodes"][: len(row["nodes"])]
        ]
        assert all(node["logprobs"] == [None] * len(node["ids"]) for node in seen["nodes"]) == (form == "compact")
        left_out += sum(max(pair["node"], pair["rejected_node"]) >= len(row["nodes"]) for pair in mine)
    assert left_out > 0
    # An example of nodes that are left out is no damage; one of another run's is.
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "trees.jsonl").write_bytes((runs["full"] / "trees.jsonl").read_bytes())
    (broken / "pairs.jsonl").write_text("".join(json.dumps({**pair, "rejected_node": 999}) + "\n" for pair in pairs))
    with pytest.raises(DataError, match="name a node that the tree lacks"):
        count_run(broken, 8)
