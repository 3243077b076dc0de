"""Problems from rows that are passed in Python, as to TRL's trainers.

    problems_from([{"prompt": [{"role": "user", "content": "2 + 3 = ?"}], "solution": "5"}], DataSettings())
    -> ProblemSet of Problem(id="given/0", question="2 + 3 = ?", gold="5")

Rows can be a list of mappings, a `datasets.Dataset` or an `IterableDataset`. Their columns are found as for a named
data set (`data.schemas`), or by their usual names: the question in `prompt`, `question`, `problem`, ..., the gold
answer in `answer`, `ground_truth`, `solution`, ... Invariant: a row without a question or a gold answer is skipped and
counted, or refused, as in a named data set.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem
from flow_dpo.data.columns import BadRow, Row, listed, usual
from flow_dpo.data.files import as_written
from flow_dpo.data.problems import ENDLESS, DataSettings, ProblemSet, RowReader, load_problems
from flow_dpo.data.question_template import QuestionTemplate
from flow_dpo.data.schemas import KNOWN, Schema

log = logging.getLogger("flow_dpo")
_STEM = "given"
_LOOK_AT = 100
"""Rows that are searched for columns: a column can be missing or null in the first row."""


def problems_from(data: Any, settings: DataSettings, *, columns: bool = False) -> ProblemSet:
    """The problems of the given rows, or the given problems, chosen and shuffled by the settings. With `columns` each
    keeps its row for reward functions, and needs no gold answer.

    Raises `ConfigError` if `data` has no rows or problems, `DataError` for rows that lack what they need.
    """
    return load_problems(
        _problems(data, settings, columns),
        columns=columns,
        split=settings.dataset_split,
        max_problems=settings.max_problems,
        skip_problems=settings.skip_problems,
        shuffle_seed=settings.shuffle_seed,
    )


def _problems(data: Any, settings: DataSettings, columns: bool) -> Iterator[Problem]:
    """The given problems unchanged, or problems read from the given rows."""
    if isinstance(data, Mapping):
        raise ConfigError(
            f"expected a data set, found several by name ({', '.join(map(str, data))}); pass one, such as data['train']"
        )
    if not isinstance(data, Iterable):
        raise ConfigError(f"expected the name of a data set, problems or rows with columns, found {data!r:.80}")
    every: Iterator[Any] = as_written(data) if hasattr(data, "features") else iter(data)
    if _is_endless(data) and settings.max_problems is None:
        every = _cut(every)
    first = list(itertools.islice(every, _LOOK_AT))
    if all(isinstance(each, Problem) for each in first):
        for each in itertools.chain(first, every):
            if not isinstance(each, Problem):
                raise ConfigError(f"expected only flow_dpo.Problem objects, found {each!r:.80} among them")
            yield each
        return
    if other := next((each for each in first if not isinstance(each, Mapping)), None):
        raise ConfigError(f"expected rows with columns, or flow_dpo.Problem objects, found {other!r:.80}")
    schema = _schema([dict(row) for row in first], settings, columns)
    yield from _read(itertools.chain(first, every), schema, settings)


def _cut(rows: Iterator[Any]) -> Iterator[Any]:
    """The first rows of a stream; warns if there are more."""
    yield from itertools.islice(rows, ENDLESS)
    if next(rows, None) is not None:
        log.warning(
            "the data set is a stream: only its first %d rows are taken; set max_problems to take more", ENDLESS
        )


def _is_endless(data: Any) -> bool:
    """Whether the number of rows is unknown, as for a stream."""
    return not hasattr(data, "__len__")


def _schema(rows: list[Row], settings: DataSettings, kept: bool) -> Schema:
    """The reader of the rows: by the named columns, the columns of a known data set, or usual names."""
    asked, answer = settings.question_column, settings.answer_column
    columns = {name: value for row in reversed(rows) for name, value in row.items()}
    known = any(schema.columns <= columns.keys() for schema in KNOWN)
    if not settings.schema and ((asked, answer) != (None, None) or not known):
        found = asked or usual(columns, "question_column"), answer or usual(columns, "answer_column")
        if found[0] != found[1] and (kept or None not in found):
            asked, answer = found
        elif found[0] is not None and not (settings.question_template or kept):
            raise DataError(
                f"the given rows: expected a gold answer beside the question in {found[0]!r}, found the columns "
                f'{listed(columns)}; name its column with settings={{"data.answer_column": ...}}, or pass '
                "reward_funcs, which need no gold answer"
            )
    template = QuestionTemplate(settings.question_template) if settings.question_template else None
    return RowReader((asked, answer), template, kept, settings.schema).schema("the given rows", rows)


def _read(rows: Iterable[Mapping[str, Any]], schema: Schema, settings: DataSettings) -> Iterator[Problem]:
    """One problem per row; rows without a question or a gold answer are skipped, counted and reported, or refused."""
    skipped, first = Counter[str](), ""
    for index, row in enumerate(rows):
        try:
            read = schema.read(dict(row))
        except BadRow as error:
            if settings.bad_rows == "refuse":
                raise DataError(f"row {index}: {error}; drop the row, or skip such rows (bad_rows)") from error
            skipped[error.reason] += 1
            first = first or f"row {index}: {error}"
            continue
        yield replace(read, id=read.id or f"{_STEM}/{index}", source=f"{_STEM}/{settings.dataset_split}")
    if skipped:
        log.warning("skipped %d of the given rows; the first: %s", skipped.total(), first)
