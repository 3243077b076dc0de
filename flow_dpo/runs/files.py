"""Files that survive a crash: JSONL that only grows at its end, and small files written whole or not at all.

    append_jsonl(path, [{"a": 1}])     adds a line, which is on disk when the call returns
    iter_jsonl(path)                   (1, {"a": 1}); a last line without a newline is incomplete and is left out

Invariant: what was on disk before a call is still there after it, however the process ends.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.data import strict_json

_logger = logging.getLogger(__name__)


def read_object(path: Path, *, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file; `absent`, if given, when there is no file.

    Raises `DataError` naming the file.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        if absent is not None and isinstance(error, FileNotFoundError):
            return absent
        raise DataError(f"expected a JSON object in {path}, found that it cannot be read: {error}") from error
    return strict_json.parse_object(text, str(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file as a list (`iter_jsonl`)."""
    return [row for _, row in iter_jsonl(path)]


def iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file, unchecked, with their line numbers from 1.

    A last line without a newline is incomplete; it is left out, with a warning.
    Raises `DataError` naming the line that is not a JSON object (`strict_json`).
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    _logger.warning("%s, line %d is incomplete (no newline) and is left out", path, number)
                    return
                yield number, strict_json.parse_object(line, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"expected rows in {path}, found that it cannot be read: {error}") from error


def append_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a file, and make sure that they are on disk."""
    if not rows:
        return
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def cut_torn(path: Path) -> None:
    """Cut off what follows the last newline of a file: an incomplete row, to which the next would be appended."""
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a small file completely or not at all."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Make sure that a file's content, or a folder's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
