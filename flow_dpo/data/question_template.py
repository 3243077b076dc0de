r"""A template that builds a question from several columns of a row.

    QuestionTemplate("{context}\n\n{extra.question}").fill({"context": "A or B?", "extra": {"question": "Which?"}})
    -> "A or B?\n\nWhich?"

A literal brace is doubled, as in Python's format strings. Invariant: a name is only ever looked up as a column
(`columns.find`), never as an attribute or a format; a cell's content is never read as a template.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.data.columns import MISSING, Row, find, listed, nearest, question


class QuestionTemplate:
    """A template over a row's columns."""

    def __init__(self, template: str) -> None:
        """Raises `ConfigError` for a template without columns, or with anything but column names in its braces. A typed
        backslash and n or t, which a shell passes on unchanged, becomes a newline or a tab."""
        template = template.replace("\\n", "\n").replace("\\t", "\t")
        try:
            self._parts = [part[:4] for part in Formatter().parse(template)]
        except ValueError as error:
            raise ConfigError(
                f"expected a question template such as {{question}}, found {template!r}: {error}"
            ) from error
        odd = [name for _, name, format, conversion in self._parts if name is not None and (format or conversion)]
        self.columns = tuple(name for _, name, _, _ in self._parts if name)
        if odd or not self.columns or any(name == "" for _, name, _, _ in self._parts):
            raise ConfigError(
                f"expected only column names in the braces of the question template, found {template!r:.200}"
            )

    def check(self, place: str, columns: Mapping[str, Any]) -> None:
        """Raise `DataError` for a name that is not a column of the data set."""
        for name in self.columns:
            if find(dict(columns), name) is MISSING:
                near = nearest(columns, name, "question_column")
                hint = f"; did you mean {{{near}}}?" if near else ""
                raise DataError(
                    f"{place}: expected the columns of --question_template, found no {name!r} among "
                    f"{listed(columns)}{hint}"
                )

    def fill(self, row: Row) -> str:
        """The question of a row. Raises `BadRow` if a cell holds no text."""
        return "".join(text + (question(row, name) if name else "") for text, name, _, _ in self._parts).strip()
