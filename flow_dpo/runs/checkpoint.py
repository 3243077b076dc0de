"""Checkpoints of a run: its whole state on disk, from which it is resumed bit for bit.

After every batch (or every few) the state is written next to the older checkpoints, flushed to disk and renamed:

    checkpoints/00000064/          64 problems were learned from
        learner/...                adapters, frozen references, optimizers, waiting pairs (`learner_state`)
        loop.json                  the cursor in the stream, progressive validation, the sizes of the record files
        checksums.json             SHA-256 of every other file

Invariant: a folder was complete when it got a number as its name. The last two are kept: if the newest is damaged on
disk, the one before it is used, with a warning. Every random number derives from the run's seed and its purpose
(`seeds.derive`), so there is no other random state.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.learner.learner import Learner
from flow_dpo.runs.files import flush

_logger = logging.getLogger(__name__)
_SUMS, _LOOP, _WRITING = "checksums.json", "loop.json", "writing"
_KEPT = 2


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "checkpoints"

    def write(self, learner: Learner, num_problems: int, loop: Mapping[str, Any]) -> Path:
        """Write the learner and these facts of the loop, as they are after `num_problems`; return the folder."""
        writing = self._folder / _WRITING
        shutil.rmtree(writing, ignore_errors=True)
        learner.save(writing / "learner")
        (writing / _LOOP).write_text(json.dumps({"problems_seen": num_problems, **loop}), encoding="utf-8")
        (writing / _SUMS).write_text(json.dumps(_sums(writing), indent=1), encoding="utf-8")
        for path in [*writing.rglob("*"), writing]:
            flush(path)
        done = self._folder / f"{num_problems:08d}"
        # After a run was resumed from an older checkpoint, one with this number can exist already.
        shutil.rmtree(done, ignore_errors=True)
        writing.replace(done)
        flush(self._folder)
        for old in self._numbered()[:-_KEPT]:
            shutil.rmtree(old)
        return done

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The folder and the loop's facts of the newest whole checkpoint; None if none was written.

        Raises `DataError` if there are checkpoints, but none is whole.
        """
        found = self._numbered()
        for path in reversed(found):
            fault = _fault(path)
            if not fault:
                return path, json.loads((path / _LOOP).read_text(encoding="utf-8"))
            _logger.warning("%s is damaged (%s); trying the one before it", path, fault)
        if found:
            raise DataError(
                f"expected a whole checkpoint in {self._folder}, found {len(found)}, all damaged; "
                f"restore the folder from a copy, or start a new run under another --output_dir"
            )
        return None

    def _numbered(self) -> list[Path]:
        """Folders whose name is a number, in ascending order."""
        return sorted(path for path in self._folder.glob("[0-9]*") if path.name.isdigit())


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path below the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _SUMS)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint; "" if nothing is."""
    try:
        wanted: dict[str, str] = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        found = _sums(folder)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    return f"{', '.join(odd)} not as written" if odd else ""
