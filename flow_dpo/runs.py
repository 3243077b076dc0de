"""What does a run leave behind, and where?

A folder that can be read while it is written and after anything happened to its process:

    config.yaml      every setting as it was resolved
    run.json         versions, commit, device, data set and its fingerprint
    metrics.jsonl    one row a batch of problems
    trees.jsonl      one tree a problem: nodes, token ids, words, verdicts
    pairs.jsonl      one pair a line: prompt, chosen, rejected, in text and token ids, with role, node, depth, verdicts
    adapters/<role>/<version>/   in PEFT's layout
    progressive.png  the picture of the run

A batch's rows are written together, metrics last, so a batch without its metrics row was not finished.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from flow_dpo.errors import ConfigError, DataError
from flow_dpo.tree import Tree
from flow_dpo.types import Pair, Role

_PACKAGES = ("flow-dpo", "torch", "transformers", "peft", "datasets", "math-verify", "tokenizers", "numpy")


class RunFolder:
    """An open run folder. `create` makes one; it refuses a folder that already holds a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output_dir: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> RunFolder:
        """Make the folder with its config and its facts. Raises `ConfigError` where a run is there already."""
        path = Path(output_dir)
        refuse_used(path)
        path.mkdir(parents=True, exist_ok=True)
        _write(path / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
        _write(path / "run.json", json.dumps({**environment(), **facts}, indent=2) + "\n")
        for name in ("metrics.jsonl", "trees.jsonl", "pairs.jsonl"):
            (path / name).touch()
        return cls(path)

    def record(
        self, row: Mapping[str, Any], trees: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Append one batch: its trees, its pairs, and last its row of metrics."""
        self._append("trees.jsonl", trees)
        self._append("pairs.jsonl", pairs)
        self._append("metrics.jsonl", [row])

    def adapter_folder(self, role: Role, version: int) -> Path:
        """Where the adapter of one role and version lies."""
        return self.path / "adapters" / role / str(version)

    def latest_adapters(self) -> dict[Role, Path]:
        """The newest adapter of each role. Raises `DataError` where the run has none."""
        return latest_adapters(self.path)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            return
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with (self.path / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def refuse_used(path: Path) -> None:
    """Raise `ConfigError` where `path` cannot become a new run's folder."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"expected output_dir to be a folder, found the file {path}; name another with --output_dir")
    if (path / "config.yaml").exists() or (path / "metrics.jsonl").exists():
        raise ConfigError(f"output_dir {path} already holds a run; name another with --output_dir, or move it away")


def latest_adapters(path: Path) -> dict[Role, Path]:
    """The newest adapter folder of each role of the run at `path`. Raises `DataError` where there is none."""
    found: dict[Role, Path] = {}
    for role in sorted((path / "adapters").glob("*")):
        versions = [folder for folder in role.iterdir() if folder.name.isdigit()]
        if versions:
            found[role.name] = max(versions, key=lambda folder: int(folder.name))
    if not found:
        raise DataError(f"expected a run folder with adapters/<role>/<version>/, found none in {path}")
    return found


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's file. A last line without its newline was torn off and is left out; others must be whole."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"expected a JSON object, found a broken line in {path}, line {number}: {error}"
                ) from error
            rows.append(row)
    return rows


def pair_row(pair: Pair, tree: Tree, texts: Mapping[str, str]) -> dict[str, Any]:
    """One line of pairs.jsonl. TRL reads `prompt`, `chosen`, `rejected` and ignores the rest."""
    verdicts = {
        name: asdict(verdict) if (verdict := tree.rollouts[tree.nodes[node].rollout].verdict) else None
        for name, node in (("chosen", pair.chosen_node), ("rejected", pair.rejected_node))
    }
    return {
        **texts,
        "problem_id": pair.problem_id,
        "role": pair.request.role,
        "node": pair.chosen_node,
        "rejected_node": pair.rejected_node,
        "depth": pair.depth,
        "tags": list(pair.tags),
        "margin": pair.margin,
        "weight": pair.weight,
        "chosen_verdict": verdicts["chosen"],
        "rejected_verdict": verdicts["rejected"],
        "policy_version": pair.chosen.policy_version,
        "prompt_ids": list(pair.request.prompt_ids),
        "chosen_ids": list(pair.chosen.token_ids),
        "rejected_ids": list(pair.rejected.token_ids),
    }


def environment() -> dict[str, Any]:
    """What a number of this run depends on besides its settings. Names no environment variable and no secret."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "commit": _commit(),
    }


def plain(value: Any) -> Any:
    """Nested settings as dicts and lists that YAML and JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _write(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
