"""Contamination check: overlap of the test questions with those of training data.

Questions are compared as normalised text: Unicode forms joined, case, punctuation and spaces dropped, numbers kept.

    "Anna has 12 apples.\\n"  ==  "anna has 12 apples"  !=  "Anna has 13 apples."

Invariant: a training source that cannot be read is an error, not an overlap of zero.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem
from flow_dpo.runs.records import Trace, iter_rows
from flow_dpo.runs.tree_rows import TreeRow

_WORD = re.compile(r"\w+")
_NUM_SHOWN = 5
_FILES = ("trees.jsonl", "traces.jsonl")


def normalised(question: str) -> str:
    """The words and numbers of a question, in normalised form."""
    # A dot or comma inside a number belongs to it: 1.5 is not 1 and 5.
    text = re.sub(r"(?<=\d)[.,/](?=\d)", "_", unicodedata.normalize("NFKC", question).casefold())
    return " ".join(_WORD.findall(text)) or text.strip()  # only signs: "+ ?" and "- ?" are two questions


def questions_of(source: Path) -> set[str]:
    """The normalised questions of a run folder (trees.jsonl), or of traces (a folder or a file)."""
    found = [source / name for name in _FILES if (source / name).is_file()] if source.is_dir() else [source]
    if not found or not found[0].is_file():
        raise DataError(f"expected a run folder or traces in {source}, found neither {' nor '.join(_FILES)}")
    questions: set[str] = set()
    for file in found:
        rows = iter_rows(file, (TreeRow, Trace))
        questions.update(normalised(row.problem.question) for _, row in rows)
    if not questions:
        raise DataError(f"expected problems in {source}, found none: nothing was trained on yet")
    return questions


def overlapping(problems: Iterable[Problem], trained: set[str]) -> list[Problem]:
    """The problems whose questions were trained on."""
    return [problem for problem in problems if normalised(problem.question) in trained]


def check(
    problems: Sequence[Problem], trained_on: str, *, exclude: bool
) -> tuple[list[Problem], dict[str, Any] | None]:
    """The problems to measure on, and what summary.json says about the overlap; None if no source is named.

    `trained_on` names run folders and traces, separated by commas. With `exclude`, problems that were trained on are
    left out. Raises `DataError` if every problem would be left out.
    """
    sources = [name.strip() for name in trained_on.split(",") if name.strip()]
    if not sources:
        return list(problems), None
    trained = set[str]().union(*(questions_of(Path(name)) for name in sources))
    found = overlapping(problems, trained)
    ids = {problem.id for problem in found}
    kept = [problem for problem in problems if problem.id not in ids] if exclude else list(problems)
    if not kept:
        raise DataError(
            f"expected test problems that were not trained on, found that all {len(problems)} were; name another "
            "split, or leave --exclude_overlap out"
        )
    return kept, {
        "trained_on": sources,
        "num_training_problems": len(trained),
        "num_overlapping": len(found),
        "overlap_rate": len(found) / len(problems),
        "examples": [problem.id for problem in found[:_NUM_SHOWN]],
        "excluded": exclude,
    }
