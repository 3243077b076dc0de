"""The kinds of rows that runs, traces and evaluations leave in JSONL files: their columns, their writer, their reader.

    metrics.jsonl  Metrics     trees.jsonl   TreeRow    pairs.jsonl        PairRow       scored.jsonl      ScoredRow
                               traces.jsonl  Trace      predictions.jsonl  Prediction    judgements.jsonl  Judgement

Every row names its kind and the version of its columns, `{"schema": "pair/1", "prompt": ...}`, so that files stay
plain JSONL: they are appended to, cut off at a checkpoint and loaded by other libraries row by row. A row of another
kind or version is refused in one sentence. JSON headers name theirs once (`headers`).

Invariant: a row that was written by this version is read back equal; any other is a `DataError` that names file, line
and field. Whoever changes the columns of a kind raises the number in its `SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import FinishReason, Problem, Role, Verdict
from flow_dpo.data import typed_json
from flow_dpo.data.strict_json import NUMBER, TOKEN_IDS, Kind
from flow_dpo.data.typed_json import Count, Ordinal, TokenIdList, Words, others
from flow_dpo.runs import files

Source = Literal["trained_flow", "untrained_flow", "trained_answer", "self_generated", "ground_truth"]
"""Who wrote a trace: a run's flow, a flow without adapters, a run's Answer role in one pass, the base in one pass, or
whoever wrote the data set."""
_PROGRESSIVE = ("accuracy", "low", "high", "window_accuracy", "window_low", "window_high")
_NEEDED = tuple(f"progressive/{name}" for name in _PROGRESSIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """One batch of problems: a row of metrics.jsonl."""

    SCHEMA: ClassVar[str] = "metrics/1"
    problems_seen: Count
    """Problems of the stream so far, this batch included."""
    numbers: Mapping[str, float | None] = others()
    """All else that was measured, by its name: "progressive/accuracy", "learn/answer/margin"."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One completion of a tree; the columns of `core.tree.Node` and its completion."""

    id: Count
    parent: Count | None
    rollout: Count
    depth: Count
    role: Role
    policy_version: int
    """Of the adapters that sampled it."""
    token_ids: TokenIdList
    text: str
    """The tokens decoded, for people."""
    logprobs: tuple[float, ...]
    """Nats, to six decimals."""
    finish_reason: FinishReason
    choice: Count | None
    choice_logprobs: tuple[float, ...]
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.choice_logprobs) == 2 and self.choice not in (0, 1):
            raise ValueError(f"expected 0 or 1 as the 'choice' between two words, found {self.choice!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """One rollout of a tree; the columns of `core.tree.Rollout`."""

    id: Count
    start: Count
    leaf: Count
    ended: bool
    """Answer sampled its end token last."""
    probe: bool
    value: float | None
    text: str
    verdict: Verdict | None

    @property
    def status(self) -> Literal["correct", "wrong", "ungraded"]:
        """Its verdict's; "ungraded" where it has none."""
        return "ungraded" if self.verdict is None else self.verdict.status


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """All rollouts on one problem: a row of trees.jsonl.

    Prompts are not repeated node by node: an Answer node's prompt is its root's prompt and the tokens on its path.
    """

    SCHEMA: ClassVar[str] = "tree/1"
    problem: Problem
    first_prompt_ids: Mapping[Role, TokenIdList]
    nodes: tuple[NodeRow, ...]
    rollouts: tuple[RolloutRow, ...]
    skipped: Mapping[Role, Count]

    def __post_init__(self) -> None:
        """Nodes and rollouts must name each other rightly."""
        if not self.nodes or not self.rollouts:
            raise ValueError(f"expected nodes and rollouts, found {len(self.nodes)} and {len(self.rollouts)}")
        for at, node in enumerate(self.nodes):
            _below(f"nodes {at}", parent=(node.parent or 0, max(at, 1)), rollout=(node.rollout, len(self.rollouts)))
            _below(f"nodes {at}", depth=(node.depth, at + 1))
            if node.id != at or (at == 0) > (node.parent is None):
                raise ValueError(f"nodes {at}: expected the id {at}, found {node.id} below {node.parent}")
        for at, rollout in enumerate(self.rollouts):
            _below(f"rollouts {at}", start=(rollout.start, len(self.nodes)), leaf=(rollout.leaf, len(self.nodes)))
            if rollout.id != at:
                raise ValueError(f"rollouts {at}: expected the id {at}, found {rollout.id}")


def _below(place: str, **values: tuple[int, int]) -> None:
    for name, (value, limit) in values.items():
        if value >= limit:
            raise ValueError(f"{place}: expected a whole number from 0 to {limit - 1} in {name!r}, found {value}")


_ABOVE_0 = Kind("a number above 0", lambda value: NUMBER.holds(value) and value > 0)
_FROM_0 = Kind("a number from 0", lambda value: NUMBER.holds(value) and value >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """A preference: a row of pairs.jsonl. TRL reads `prompt`, `chosen` and `rejected`, and ignores the rest."""

    SCHEMA: ClassVar[str] = "pair/1"
    prompt: str
    """With its special tokens, as are the two sides."""
    chosen: str
    rejected: str
    problem_id: str
    role: Words
    node: Count
    """Of the chosen side, in the problem's tree."""
    rejected_node: Count
    depth: Count
    tags: tuple[str, ...]
    margin: Annotated[float, _ABOVE_0]
    weight: Annotated[float, _FROM_0]
    chosen_verdict: Verdict | None
    """Of the rollout in which it was sampled, as is the other side's; of its attempt where credit compared those."""
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
    depth: Count
    tags: tuple[str, ...]
    advantage: float
    weight: float
    verdict: Verdict | None
    """Of the rollout in which it was sampled."""
    policy_version: int
    prompt_ids: TokenIdList
    completion_ids: TokenIdList


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
    """One right solution of one problem, and what it took: a row of traces.jsonl."""

    SCHEMA: ClassVar[str] = "trace/1"
    problem_id: Words
    question: Words
    gold: str
    """"" where reward functions graded a problem that has none."""
    dataset: str
    """The problem's own source: "gsm8k/train"."""
    level: str
    subject: str
    worked_solution: str = ""
    """The data set's own solution, by which steps may be checked; "" where it has none."""
    messages: Annotated[tuple[Mapping[str, str], ...], _CHAT]
    """The chat before the solution as the template gets it: Answer's prompt in one pass."""
    solution: Words
    """`token_ids` decoded, for people and for other tokenizers."""
    token_ids: Annotated[tuple[int, ...], _SOME_IDS]
    """The sampled tokens of the attempt, without the end token."""
    ended: bool
    """Answer sampled its end token; otherwise Stop's Yes closed the solution."""
    verdict: Verdict
    """Of the attempt alone."""
    source: Source
    draw: Ordinal
    """Which draw on its problem it is, from 1."""
    draws_used: Ordinal
    """Draws made on its problem in all."""
    tokens_spent: Count
    """Tokens sampled on its problem in all, by every role and in the draws that failed."""

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
    """The problem's."""
    draw: Ordinal
    question: str
    gold: str
    dataset: str
    """The problem's own source."""
    worked_solution: str
    """The data set's own solution, by which steps may be checked; "" where it has none."""
    solution: str
    """What was sampled, decoded."""
    verdict: Verdict | None
    tokens: Count
    """Sampled, of all roles."""
    ended: bool
    """Answer sampled its end token: it was not cut."""
    yes: float | None
    """Stop's P(Yes) of the attempt, where attempts were drawn (`--draws`); None where it was cut."""
    token_ids: TokenIdList | None
    """The attempt's sampled tokens without the end token, where attempts were drawn: what Stop reads."""
    mean_logprob: float | None = None
    """Of its tokens under Answer, the end token among them, in nats, where attempts were drawn; older files lack it."""

    @property
    def problem(self) -> Problem:
        """The problem that was put."""
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
    """Of the word A over the word B, in nats."""
    tokens: int
    words: str
    """The judge's own, as they came."""

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
    """A command of a comparison that is done: a row of done.jsonl."""

    SCHEMA: ClassVar[str] = "job/1"
    name: str
    words: tuple[str, ...]
    """The command, without the program."""
    seconds: float


# ---- writing and reading ---------------------------------------------------------------------------------------------


class Record(Protocol):
    """A row's or a header's kind: a dataclass with its name and version."""

    SCHEMA: ClassVar[str]


K = TypeVar("K", bound=Record)


def to_json(record: Record) -> dict[str, Any]:
    """A record as it stands in its file, its schema first."""
    return {"schema": record.SCHEMA, **typed_json.write(record)}


def from_json(kind: type[K] | tuple[type[K], ...], row: Mapping[str, Any], place: str) -> K:
    """The inverse, of the one kind among these that the row names. Raises `DataError` where it is none of them."""
    chosen = _kind_of(row, kind if isinstance(kind, tuple) else (kind,), place)
    return typed_json.read(chosen, {name: value for name, value in row.items() if name != "schema"}, place)


def append_rows(path: Path, rows: Sequence[Record]) -> None:
    """Add rows to the end of a file, and make sure that they are on the disk."""
    files.append_jsonl(path, [to_json(row) for row in rows])


def iter_rows(path: Path, kind: type[K] | tuple[type[K], ...]) -> Iterator[tuple[int, K]]:
    """The rows of a file with the numbers of their lines, from 1; a torn last line is left out, with a warning.

    Raises `DataError` naming file, line and field of the first row that is not of this kind, or of one of these.
    """
    for line, row in files.iter_jsonl(path):
        yield line, from_json(kind, row, f"{path}, line {line}")


def read_rows(path: Path, kind: type[K]) -> list[K]:
    """The rows of a file, all at once: `iter_rows`."""
    return [row for _, row in iter_rows(path, kind)]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl as the loop measured them, by name."""
    return [row.row() for row in read_rows(path, Metrics)]


def _kind_of(row: Mapping[str, Any], kinds: Sequence[type[K]], place: str) -> type[K]:
    found = row.get("schema")
    for kind in kinds:
        if found == kind.SCHEMA:
            return kind
    expected = " or ".join(repr(kind.SCHEMA) for kind in kinds)
    raise DataError(
        f"{place}: expected the schema {expected}, found {'none' if found is None else f'{found!r:.80}'}: another kind "
        "of file, or one that another version of flow-dpo wrote; make it again, or use the version that wrote it"
    )
