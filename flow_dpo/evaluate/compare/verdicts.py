"""Verdicts of a comparison's tests, packed: one text per draw, with one character per question: 1 right, 0 not right,
? ungraded.

    "1101?..."   the first draw on each question, in the order of the questions' ids

The results of a seed contain them (`seed_results`). Older studies hold all of them in one file, verdicts.json.gz:

    {"schema": "verdicts/1", "questions": {"held_out": ["seed/test/0", ...]},
     "arms": {"grpo_same_tokens": {"held_out/greedy": [["1101?..."], ...]}}}       one list per seed

Invariant: the rewards read from them are those of the evaluations' predictions.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.statistics import Rewards
from flow_dpo.runs.records import Prediction, from_json, read_rows

FILE = "verdicts.json.gz"
Draws = tuple[str, ...]
_CHARACTERS = {"correct": "1", "wrong": "0", "ungraded": "?"}
_RIGHT: Mapping[str, float | None] = {"1": 1.0, "0": 0.0, "?": None}


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The content of verdicts.json.gz."""

    SCHEMA: ClassVar[str] = "verdicts/1"
    questions: Mapping[str, tuple[str, ...]]
    """Ids by problem set."""
    arms: Mapping[str, Mapping[str, tuple[Draws, ...]]]
    """By arm and test: for each seed and each draw, one character per question."""

    def rewards(self) -> dict[str, dict[str, list[Rewards]]]:
        """By arm and test, one per seed: each question's mean reward over its draws, None if none was graded.

        Raises `DataError` if a draw does not have one character per question.
        """
        return {
            arm: {
                test: [
                    rewards_of_draws(self.questions.get(test.partition("/")[0], ()), draws, f"{arm} on {test}")
                    for draws in seeds
                ]
                for test, seeds in tests.items()
            }
            for arm, tests in self.arms.items()
        }


def rewards_of_draws(ids: Sequence[str], draws: Sequence[str], what: str) -> Rewards:
    """The reward of each of these questions. Raises `DataError` if a draw does not have one character for each."""
    if any(len(draw) != len(ids) or draw.strip("10?") for draw in draws):
        raise DataError(f"expected {len(ids)} of 1, 0 and ? in each draw of {what}, found other ones")
    return {id: _mean_of_draws([_RIGHT[one] for one in each]) for id, *each in zip(ids, *draws, strict=True)}


def _mean_of_draws(each: Sequence[float | None]) -> float | None:
    """The reward of a question. An ungraded draw counts as not right, unless no draw was graded."""
    return None if set(each) == {None} else fmean(value or 0.0 for value in each)


def drawn_verdicts(evaluation: Path, questions: dict[str, tuple[str, ...]], problems: str) -> Draws:
    """The verdicts of an evaluation's predictions, in the order of the ids in `questions` for this problem set. If it
    has none, this evaluation adds its own. Raises `DataError` if other questions were asked."""
    drawn: dict[str, str] = {}
    for row in read_rows(evaluation / "predictions.jsonl", Prediction):
        status = "ungraded" if row.verdict is None else row.verdict.status
        drawn[row.id] = drawn.get(row.id, "") + _CHARACTERS[status]
    ids = questions.setdefault(problems, tuple(drawn))
    if set(ids) != set(drawn):
        raise DataError(f"expected the questions of the other evaluations in {evaluation}, found other ones")
    return tuple("".join(each) for each in zip(*(drawn[id] for id in ids), strict=True))


def read_verdicts(path: Path) -> Verdicts:
    """The content of verdicts.json.gz. Raises `DataError` if it is not such a file."""
    try:
        found: Any = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"expected a packed file of verdicts, found {path}, which cannot be read: {error}") from error
    return from_json(Verdicts, found, str(path))
