r"""Strict JSON: a parser that refuses anything but portable JSON, and checks of the kinds of an object's fields.

Python's own parser accepts texts that are not JSON, or that are ambiguous. Here they are errors that name the place:

    {"a": NaN}   {"a": 1e999}   {"a": 1, "a": 2}   {"a": "\ud800"}   [[[[ ... fifty deep   {"a": <half of UTF-8>}

Invariant: the value returned can be written again as UTF-8 JSON, and nothing of the text was dropped. Every error is a
`DataError` that begins with the place ("runs/traces/traces.jsonl, line 3"); those of `check` name the field.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn, cast

from flow_dpo.core.errors import DataError

MAX_DEPTH = 50
"""Values nested more deeply are refused, because their later readers recurse within Python's limit."""
_MAX_TOKEN_ID = 2**31
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse(text: str | bytes, place: str, *, any_text: bool = False, any_number: bool = False) -> Any:
    """The value of a JSON text. Bytes are UTF-8, with or without a byte order mark.

    `any_text` accepts lone surrogates, for texts that are never written as UTF-8. `any_number` accepts NaN and
    infinities, for foreign rows that are checked field by field, and returns fractions as `Decimal` with all their
    digits. Raises `DataError`.
    """
    numbers: dict[str, Any] = (
        {"parse_float": _exact} if any_number else {"parse_constant": _constant, "parse_float": _finite}
    )
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value: object = json.loads(decoded, object_pairs_hook=_object, **numbers)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected JSON, found {error}; repair or drop it") from error
    if decoded.count("[") + decoded.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DataError(f"{place}: expected JSON at most {MAX_DEPTH} deep, found a deeper one; repair or drop it")
    if not any_text and _HALF.search(decoded):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: expected Unicode text, found half a surrogate pair {error.object[error.start]!r}; repair or "
                "drop it"
            ) from error
    return value


def parse_object(text: str | bytes, place: str, *, any_text: bool = False) -> dict[str, Any]:
    """The object in a JSON text. Raises `DataError` if the text is another value."""
    value = parse(text, place, any_text=any_text)
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected a JSON object, found {type(value).__name__}; repair or drop it")
    return cast("dict[str, Any]", value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} twice in one object")
    return found


def _constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal}, which is not JSON")


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"the number {literal[:40]}, which is too large")
    return value


def _exact(literal: str) -> Decimal | float:
    try:
        return Decimal(literal)
    except InvalidOperation:  # an exponent beyond a machine's word
        return float(literal)


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
    return depth


# ---- the kinds of fields ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of field value: its description for messages, and its test."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


TEXT = Kind("a text", lambda value: isinstance(value, str))
WORDS = Kind("a text that is not blank", lambda value: isinstance(value, str) and bool(value.strip()))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number from 0", lambda value: _is_int(value, 0))
ORDINAL = Kind("a whole number from 1", lambda value: _is_int(value, 1))
NUMBER = Kind("a number", lambda value: _is_number(value) and abs(value) <= sys.float_info.max)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value))
TOKEN_IDS = Kind(
    f"a list of token ids (whole numbers from 0, below {_MAX_TOKEN_ID})",
    lambda value: isinstance(value, list) and all(_is_int(each, 0) and each < _MAX_TOKEN_ID for each in value),
)


def one_of(words: Sequence[str]) -> Kind:
    """One of some texts."""
    return Kind("one of " + ", ".join(map(repr, words)), lambda value: isinstance(value, str) and value in words)


def or_null(kind: Kind) -> Kind:
    """A kind, or null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


def check(row: Mapping[str, Any], kinds: Mapping[str, Kind], place: str) -> None:
    """Raise `DataError` for the first field of `row` that is not of its kind; absent fields are accepted."""
    for name, kind in kinds.items():
        if name in row and not kind.holds(row[name]):
            raise DataError(f"{place}: expected {kind.words} in {name!r}, found {row[name]!r:.80}; repair or drop it")
