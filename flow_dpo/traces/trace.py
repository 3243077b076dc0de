"""Traces: their files, and which of a problem's correct rollouts become traces.

A trace is the attempt that produced a right answer, and nothing else. What a rollout abandoned before it started again
is cut off at the piece that the flow marked, never by searching the text, and the attempt is verified again by itself.
With sampled ids in parentheses, and the flow's own text in quotes:

    pieces      (7 8 9)  "Wait, that is wrong."  (4 5)  (6)  "\\n"        Stop answered No once, then Yes
    trace                                         4 5    6                its ids; text and verdict are of these alone

A file of traces is `traces.jsonl`, one trace per line. `traces.json` beside it says how they were made and at what
cost. Invariant: each trace in a file is right by itself, as a finished solution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flow_dpo.core.errors import ConfigError, DataError, StorageError
from flow_dpo.runs import headers
from flow_dpo.runs.records import Source, Trace, append_rows, read_rows

__all__ = [
    "GROUND_TRUTH_RULE",
    "HEADER",
    "ROWS",
    "SelectionSettings",
    "Source",
    "Trace",
    "TraceFile",
    "TraceFolder",
    "interrupted",
    "read_traces",
    "refuse_used",
]  # fmt: skip

ROWS = "traces.jsonl"
HEADER = "traces.json"


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """Selection of the traces among a problem's right rollouts."""

    take: Literal["first", "shortest"] = "first"
    """"first" stops drawing as soon as a problem has its traces; "shortest" makes all draws and takes the traces with
    the fewest tokens (the paper keeps correct traces and does not state which)."""
    traces_per_problem: int = 1
    """Maximum number of traces per problem."""
    deduplicate: bool = True
    """Keep only the first of several traces with the same text."""

    def __post_init__(self) -> None:
        if self.traces_per_problem < 1:
            raise ConfigError(f"expected traces_per_problem of at least 1, found {self.traces_per_problem}")

    def distinct(self, found: Sequence[Trace]) -> list[Trace]:
        """The traces without repetitions: the earliest of each text."""
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
        """The traces to keep of one problem's right rollouts, given in the order in which they were drawn."""
        distinct = self.distinct(found)
        if self.take == "shortest":
            distinct = sorted(distinct, key=lambda trace: (len(trace.token_ids), trace.draw))
        return distinct[: self.traces_per_problem]

    def rule(self) -> str:
        """The rule as a sentence, for the header."""
        which = "the first correct" if self.take == "first" else "the shortest correct of all draws"
        return (
            f"{which}, at most {self.traces_per_problem} a problem, "
            f"{'the same words once' if self.deduplicate else 'repetitions kept'}; only the attempt that produced the "
            "answer, verified again by itself"
        )


GROUND_TRUTH_RULE = "the data set's own solution of each problem, where the verifier finds it right; nothing was drawn"
"""The selection rule of traces that were not sampled."""


@dataclass(frozen=True, kw_only=True)
class TraceFile:
    """Traces that were read back."""

    path: Path
    traces: tuple[Trace, ...]
    header: Mapping[str, Any]
    """The content of traces.json; empty if there is none."""


def read_traces(path: Path, *, none_allowed: bool = False) -> TraceFile:
    """The traces of a file, or of the folder that `flow-dpo generate` wrote.

    An incomplete last line is left out, with a warning. Raises `DataError` if there are no traces (unless
    `none_allowed` is set and a header says how none were found), and for the first invalid row or header field.
    """
    file = path / ROWS if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"expected traces in {file}, found no such file; make them with flow-dpo generate")
    traces = tuple(read_rows(file, Trace))
    header = headers.read_header(file.with_name(HEADER), headers.TracesHeader, absent={})
    if not traces and not (none_allowed and header):
        raise DataError(
            f"expected traces in {file}, found none; generate more, with more --num_samples or --max_problems"
        )
    return TraceFile(path=file, traces=traces, header=header)


class TraceFolder:
    """An open folder of traces. Rows are only appended; the header is updated batch by batch."""

    def __init__(self, path: Path, header: Mapping[str, Any], *, num_traces: int = 0) -> None:
        """Start the folder, or continue one that was interrupted after `num_traces` traces.

        Raises `ConfigError` if it already holds a complete set of traces.
        """
        refuse_used(path)
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._header = dict(header)
        with self._writing():
            lines = (path / ROWS).read_bytes().splitlines(keepends=True)[:num_traces] if num_traces else []
            (path / ROWS).write_bytes(b"".join(lines))
        self.note({"complete": False})

    def append(self, traces: Sequence[Trace], facts: Mapping[str, Any]) -> None:
        """Append one batch's traces, and update the header's facts on all so far. Raises `StorageError`."""
        with self._writing():
            append_rows(self.path / ROWS, traces)
        self.note(facts)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write facts to the header. Raises `StorageError`."""
        self._header.update(facts)
        with self._writing():
            headers.write_header(self.path / HEADER, headers.TracesHeader, self._header)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"could not write to {self.path}: {error}; the traces up to the last batch are whole: make room, and "
                "give the same command again"
            ) from error


def refuse_used(path: Path) -> None:
    """Raise `ConfigError` if `path` cannot become a folder of traces; an interrupted one can be continued."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"expected output_dir to be a folder, found the file {path}; name another with --output_dir")
    if ((path / ROWS).exists() or (path / HEADER).exists()) and interrupted(path) is None:
        raise ConfigError(f"output_dir {path} already holds traces; name another with --output_dir")


def interrupted(path: Path) -> dict[str, Any] | None:
    """The header of an interrupted folder of traces; None if there is no folder, or if it is complete."""
    header = headers.read_header(path / HEADER, headers.TracesHeader, absent={})
    return header if header.get("complete") is False else None
