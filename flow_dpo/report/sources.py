"""The sources of a report: recognised by their files, read and checked.

    a folder with config.yaml and trees.jsonl         a run of `flow-dpo train`, finished or interrupted
    a folder with summary.json                        an evaluation of `flow-dpo evaluate`
    a folder with traces.jsonl                        traces of `flow-dpo generate`
    a folder with judge.json and summary.json         verdicts of `flow-dpo judge`
    comparison.json, or the folder that holds it      a comparison of `flow-dpo compare`

Invariant: everything is read and checked before anything is written; a broken row is named by file and line. An empty
or broken source keeps its place in the report, with its fault, as long as another one can be read.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError, FlowDpoError
from flow_dpo.core.stats import wilson
from flow_dpo.core.types import Status
from flow_dpo.evaluate.headers import Comparison, EvaluationSummary, JudgeHeader, JudgeSummary
from flow_dpo.report.run_data import RunCounts, count_run
from flow_dpo.runs import headers, resolve, run_folder, spans
from flow_dpo.runs.records import Prediction, iter_rows, read_metrics
from flow_dpo.traces.trace import ROWS, Trace, TraceFile, read_traces


@dataclass(frozen=True, kw_only=True)
class RunSource:
    """A training run."""

    name: str
    path: Path
    settings_text: str
    """The text of config.yaml."""
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    """run.json; empty if there is none."""
    rows: Sequence[Mapping[str, Any]]
    """metrics.jsonl; empty if the run was interrupted before its first batch was done."""
    counts: RunCounts
    spans: Sequence[spans.SpanRow] = ()
    """timeline.jsonl, only the newest batches."""

    @property
    def num_seen(self) -> int:
        """Problems that were learned from."""
        return int(self.rows[-1]["problems_seen"]) if self.rows else 0

    @property
    def num_problems(self) -> int | None:
        """Problems that the run was given."""
        value = self.facts.get("num_problems")
        return value if isinstance(value, int) else None


@dataclass(frozen=True, kw_only=True)
class EvaluationSource:
    """An evaluation."""

    name: str
    path: Path
    summary: Mapping[str, Any]
    statuses: Mapping[str, Status]
    """Of the first draw on each problem, by its id. Empty for another's candidates, and without predictions.jsonl."""

    @property
    def untrained(self) -> bool:
        """The base model alone, without an adapter."""
        return not self.summary.get("adapters")

    @property
    def single(self) -> bool:
        """One pass of the Answer role."""
        return (self.summary.get("settings") or {}).get("mode") == "single"

    @property
    def draws(self) -> bool:
        """Attempts that Stop judged once each, instead of rollouts of the flow."""
        return bool(self.summary.get("votes"))

    @property
    def fixed_set(self) -> bool:
        """Stop's word on candidates of another evaluation: their accuracy is not this model's."""
        return bool(self.summary.get("candidates"))


@dataclass(frozen=True, kw_only=True)
class TracesSource:
    """A folder of traces."""

    name: str
    path: Path
    file: TraceFile

    @property
    def firsts(self) -> list[Trace]:
        """The first trace of each problem."""
        return list({trace.problem_id: trace for trace in reversed(self.file.traces)}.values())[::-1]


@dataclass(frozen=True, kw_only=True)
class ComparisonSource:
    """A comparison. Its numbers are all in the file, so its folders are not needed."""

    name: str
    path: Path
    found: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class JudgeSource:
    """A judge's verdicts on two sets of traces."""

    name: str
    path: Path
    header: Mapping[str, Any]
    """judge.json: the questions' settings, the judge, and the command."""
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BrokenSource:
    """A source that cannot be read."""

    name: str
    path: Path
    reason: str
    """What was expected, what was found and what to do."""


Source = RunSource | EvaluationSource | TracesSource | ComparisonSource | JudgeSource | BrokenSource


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """All sources, each under a name of its own. Raises `DataError` for a path that does not exist, and the first error
    if no source can be read."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{_NONE}, found {_described(path)}")
    sources: list[Source] = []
    errors: list[FlowDpoError] = []
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            sources.append(read_source(path, name))
        except (FlowDpoError, OSError, UnicodeDecodeError) as error:
            wrong = error if isinstance(error, FlowDpoError) else DataError(f"expected a source, found {error}")
            errors.append(wrong)
            sources.append(BrokenSource(name=name, path=path, reason=str(wrong)))
    if errors and len(errors) == len(sources):
        raise errors[0]
    return sources


def _names(paths: Sequence[Path]) -> list[str]:
    """The end of each path, as long as it takes to be unique."""
    parts = [(one.parent if one.name == "comparison.json" else one).parts for one in (path.resolve() for path in paths)]
    names: list[str] = []
    for own in parts:
        others = [other for other in parts if other != own]
        sizes = (size for size in range(1, len(own)) if all(other[-size:] != own[-size:] for other in others))
        names.append("/".join(own[-next(sizes, len(own)) :]))
    return names


def read_source(path: Path, name: str) -> Source:
    """One source. Raises `DataError` if it is not one."""
    if path.is_file() and path.suffix == ".json" and path.name not in ("summary.json", "run.json", "traces.json"):
        return _comparison(path, name)
    if (path / "comparison.json").is_file():
        return _comparison(path / "comparison.json", name)
    if (path / "judge.json").is_file():
        return _judge(path, name)
    if (path / "summary.json").is_file():
        return _evaluation(path, name)
    if (path / ROWS).is_file():
        return _traces(path, name)
    # Before its first batch, a run only has its settings.
    records = [(path / name).is_file() for name in ("trees.jsonl", "metrics.jsonl")]
    if (path / "config.yaml").is_file() and (records[0] or not any(records)):
        return _run(path, name)
    raise DataError(f"{_NONE}, found {_described(path)}")


_NONE = "expected a run, an evaluation, traces, a comparison or a judge's verdicts"


_TIMELINE_BATCHES = 12
"""As many batches as fit a phone's width."""
_PARTS = (
    ("trees.jsonl", "config.yaml", "a run"),
    ("config.yaml", "trees.jsonl", "a run"),
    ("predictions.jsonl", "summary.json", "an evaluation"),
    ("sampled.jsonl", "summary.json", "an evaluation"),
    ("traces.json", ROWS, "traces"),
)
"""What an incomplete folder holds, what it lacks, and what it would otherwise be."""


def _described(path: Path) -> str:
    """What was found at a path instead, and what to name."""
    if not path.exists():
        return f"nothing at {path}"
    if path.is_file():
        return f"the file {path}; name its folder, or a comparison.json"
    entries = sorted(entry.name for entry in path.iterdir())
    if "adapter_config.json" in entries:
        command = shlex.join(["flow-dpo", "evaluate", "--mode", "single", "--adapter", str(path)])
        return f"an adapter in {path}; evaluate it ({command}) and name that evaluation"
    marks = ("trees.jsonl", "summary.json", ROWS, "comparison.json")
    if entries == [".lock"]:
        return f"only a lock in {path}: what was started there has not written anything yet, or was interrupted before"
    for part, whole, what in _PARTS:
        if part in entries and whole not in entries:
            return f"{what} without its {whole} in {path}: it was interrupted, or the file was lost"
    inside = [entry for entry in entries if any((path / entry / mark).is_file() for mark in marks)]
    if inside:
        return f"none of these in {path} itself, but some below it; name those: {', '.join(inside[:5])}"
    return f"{path} with {', '.join(entries[:8]) or 'nothing in it'}"


def _run(path: Path, name: str) -> RunSource:
    facts = run_folder.read_facts(path)
    settings = resolve.read_settings(path / "config.yaml")
    for group in ("data", "model"):
        if not isinstance(settings.get(group) or {}, dict):
            raise DataError(
                f"expected the settings of {group!r} in {path / 'config.yaml'}, found {settings[group]!r:.80}: the "
                "file is damaged"
            )
    metrics = path / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.exists() else []
    counts = count_run(path, int(rows[-1]["problems_seen"]) if rows else 0)
    if rows and len(counts.rewards) < rows[-1]["problems_seen"]:
        raise DataError(
            f"expected {rows[-1]['problems_seen']} trees in {path / 'trees.jsonl'}, as many as metrics.jsonl counts, "
            f"found {len(counts.rewards)}: something has changed the files"
        )
    return RunSource(
        name=name,
        path=path,
        settings_text=(path / "config.yaml").read_text(encoding="utf-8"),
        settings=settings,
        facts=facts,
        rows=rows,
        counts=counts,
        spans=spans.read_spans(path / spans.FILE, num_batches=_TIMELINE_BATCHES),
    )


def _evaluation(path: Path, name: str) -> EvaluationSource:
    summary = headers.read_header(path / "summary.json", EvaluationSummary)
    correct, draws = summary.get("num_correct"), summary.get("num_draws")
    if "accuracy_graded" not in summary and summary.get("num_ungraded") and draws and correct is not None:
        # An older file states the accuracy over what could be graded.
        summary["accuracy_graded"] = summary["accuracy"]
        summary |= {"accuracy": correct / draws, "interval": list(wilson(correct, draws))}
    statuses: dict[str, Status] = {}
    file = path / "predictions.jsonl"
    for _, row in iter_rows(file, Prediction) if file.exists() and not summary.get("candidates") else ():
        statuses.setdefault(row.id, "ungraded" if row.verdict is None else row.verdict.status)
    return EvaluationSource(name=name, path=path, summary=summary, statuses=statuses)


def _judge(path: Path, name: str) -> JudgeSource:
    if not (path / "summary.json").is_file():
        raise DataError(
            f"expected summary.json beside judge.json in {path}, found none: the judge has not finished; run its "
            "command again to resume it"
        )
    return JudgeSource(
        name=name,
        path=path,
        header=headers.read_header(path / "judge.json", JudgeHeader),
        summary=headers.read_header(path / "summary.json", JudgeSummary),
    )


def _traces(path: Path, name: str) -> TracesSource:
    return TracesSource(name=name, path=path, file=read_traces(path, none_allowed=True))


def _comparison(path: Path, name: str) -> ComparisonSource:
    return ComparisonSource(name=name, path=path, found=headers.read_header(path, Comparison))
