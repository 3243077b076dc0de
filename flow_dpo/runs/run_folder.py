"""Run folder: the files that a run writes, their layout, and how it is reopened and read.

The folder can be read while it is being written, and however its process ended:

    config.yaml      every setting as it was resolved; written before anything is loaded
    run.json         versions, commit, device, data set and its fingerprint
    metrics.jsonl    one row per batch of problems
    trees.jsonl      one tree per problem: nodes, token ids, text, verdicts
    pairs.jsonl      one pair per line: prompt, chosen, rejected, in text and token ids; role, node, depth, verdicts
    scored.jsonl     the same for recipes that learn from single completions with an advantage
    learned.jsonl    examples in the order in which they were learned, with log-probabilities of policy and reference
    evaluations.jsonl   evaluations made during the run, if any were asked for (`evaluate.during`)
    tokens.jsonl     the text of each token that occurred
    timeline.jsonl   who sampled, learned and waited, from when to when (`spans`)
    checkpoints/     the state of the run (`checkpoint`)
    adapters/<role>/<version>/   in PEFT's layout
    served/          the adapters in force, for an engine that reads files; removed at the end
    progressive.png  the picture of the run
    trackers.json    how each tracker of `--report_to` finds its curve again, and how far it got

Invariant: rows are only ever appended, and a checkpoint knows how long the files were; whatever follows, complete or
not, is cut off when the run is resumed. Only one process at a time writes to a folder.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Role
from flow_dpo.runs import headers
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.records import LearnedRow, Metrics, PairRow, Record, ScoredRow, append_rows
from flow_dpo.runs.resolve import read_settings
from flow_dpo.runs.tree_rows import TokenRow, TreeRow
from flow_dpo.runs.writable import check_writable

_PACKAGES = ("flow-dpo", "torch", "transformers", "peft", "datasets", "math-verify", "tokenizers", "numpy",
             "bitsandbytes")  # fmt: skip


RECORDS = (
    "metrics.jsonl", "trees.jsonl", "pairs.jsonl", "scored.jsonl", "learned.jsonl", "tokens.jsonl", "timeline.jsonl",
)  # fmt: skip


class RunFolder:
    """An open run folder. `create` makes one and refuses a folder that holds a run, `clear` undoes that; `reopen`
    resumes a run in its folder."""

    def __init__(self, path: Path, *, begun: bool = False) -> None:
        self.path = path
        self.begun = begun
        """Whether sampling has begun, so that the folder must be kept whatever happens."""

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> RunFolder:
        """Make the folder with its config and its facts. Raises `ConfigError` if it already holds a run."""
        refuse_used(path)
        path.mkdir(parents=True, exist_ok=True)
        headers.write_header(path / "run.json", headers.RunFacts, {**environment(), **facts})
        # Last, and completely or not at all: this file makes the folder a run that can be resumed.
        folder = cls(path)
        folder._write_config(config)
        return folder

    def clear(self) -> None:
        """Remove what `create` wrote, so that another run can use the folder."""
        for name in ("config.yaml", "run.json", "evaluations.jsonl", *RECORDS):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "served", ignore_errors=True)

    def empty(self, config: Mapping[str, Any]) -> None:
        """Begin again with these settings; nothing was committed yet."""
        self._write_config(config)
        (self.path / "scored.jsonl").unlink(missing_ok=True)  # only few recipes have it: made when there are rows
        for name in RECORDS:
            if name != "scored.jsonl":
                (self.path / name).write_bytes(b"")

    def reopen(self, sizes: Mapping[str, int]) -> None:
        """Resume a run whose record files had these sizes in bytes; whatever was written after that is cut off.

        A file that an older checkpoint does not name was empty. Raises `DataError` if a file is shorter than it was.
        """
        path = self.path
        for name in RECORDS:
            found = (path / name).stat().st_size if (path / name).exists() else 0
            if found < sizes.get(name, 0):
                raise DataError(
                    f"expected at least the {sizes[name]} bytes in {path / name} that its checkpoint knows of, found "
                    f"{found}: something else has changed the file; restore it, or start a new run in another folder"
                )
        for name in RECORDS:
            if not (path / name).exists():
                continue
            with (path / name).open("ab") as file:
                file.truncate(sizes.get(name, 0))
                os.fsync(file.fileno())

    def sizes(self) -> dict[str, int]:
        """Sizes of the record files, in bytes."""
        paths = {name: self.path / name for name in RECORDS}
        return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}

    def note(self, facts: Mapping[str, Any]) -> None:
        """Add facts to run.json."""
        known = read_facts(self.path)
        headers.write_header(self.path / "run.json", headers.RunFacts, {**known, **facts})

    def record(
        self,
        row: Metrics,
        trees: Sequence[TreeRow],
        *,
        pairs: Sequence[PairRow] = (),
        scored: Sequence[ScoredRow] = (),
        learned: Sequence[LearnedRow] = (),
        tokens: Sequence[TokenRow] = (),
    ) -> None:
        """Append one batch: its trees, the examples made and learned, and last its row of metrics."""
        self._append("tokens.jsonl", tokens)
        self._append("trees.jsonl", trees)
        self._append("pairs.jsonl", pairs)
        self._append("scored.jsonl", scored)
        self._append("learned.jsonl", learned)
        self._append("metrics.jsonl", [row])

    def latest_adapters(self) -> dict[Role, Path]:
        """The newest adapter of each role. Raises `DataError` if the run has none."""
        return latest_adapters(self.path)

    def _write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        write_whole(self.path / "config.yaml", text)

    def _append(self, name: str, rows: Sequence[Record]) -> None:
        append_rows(self.path / name, rows)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a run's folder for this process. The lock ends with the process, however it ends.

    A folder in which nothing was written is removed afterwards.
    Raises `ConfigError` if another process holds the lock.
    """
    check_writable(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another process{_holder(path / '.lock')} writes to {path}; wait for it, or name another folder with "
            "--output_dir"
        ) from error
    try:
        yield
    finally:
        lock.release()
        if [entry.name for entry in path.iterdir()] == [".lock"]:
            (path / ".lock").unlink()
            path.rmdir()


def _holder(lock: Path) -> str:
    """The process that holds a lock, as " (pid 812)"; "" if the system does not tell."""
    try:
        locks, inode = Path("/proc/locks").read_text(encoding="ascii").splitlines(), lock.stat().st_ino
    except OSError:
        return ""
    # "1: FLOCK  ADVISORY  WRITE 812 fd:01:5678 0 EOF"
    pids = [words[4] for line in locks if len(words := line.split()) > 5 and words[5].endswith(f":{inode}")]
    return f" (pid {pids[0]})" if pids and int(pids[0]) > 0 else ""


def differences(known: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted names of all values that differ, with the old and the new one; None if there is none."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*known, *now]):
        old, new = known.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found[prefix + name] = (old, new)
    return found


def publish_adapters(checkpoint: Path, run: Path, version: int) -> None:
    """Copy a checkpoint's adapters to `adapters/<role>/<version>/`, each completely or not at all."""
    for source in sorted((checkpoint / "learner" / "adapters").iterdir()):
        done = run / "adapters" / source.name / str(version)
        beside = done.with_name(f"{version}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(source, beside)
        shutil.rmtree(done, ignore_errors=True)
        beside.replace(done)


_KINDS = {
    "config.yaml": "a run",
    "adapter_config.json": "an adapter",
    "summary.json": "an evaluation",
    "traces.json": "traces",
    "judge.json": "a judge's verdicts",
    "comparison.json": "a comparison",
    "lm_eval.json": "results of lm-eval",
}
"""What a folder holds, by the file that identifies it. Two kinds in one folder could not be told apart."""


def refuse_others(path: Path, *, own: str) -> None:
    """Raise `ConfigError` if `path` holds something of another kind than the one that the file `own` identifies."""
    for name, what in _KINDS.items():
        if name != own and (path / name).exists():
            raise ConfigError(f"output_dir {path} already holds {what}; name another with --output_dir")


def refuse_used(path: Path, *, resumes: bool = False) -> None:
    """Raise `ConfigError` if `path` cannot become a new run's folder. `resumes`: the command has --resume."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"expected output_dir to be a folder, found the file {path}; name another with --output_dir")
    if (path / "config.yaml").exists() or _holds_records(path):
        go_on = "add --resume to continue it, " if resumes else ""
        raise ConfigError(
            f"output_dir {path} already holds a run; {go_on}name another with --output_dir, or move it away"
        )
    refuse_others(path, own="config.yaml")


def refuse_unbegun(path: Path) -> None:
    """Raise `ConfigError` if there is no run at `path` to resume: --resume never starts a new run."""
    if (path / "config.yaml").is_file():
        return
    if _holds_records(path):
        raise ConfigError(
            f"expected the settings of the run in {path / 'config.yaml'}, found no such file: without it the run "
            "cannot be resumed; restore it, or start a new run in another folder"
        )
    runs = sorted(str(config.parent) for config in path.parent.glob("*/config.yaml"))
    near = difflib.get_close_matches(str(path), runs, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(
        f"expected a run to resume in {path}, found none; name its folder with --output_dir, or leave --resume out "
        f"to start one{hint}"
    )


def refuse_other_recipe(path: Path, then: object, now: object, allowed: object) -> None:
    """Raise `ConfigError` if a run that began with one recipe is resumed with another: the run's other settings can be
    for parts that the new one does not have. Only names are compared, unless `allowed` (--allow) names the recipe."""
    names = isinstance(then, str) and isinstance(now, str) and now != then
    if names and "recipe" not in str(allowed or "").split(","):
        raise ConfigError(
            f"{path} was started with the recipe {then}, found {now}; leave it out to resume the run, or name another "
            "folder with --output_dir to start one"
        )


def resumed_settings(path: Path) -> dict[str, Any]:
    """The settings of the run at `path`, which is to be resumed. Raises `ConfigError` if there is none, and `DataError`
    for one of another version, whose settings may have other names."""
    refuse_unbegun(path)
    read_facts(path)
    return read_settings(path / "config.yaml")


def _holds_records(path: Path) -> bool:
    """Whether this folder holds a run's rows or checkpoints. Empty files belong to a run that never began."""
    return any((path / name).exists() and (path / name).stat().st_size for name in RECORDS) or any(
        (path / "checkpoints").glob("[0-9]*")
    )


def latest_adapters(path: Path) -> dict[Role, Path]:
    """The adapter folder of each role, for the newest version that all roles of the run at `path` have.

    A run from the hub has one version, in `<role>/`. Raises `DataError` if there is none.
    """
    if published := published_roles(path):
        return {role: path / role for role in published}
    roles = [role for role in sorted((path / "adapters").glob("*")) if role.is_dir()]
    versions = [{int(folder.name) for folder in role.iterdir() if folder.name.isdigit()} for role in roles]
    common = set[int].intersection(*versions) if versions else set[int]()
    if not common:
        raise DataError(f"expected a run folder with adapters/<role>/<version>/, found none in {path}")
    return {role.name: role / str(max(common)) for role in roles}


def published_roles(path: Path) -> list[Role]:
    """The roles whose adapters are in a folder from the hub (`flow_dpo.hub`), as its run.json names them; empty for
    other folders, whose adapters are in `adapters/`."""
    published = {} if (path / "adapters").exists() else read_facts(path).get("published")
    roles = published.get("roles") if isinstance(published, dict) else None
    return (
        [
            role
            for role in roles
            if isinstance(role, str) and Path(role).name == role and (path / role / "adapter_config.json").is_file()
        ]
        if isinstance(roles, list)
        else []
    )


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in run.json of the run at `path`; empty if there is none.

    Raises `DataError` if the file is broken, or of another version.
    """
    return headers.read_header(path / "run.json", headers.RunFacts, absent={})


def environment() -> dict[str, Any]:
    """Facts that a run's numbers depend on besides its settings: versions, platform, and commit and code as they were
    when this process first asked.

    Contains no environment variable and no secret.
    """
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
        "code": _code(),
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


@lru_cache(maxsize=1)
def _commit() -> str | None:
    folder = Path(__file__).resolve().parent.parent.parent
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


@lru_cache(maxsize=1)
def _code() -> str:
    """SHA-256 over this package's modules: equal for two runs of the same code."""
    folder, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def free_folder(name: str, file: str) -> str:
    """`name`, or the first of `name`-2, `name`-3, ... that does not hold `file`: the first or the last file that a
    command writes."""
    free, number = name, 1
    while (Path(free) / file).exists():
        number += 1
        free = f"{name}-{number}"
    return free
