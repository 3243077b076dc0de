"""The run that `--run` names: a run folder as it is, or a run that was pushed to the hub, downloaded into the cache.

    local_run("runs/gsm8k")            runs/gsm8k
    local_run("me/gsm8k-flow")         ~/.cache/huggingface/hub/models--me--gsm8k-flow/snapshots/5c1f...
    local_run("me/gsm8k-flow@v2")      the same at a branch, a tag or a commit

A pushed run (`flow_dpo.hub`) has config.yaml, run.json and one adapter folder per role. Invariant: only those files of
a repository are fetched, adapters only as safetensors. Its settings say what was trained and how it is sampled, never
where to send requests, and code that they name runs only if the user asks for it (`resolve.RUNS_CODE`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flow_dpo.core.errors import ConfigError, DataError

_HUB_ID = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)
_FILES = ("config.yaml", "run.json", "*/adapter_config.json", "*/adapter_model.safetensors")
_LOCAL_ALONE = ("engine", "engine_kind", "workers")
"""Settings of the machine that sampled: a stranger's could send requests to their own server."""


def local_run(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a run: `source` itself, or the folder to which that repository of the hub was downloaded.

    A process downloads a repository only once, so settings and adapters come from one commit. Raises `ConfigError` for
    two revisions, `DataError` if the hub has no such run or cannot be reached.
    """
    if not is_published(source):
        if revision is not None:
            raise ConfigError(f"expected a hub id with the revision {revision}, found the folder {source}")
        return Path(source)
    match = _HUB_ID.fullmatch(str(source))
    assert match is not None
    if revision is not None and match["revision"] not in (None, revision):
        raise ConfigError(f"expected one revision, found {match['revision']} in {source} and {revision}")
    folder = _downloaded(match["id"], revision or match["revision"])
    if not ((folder / "config.yaml").is_file() and (folder / "run.json").is_file()):
        raise DataError(
            f"expected a run that flow-dpo push made in {source}, found no config.yaml and run.json in it; name a "
            "model with --model_name_or_path, or download another adapter and name its folder with --adapter"
        )
    return folder


def is_published(source: str | Path) -> bool:
    """Whether a source names a repository on the hub: an id whose first part is not a folder here.

    If the first part is a folder ("runs/trian"), a misspelled run is more likely, and the hub is not asked.
    """
    path = Path(source)
    if isinstance(source, Path) or path.exists() or _HUB_ID.fullmatch(source) is None:
        return False
    return not path.parent.is_dir()


def names_a_run(source: str | Path) -> bool:
    """Whether a source, which can also name a model, is a run: a folder with a config.yaml, or a hub repository with a
    run.json. If the hub does not answer, it is taken for a model, and loading that reports the failure."""
    if (Path(source) / "config.yaml").exists():
        return True
    if not is_published(source) or (match := _HUB_ID.fullmatch(str(source))) is None:
        return False
    try:
        hf_hub_download(match["id"], "run.json", revision=match["revision"])
    except (EntryNotFoundError, HfHubHTTPError, OSError):  # no such file, no such repository, no hub
        return False
    return True


def refuse_missing(run: Path) -> None:
    """Raise `DataError` if a folder holds no run, with a hint at the nearest one."""
    if (run / "config.yaml").exists():
        return
    raise DataError(f"expected a run folder with a config.yaml, found none in {run}{near_runs(run)}")


def near_runs(run: Path) -> str:
    """A hint at the runs that were most likely meant by a folder that is not one: "; did you mean runs/train?"."""
    runs = sorted(str(config.parent) for config in run.parent.glob("*/config.yaml"))
    near = difflib.get_close_matches(str(run), runs, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def without_machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a downloaded run is allowed to bring along."""
    return {name: value for name, value in settings.items() if name not in _LOCAL_ALONE}


@lru_cache(maxsize=64)
def _downloaded(repo_id: str, revision: str | None) -> Path:
    named = repo_id if revision is None else f"{repo_id}@{revision}"
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[*_FILES]))
    except RepositoryNotFoundError as error:
        raise DataError(
            f"expected a run folder or a run on the hub, found no folder {named} here and no repository of that name "
            "there; a private one needs a token that may read it (hf auth login, or HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"expected a branch, a tag or a commit of {repo_id}, found no {revision} in it") from error
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"expected the run {named}, found no such folder, and the hub could not be reached; name an existing "
            "folder, or try again with a connection (HF_HUB_OFFLINE unset): what was downloaded once is kept"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:  # ValueError: a file name that leads out of the cache
        raise DataError(f"could not download the run {named}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The hub's answer in one line, without the query strings of URLs, which may be signed."""
    causes = [error, *([error.__cause__] if error.__cause__ is not None else [])]
    words = ": ".join(str(one).rstrip(".") or type(one).__name__ for one in causes)
    return " ".join(re.sub(r"(https?://[^\s?'\")]+)\?[^\s'\")]*", r"\1", words).split())[:500]
