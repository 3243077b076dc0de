r"""Reads rows as problems, by the columns of known data sets or by named columns.

    {"question": ..., "answer": "so 72 #### 72"}          GSM8K: gold "72", solution "so 72"
    {"problem": ..., "solution": "... \boxed{6}."}        MATH: gold "6"
    {"problem": ..., "answer": "6", "solution": ""}       the answer column takes precedence: gold "6"

Invariant: the gold answer is read from the answer column, and from the solution only if that column has none; a row
without a gold answer raises `BadRow`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem
from flow_dpo.data.columns import (
    MISSING,
    BadRow,
    Row,
    find,
    listed,
    nearest,
    optional,
    question,
    text,
    usual,
    with_floats,
)
from flow_dpo.plugins.load import load_object
from flow_dpo.verify.extract import after_answer_is, last_box

_BOX = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])")
_LOOKS = re.compile(r"\\(?:left|right|[,!;])|\s|(?<=\\)[dt](?=frac)")
"""Formatting only: two boxes that differ in nothing else are the same answer."""
_ASKS_A_LIST = re.compile(r"\bseparated by\b|\ball (?:the )?(?:possible|real|complex|integer)?\s?"
                          r"(?:values|solutions|roots|polynomials)\b", re.IGNORECASE)  # fmt: skip
_ASKS_SEVERAL = re.compile(
    r"\b(?:all|both|each|list|solve|solutions|roots|zeros|values|pairs|points|integers|numbers)\b", re.IGNORECASE
)
_ASKS_ONE = re.compile(r"\b(?:either|one of|only one|not both|any one)\b", re.IGNORECASE)


class Schema(NamedTuple):
    """How rows with certain columns are read. `--schema` names one of a plug-in or a file."""

    columns: frozenset[str]
    """Columns that every row must have."""
    read: Callable[[Row], Problem]
    """Reads a row as a problem; an empty id is filled in later. Raises `BadRow` for a row that gives no problem."""


# ---- gold answers ----------------------------------------------------------------------------------------------------


def gold_of_text(found: str, column: str) -> str:
    r"""The final answer in an answer column: after "####", in the last box, after "answer is", or the whole text, from
    which the verifier reads the value (`extract.gold_answer`). Raises `BadRow` if there is none."""
    box = last_box(found)
    if "####" in found:
        gold = found.rpartition("####")[2].strip()
    elif box is not None:
        gold = box
    else:
        gold = after_answer_is(found) or found
    return usable(gold.strip(), column)


def usable(gold: str, column: str) -> str:
    """The gold answer, without thousands separators. Raises `BadRow` if it is empty."""
    if not gold.strip(" $.{}\\"):
        raise BadRow(f"expected a gold answer in {column!r}, found {gold!r}")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", gold):
        return gold.replace(",", "")
    return gold


def boxed_gold(asked: str, solution: str) -> str | None:
    r"""The gold answer of a solution in the style of MATH: its last box; None if it has no box.

    If the question asks for several answers, boxes joined in one sentence are one answer: "\boxed{6} and \boxed{8}" is
    "6, 8". If it asks for a list, all boxes of the solution are the answer. Otherwise two boxes are one answer in two
    spellings, "\boxed{x+11} or \boxed{11+x}", or a choice ("either of the foci"), and the last box is the answer.
    """
    last = last_box(solution, joined=False)
    if not last or _ASKS_ONE.search(asked):
        return last
    if _ASKS_A_LIST.search(asked):
        starts = [box.start() for box in _BOX.finditer(solution)]
        ends = [*starts[1:], len(solution)]
        boxes = [last_box(solution[start:end], joined=False) for start, end in zip(starts, ends, strict=True)]
        distinct = {_LOOKS.sub("", box): box for box in boxes if box}  # a box around another is cut, and gives ""
        return ", ".join(distinct.values())
    return last_box(solution) if _ASKS_SEVERAL.search(asked) else last


# ---- known data sets -------------------------------------------------------------------------------------------------


def _subject(row: Row) -> str:
    return optional(row, "subject") or optional(row, "type")


def _from_answer_or_solution(row: Row, asked: str, read: Callable[[str], str]) -> tuple[str, str]:
    """The gold answer and the text that it was read from: the answer column or, if that has no answer, a box in the
    solution."""
    solution = optional(row, "solution")
    try:
        written = text(row, "answer")
        gold = read(written)
    except BadRow as error:
        box = boxed_gold(asked, solution)
        if not box and ("answer" in row or "solution" not in row):
            raise
        if box is None:
            text(row, "solution")
            raise BadRow("expected a box in 'solution', found none") from error
        return usable(box or "", "solution"), solution
    if solution and gold == last_box(solution, joined=False):
        # An answer that equals the last box letter by letter was extracted from the solution, which can have more.
        gold = boxed_gold(asked, solution) or gold
    return gold, written


def _gsm8k(row: Row) -> Problem:
    asked = question(row, "question")
    gold, written = _from_answer_or_solution(row, asked, lambda found: gold_of_text(found, "answer"))
    before, marker, _ = written.rpartition("####")
    return Problem(
        id="",
        question=asked,
        gold=gold,
        solution=before.strip() if marker else optional(row, "solution"),
        level=optional(row, "level"),
        subject=_subject(row),
    )


def _math(row: Row) -> Problem:
    asked = question(row, "problem")
    gold, _ = _from_answer_or_solution(row, asked, lambda found: usable(found, "answer"))
    return Problem(
        id=optional(row, "unique_id"),
        question=asked,
        gold=gold,
        solution=optional(row, "solution"),
        level=optional(row, "level"),
        subject=_subject(row),
    )


def _svamp(row: Row) -> Problem:
    body, asked = text(row, "Body"), text(row, "Question")
    if body[-1] not in ".!?,;:":  # most bodies end without a full stop
        body += "."
    return Problem(
        id=optional(row, "ID"),
        question=f"{body} {asked}",
        gold=usable(text(row, "Answer"), "Answer"),
        solution=optional(row, "Equation"),
        subject=optional(row, "Type"),
    )


def _metamath(row: Row) -> Problem:
    response = text(row, "response")
    before, marker, gold = response.rpartition("The answer is:")
    if not marker:
        raise BadRow(f"expected 'The answer is: ...' at the end of 'response', found {response[-60:]!r}")
    return Problem(
        id="",
        question=question(row, "query"),
        gold=usable(gold.strip(), "response"),
        solution=before.strip(),
        subject=optional(row, "type"),
    )


KNOWN = (
    Schema(frozenset({"query", "response"}), _metamath),
    Schema(frozenset({"Body", "Question", "Answer"}), _svamp),
    Schema(frozenset({"problem", "solution"}), _math),
    Schema(frozenset({"problem", "answer"}), _math),
    Schema(frozenset({"question", "answer"}), _gsm8k),
)


# ---- named columns ---------------------------------------------------------------------------------------------------


def choose(place: str, rows: Sequence[Row], question_column: str | None, answer_column: str | None) -> Schema:
    """The reader of a data set's rows, chosen by the named columns or by those of its first rows. Raises `DataError` if
    the rows lack what it needs."""
    columns: Row = {name: value for row in reversed(rows) for name, value in row.items() if value is not None}
    columns = {name: None for row in rows for name in row} | columns
    if question_column is None and answer_column is None:
        for schema in KNOWN:
            if schema.columns <= columns.keys():
                return schema
        raise DataError(
            f"{place}: expected the columns of a known data set (GSM8K question and answer, MATH problem and solution "
            f"or answer, SVAMP Body, Question and Answer, MetaMathQA query and response), found {listed(columns)}; "
            f"name yours with {_advice(columns)}"
        )
    asked, answer = question_column or "question", answer_column or "answer"
    for flag, column in (("question_column", asked), ("answer_column", answer)):
        value = find(columns, column)
        is_chat = flag == "question_column" and isinstance(value, dict) and "content" in value
        if value is MISSING or (isinstance(value, dict) and not is_chat):
            near = nearest(columns, column, flag)
            what = "no such column" if value is MISSING else "an object of that name"
            raise DataError(
                f"{place}: expected a column {column!r} of texts, found {what} among {listed(columns)}; "
                + (f"did you mean --{flag} {near}?" if near else f"choose one of them with --{flag}")
                + ("" if flag == "question_column" or near else "; without gold answers, use flow-dpo ask")
            )
    return Schema(frozenset({asked, answer}), lambda row: _named(row, asked, answer))


def load_schema(source: str) -> Schema:
    """The schema in "file.py:NAME", "package.module:NAME" or an installed plug-in. Raises `ConfigError` if the object
    is no `Schema`."""
    found = load_object(source, kind="schema")
    if not isinstance(found, Schema):
        raise ConfigError(f"expected a flow_dpo.data.schemas.Schema in {source} for --schema, found {found!r:.80}")
    return found


def choose_named(place: str, rows: Sequence[Row], source: str, *, kept: bool) -> Schema:
    """The reader that `source` names. With `kept` each problem keeps its row, and needs no gold answer.

    Raises `DataError` if the rows lack one of its columns, or if the reader fails on a row other than by `BadRow`.
    """
    named, columns = load_schema(source), {name: None for row in rows for name in row}
    if missing := named.columns - columns.keys():
        raise DataError(
            f"{place}: expected the columns of {source}, {', '.join(sorted(named.columns))}; "
            f"{', '.join(sorted(missing))} is missing from {listed(columns)}"
        )

    def read(row: Row) -> Problem:
        try:
            found = named.read(row)
        except BadRow:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"expected a problem from the schema {source}, found {type(error).__name__}: {error} in the row "
                f"{row!r:.200}; raise flow_dpo.data.columns.BadRow for a row to be skipped"
            ) from error
        if not isinstance(found, Problem) or not found.question.strip() or not (kept or found.gold.strip()):
            raise DataError(
                f"expected a problem with a question and a gold answer from the schema {source}, found {found!r:.200}"
            )
        return replace(found, columns=with_floats(row)) if kept else found

    return Schema(named.columns, read)


def choose_open(place: str, rows: Sequence[Row], question_column: str | None, answer_column: str | None) -> Schema:
    """The reader for reward functions: a problem keeps its row (`Problem.columns`), and needs no gold answer.

    Raises `DataError` if no column holds the question.
    """
    columns = {name: value for row in reversed(rows) for name, value in row.items()}
    try:
        known = choose(place, rows, question_column, answer_column).read
    except DataError:
        asked = question_column or usual(columns, "question_column")
        if asked is None or find(columns, asked) is MISSING or answer_column is not None:
            raise
        known = None
    asked = question_column or next((name for name in ("question", "problem", "query") if name in columns), None)
    asked = asked or usual(columns, "question_column") or ""

    def read(row: Row) -> Problem:
        try:
            if known is not None:
                return replace(known(row), columns=with_floats(row))
        except BadRow:  # a row without a gold answer is still a problem if it has a question
            pass
        return Problem(
            id=_id(row), question=question(row, asked), gold="", subject=_subject(row), columns=with_floats(row)
        )

    return Schema(frozenset({asked}), read)


def _id(row: Row) -> str:
    return next((found for column in ("unique_id", "ID", "id") if (found := optional(row, column))), "")


def _advice(columns: Mapping[str, Any]) -> str:
    words: list[str] = []
    for flag in ("question_column", "answer_column"):
        found = usual(columns, flag)
        words.append(f"--{flag} {found}" if found else f"--{flag}")
    return " and ".join(words)


def _named(row: Row, asked: str, answer: str) -> Problem:
    written = text(row, answer)
    before, marker, _ = written.rpartition("####")
    box = last_box(written)
    solution = before.strip() if marker else optional(row, "solution") or (written if box else "")
    words = question(row, asked)
    gold = gold_of_text(written, answer)
    if box and not marker and written.strip() != gold:  # a worked solution
        gold = usable(boxed_gold(words, written) or "", answer)
    return Problem(
        id=_id(row), question=words, gold=gold, solution=solution, level=optional(row, "level"), subject=_subject(row)
    )
