"""The JSON headers run.json and traces.json, which say how the rows beside them were made: kinds, writer and reader.

    {"schema": "run/1", "versions": {"torch": "2.13.0"}, "model": "seed", "num_problems": 192, ...}

A kind names the fields that readers rely on; others are kept as they are. The headers of evaluations, judges and
comparisons are in `evaluate.headers`. Invariant: a file of another kind or version is refused in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flow_dpo.core.types import Role
from flow_dpo.data.typed_json import Count, others
from flow_dpo.runs import files
from flow_dpo.runs.records import Record, from_json


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """run.json: what a training or fine-tuning run depends on besides its settings."""

    SCHEMA: ClassVar[str] = "run/1"
    model: str | None = None
    num_problems: Count | None = None
    """Problems that the run was given."""
    command: str | None = None
    versions: Mapping[str, str | None] | None = None
    cost: Mapping[str, float | None] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class TracesHeader:
    """traces.json: how traces were made, and what they cost."""

    SCHEMA: ClassVar[str] = "traces/1"
    complete: bool = True
    source: str = ""
    selection: str = ""
    command: str = ""
    model: str = ""
    tokenizer: str = ""
    dataset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[Role, Any] = field(default_factory=dict)
    counts: Mapping[str, float | None] = field(default_factory=dict)
    cost: Mapping[str, float | None] = field(default_factory=dict)
    versions: Mapping[str, str | None] | None = None
    more: Mapping[str, Any] = others()


def write_header(path: Path, kind: type[Record], facts: Mapping[str, Any]) -> None:
    """Write a JSON file of this kind, whole or not at all."""
    text = json.dumps({"schema": kind.SCHEMA, **facts}, indent=2, ensure_ascii=False)
    files.write_whole(path, text + "\n")


def read_header(path: Path, kind: type[Record], *, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of a JSON file of this kind, without its schema; `absent` if there is no file.

    Raises `DataError` naming the file and the field.
    """
    found = files.read_object(path, absent=absent)
    if found is not absent:
        from_json(kind, found, str(path))
    return {name: value for name, value in found.items() if name != "schema"}
