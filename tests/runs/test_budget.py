"""Does a run end when it has had as much as it was given, also when it is resumed?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Problem
from flow_dpo.runs.callbacks.budget import BudgetCallback, spent
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.settings import BudgetSettings
from tests.support.run_equality import assert_same_run

PROBLEMS = [Problem(id=str(i), question="?", gold="1") for i in range(5)]


def row(played: int, learned: dict[str, int], verdicts: int, updates: int) -> dict[str, Any]:
    tokens = {f"learn/{role}/tokens": float(value) for role, value in learned.items()}
    more = {"learn/answer/unshared_tokens": 9e9, "rollout/tokens": 9e9}
    return {"rollout/sampled_tokens": played, "num_rollouts": verdicts, "learn/updates": updates, **tokens, **more}


def test_what_is_spent_is_read_from_rows() -> None:
    rows = [row(100, {"answer": 30, "stop": 20}, 7, 1), row(50, {}, 3, 0)]
    assert spent(rows) == {"tokens": 200, "verdicts": 10, "updates": 1, "played": 150, "learned": 50}
    assert spent([]) == {"tokens": 0, "verdicts": 0, "updates": 0, "played": 0, "learned": 0}


@pytest.mark.parametrize(
    ("budget", "passed"),
    [({}, 5), ({"tokens": 100}, 1), ({"tokens": 101}, 2), ({"verdicts": 9}, 3), ({"tokens": 100, "verdicts": 9}, 3)],
)
def test_problems_pass_until_all_that_is_named_is_spent(budget: dict[str, int], passed: int) -> None:
    """Each problem here is a batch of 100 tokens and 3 verdicts."""
    budget, seen = BudgetCallback(**budget), []
    for problem in budget.until_spent(PROBLEMS):
        seen.append(problem)
        budget.on_batch(row(100, {}, 3, 1), [], [])
    assert len(seen) == passed


def test_a_resumed_run_knows_what_it_spent() -> None:
    assert BudgetCallback(tokens=100, rows=[row(100, {}, 3, 1)]).empty
    assert not BudgetCallback(tokens=100, rows=[row(99, {}, 3, 1)]).empty


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget_verdicts of 0 or more, found -1"):
        BudgetSettings(budget_verdicts=-1)


def test_a_run_ends_at_its_budget_and_resumes_to_the_same(tmp_path: Path) -> None:
    """Two batches, whether at once or with an interruption behind the first."""
    flags = ["--max_problems", "64", "--problems_per_batch", "8", "--examples_per_update", "8", "--num_threads", "1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    budget = ["--budget_verdicts", "60"]
    train.train([*flags, *budget, "--output_dir", str(whole)])
    rows = read_jsonl(whole / "metrics.jsonl")
    assert len(rows) < 8
    assert spent(rows)["verdicts"] >= 60 > spent(rows[:-1])["verdicts"]
    first = rows[0]["num_rollouts"]
    train.train([*flags, "--budget_verdicts", str(first), "--output_dir", str(parts)])
    assert len(read_jsonl(parts / "metrics.jsonl")) == 1
    train.train([*flags, *budget, "--output_dir", str(parts), "--resume", "--allow", "run.budget.budget_verdicts"])
    assert_same_run(whole, parts)
