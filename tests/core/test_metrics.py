"""Does progressive validation count what could not be graded as not shown to be right?"""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.stats import wilson
from flow_dpo.core.types import Status, Verdict
from flow_dpo.runs.callbacks.progress import summary_table


def seen(statuses: str, *, window: int = 4) -> ProgressiveValidation:
    """Problems in order: + right, - wrong, ? ungraded, . without an answer."""
    progress = ProgressiveValidation(window=window)
    names: dict[str, Status] = {"+": "correct", "-": "wrong", "?": "ungraded"}
    for status in statuses:
        progress.see(Verdict(status=names[status]) if status in names else None)
    return progress


@pytest.mark.parametrize(
    ("statuses", "accuracy", "graded", "ungraded"),
    [
        ("+???", 0.25, 1.0, 3),
        ("+-", 0.5, 0.5, 0),
        ("????", 0.0, 0.0, 4),
        ("+.-.", 0.5, 0.5, 0),  # what stopped with a value has no answer that could be right
        ("", 0.0, 0.0, 0),
    ],
)
def test_the_headline_is_the_lower_one(statuses: str, accuracy: float, graded: float, ungraded: int) -> None:
    progress = seen(statuses)
    row = progress.row()
    found = (row["progressive/accuracy"], row["progressive/accuracy_graded"], row["progressive/ungraded"])
    assert found == (accuracy, graded, ungraded)
    assert row["progressive/window_accuracy"] == accuracy
    num = len(statuses.replace(".", ""))
    assert (row["progressive/low"], row["progressive/high"]) == wilson(accuracy * num, num)
    assert row["problems_seen"] == len(statuses)
    assert ProgressiveValidation.from_state(json.loads(json.dumps(progress.state()))) == progress


def test_a_window_holds_what_could_not_be_graded() -> None:
    row = seen("++++++?-?+").row()
    assert (row["progressive/window_accuracy"], row["progressive/window_problems"]) == (0.25, 4)
    assert seen("?+.+-+").first == (2, 4)


def test_counts_of_an_older_checkpoint_go_on() -> None:
    state = seen("+-").state()
    del state["num_ungraded"]
    assert ProgressiveValidation.from_state(state) == seen("+-")


@pytest.mark.parametrize(
    ("statuses", "first", "last", "is_told"),
    [
        ("----++++" * 1, ("4", "0.0%"), ("4", "100.0%"), True),
        ("+-+-", ("2", "50.0%"), ("2", "50.0%"), False),  # a short run: its halves, not the same problems twice
        ("+-+-++", ("4", "50.0%"), ("2", "100.0%"), False),
        ("-" * 20, ("4", "0.0%"), ("4", "0.0%"), False),
    ],
)
def test_the_table_compares_other_problems(
    statuses: str, first: tuple[str, str], last: tuple[str, str], is_told: bool
) -> None:
    console = Console(file=StringIO(), width=120)
    table = summary_table(seen(statuses))
    console.print(table)
    cells = [tuple(column.cells) for column in table.columns]
    assert (cells[1], cells[2]) == ((first[0], last[0]), (first[1], last[1]))
    assert (table.caption is None) == is_told
