"""Small files of rows that are read completely and followed as they grow: metrics.jsonl, tokens.jsonl, sampled.jsonl.

    tokens = TokenTable(lambda: opened(source, "tokens.jsonl"))
    tokens.refresh()          True if there is more than before
    tokens.texts[59]          ("She", False): its text, and whether it is a special token

Invariant: what was read is what the file holds, in order; a file that was replaced or shortened is read again. A broken
row affects nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer.lines import parse_line, read_lines


class FollowedFile:
    """A file whose rows are read one by one."""

    def __init__(self, path: Callable[[], Path]) -> None:
        """`path` returns the file's path; it raises `DataError` if the file must not be read."""
        self._path = path
        self._clear()

    def _clear(self) -> None:
        self._seen: tuple[int, int, int, int] | None = None
        self._offset = self._line = 0
        self.notes: list[tuple[int | None, str]] = []

    def _add(self, line: int, row: Mapping[str, Any]) -> None:
        """Process one row."""
        raise NotImplementedError

    def refresh(self) -> bool:
        """Read what is new; returns whether anything changed."""
        try:
            path = self._path()
            found = path.stat()
            seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return False
            was = self._seen
            if was is not None and (was[:2] != seen[:2] or seen[2] <= was[2] or seen[2] < self._offset):
                self._clear()
            with path.open("rb") as file:
                for line in read_lines(file, start=self._offset, number=self._line, end=found.st_size):
                    self._offset, self._line = line.offset + line.length, line.number
                    self._take(line.number, line.content)
            self._seen = seen
            return True
        except FileNotFoundError:
            had = self._seen is not None
            self._clear()
            return had
        except (OSError, DataError) as error:
            known = self.notes
            self._clear()
            words = f"it cannot be read: {os.strerror(error.errno or 0)}" if isinstance(error, OSError) else str(error)
            self.notes.append((None, words))
            return self.notes != known

    def _take(self, line: int, content: bytes) -> None:
        try:
            row = parse_line(content)
        except DataError as error:
            self.notes.append((line, str(error)))
            return
        self._add(line, row)


class TokenTable(FollowedFile):
    """The texts of a run's tokens."""

    def _clear(self) -> None:
        super()._clear()
        self.texts: dict[int, tuple[str, bool]] = {}
        """By id: the text, and whether the token is special."""

    def _add(self, line: int, row: Mapping[str, Any]) -> None:
        id, text = row.get("id"), row.get("text")
        if isinstance(id, int) and isinstance(text, str):
            self.texts[id] = (text, row.get("special") is True)
        else:
            self.notes.append((line, f"expected a token's 'id' and 'text', found {row!r:.80}"))


class SampledProblems(FollowedFile):
    """How many problems an unfinished evaluation has sampled, from its journal (`runs.journal`)."""

    def _clear(self) -> None:
        super()._clear()
        self.num = 0

    def _take(self, line: int, content: bytes) -> None:
        # All other rows are completions, which are many and long.
        if content.startswith(b'{"schema": "sampled_batch/1", '):
            super()._take(line, content)

    def _add(self, line: int, row: Mapping[str, Any]) -> None:
        problems = row.get("problems")
        self.num += len(problems) if isinstance(problems, list) else 0
