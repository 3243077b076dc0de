"""Does a run's record hold every prompt, every token's text, and what each example was at learning?"""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from flow_dpo.cli import train
from flow_dpo.data import seed
from flow_dpo.runs.records import LearnedRow, PairRow, read_metrics, read_rows
from flow_dpo.runs.tree_rows import TokenRow, TreeRow
from tests.support.once import Once


@pytest.fixture(scope="module")
def whole(once: Once) -> Path:
    def make(folder: Path) -> None:
        words = ["--max_problems", "32", "--problems_per_batch", "16", "--examples_per_update", "8"]
        assert train.train([*words, "--output_dir", str(folder / "run")]) == 0

    return once("token_records", make) / "run"


@pytest.fixture(scope="module")
def trees(whole: Path) -> list[TreeRow]:
    return read_rows(whole / "trees.jsonl", TreeRow)


def test_prompts_and_tokens_texts_are_in_the_records(whole: Path, trees: list[TreeRow]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(seed.MODEL_FOLDER)
    by_name = {tree.problem.id: tree for tree in trees}
    pairs = read_rows(whole / "pairs.jsonl", PairRow)
    for one in pairs:
        tree = by_name[one.problem_id]
        assert tree.prompt_ids(one.node) == tree.prompt_ids(one.rejected_node) == one.prompt_ids
    rows = read_rows(whole / "tokens.jsonl", TokenRow)
    tokens = {row.id: row for row in rows}
    assert len(tokens) == len(rows), "each token once, over both batches"
    for tree in trees:
        assert tree.choices == {"stop": ("Yes", "No")}
        for node in tree.nodes:
            for ids in (node.token_ids, tree.prompt_ids(node.id)):
                written = "".join(tokens[id].text for id in ids)
                assert written == tokenizer.decode(list(ids), skip_special_tokens=False)
            assert node.piece_lengths == ()
            assert node.text == "".join(tokens[id].text for id in node.token_ids if not tokens[id].special)


def test_what_was_learned_is_recorded_token_by_token(whole: Path, trees: list[TreeRow]) -> None:
    rows = read_rows(whole / "learned.jsonl", LearnedRow)
    metrics = read_metrics(whole / "metrics.jsonl")
    assert len(rows) == sum(row.get(f"learn/{role}/pairs", 0) for row in metrics for role in ("answer", "stop"))
    nodes = {(tree.problem.id, node.id): node for tree in trees for node in tree.nodes}
    num_compared = 0
    for one in (row for row in rows if row.role == "answer"):
        sides = [nodes[one.problem_id, id] for id in (one.node, one.rejected_node or 0)]
        assert [len(values) for values in one.policy] == [len(side.token_ids) for side in sides]
        assert one.reference_version == 0
        for side, policy, reference in zip(sides, one.policy, one.reference, strict=True):
            # Both sides compute the same numbers of the same tokens where the version that sampled is in force.
            for version, found in ((one.version, policy), (0, reference)):
                if side.policy_version == version:
                    assert found == pytest.approx(side.logprobs, abs=2e-3)
                    num_compared += 1
    assert num_compared > 20
    # The margin that the metrics have is that of these values.
    first = [row for row in rows if row.role == "answer"][: int(metrics[0]["learn/answer/pairs"])]
    ratios = [[sum(p) - sum(r) for p, r in zip(row.policy, row.reference, strict=True)] for row in first]
    mean = sum(chosen for chosen, _ in ratios) / len(ratios)
    assert mean == pytest.approx(metrics[0]["learn/answer/chosen_ratio"], abs=2e-3)
    # Verdicts need no reference, and are of one token.
    stops = [row for row in rows if row.role == "stop"]
    assert {(row.reference, row.reference_version, len(row.policy), len(row.policy[0])) for row in stops} == {
        ((), None, 1, 1)
    }
