"""JSON objects as frozen dataclasses, read strictly by their type hints and written back.

    @dataclass(frozen=True, kw_only=True)
    class Rollout:
        role: str
        tags: tuple[str, ...]
        value: float | None

    read(Rollout, {"role": "answer", "tags": [], "value": "high"}, "trees.jsonl, line 3")
    -> DataError: trees.jsonl, line 3: expected a number or null in 'value', found 'high'; repair or drop it

Hints can be str, int, float, bool, Any, Literal of texts, tuples, mappings with text keys, other dataclasses, unions of
these, and `Annotated[hint, Kind]` if a `strict_json.Kind` is narrower than the hint. Relations between fields are
checked in `__post_init__`; its `ValueError` becomes a `DataError` with the place.

A field with the metadata "sparse" is written only if it holds something, one with "unwritten" never.

Invariant: every field without a default must be present, and no unknown field may be, unless a field made by `others()`
takes the rest; `read(type(x), write(x), place) == x`, except for "unwritten" fields.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from flow_dpo.core.errors import DataError
from flow_dpo.data.strict_json import COUNT, FLAG, NUMBER, OBJECT, ORDINAL, TEXT, TOKEN_IDS, WORDS, Kind, one_of

Count = Annotated[int, COUNT]
Ordinal = Annotated[int, ORDINAL]
Words = Annotated[str, WORDS]
"""A text that is not blank."""
TokenIdList = Annotated[tuple[int, ...], TOKEN_IDS]

T = TypeVar("T")
_Make = Callable[[Any, str, str], Any]
"""Makes a field's value from the JSON value, the place and the name. The value has passed its kind's test."""


def others() -> Any:
    """A field, a mapping with text keys, that takes all columns that no other field names."""
    return field(default_factory=dict, metadata={"others": True})


def read(kind: type[T], row: Mapping[str, Any], place: str) -> T:
    """A parsed JSON object as a dataclass. Raises `DataError` with the place and the field that is wrong."""
    plan = _plan(kind)
    name_of_kind = kind.__name__.lower()
    missing = [name for name in plan.needed if name not in row]
    if missing:
        raise DataError(f"{place}: expected a {name_of_kind}, found a row without {', '.join(missing)}")
    values: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in row.items():
        part = plan.parts.get(name, plan.rest)
        if part is None:
            raise DataError(
                f"{place}: expected a {name_of_kind} of {', '.join(plan.parts)}, found {name!r:.80} too; drop it"
            )
        (values if name in plan.parts else rest)[name] = _take(part, value, place, name)
    if plan.rest_name:
        values[plan.rest_name] = rest
    try:
        return kind(**values)
    except ValueError as error:
        raise DataError(f"{place}: {error}; repair or drop it") from error


def write(value: Any) -> Any:
    """The inverse of `read`: dicts, lists and plain values, for `json.dumps`."""
    if is_dataclass(value):
        found: dict[str, Any] = {}
        for each in fields(value):
            held = getattr(value, each.name)
            if each.metadata.get("unwritten") or (each.metadata.get("sparse") and not held and held != 0):
                continue
            inner = write(held)
            found |= inner if each.metadata.get("others") else {each.name: inner}
        return found
    if isinstance(value, (tuple, list)):
        # Token ids and log-probabilities are the bulk of a record: they are copied without a look at each value.
        return list(value) if value and isinstance(value[0], (int, float, str)) else [write(each) for each in value]
    if isinstance(value, Mapping):
        return {name: write(each) for name, each in value.items()}
    return value


# ---- from a type hint to a test and a maker -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """The check that a hint stands for: description and test of its outermost layer, and a maker that handles the
    layers below."""

    kind: Kind
    make: _Make | None = None
    """None if the value is used unchanged."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a dataclass is read."""

    parts: Mapping[str, _Part]
    needed: tuple[str, ...]
    rest_name: str
    """The field that takes all other columns; "" if they are refused."""
    rest: _Part | None


_ATOMS: Mapping[Any, Kind] = {
    str: TEXT,
    int: Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: NUMBER,
    bool: FLAG,
    Any: Kind("anything", lambda _: True),
    type(None): Kind("null", lambda value: value is None),
}


def _take(part: _Part, value: Any, place: str, name: str) -> Any:
    if not part.kind.holds(value):
        raise DataError(f"{place}: expected {part.kind.words} in {name!r:.80}, found {value!r:.80}; repair or drop it")
    return value if part.make is None else part.make(value, place, name)


@functools.cache
def _plan(kind: type[Any]) -> _Plan:
    hints = get_type_hints(kind, include_extras=True)
    parts: dict[str, _Part] = {}
    needed: list[str] = []
    rest_name, rest = "", None
    for each in fields(kind):
        if each.metadata.get("others"):
            rest_name, rest = each.name, _part(get_args(hints[each.name])[1])
            continue
        parts[each.name] = _part(hints[each.name])
        if each.default is MISSING and each.default_factory is MISSING:
            needed.append(each.name)
    return _Plan(parts=parts, needed=tuple(needed), rest_name=rest_name, rest=rest)


@functools.cache
def _part(hint: Any) -> _Part:
    origin, args = get_origin(hint), get_args(hint)
    if hint in _ATOMS:
        return _Part(_ATOMS[hint])
    if origin is Annotated:
        return _Part(args[1], _part(args[0]).make)
    if origin is Literal:
        return _Part(one_of(args))
    if origin in (Union, types.UnionType):
        return _union([_part(each) for each in args])
    if origin is tuple:
        return _sequence(args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_part(args[1]))
    if is_dataclass(hint):
        inner = cast("type[Any]", hint)
        return _Part(OBJECT, lambda value, place, name: read(inner, value, f"{place}, {name}"))
    raise TypeError(f"expected a type hint that JSON can be read by, found {hint!r}")


def _union(parts: list[_Part]) -> _Part:
    kind = Kind(
        " or ".join(part.kind.words for part in parts),
        lambda value: any(part.kind.holds(value) for part in parts),
    )

    def make(value: Any, place: str, name: str) -> Any:
        return _take(next(part for part in parts if part.kind.holds(value)), value, place, name)

    return _Part(kind, make if any(part.make for part in parts) else None)


def _sequence(args: tuple[Any, ...]) -> _Part:
    if args[-1] is not Ellipsis:
        whole = [_part(each) for each in args]
        words = f"a list of {len(whole)}: {', '.join(part.kind.words for part in whole)}"
        kind = Kind(
            words,
            lambda value: (
                isinstance(value, list)
                and len(value) == len(whole)
                and all(part.kind.holds(each) for part, each in zip(whole, value, strict=True))
            ),
        )
        return _Part(kind, lambda value, place, name: tuple(value))
    inner = _part(args[0])
    if inner.make is None:
        holds = inner.kind.holds
        kind = Kind(
            f"a list, {inner.kind.words} each,", lambda value: isinstance(value, list) and all(map(holds, value))
        )
        return _Part(kind, lambda value, place, name: tuple(value))

    def make(value: Any, place: str, name: str) -> Any:
        return tuple(_take(inner, each, place, f"{name} {at}") for at, each in enumerate(value))

    return _Part(Kind("a list", lambda value: isinstance(value, list)), make)


def _mapping(inner: _Part) -> _Part:
    def make(value: Any, place: str, name: str) -> Any:
        return {key: _take(inner, each, f"{place}, {name}", key) for key, each in value.items()}

    return _Part(OBJECT, None if inner.kind is _ATOMS[Any] else make)
