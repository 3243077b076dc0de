"""Lenient reading of JSONL files that may be damaged, foreign, torn or still growing, line by line.

    for line in read_lines(file, start=0, number=0, end=4_096):     Line(number=1, offset=0, length=612, content=...)
        row = parse_line(line.content)                              {"schema": "tree/1", ...}; raises `DataError`

The strict readers of `runs.records` refuse a file at its first wrong row; a viewer shows the rows around it. What is
read here is never trusted: a fact of another kind than expected is None (`integer`, `number`, `text`, `objects`).
Invariant: whatever a file holds, reading it costs bounded memory and raises nothing but `DataError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

from flow_dpo.core.errors import DataError

LONGEST = 64 * 2**20
"""Bytes of a line; a longer one is skipped, with a note."""
_EXACT = 2**53
"""Whole numbers from here on are no counts of anything, and neither JavaScript nor SQLite holds them all."""
_HALVES = re.compile("[\ud800-\udfff]")


class Line(NamedTuple):
    """One whole line of a file."""

    number: int
    """From 1."""
    offset: int
    """Where it begins, in bytes."""
    length: int
    """In bytes, its newline among them."""
    content: bytes
    """Empty where it is longer than `LONGEST`."""


def read_lines(file: BinaryIO, *, start: int, number: int, end: int) -> Iterator[Line]:
    """The whole lines from the offset `start` on, up to the offset `end`; `number` lines stand before it.

    What follows the last newline is left alone: it is being written, or was torn off.
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
    """Bytes to the end of a line that is too long, read a block at a time; None where it does not end in `left`."""
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
    """The bytes of a line that was indexed; fewer where the file has become shorter."""
    file.seek(offset)
    return file.read(length)


def parse_line(content: bytes) -> dict[str, Any]:
    """The object of a line. NaN and infinities are None. Raises `DataError` in words that fit behind "line 7: "."""
    if not content:
        raise DataError(f"expected a line of at most {LONGEST // 2**20} MiB, found a longer one")
    try:
        # Decoded here: bytes with zeros would be taken for UTF-16.
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
    """A whole number that fits everywhere, or None."""
    return value if type(value) is int and -_EXACT < value < _EXACT else None


def number(value: object) -> float | None:
    """A finite number, or None."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    return integer(value)


def text(value: object, longest: int = 0) -> str | None:
    """A text that can be written as UTF-8, cut to `longest` characters where that is given, or None."""
    if type(value) is not str:
        return None
    value = value[:longest] if longest else value
    return value if value.isascii() else _HALVES.sub("\ufffd", value)


def mapping(value: object) -> Mapping[str, Any]:
    """An object; an empty one for anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list; none of anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def refuse(expected: str, found: object) -> NoReturn:
    """Raise the `DataError` of a row that is not what it should be."""
    raise DataError(f"expected {expected}, found {found!r:.80}")
