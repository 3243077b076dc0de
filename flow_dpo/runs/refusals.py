"""Refusals of settings in plain words: what was expected of a flag, what was found, and the nearest right value.

    --max_problems ten     expected a whole number or null for --max_problems, found 'ten'
    --dtype bf16           expected auto, float32, bfloat16 or float16 for --dtype, found 'bf16'; did you mean bfloat16?
    --run x                expected one of the settings of --run (--output_dir, --seed, ...), found 'x' for all of them

The parser's own errors name types and subtypes, and a settings class knows its fields but not its flags. Invariant:
an error is one line, which names the flag as it can be typed, or the file and the setting in it.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from flow_dpo.core.errors import ConfigError
from flow_dpo.recipes.presets import OBJECTIVE_LINES

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
_FEW = 4
"""How many settings of a group an error names."""


def expected(type_: Any) -> str:
    """What a setting of this type can be, in words: "auto, float32 or bfloat16"."""
    origin, inner = get_origin(type_), get_args(type_)
    if type_ in _PLAIN:
        return _PLAIN[type_]
    if origin is Literal:
        return _listed([str(each) for each in inner])
    if origin in (Union, UnionType):
        return _listed([expected(each) for each in inner])
    if is_dataclass(type_):
        return "{" + ", ".join(f"{field.name}: ..." for field in fields(type_)) + "}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"names and values, each {expected(inner[1])}, as in '{{name: value}}' with a space after the colon"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each {expected(inner[0])}, as in '[a, b]'"
    return "another value"


def wrong_value(flag: str, type_: Any, value: Any) -> str:
    """The error for a value of the wrong type. `flag` is the setting's name as it was given."""
    found = "null" if value is None else repr(value)
    if len(found) > 80:
        found = f"{found[:77]}..."
    words = [str(each) for option in _options(type_) for each in get_args(option) if get_origin(option) is Literal]
    near = difflib.get_close_matches(str(value), words, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"expected {expected(type_)} for {flag}, found {found}{hint}"


def whole_group(name: str, settings: Sequence[str], value: Any, *, of_recipe: bool) -> str:
    """The error for a value that is given to a group as if it were a setting. `settings` are the group's flags."""
    if name == "flow":
        return (
            f"expected --flow FILE.py:NAME, a flow of your own, found {value!r:.80}; a recipe's flow comes with "
            "--recipe"
        )
    shown = ", ".join([*settings[:_FEW], *(["..."] if settings[_FEW:] else [])])
    comes = "; --recipe chooses its kind" if of_recipe else "; name the setting that you mean"
    comes += f", or name one of {', '.join(OBJECTIVE_LINES)}" if name == "objective" else ""
    return f"expected one of the settings of --{name} ({shown}), found {value!r:.80} for all of them{comes}"


def refuse_endless(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a number that is not finite, such as 1e400, or an integer too large to count anything."""
    for name, value in values.items():
        field = name.rpartition(".")[2]
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"expected {field} to be a finite number, found {value}")
        if isinstance(value, int) and abs(value) > sys.maxsize:
            raise ConfigError(f"expected {field} to be at most {sys.maxsize}, found {value}")


def refused_key(message: str, known: Sequence[str]) -> str:
    """The setting that the parser's error is about; "" if it names none that is known."""
    named = re.findall(r'(?:[Kk]ey "|argument --)([\w.]+)', message)
    return next((name for name in named if name in known), "")


def named_in(message: str, given: Sequence[str]) -> str:
    """The given setting that a settings class's own error is about: the one whose name comes first in it."""
    places = {
        name: found.start()
        for name in given
        if (found := re.search(rf"(?<!\w){re.escape(name.rpartition('.')[2])}(?!\w)", message))
    }
    return min(places, key=lambda name: places[name]) if places else ""


def one_line(message: str) -> str:
    """The parser's error without its line breaks and indents."""
    return "; ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))


def _options(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
