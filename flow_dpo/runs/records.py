"""The kinds of rows in the JSONL files of runs, traces and evaluations: their columns, writer and reader.

    metrics.jsonl  Metrics      pairs.jsonl   PairRow    scored.jsonl       ScoredRow     trees.jsonl       (tree_rows)
    learned.jsonl  LearnedRow   traces.jsonl  Trace      predictions.jsonl  Prediction    judgements.jsonl  Judgement

Every row names its kind and the version of its columns, `{"schema": "pair/1", "prompt": ...}`, so files stay plain
JSONL: they can be appended to, cut off at a checkpoint, and loaded row by row by other libraries. A row of another kind
or version is refused in one sentence, except for older versions that a kind can read (`OLDER`). JSON headers name
their kind once (`headers`).

Invariant: a row that this version wrote is read back equal; any other raises a `DataError` that names file, line and
field. A change to the columns of a kind needs a new number in its `SCHEMA`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem, Verdict
from flow_dpo.data import typed_json
from flow_dpo.data.strict_json import NUMBER, TOKEN_IDS, Kind
from flow_dpo.data.typed_json import Count, Ordinal, TokenIdList, Words, others
from flow_dpo.runs import files

Source = Literal["trained_flow", "untrained_flow", "trained_answer", "self_generated", "ground_truth"]
"""Who wrote a trace: a run's flow, a flow without adapters, a run's Answer role in one pass, the base model in one
pass, or the authors of the data set."""
_PROGRESSIVE = ("accuracy", "low", "high", "window_accuracy", "window_low", "window_high")
_NEEDED = tuple(f"progressive/{name}" for name in _PROGRESSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """One batch of problems: a row of metrics.jsonl."""

    SCHEMA: ClassVar[str] = "metrics/1"
    problems_seen: Count
    """Problems of the stream so far, this batch included."""
    numbers: Mapping[str, float | None] = others()
    """All other measurements, by name: "progressive/accuracy", "learn/answer/margin"."""

    def __post_init__(self) -> None:
        missing = [name for name in _NEEDED if self.numbers.get(name) is None]
        if missing:
            raise ValueError(f"expected a number in {', '.join(missing)}, found none")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Metrics:
        """The row that the loop measured."""
        return cls(problems_seen=row["problems_seen"], numbers={k: v for k, v in row.items() if k != "problems_seen"})

    def row(self) -> dict[str, Any]:
        """The inverse of `of`."""
        return {"problems_seen": self.problems_seen, **self.numbers}


_ABOVE_0 = Kind("a number above 0", lambda value: NUMBER.holds(value) and value > 0)
_FROM_0 = Kind("a number from 0", lambda value: NUMBER.holds(value) and value >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """A preference: a row of pairs.jsonl. TRL reads `prompt`, `chosen` and `rejected`, and ignores the rest."""

    SCHEMA: ClassVar[str] = "pair/1"
    prompt: str
    """The rendered prompt with its special tokens, which the two sides have, too."""
    chosen: str
    rejected: str
    problem_id: str
    role: Words
    node: Count
    """The chosen side's node in the problem's tree."""
    rejected_node: Count
    depth: Count
    tags: tuple[str, ...]
    margin: Annotated[float, _ABOVE_0]
    weight: Annotated[float, _FROM_0]
    chosen_verdict: Verdict | None
    """Verdict on the rollout in which this side was sampled, or on its attempt if credit compared attempts."""
    rejected_verdict: Verdict | None
    policy_version: int
    prompt_ids: TokenIdList
    chosen_ids: TokenIdList
    rejected_ids: TokenIdList

    def __post_init__(self) -> None:
        if self.chosen_ids == self.rejected_ids:
            raise ValueError("expected two completions, found the same 'chosen_ids' and 'rejected_ids'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """A completion with its advantage: a row of scored.jsonl."""

    SCHEMA: ClassVar[str] = "scored/1"
    prompt: str
    completion: str
    problem_id: str
    role: Words
    node: Count
    """The node that has this completion, or whose choice it corrects with another word. If it is learned for another
    prompt than the node's, its `policy_version` is -1."""
    depth: Count
    tags: tuple[str, ...]
    advantage: float
    weight: float
    verdict: Verdict | None
    """Verdict on the rollout in which it was sampled."""
    policy_version: int
    prompt_ids: TokenIdList
    completion_ids: TokenIdList


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedRow:
    """An example in one update, with its log-probabilities there: a row of learned.jsonl."""

    SCHEMA: ClassVar[str] = "learned/1"
    version: Count
    """Version of the policy that learned from it: the number of updates made before this one."""
    reference_version: int | None
    """Version of the reference policy; None if its weights have no version, or if no reference was needed."""
    role: Words
    problem_id: str
    node: Count
    """As in the example's own row; for a pair, the chosen side's. A `ScoredRow` can correct what its node chose."""
    rejected_node: Count | None
    policy: tuple[tuple[float, ...], ...]
    """Log-probability of each token, in nats to four decimals: one list per completion, the chosen one first. With
    dropout, if there is any. For a choice: among its words only."""
    reference: tuple[tuple[float, ...], ...]
    """The same under the reference policy; empty if the objective needs none."""


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and each.keys() == {"role", "content"}
        and each["role"] in ("system", "user", "assistant")
        and isinstance(each["content"], str)
        for each in value
    )


_CHAT = Kind("a chat, messages of a role and a content each,", _is_chat)
_SOME_IDS = Kind(f"{TOKEN_IDS.words}, one at least,", lambda value: TOKEN_IDS.holds(value) and bool(value))


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A right solution of a problem, and what it cost: a row of traces.jsonl."""

    SCHEMA: ClassVar[str] = "trace/1"
    problem_id: Words
    question: Words
    gold: str
    """"" if reward functions graded a problem that has none."""
    dataset: str
    """The problem's own source: "gsm8k/train"."""
    level: str
    subject: str
    worked_solution: str = ""
    """The data set's own solution, against which steps can be checked; "" if it has none."""
    messages: Annotated[tuple[Mapping[str, str], ...], _CHAT]
    """The chat before the solution, as the chat template gets it: the prompt of Answer in one pass."""
    solution: Words
    """`token_ids` decoded, for people and for other tokenizers."""
    token_ids: Annotated[tuple[int, ...], _SOME_IDS]
    """The sampled tokens of the attempt, without the end token."""
    ended: bool
    """Whether Answer sampled its end token; otherwise Stop's Yes closed the solution."""
    verdict: Verdict
    """Verdict on the attempt alone."""
    source: Source
    draw: Ordinal
    """The number of its draw on the problem, from 1."""
    draws_used: Ordinal
    """Number of draws on the problem in total."""
    tokens_spent: Count
    """Tokens sampled on the problem in total, by all roles, including the draws that failed."""

    def __post_init__(self) -> None:
        if self.verdict.status != "correct":
            found = self.verdict.status
            raise ValueError(f"expected a trace that was verified as correct, found the verdict {found!r}")
        if self.draw > self.draws_used:
            raise ValueError(f"expected a 'draw' of at most 'draws_used', found {self.draw} of {self.draws_used}")

    @property
    def problem(self) -> Problem:
        """The problem that was solved."""
        return Problem(
            id=self.problem_id, question=self.question, gold=self.gold, source=self.dataset,
            solution=self.worked_solution, level=self.level, subject=self.subject,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One draw on one problem of an evaluation: a row of predictions.jsonl."""

    SCHEMA: ClassVar[str] = "prediction/2"
    id: str
    """The id of the problem."""
    draw: Ordinal
    question: str
    gold: str
    dataset: str
    """The problem's own source."""
    worked_solution: str
    """The data set's own solution, against which steps can be checked; "" if it has none."""
    solution: str
    """What was sampled, decoded."""
    verdict: Verdict | None
    tokens: Count
    """Tokens sampled by all roles."""
    ended: bool
    """Whether Answer sampled its end token, so that the solution was not cut."""
    yes: float | None
    """Stop's P(Yes) for the attempt, if attempts were drawn (`--draws`); None if it was cut."""
    token_ids: TokenIdList | None
    """The attempt's sampled tokens without the end token, if attempts were drawn: what Stop reads."""
    mean_logprob: float | None = None
    """Mean log-probability of these and the end token under Answer, in nats, if drawn; older files lack it."""

    @property
    def problem(self) -> Problem:
        """The problem that was asked."""
        return Problem(
            id=self.id, question=self.question, gold=self.gold, source=self.dataset, solution=self.worked_solution
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A judge's answer to one pair of traces in one order: a row of judgements.jsonl."""

    SCHEMA: ClassVar[str] = "judgement/1"
    problem_id: str
    dataset: str
    first: Literal["a", "b"]
    """The side that was shown as A."""
    verdict: Literal["A", "B", "tie"] | None
    preferred: Literal["a", "b", "tie"] | None
    """The side that the verdict prefers."""
    reason: str
    """Why there is no verdict."""
    log_odds: float | None
    """Log-odds of the word A over the word B, in nats."""
    tokens: int
    words: str
    """The judge's own words, unchanged."""

    def __post_init__(self) -> None:
        other = "b" if self.first == "a" else "a"
        sides = {"A": self.first, "B": other, "tie": "tie", None: None}
        if self.preferred != sides[self.verdict]:
            raise ValueError(
                f"expected a verdict and the side that it prefers, found {self.verdict!r} and {self.preferred!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningLog:
    """Log entry of a TRL trainer: a row of a fine-tuning's metrics.jsonl."""

    SCHEMA: ClassVar[str] = "fine_tuning/1"
    numbers: Mapping[str, Any] = others()


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneJob:
    """A finished command of a comparison: a row of done.jsonl."""

    SCHEMA: ClassVar[str] = "job/1"
    name: str
    words: tuple[str, ...]
    """The command, without the program."""
    seconds: float


# ---- writing and reading ---------------------------------------------------------------------------------------------


class Record(Protocol):
    """The kind of a row or a header: a dataclass with a name and a version."""

    SCHEMA: ClassVar[str]


K = TypeVar("K", bound=Record)


def to_json(record: Record) -> dict[str, Any]:
    """A record as it is written to its file, schema first."""
    return {"schema": record.SCHEMA, **typed_json.write(record)}


def from_json(kind: type[K] | tuple[type[K], ...], row: Mapping[str, Any], place: str) -> K:
    """The inverse of `to_json`, for whichever of these kinds the row names. Raises `DataError` if it names none."""
    chosen = _kind_of(row, kind if isinstance(kind, tuple) else (kind,), place)
    return typed_json.read(chosen, {name: value for name, value in row.items() if name != "schema"}, place)


def append_rows(path: Path, rows: Sequence[Record]) -> None:
    """Append rows to a file, and make sure that they are on disk."""
    files.append_jsonl(path, [to_json(row) for row in rows])


def iter_rows(path: Path, kind: type[K] | tuple[type[K], ...]) -> Iterator[tuple[int, K]]:
    """The rows of a file with their line numbers from 1; an incomplete last line is left out, with a warning.

    Raises `DataError` naming file, line and field of the first row that is not of this kind, or of one of these.
    """
    for line, row in files.iter_jsonl(path):
        yield line, from_json(kind, row, f"{path}, line {line}")


def read_rows(path: Path, kind: type[K]) -> list[K]:
    """All rows of a file as a list (`iter_rows`)."""
    return [row for _, row in iter_rows(path, kind)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl as the loop measured them, by name."""
    return [row.row() for row in read_rows(path, Metrics)]


def versions_after(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The version of the adapters after each batch of a run. It is the version before the next batch, since a round of
    CPL, which starts again from the first adapters, has its own; after the last batch its updates are added."""
    return [*(int(row["learn/version"]) for row in rows[1:]), *(_after(row) for row in rows[-1:])]


def _after(row: Mapping[str, Any]) -> int:
    return int(row["learn/version"]) + int(row["learn/updates"])


def rows_up_to(rows: Sequence[Mapping[str, Any]], version: int) -> Sequence[Mapping[str, Any]]:
    """The rows of the batches after which adapters of this version or an older one were in force: what is known about
    adapters that were saved while the run continued."""
    return rows[: bisect_right(versions_after(rows), version)]


def _kind_of(row: Mapping[str, Any], kinds: Sequence[type[K]], place: str) -> type[K]:
    found = row.get("schema")
    for kind in kinds:
        if found == kind.SCHEMA or found in getattr(kind, "OLDER", ()):
            return kind
    expected = " or ".join(repr(kind.SCHEMA) for kind in kinds)
    raise DataError(
        f"{place}: expected the schema {expected}, found {'none' if found is None else f'{found!r:.80}'}: another kind "
        "of file, or one that another version of flow-dpo wrote; make it again, or use the version that wrote it"
    )
