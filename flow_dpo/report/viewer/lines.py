"""Lenient line-by-line reading of JSONL files that can be damaged, foreign, torn or still growing.

    for line in read_lines(file, start=0, number=0, end=4_096):     Line(number=1, offset=0, length=612, content=...)
        row = parse_line(line.content)                              {"schema": "tree/1", ...}; raises `DataError`

The strict readers of `runs.records` refuse a file at its first wrong row; a viewer shows the rows around it. What is
read here is never trusted: a fact of an unexpected kind is None (`integer`, `number`, `text`, `objects`). Invariant:
whatever a file holds, reading it takes bounded memory and raises nothing but `DataError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

from flow_dpo.core.errors import DataError

LONGEST = 64 * 2**20
"""Most bytes of a line; a longer one is skipped, with a note."""
_EXACT = 2**53
"""Whole numbers from here on are no real counts, and JavaScript and SQLite cannot hold all of them."""
_HALVES = re.compile("[\ud800-\udfff]")


class Line(NamedTuple):
    """One complete line of a file."""

    number: int
    """From 1."""
    offset: int
    """Its first byte in the file."""
    length: int
    """In bytes, including the newline."""
    content: bytes
    """Empty if the line is longer than `LONGEST`."""


def read_lines(file: BinaryIO, *, start: int, number: int, end: int) -> Iterator[Line]:
    """The complete lines from offset `start` up to offset `end`; `number` lines come before it.

    Anything after the last newline is left out: it is still being written, or was torn off.
    """
    file.seek(start)
    offset = start
    while offset < end:
        content = file.readline(min(LONGEST, end - offset))
        length = len(content)
        if not content.endswith(b"\n"):
            rest = _rest_of_line(file, end - offset - length) if length == LONGEST else None
            if rest is None:
                return
            content, length = b"", length + rest
        number += 1
        yield Line(number=number, offset=offset, length=length, content=content)
        offset += length


def _rest_of_line(file: BinaryIO, left: int) -> int | None:
    """Bytes to the end of a line that is too long, read block by block; None if it does not end within `left`."""
    read = 0
    while read < left:
        block = file.readline(min(left - read, 2**20))
        read += len(block)
        if block.endswith(b"\n"):
            return read
        if not block:
            return None
    return None


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """The bytes of an indexed line; fewer if the file has become shorter."""
    file.seek(offset)
    return file.read(length)


def parse_line(content: bytes) -> dict[str, Any]:
    """The object of a line, with None for NaN and infinities. Raises `DataError` worded to follow "line 7: "."""
    if not content:
        raise DataError(f"expected a line of at most {LONGEST // 2**20} MiB, found a longer one")
    try:
        # Decoded here, because json would take bytes with zeros for UTF-16.
        value: object = json.loads(content.decode().removeprefix("\ufeff"), parse_constant=_nothing)
    except RecursionError as error:
        raise DataError("expected a row, found JSON that is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8, found the byte {content[error.start]:#04x}") from error
    except ValueError as error:
        raise DataError("expected JSON, found an empty line" if not content.strip() else _words(error)) from error
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, found {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _nothing(_literal: str) -> None:
    return None


def _words(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"expected JSON, found something else: {error.msg} (character {error.pos + 1:,})"
    return f"expected JSON, found {str(error)[:120]}"


# ---- facts of a row --------------------------------------------------------------------------------------------------


def integer(value: object) -> int | None:
    """A whole number within the exact range, or None."""
    return value if type(value) is int and -_EXACT < value < _EXACT else None


def number(value: object) -> float | None:
    """A finite number, or None."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    return integer(value)


def text(value: object, longest: int = 0) -> str | None:
    """A text that UTF-8 can encode, cut to `longest` characters if given, or None."""
    if type(value) is not str:
        return None
    value = value[:longest] if longest else value
    return value if value.isascii() else _HALVES.sub("\ufffd", value)


def mapping(value: object) -> Mapping[str, Any]:
    """An object; an empty one for anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list; empty for anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def refuse(expected: str, found: object) -> NoReturn:
    """Raise the `DataError` for a row that is not as expected."""
    raise DataError(f"expected {expected}, found {found!r:.80}")
