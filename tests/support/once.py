"""A folder that is made once and shared by all test processes; each process has its own session fixtures.

    @pytest.fixture(scope="module")
    def run(once: Once) -> Path:
        return once("hub", train_into)      # train_into(folder) is called in the first process that asks

Invariant: the folder is complete, keeps the path at which it was made, and does not change: a test that writes to it
copies it first. If a test wrote to it, the session ends with an error.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

Once = Callable[[str, Callable[[Path], object]], Path]


class MadeOnce:
    """The folders that the fixture `once` of tests/conftest.py gives."""

    def __init__(self, base: Path) -> None:
        """`base` is this process's folder for temporary files; those of pytest-xdist's processes have one parent."""
        self._shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
        self._taken: set[Path] = set()

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of this name. `make` gets it empty, also after a `make` that failed."""
        folder = self._shared / name
        self._shared.mkdir(exist_ok=True)
        with FileLock(_beside(folder, "lock")):
            if not _beside(folder, "json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                _beside(folder, "json").write_text(json.dumps(_files(folder)))
        self._taken.add(folder)
        return folder

    def check(self) -> None:
        """Assert that no folder which this process used was changed after it was made."""
        for folder in sorted(self._taken):
            assert _files(folder) == json.loads(_beside(folder, "json").read_text()), f"a test wrote to {folder}"


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f"{folder.name}.{kind}")


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of each file, except locks, which readers take."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in found}
