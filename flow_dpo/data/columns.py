"""Columns and cells of a data set's row: looks up nested names, and reads a cell as a text, an answer or a question.

    row = {"prompt": [{"role": "user", "content": "2 + 3?"}], "reward_model": {"ground_truth": "5"}}
    find(row, "reward_model.ground_truth")   -> "5"        find(row, "prompt.0.role") -> "user"
    question(row, "prompt")                  -> "2 + 3?"   a chat's question is its one user message

The whole name is looked up first, so a column that is itself called "a.b" wins. Otherwise the name is a path: "." leads
into objects, and a number into lists. Invariant: a cell becomes the text that the data set wrote, or `BadRow` says why
not; a number never loses a digit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, cast

Row = dict[str, Any]

MISSING: Any = object()
"""What `find` returns if a row has no such column; null is a value."""
MAX_DIGITS = 400
"""Longer numbers are refused: they could not be graded as answers."""
_SHOWN_NAMES = 40
_ANSWERS = ("answer", "ground_truth", "final_answer", "gold", "target", "expected_answer", "label", "solution",
            "output", "completion", "response")  # fmt: skip
_INSTRUCTIONS = ("system", "developer")
_QUESTIONS = ("question", "problem", "query", "prompt", "instruction", "input", "content", "text", "messages")


class BadRow(ValueError):
    """A row without a usable question or gold answer. Its message says what was expected, then ", found" and what
    the row has."""

    @property
    def reason(self) -> str:
        """The part of the message that says what was expected; rows with the same reason are counted together."""
        return str(self).partition(", found")[0]


def with_floats(value: Any) -> Any:
    """A row, or a cell, as reward functions get it. Numbers were read as `Decimal`, to keep every digit of an answer;
    here they become floats as in JSON, or ints if they were written as whole numbers."""
    if isinstance(value, dict):
        return {name: with_floats(each) for name, each in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [with_floats(each) for each in cast("list[Any]", value)]
    if isinstance(value, Decimal):
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    return value


# ---- names -----------------------------------------------------------------------------------------------------------


def find(value: Any, name: str) -> Any:
    """The value of a column by its name or path; `MISSING` if there is none."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if name in fields:
            return fields[name]
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):  # keys can contain dots: the longest key wins
            head = ".".join(parts[:cut])
            found = find(fields[head], ".".join(parts[cut:])) if head in fields else MISSING
            if found is not MISSING:
                return found
        return MISSING
    if isinstance(value, list):
        head, _, rest = name.partition(".")
        items = cast("list[Any]", value)
        if not re.fullmatch(r"-?[0-9]{1,9}", head) or not -len(items) <= int(head) < len(items):
            return MISSING
        return find(items[int(head)], rest) if rest else items[int(head)]
    return MISSING


def names(row: Mapping[str, Any], *, depth: int = 4) -> list[str]:
    """The names of a row's columns, sorted, including those inside objects and lists of objects."""
    return sorted(_names(row, "", depth))


def listed(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for a message."""
    found = [name for name in names(row) if not isinstance(find(row, name), dict)]
    more = f" and {len(found) - _SHOWN_NAMES} more" if len(found) > _SHOWN_NAMES else ""
    return ", ".join(found[:_SHOWN_NAMES]) + more if found else "no columns"


def nearest(row: Mapping[str, Any], name: str, flag: str) -> str | None:
    """The column most likely meant by a name that is unknown or names an object; None if no name is similar."""
    known = [each for each in names(row) if not isinstance(find(row, each), dict)]
    if isinstance(find(row, name), dict):
        return _usual([each for each in known if each.startswith(f"{name}.")], flag)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    last = name.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for each in known:
        by_last.setdefault(each.rpartition(".")[2], each)
    exact = by_last.get(last)
    if exact and (not near or near[0].rpartition(".")[2] != last):
        return exact
    if near:
        return near[0]
    inside = get_close_matches(last, list(by_last), n=1, cutoff=0.7)
    return by_last[inside[0]] if inside else None


def usual(row: Mapping[str, Any], flag: str) -> str | None:
    """The column with a usual name for what `flag` asks for, else the only column; None if there is neither."""
    return _usual(names(row), flag)


def _usual(known: Sequence[str], flag: str) -> str | None:
    wanted = _ANSWERS if flag == "answer_column" else _QUESTIONS
    by_rank = sorted(
        (each.count("."), wanted.index(last), each)
        for each in known
        if (last := each.rpartition(".")[2].lower()) in wanted and ".0." not in each
    )
    return by_rank[0][2] if by_rank else known[0] if len(known) == 1 else None


def _names(value: Any, before: str, depth: int) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict) and depth:
        return _names(cast("list[Any]", value)[0], f"{before}0.", depth - 1)
    if not isinstance(value, Mapping):
        return []
    found: list[str] = []
    for key, inner in cast("Mapping[Any, Any]", value).items():
        found.append(f"{before}{key}")
        if depth:
            found += _names(inner, f"{before}{key}.", depth - 1)
    return found


# ---- cells -----------------------------------------------------------------------------------------------------------


def text(row: Row, column: str) -> str:
    """A column's text. Numbers are written out in full, without a trailing ".0"; a list of one item is that item."""
    value = find(row, column)
    return _text(None if value is MISSING else value, column)


def question(row: Row, column: str) -> str:
    """A column's question: its text, or the one user message of a chat."""
    value = find(row, column)
    if isinstance(value, dict) and "content" in value:
        value = _messages(cast("dict[str, Any]", value))
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in cast("list[Any]", value)):
        return _text(_asked(cast("list[dict[str, Any]]", value), column), column)
    if isinstance(value, list | int | float | Decimal) and not isinstance(value, bool):
        raise BadRow(f"expected a text in {column!r}, found {value!r:.80}")
    return _text(None if value is MISSING else value, column)


def has_system_message(row: Row, column: str) -> bool:
    """Whether a column is a chat with a system message, which `question` leaves out."""
    value = find(row, column)
    messages: list[Any] = cast("list[Any]", value) if isinstance(value, list) else []
    return any(isinstance(each, dict) and each.get("role") in _INSTRUCTIONS for each in messages)


def optional(row: Row, column: str) -> str:
    """A column's text or whole number; "" for any other value, or none."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).strip() if isinstance(value, str) or value.bit_length() < 4_000 else ""


def _text(value: Any, column: str) -> str:
    if isinstance(value, list) and len(cast("list[Any]", value)) == 1:
        return _text(value[0], column)
    if isinstance(value, dict) and isinstance(cast("dict[str, Any]", value).get("content"), str | list):
        value = _content(value["content"], column)  # a message of a chat
    if isinstance(value, bool):
        raise BadRow(f"expected a text in {column!r}, found {value}; write the word of the answer")
    if isinstance(value, int | float | Decimal):
        return _number(value, column)
    if isinstance(value, list | dict):
        what = f"a list of {len(cast('list[Any]', value))}" if isinstance(value, list) else "an object"
        part = f"{column}.0" if isinstance(value, list) else next(iter(names(cast("Row", {column: value}))[1:]), "")
        hint = f"; name a part of it, such as {part}" if value and part else ""
        raise BadRow(f"expected a text in {column!r}, found {what}: {value!r:.80}{hint}")
    if not isinstance(value, str):
        raise BadRow(f"expected a text in {column!r}, found {value!r:.80}")
    found = _unlisted(value.strip(), column)
    if not found:
        raise BadRow(f"expected a text in {column!r}, found nothing")
    if any("\ud800" <= char <= "\udfff" for char in found):  # JSON can hold lone surrogates; no tokenizer accepts them
        raise BadRow(f"expected a text in {column!r}, found half a surrogate pair in {found!r:.80}")
    return found


def _number(value: int | float | Decimal, column: str) -> str:
    """A number in full: 1e6 is "1000000", 1.0 is "1"."""
    if isinstance(value, int):
        if value.bit_length() > 4_000:
            raise BadRow(
                f"expected an answer that can be written, found a number of {value.bit_length()} bits in {column!r}"
            )
        return str(value)
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if not exact.is_finite():
        raise BadRow(f"expected a text in {column!r}, found {str(value).lower()}")
    if abs(exact.adjusted()) >= MAX_DIGITS or len(exact.as_tuple().digits) > MAX_DIGITS:
        raise BadRow(f"expected a number of at most {MAX_DIGITS} digits in {column!r}, found {value!s:.80}")
    written = format(exact, "f")
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written


def _unlisted(found: str, column: str) -> str:
    """The one text of a list that was stored as JSON, `["5"]`; any other text unchanged."""
    if not found.startswith('["'):
        return found
    try:
        value = json.loads(found)
    except ValueError:
        return found
    return _text(value, column) if isinstance(value, list) else found


def _messages(value: dict[str, Any]) -> list[dict[str, Any]]:
    """A chat from one message, or from an object of lists ("role" and "content")."""
    roles, contents = value.get("role"), value["content"]
    if isinstance(roles, list) and isinstance(contents, list):
        pairs = zip(cast("list[Any]", roles), cast("list[Any]", contents), strict=False)
        return [{"role": role, "content": content} for role, content in pairs]
    return [value]


def _asked(chat: list[dict[str, Any]], column: str) -> Any:
    """The content of the one user message. System messages are left out, since a flow brings its own."""
    spoken = [message for message in chat if message.get("role") not in _INSTRUCTIONS]
    if len(spoken) != 1 or spoken[0].get("role") != "user":
        kinds = ", ".join(str(message.get("role", "no role")) for message in chat)
        words = {name: len(value) for name, value in chat[-1].items() if name != "role" and isinstance(value, str)}
        part = "content" if "content" in words else max(words, key=lambda name: words[name], default="content")
        raise BadRow(
            f"expected a chat with one user message in {column!r}, found {kinds:.80}; name the message that is the "
            f"question, such as {column}.-1.{part}"
        )
    return _content(spoken[0].get("content"), column)


def _content(content: Any, column: str) -> Any:
    """A message's text; a list of text parts is joined by newlines."""
    if not isinstance(content, list):
        return content
    parts = cast("list[Any]", content)
    other = next((part for part in parts if not isinstance(part, dict) or not isinstance(part.get("text"), str)), None)
    if other is not None:
        raise BadRow(f"expected a message with text only in {column!r}, found the part {other!r:.80}")
    return "\n".join(part["text"] for part in parts)
