"""A folder that is made once for all processes of the tests, each of which has fixtures of its own.

    @pytest.fixture(scope="module")
    def run(once: Once) -> Path:
        return once("hub", train_into)      # train_into(folder) is called in the first process that asks

Invariant: the folder is whole, under the path under which it was made, and stays as it was made: a test that writes to
it copies it first. The session ends with an error where one did not.
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
    """What `once` of tests/conftest.py calls."""

    def __init__(self, base: Path) -> None:
        """`base` is this process's folder for temporary files; those of pytest-xdist lie beside one another."""
        self._shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
        self._taken: set[Path] = set()

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of this name, empty when `make` gets it; where that failed before, it is made anew."""
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
        """Nothing of what this process has taken was changed since."""
        for folder in sorted(self._taken):
            assert _files(folder) == json.loads(_beside(folder, "json").read_text()), f"a test wrote to {folder}"


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f"{folder.name}.{kind}")


def _files(folder: Path) -> dict[str, list[int]]:
    """The size of each file and when it was written; not of locks, which readers take."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in found}
