"""verdicts.json.gz: every verdict of a comparison's tests, from which anyone can recompute its figures without a model.

    {"schema": "verdicts/1", "questions": {"held_out": ["seed/test/0", ...]},
     "arms": {"grpo_same_tokens": {"held_out/greedy": [["1101?..."], ...]}}}

holds a string for each draw, in a list for each seed, with a character for each question: 1 right, 0 not, ? ungraded.

Invariant: what is read from it are the rewards that `summary.rewards_of` reads from the evaluations.
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
_CHARACTERS = {"correct": "1", "wrong": "0", "ungraded": "?"}
_RIGHT: Mapping[str, float | None] = {"1": 1.0, "0": 0.0, "?": None}


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The content of the file."""

    SCHEMA: ClassVar[str] = "verdicts/1"
    questions: Mapping[str, tuple[str, ...]]
    """Ids, by problem set."""
    arms: Mapping[str, Mapping[str, tuple[tuple[str, ...], ...]]]
    """By arm and test: of each seed, of each draw, a character a question."""

    def rewards(self) -> dict[str, dict[str, list[Rewards]]]:
        """By arm and test, one a seed: the reward of each question, a mean over its draws; None where none was graded.

        Raises `DataError` where a draw has not a character for each question.
        """
        return {
            arm: {test: [self._of(arm, test, draws) for draws in seeds] for test, seeds in tests.items()}
            for arm, tests in self.arms.items()
        }

    def _of(self, arm: str, test: str, draws: Sequence[str]) -> Rewards:
        ids = self.questions.get(test.partition("/")[0], ())
        if any(len(draw) != len(ids) or draw.strip("10?") for draw in draws):
            raise DataError(f"expected {len(ids)} of 1, 0 and ? in each draw of {arm} on {test}, found other ones")
        return {id: mean_of_draws([_RIGHT[one] for one in each]) for id, *each in zip(ids, *draws, strict=True)}


def mean_of_draws(each: Sequence[float | None]) -> float | None:
    """The reward of a question: what was not graded counts as not right, unless nothing was graded."""
    return None if set(each) == {None} else fmean(value or 0.0 for value in each)


def collect(evaluations: Mapping[str, Mapping[str, Sequence[Path]]]) -> Verdicts:
    """The verdicts of evaluations, by arm and test one folder a seed.

    Raises `DataError` where two evaluations of a problem set were asked other questions.
    """
    questions: dict[str, tuple[str, ...]] = {}
    arms: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {}
    for arm, tests in evaluations.items():
        for test, folders in tests.items():
            seeds: list[tuple[str, ...]] = []
            for folder in folders:
                drawn: dict[str, str] = {}
                for row in read_rows(folder / "predictions.jsonl", Prediction):
                    status = "ungraded" if row.verdict is None else row.verdict.status
                    drawn[row.id] = drawn.get(row.id, "") + _CHARACTERS[status]
                ids = questions.setdefault(test.partition("/")[0], tuple(drawn))
                if set(ids) != set(drawn):
                    raise DataError(f"expected the questions of the other evaluations in {folder}, found other ones")
                seeds.append(tuple("".join(each) for each in zip(*(drawn[id] for id in ids), strict=True)))
            arms.setdefault(arm, {})[test] = tuple(seeds)
    return Verdicts(questions=questions, arms=arms)


def write_verdicts(path: Path, found: Verdicts) -> None:
    """Write the file; the same verdicts give the same bytes."""
    content = {"schema": Verdicts.SCHEMA, "questions": found.questions, "arms": found.arms}
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0))
    beside.replace(path)


def read_verdicts(path: Path) -> Verdicts:
    """The content of the file. Raises `DataError` where it is none of this kind."""
    try:
        found: Any = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"expected a packed file of verdicts, found {path}, which cannot be read: {error}") from error
    return from_json(Verdicts, found, str(path))
