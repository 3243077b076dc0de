"""What the table of sources shows for each one, read leniently from the small files beside its rows.

    headers, notes = read_headers(source)
    facts_of(source, headers, batches, totals)      {"recipe": "flow-dpo", "model": "seed", "accuracy": 0.93, ...}

Invariant: a file that is missing, broken or foreign only makes its facts None; a broken one gets a note. What can be a
path of this machine (model, data, code, folders) is shown as `named` returns it, so a copy can cut it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from flow_dpo.core.errors import DataError, FlowDpoError
from flow_dpo.report.viewer.curves import Batches
from flow_dpo.report.viewer.found import ViewSource, opened
from flow_dpo.report.viewer.lines import integer, mapping, number, parse_line, read_lines, text
from flow_dpo.runs.local_names import begun_in
from flow_dpo.runs.resolve import read_settings

_LARGEST = 8 * 2**20
"""Most bytes of a header that is read."""
HEADERS = {
    "run": ("config.yaml", "run.json"),
    "evaluation": ("summary.json",),
    "traces": ("traces.json",),
    "judgements": ("judge.json", "summary.json"),
}
"""The small files of each kind of source."""
STARTED = "timeline.jsonl"
"""The first row of this file says when a run began to sample."""
Facts = dict[str, Any]
_Show = Callable[..., str | None]
"""`_shown` for one source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the items of a source, from its index."""

    num: int = 0
    pairs: int | None = None
    """None, like the next two, until it is known."""
    scored: int | None = None
    tokens: int | None = None
    sampled: int = 0
    """Problems sampled by an unfinished evaluation."""
    roles: Mapping[str, int] = field(default_factory=dict[str, int])


def read_headers(source: ViewSource) -> tuple[dict[str, Mapping[str, Any]], list[tuple[str, str]]]:
    """A source's small files by name, empty for a missing or broken one, and notes on the broken ones."""
    found: dict[str, Mapping[str, Any]] = {}
    notes: list[tuple[str, str]] = []
    for name in HEADERS[source.kind]:
        found[name] = {}
        try:
            path = opened(source, name)
            if not path.is_file():
                continue
            if path.stat().st_size > _LARGEST:
                raise DataError(f"expected a file of at most {_LARGEST // 2**20} MiB, found a larger one")
            found[name] = read_settings(path) if name == "config.yaml" else _object(path)
        except OSError as error:
            notes.append((name, f"it cannot be read: {error.strerror}"))
        except FlowDpoError as error:
            notes.append((name, str(error)))
    return found, notes


def first_row(source: ViewSource, name: str) -> Mapping[str, Any]:
    """The first row of a file; empty if it cannot be read."""
    try:
        path = opened(source, name)
        with path.open("rb") as file:
            lines = read_lines(file, start=0, number=0, end=min(path.stat().st_size, _LARGEST))
            return next((_parsed(line.content) for line in lines), {})
    except (OSError, DataError):
        return {}


def _object(path: Path) -> Mapping[str, Any]:
    content = path.read_bytes()
    if not content:
        raise DataError("expected JSON, found an empty file")
    return parse_line(content)


class Named(Protocol):
    """How to show a name that can be a path of this machine."""

    def __call__(self, value: str, root: Path, *, is_path: bool = False) -> str:
        """The name of a model, of data or of code. A relative path starts at `root`; `is_path`: it surely is a path."""
        ...


def as_it_stands(value: str, root: Path, *, is_path: bool = False) -> str:
    """The name unchanged."""
    return value


def facts_of(
    source: ViewSource,
    headers: Mapping[str, Mapping[str, Any]],
    batches: Batches,
    totals: Totals,
    named: Named = as_it_stands,
) -> Facts:
    """The facts of a source, by its kind. Every fact is present, None if it is unknown."""
    show = partial(_shown, named, begun_in(source.path, _output_dir(headers)))
    if source.kind == "run":
        return _of_run(headers, batches, totals, show)
    if source.kind == "evaluation":
        return _of_evaluation(headers["summary.json"], totals.sampled, show)
    if source.kind == "traces":
        return _of_traces(headers["traces.json"], totals, show)
    return _of_judgements(headers["judge.json"], headers["summary.json"], totals, show)


def _shown(named: Named, root: Path, value: str | None, *, is_path: bool = False) -> str | None:
    return named(value, root, is_path=is_path) if value else value


def _output_dir(headers: Mapping[str, Mapping[str, Any]]) -> object:
    """The folder that was given to the command, from the first header that names it."""
    for header in headers.values():
        settings = mapping(header.get("settings"))
        for section in (mapping(header.get("run")), settings, mapping(settings.get("generate"))):
            if section.get("output_dir"):
                return section["output_dir"]
    return None


def _of_run(headers: Mapping[str, Mapping[str, Any]], batches: Batches, totals: Totals, show: _Show) -> Facts:
    settings, facts, first = headers["config.yaml"], headers["run.json"], headers.get(STARTED, {})
    model, data = mapping(settings.get("model")), mapping(settings.get("data"))
    seconds, updates, sampled = batches.seconds(), batches.updates(), batches.sampled()
    flow = text(settings.get("flow_source"))
    return {
        "recipe": show(text(settings.get("recipe"))),
        "flow": show(flow) or None,
        "preset": text(settings.get("preset")) or None,
        "model": show(text(facts.get("model")) or text(model.get("model_name_or_path"))),
        "dataset": _dataset(data, show),
        "problems_seen": batches.ends[-1] if batches.ends else 0,
        "num_problems": integer(facts.get("num_problems")),
        "accuracy": batches.last("progressive/window_accuracy"),
        "low": batches.last("progressive/window_low"),
        "high": batches.last("progressive/window_high"),
        "accuracy_at_start": batches.accuracy_at_start,
        "pairs": totals.pairs,
        "scored": totals.scored,
        "updates": updates[-1] if updates else 0,
        "tokens_sampled": sampled[-1] if sampled and sampled[-1] else totals.tokens,
        "seconds": seconds[-1] if seconds else None,
        "roles": _roles(batches) or list(totals.roles),
        "command": text(facts.get("command")),
        "started": moment(number(first.get("start"))),
    }


def moment(seconds: float | None) -> str | None:
    """A time in UTC, "2026-11-28T18:33:44+00:00", from seconds since 1970."""
    if seconds is None or not 0 <= seconds < 2**33:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _roles(batches: Batches) -> list[str]:
    """The flow's roles, in its order; each has a column for its nodes."""
    return [name.removeprefix("nodes/") for name in batches.series if name.startswith("nodes/")]


def _dataset(data: Mapping[str, Any], show: _Show) -> str | None:
    """The data set, its configuration and its split: "openai/gsm8k/main/train"."""
    name, *rest = (text(data.get(f"dataset_{part}")) for part in ("name", "config", "split"))
    return "/".join(part for part in (show(name), *rest) if part) or None


def _with_split(dataset: str | None, show: _Show) -> str | None:
    """A data set and its split, as evaluations and traces name it: "openai/gsm8k/test"."""
    name, slash, split = (dataset or "").rpartition("/")
    return f"{show(name)}{slash}{split}" if slash else show(dataset)


def _of_evaluation(summary: Mapping[str, Any], num_sampled: int, show: _Show) -> Facts:
    interval = summary.get("interval")
    low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
    settings = mapping(summary.get("settings"))
    candidates = bool(summary.get("candidates"))
    return {
        "accuracy": None if candidates else number(summary.get("accuracy")),
        "low": None if candidates else number(low),
        "high": None if candidates else number(high),
        "num_problems": integer(summary.get("num_problems")) if summary else num_sampled,
        "num_draws": integer(summary.get("num_draws")),
        "ungraded": integer(summary.get("num_ungraded")),
        "dataset": _with_split(text(summary.get("dataset")), show),
        "model": show(text(summary.get("model"))),
        "who": _who(summary, settings, show) if summary else None,
        "decoding": _decoding(mapping(summary.get("decoding"))),
        "tokens_sampled": integer(summary.get("tokens")),
        "command": text(summary.get("command")),
    }


def _who(summary: Mapping[str, Any], settings: Mapping[str, Any], show: _Show) -> str:
    """What was measured: "flow, adapters of runs/gsm8k"."""
    if summary.get("candidates"):
        what = "Stop on a fixed set of candidates"
    else:
        what = "single model" if settings.get("mode") == "single" else "attempts" if summary.get("votes") else "flow"
    if not summary.get("adapters"):
        return f"untrained {what}"
    source = text(settings.get("run")) or text(settings.get("adapter"))
    return f"{what}, adapters of {show(source, is_path=True) or 'an unnamed run'}"


def _decoding(decoding: Mapping[str, Any]) -> str | None:
    if not decoding:
        return None
    if decoding.get("greedy") is True:
        return "greedy"
    names = {"temperature": "temperature", "top_p": "top-p", "num_samples": "draws"}
    known = [f"{words} {value:g}" for name, words in names.items() if (value := number(decoding.get(name))) is not None]
    return ", ".join(["sampled", *known])


def _parsed(content: bytes) -> Mapping[str, Any]:
    try:
        return parse_line(content)
    except DataError:
        return {}


def _of_traces(header: Mapping[str, Any], totals: Totals, show: _Show) -> Facts:
    counts, cost = mapping(header.get("counts")), mapping(header.get("cost"))
    return {
        "num": totals.num,
        "problems": integer(counts.get("num_problems_sampled")),
        "num_problems": integer(header.get("num_problems")),
        "source": text(header.get("source")),
        "dataset": _with_split(text(header.get("dataset")), show),
        "model": show(text(header.get("model"))),
        "tokens_sampled": integer(cost.get("tokens_sampled")),
        "seconds": number(cost.get("seconds")),
        "command": text(header.get("command")),
    }


def _of_judgements(header: Mapping[str, Any], summary: Mapping[str, Any], totals: Totals, show: _Show) -> Facts:
    pairs = mapping(summary.get("pairs"))
    return {
        "wins_a": integer(pairs.get("a")),
        "wins_b": integer(pairs.get("b")),
        "ties": integer(pairs.get("tie")),
        "unparsed": integer(pairs.get("unparsed")),
        "num_pairs": integer(header.get("num_pairs")),
        "num": totals.num,
        "judge": show(text(header.get("judge"))),
        "dataset": None,
        "sides": [show(text(mapping(side).get("path")), is_path=True) for side in _list(header.get("traces"))],
        "command": text(header.get("command")),
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
