"""What is a trace, and which of the right plays become one?

A trace is the attempt that produced a right answer, and nothing else: what a play gave up and began anew is cut off at
the piece where the flow said so, never by searching the text, and the attempt is verified again by itself. With E the
end token and "..." sampled ids:

    pieces      (7 8 9)  "Wait, that is wrong."  (4 5)  (6)  "\\n"        Stop said No once, then Yes
    trace                                         4 5    6                its ids; text and verdict are of these alone

A file of traces is `traces.jsonl`, one trace a line, with `traces.json` beside it: how they were made and what it cost.
Invariant: each trace in a file is right by itself, as a finished solution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import TokenIds, Verdict
from flow_dpo.data.strict_json import COUNT, FLAG, OBJECT, ORDINAL, TEXT, TOKEN_IDS, WORDS, Kind, check, one_of, or_null
from flow_dpo.runs import run_folder

Source = Literal["trained_flow", "untrained_flow", "trained_answer", "self_generated", "ground_truth"]
"""Who wrote a trace: a run's flow, a flow without adapters, a run's Answer role in one pass, the base in one pass, or
whoever wrote the data set."""

ROWS = "traces.jsonl"
HEADER = "traces.json"


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and each.keys() == {"role", "content"}
        and each["role"] in ("system", "user", "assistant")
        and isinstance(each["content"], str)
        for each in value
    )


_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("problem_id", "question", "gold", "solution"), WORDS),
    **dict.fromkeys(("dataset", "level", "subject"), TEXT),
    "messages": Kind("a chat, messages of a role and a content each,", _is_chat),
    "token_ids": Kind(f"{TOKEN_IDS.words}, one at least,", lambda value: TOKEN_IDS.holds(value) and bool(value)),
    "ended": FLAG,
    "verdict": Kind(
        "a verdict, with its status, answer and reason,",
        lambda value: isinstance(value, dict) and value.keys() == {"status", "answer", "reason"},
    ),
    "source": one_of(get_args(Source)),
    **dict.fromkeys(("draw", "draws_used"), ORDINAL),
    "tokens_spent": COUNT,
}
_VERDICT_KINDS = {
    "status": one_of(("correct", "wrong", "ungraded")),
    "answer": or_null(TEXT),
    "reason": TEXT,
}
_HEADER_KINDS = {
    "complete": FLAG,
    **dict.fromkeys(("source", "selection", "command", "model", "tokenizer", "dataset"), TEXT),
    **dict.fromkeys(("settings", "adapters", "counts", "cost"), OBJECT),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One right solution of one problem, and what it took."""

    problem_id: str
    question: str
    gold: str
    dataset: str
    """The problem's own source: "gsm8k/train"."""
    level: str
    subject: str
    messages: tuple[Mapping[str, str], ...]
    """The chat before the solution as the template gets it: what Answer is asked in one pass."""
    solution: str
    """`token_ids` decoded, for people and for other tokenizers."""
    token_ids: TokenIds
    """The sampled tokens of the attempt, without the end token."""
    ended: bool
    """Answer said its end token; otherwise Stop's Yes closed the solution."""
    verdict: Verdict
    """Of the attempt alone."""
    source: Source
    draw: int
    """Which draw on its problem it is, from 1."""
    draws_used: int
    """Draws made on its problem in all."""
    tokens_spent: int
    """Tokens sampled on its problem in all, by every role and in the draws that failed."""

    def to_json(self) -> dict[str, Any]:
        """One line of traces.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any], place: str) -> Trace:
        """The inverse; what else the row holds is not read.

        Raises `DataError` naming the place and the field of a row that is no trace.
        """
        missing = [field.name for field in fields(cls) if field.name not in row]
        if missing:
            raise DataError(f"{place}: expected a trace, found a row without {', '.join(missing)}")
        check(row, _KINDS, place)
        check(row["verdict"], _VERDICT_KINDS, f"{place}, verdict")
        status = row["verdict"]["status"]
        if status != "correct":
            raise DataError(f"{place}: expected a trace that was verified as correct, found the verdict {status!r}")
        if row["draw"] > row["draws_used"]:
            raise DataError(
                f"{place}: expected a 'draw' of at most 'draws_used', found {row['draw']} of {row['draws_used']}"
            )
        known = {field.name: row[field.name] for field in fields(cls)}
        return cls(
            **known
            | {
                "messages": tuple(row["messages"]),
                "token_ids": tuple(row["token_ids"]),
                "verdict": Verdict(**row["verdict"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Which of a problem's right plays become traces."""

    take: Literal["first", "shortest"] = "first"
    """"first" stops drawing as soon as a problem has its traces; "shortest" uses the whole budget and takes those of
    the fewest tokens (the paper keeps correct traces and does not state which)."""
    traces_per_problem: int = 1
    """At most so many of one problem."""
    deduplicate: bool = True
    """Count traces of the same words once."""

    def __post_init__(self) -> None:
        if self.traces_per_problem < 1:
            raise ConfigError(f"expected traces_per_problem of 1 at least, found {self.traces_per_problem}")

    def distinct(self, found: Sequence[Trace]) -> list[Trace]:
        """The traces without repetitions, the earliest of each."""
        if not self.deduplicate:
            return list(found)
        first: dict[str, Trace] = {}
        for trace in found:
            first.setdefault(trace.solution.strip(), trace)
        return list(first.values())

    def enough(self, found: Sequence[Trace]) -> bool:
        """Whether a problem needs no further draw."""
        return self.take == "first" and len(self.distinct(found)) >= self.traces_per_problem

    def choose(self, found: Sequence[Trace]) -> list[Trace]:
        """The traces to keep of one problem's right plays, given in the order in which they were drawn."""
        distinct = self.distinct(found)
        if self.take == "shortest":
            distinct = sorted(distinct, key=lambda trace: (len(trace.token_ids), trace.draw))
        return distinct[: self.traces_per_problem]

    def rule(self) -> str:
        """The rule in words, for the header."""
        which = "the first correct" if self.take == "first" else "the shortest correct of all draws"
        return (
            f"{which}, at most {self.traces_per_problem} a problem, "
            f"{'the same words once' if self.deduplicate else 'repetitions kept'}; only the attempt that produced the "
            "answer, verified again by itself"
        )


OF_THE_DATA = "the data set's own solution of each problem, where the verifier finds it right; nothing was drawn"
"""The rule in words, of traces that nobody played."""


@dataclass(frozen=True, kw_only=True)
class TraceFile:
    """Traces that were read back."""

    path: Path
    traces: tuple[Trace, ...]
    header: Mapping[str, Any]
    """What traces.json says; empty where there is none."""


def read_traces(path: Path) -> TraceFile:
    """The traces of a file, or of the folder that `flow-dpo generate` wrote.

    A last line that was torn off is left out, and that is said. Raises `DataError` where there are none, and for the
    first row, or field of the header, that is not what it should be.
    """
    file = path / ROWS if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"expected traces in {file}, found no such file; make them with flow-dpo generate")
    rows = run_folder.read_jsonl(file)
    traces = tuple(Trace.from_json(row, f"{file}, line {number}") for number, row in enumerate(rows, start=1))
    if not traces:
        raise DataError(
            f"expected traces in {file}, found none; generate more, with more --num_samples or --max_problems"
        )
    header = run_folder.read_object(file.with_name(HEADER), absent={})
    check(header, _HEADER_KINDS, str(file.with_name(HEADER)))
    return TraceFile(path=file, traces=traces, header=header)


class TraceFolder:
    """An open folder of traces. Rows are only added at the end; the header follows them batch by batch."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Begin the folder. Raises `ConfigError` where it holds traces already."""
        refuse_used(path)
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._header = dict(header)
        (path / ROWS).write_bytes(b"")
        self.note({"complete": False})

    def append(self, traces: Sequence[Trace], facts: Mapping[str, Any]) -> None:
        """Add one batch's traces, and what the header now says of all."""
        run_folder.append_jsonl(self.path / ROWS, [trace.to_json() for trace in traces])
        self.note(facts)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Put facts into the header."""
        self._header.update(facts)
        run_folder.write_whole(self.path / HEADER, json.dumps(self._header, indent=2, ensure_ascii=False) + "\n")


def refuse_used(path: Path) -> None:
    """Raise `ConfigError` where `path` cannot become a new folder of traces."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"expected output_dir to be a folder, found the file {path}; name another with --output_dir")
    for name in (ROWS, HEADER):
        if (path / name).exists():
            raise ConfigError(f"output_dir {path} already holds traces; name another with --output_dir")
