"""Checkpoints of a run: its whole state on disk, from which it is resumed bit for bit.

After every batch (or every few) the whole state is written beside the older ones, flushed to disk and renamed:

    checkpoints/00000064/          64 problems were learned from
        learner/...                adapters, frozen references, optimizers, waiting pairs (`learner_state`)
        loop.json                  the cursor in the stream, progressive validation, the sizes of the record files
        checksums.json             SHA-256 of every other file

Invariant: a folder with a number for a name was whole when it got it. The last two are kept: should a bit of the newest
have flipped on disk, the one before is taken, with a warning. All random numbers derive from the run's seed and
what they are for (`seeds.derive`), so there is no other random state.
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
        """Write the learner and these facts of the loop, as they are after `num_problems`."""
        writing = self._folder / _WRITING
        shutil.rmtree(writing, ignore_errors=True)
        learner.save(writing / "learner")
        (writing / _LOOP).write_text(json.dumps({"problems_seen": num_problems, **loop}), encoding="utf-8")
        (writing / _SUMS).write_text(json.dumps(_sums(writing), indent=1), encoding="utf-8")
        for path in [*writing.rglob("*"), writing]:
            flush(path)
        done = self._folder / f"{num_problems:08d}"
        # One of the same number is there after a resume that fell back to an older one.
        shutil.rmtree(done, ignore_errors=True)
        writing.replace(done)
        flush(self._folder)
        for old in self._numbered()[:-_KEPT]:
            shutil.rmtree(old)
        return done

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The folder and the loop's facts of the newest whole checkpoint; None where none was written.

        Raises `DataError` where there are some, and none is whole.
        """
        found = self._numbered()
        for path in reversed(found):
            fault = _fault(path)
            if not fault:
                return path, json.loads((path / _LOOP).read_text(encoding="utf-8"))
            _logger.warning("%s is damaged (%s); looking at the one before", path, fault)
        if found:
            raise DataError(
                f"expected a whole checkpoint in {self._folder}, found {len(found)}, all damaged; "
                f"restore the folder from a copy, or start a new run under another --output_dir"
            )
        return None

    def _numbered(self) -> list[Path]:
        """Folders with a number for a name, in rising order."""
        return sorted(path for path in self._folder.glob("[0-9]*") if path.name.isdigit())


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 by path below the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _SUMS)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _fault(folder: Path) -> str:
    """The fault of a checkpoint; "" where there is none."""
    try:
        wanted: dict[str, str] = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        found = _sums(folder)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    return f"{', '.join(odd)} not as written" if odd else ""
