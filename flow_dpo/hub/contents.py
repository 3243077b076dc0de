"""The files of a push, by repository. They are read from the run, which is never written to, before anything is sent.

    adapters    me/name             answer/adapter_model.safetensors, stop/..., config.yaml, run.json, README.md
    merged      me/name-answer      the whole model of a role, its tokenizer and README.md
    traces      me/name-traces      a data set: train.jsonl and README.md
    pairs       me/name-pairs       a data set: train.jsonl and README.md

Invariant: only these files are sent: no records except those asked for, no checkpoints, no logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Role
from flow_dpo.hub.cards import Origin, adapters_card, merged_card, plain
from flow_dpo.hub.figures import Figures, figures
from flow_dpo.hub.scrub import (
    begun_in,
    is_local,
    last_part,
    published_config,
    published_facts,
    scrubbed,
    scrubbed_dataset,
)
from flow_dpo.hub.settings import PushSettings
from flow_dpo.runs import headers, published, run_folder
from flow_dpo.runs.files import read_object
from flow_dpo.runs.resolve import read_settings
from flow_dpo.traces import export
from flow_dpo.traces.trace import ROWS as TRACES
from flow_dpo.traces.trace import read_traces

_ROLE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The files for one repository, sent in one commit."""

    kind: str
    repo_id: str
    repo_type: Literal["model", "dataset"]
    files: Mapping[str, bytes | Path]
    """By path in the repository."""

    @property
    def num_bytes(self) -> int:
        """Total size of the files."""
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values())

    @property
    def words(self) -> str:
        """A description for people."""
        where = f"{'the data set ' if self.repo_type == 'dataset' else ''}{self.repo_id}"
        return f"{self.kind} to {where}: {len(self.files)} files, {_size(self.num_bytes)}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run, ready to be pushed."""

    run: Path
    adapters: Mapping[Role, Path]
    config: Mapping[str, Any]
    """The content of config.yaml without what must not leave this machine."""
    facts: Mapping[str, Any]
    figures: Figures
    origin: Origin


def read_source(run: Path, settings: PushSettings) -> Source:
    """Everything that a push can need from a run. Raises `DataError` or `ConfigError` before anything is sent."""
    published.refuse_missing(run)
    config, facts = read_settings(run / "config.yaml"), run_folder.read_facts(run)
    if (run / "adapter_config.json").exists():
        raise DataError(f"expected a run of flow-dpo train in {run}, found a fine-tuned adapter; push a run")
    adapters = run_folder.latest_adapters(run)
    odd = [role for role in adapters if not _ROLE.fullmatch(role)]
    if odd:
        raise ConfigError(f"expected roles of letters and digits (they name folders on the hub), found {odd[0]!r:.80}")
    root = begun_in(run, config)
    base = _base(config, settings.base_model, root)
    data = config.get("data") if isinstance(config.get("data"), dict) else {}
    dataset = scrubbed(str((data or {}).get("dataset_name") or "not known"), "dataset_name", root=root)
    kept = published_config(config, run, base_model=base)
    found = figures(run, [name.strip() for name in settings.evaluations.split(",") if name.strip()], root)
    shown = published_facts(facts, base_model=base)
    return Source(
        run=run,
        adapters=adapters,
        config=kept,
        facts=shown,
        figures=found,
        origin=Origin(
            repo_id=settings.repo_id,
            base="the seed model that is part of flow-dpo" if base == "seed" else base,
            base_id=None
            if base == "seed" or (is_local(_named_base(config), root) and not settings.base_model)
            else base,
            folder="flow_dpo/data/seed/model" if base == "seed" else base,
            recipe=str(kept.get("recipe") or "not known"),
            dataset="the seed problems that are part of flow-dpo" if dataset == "seed" else dataset,
            facts=shown,
            revision=settings.revision,
        ),
    )


def adapters_part(source: Source, settings: PushSettings) -> Part:
    """The adapters, and what `flow-dpo evaluate --run` needs to sample with them."""
    files: dict[str, bytes | Path] = {}
    for role, folder in source.adapters.items():
        shape = read_object(folder / "adapter_config.json")
        # PEFT has written the local path of the base model.
        files[f"{role}/adapter_config.json"] = _json({**shape, "base_model_name_or_path": source.origin.base_id})
        files[f"{role}/adapter_model.safetensors"] = folder / "adapter_model.safetensors"
    pushed = {"roles": list(source.adapters), "version": source.figures.updates}
    facts = {"schema": headers.RunFacts.SCHEMA, **source.facts, "published": pushed}
    files["config.yaml"] = yaml.safe_dump(dict(source.config), sort_keys=False, allow_unicode=True).encode()
    files["run.json"] = _json(facts)
    card = adapters_card(source.origin, source.figures, [*source.adapters], source.config)
    files["README.md"] = card.encode()
    return Part(kind="adapters", repo_id=settings.repository("adapters"), repo_type="model", files=files)


def merged_parts(source: Source, settings: PushSettings, folder: Path) -> list[Part]:
    """The merged models of all roles, written into `folder` first."""
    from flow_dpo.hub.merged import write_merged  # loads torch

    parts: list[Part] = []
    for role, written in write_merged(source.run, source.adapters, folder).items():
        repo_id = settings.repository("merged", role)
        files: dict[str, bytes | Path] = {
            path.relative_to(written).as_posix(): path for path in sorted(written.rglob("*")) if path.is_file()
        }
        config = read_object(written / "config.json")
        files["config.json"] = _json({name: value for name, value in config.items() if name != "_name_or_path"})
        origin = replace(source.origin, repo_id=repo_id)
        files["README.md"] = merged_card(origin, source.figures, role).encode()
        parts.append(Part(kind=f"merged {role}", repo_id=repo_id, repo_type="model", files=files))
    return parts


def traces_part(folder: Path, settings: PushSettings) -> Part:
    """Traces, as a data set of prompts and completions."""
    file = read_traces(folder)
    rows = export.trace_rows(file.traces, "prompt_completion")
    for row in rows:
        row["dataset"] = scrubbed_dataset(row["dataset"])
    facts = export.trace_facts(file)
    made = file.header.get("settings")
    root = begun_in(folder, {"run": made.get("generate") if isinstance(made, dict) else None})
    facts["model"] = scrubbed(facts["model"], root=root)
    if facts["problems"]:
        facts["problems"] = scrubbed_dataset(str(facts["problems"]), root)
    return _data_part("traces", "prompt_completion", rows, facts, settings)


def pairs_part(run: Path, settings: PushSettings) -> Part:
    """A run's preference pairs, as a data set."""
    rows = export.pair_rows(run)
    facts = {name: value for name, value in export.run_facts(run).items() if name != "command"}
    # If the base model was a local folder, its published name comes from the run's settings.
    config = read_settings(run / "config.yaml")
    facts["model"] = _base(config, settings.base_model, begun_in(run, config))
    return _data_part("pairs", "preference", rows, facts, settings)


def traces_folder(source: Path, settings: PushSettings) -> Path:
    """The folder with the traces to push: the one named, or the source itself."""
    if settings.traces:
        return Path(settings.traces)
    if (source / TRACES).is_file() or source.name == TRACES:
        return source
    raise ConfigError(
        f"expected traces in {source}, found none; make some with flow-dpo generate --run {source} --output_dir FOLDER "
        "and name the folder with --traces"
    )


def _data_part(
    kind: str, format: export.Format, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any],
    settings: PushSettings,
) -> Part:  # fmt: skip
    repo_id = settings.repository(kind)
    # The name includes the split, "openai/gsm8k/train"; the caller has already scrubbed it.
    known = {
        name: plain(value if name == "problems" else scrubbed(value))
        for name, value in facts.items()
        if value not in (None, "", {})
    }
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    card = export.card(format, rows, known, repo_id=repo_id, revision=settings.revision)
    files: dict[str, bytes | Path] = {export.ROWS: text.encode(), export.CARD: card.encode()}
    return Part(kind=kind, repo_id=repo_id, repo_type="dataset", files=files)


def _named_base(config: Mapping[str, Any]) -> str:
    model = config.get("model")
    return str((model.get("model_name_or_path") if isinstance(model, dict) else None) or "seed")


def _base(config: Mapping[str, Any], given: str, root: Path) -> str:
    """The base model by a name that others can use; a local folder by its last part."""
    named = _named_base(config)
    return given or (last_part(named) if is_local(named, root) else named)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _size(num_bytes: int) -> str:
    value, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
