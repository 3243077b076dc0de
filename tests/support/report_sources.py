"""Run folders, evaluations and traces, drawn by hand for tests of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Status, Verdict
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.runs import run_folder, tree_records
from flow_dpo.runs.headers import write_header
from flow_dpo.runs.records import Metrics, PairRow
from flow_dpo.runs.tree_rows import TreeRow
from tests.support import tree_builders
from tests.support.record_examples import PREDICTION

HOSTILE = (
    "<script>alert('x')</script>\"><img src=http://e.org/x onerror=y> \x1b[31mred\x1b]0;t\x07 \u202egnp.exe |`$a_1$`"
)
"""Markup, quotes, an address, terminal sequences, a direction override, and signs of Markdown and mathematics."""


def tree(index: int, *statuses: Status, words: str = "6 + 8 = 14", question: str = "How many?") -> TreeRow:
    """`trees.two_chunk_tree` as trees.jsonl has it, with these verdicts of its five plays."""
    made = tree_builders.two_chunk_tree(*statuses)
    made.problem = Problem(id=f"p{index}", question=question, gold="14")
    for rollout in range(len(statuses)):
        made.grade(rollout, words, Verdict(status=statuses[rollout], answer="14"))
    row = tree_records.tree_row(made, tree_builders.IdTexts())
    texts = [words if node.role == "answer" else "Yes" for node in row.nodes]
    nodes = [replace(node, text=text) for node, text in zip(row.nodes, texts, strict=True)]
    return replace(row, nodes=tuple(nodes))


def pairs(index: int, *statuses: Status) -> list[PairRow]:
    """What the tree of these verdicts teaches, as pairs.jsonl has it."""
    made: Tree = tree_builders.two_chunk_tree(*statuses)
    made.problem = Problem(id=f"p{index}", question="", gold="")
    texts = {"prompt": "", "chosen": "", "rejected": ""}
    rows = [tree_records.example_row(pair, made, texts) for pair in OutcomePairs()([made])]
    return [row for row in rows if isinstance(row, PairRow)]


def run(
    path: Path,
    verdicts: Sequence[Sequence[Status]],
    *,
    batch: int = 4,
    words: str = "6 + 8 = 14",
    question: str = "How many?",
    facts: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """A run folder: one tree for each list of five verdicts."""
    named = {"num_problems": len(verdicts), "model": "seed", "command": "flow-dpo train", "versions": {"torch": "2.9"}}
    settings = {"recipe": "flow-dpo", "data": {"dataset_name": "seed", "dataset_split": "train"}, **(config or {})}
    folder = run_folder.RunFolder.create(path, settings, {**named, **(facts or {})})
    progress = ProgressiveValidation(window=250)
    for start in range(0, len(verdicts), batch):
        mine = list(enumerate(verdicts))[start : start + batch]
        for _, statuses in mine:
            progress.see(Verdict(status=statuses[0]))
        row = {
            **progress.row(), "policy_version": start // batch, "num_rollouts": 5 * len(mine),
            "num_verdicts": 5 * len(mine),
            "learn/updates": 1, "learn/answer/margin": 0.25 * start, "learn/answer/chosen_logprobs": -1.5,
            "learn/answer/rejected_logprobs": -2.5, "learn/answer/tokens": 70.0, "rollout/tokens": 111,
            "rollout/seconds": 1.5, "grade/seconds": 0.25, "learn/seconds": 0.5,
        }  # fmt: skip
        folder.record(
            Metrics.of(row),
            [tree(index, *statuses, words=words, question=question) for index, statuses in mine],
            pairs=[pair for index, statuses in mine for pair in pairs(index, *statuses)],
        )
    return path


def evaluation(
    path: Path, *, accuracy: float | None = 0.5, mode: str = "flow", run: str | None = None, words: str = "6 + 8 = 14"
) -> Path:
    """An evaluation folder with one prediction."""
    path.mkdir(parents=True)
    summary = {
        "accuracy": accuracy, "interval": [0.4, 0.6], "num_problems": 100, "num_draws": 100, "num_correct": 50,
        "num_ungraded": 0, "settings": {"mode": mode, "run": run}, "model": "seed", "dataset": "seed/test",
        "adapters": {"answer": run} if run else {}, "decoding": {"greedy": True, "num_samples": 1},
        "stop": {"num_candidates": {"right": 3}, "yes_rate": {"right": 0.5}, "auc_right_over_wrong": None},
        "steps_of_right_answers": {"num_checked": 10, "num_invalid": 3, "invalid_rate": 0.3},
    }  # fmt: skip
    write_header(path / "summary.json", EvaluationSummary, summary)
    (path / "predictions.jsonl").write_text(json.dumps(PREDICTION | {"solution": words}) + "\n")
    return path
