"""Problem data sets: questions with gold answers from the seed, local files or the hub.

`load_problems` takes "seed", a local file or folder, or a hub id, and knows the columns of GSM8K, MATH, MATH-500, SVAMP
and MetaMathQA (`data.schemas`). For any other data set, name the question and answer columns.

    load_problems("data/gsm8k", split="test").problems[0]
    -> Problem(id="gsm8k/test/0", question="Janet's ducks lay 16 eggs ...", gold="18", source="gsm8k/test", ...)

Invariant: every problem has a question, a non-empty gold answer, and a unique id. Rows without a usable gold answer are
skipped and counted by reason, or refused, as `bad_rows` says. A fault of the data set as a whole (a missing column, a
truncated row, a repeated id) is a `DataError` that names the place.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from flow_dpo.core.errors import ConfigError, DataError, expect
from flow_dpo.core.types import Problem
from flow_dpo.data.columns import BadRow, Row, has_system_message, usual
from flow_dpo.data.datasets import DataSet, dataset
from flow_dpo.data.files import open_rows
from flow_dpo.data.question_template import QuestionTemplate
from flow_dpo.data.schemas import Schema, choose, choose_named, choose_open

logger = logging.getLogger(__name__)

BadRows = Literal["skip", "refuse"]
NUM_SHOWN = 3
LOOK_AHEAD = 100
"""Rows after the first that are searched for columns that the first one lacks."""
ENDLESS = 1000
"""Problems taken from an endless data set if no number is given."""
_MOST_MADE = 10_000_000
"""The most problems that are generated from an endless data set, including skipped ones."""


CHOICE = ("dataset_split", "max_problems", "skip_problems", "shuffle_seed")
"""Settings that choose problems of a data set. The others name it, and say how its rows are read."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings of the problem stream: data set, split, columns, selection and order."""

    dataset_name: str = "seed"
    """"seed", a local file or folder (JSON, JSONL, either compressed, or Parquet), or a data set on the hub."""
    dataset_config: str | None = None
    """The configuration of a hub data set, such as "main" of openai/gsm8k; for a local one, a subfolder."""
    dataset_split: str = "train"
    question_column: str | None = None
    """The column of the question, for a data set whose columns are not known. A dot leads into a nested column:
    "extra_info.question". In a chat, the only user message is the question."""
    answer_column: str | None = None
    """The column of the gold answer, such as "reward_model.ground_truth" or "answers.0". From a worked solution the
    answer is taken after "####", in the last box or after "answer is".
    The columns `solution`, `level`, and `subject` or `type` are read if they exist."""
    schema: str = ""
    """A reader of the rows, if naming two columns is not enough: a `Schema` in "file.py:NAME", "package.module:NAME" or
    an installed plug-in. Its code is run."""
    question_template: str = ""
    """Builds the question from columns: "{context}\\n\\n{question}". Double a brace to write it literally."""
    max_problems: int | None = None
    """Take only this many problems, after shuffling. The seed generates as many as you ask for."""
    skip_problems: int = 0
    """Leave out this many problems at the beginning, after shuffling, such as those used for something else."""
    shuffle_seed: int | None = None
    """Shuffle with this seed; None keeps the data set's order."""
    bad_rows: BadRows = "skip"
    """What to do with a row that has no usable question or gold answer: "skip" or "refuse"."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more, or none for all", lambda value: value is None or value >= 1, "max_problems")
        expect(self, "of 0 or more", lambda value: value >= 0, "skip_problems")
        if self.schema and (self.question_column or self.answer_column):
            raise ConfigError(f"expected schema or columns, found both: the schema {self.schema} has its own columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSet:
    """Problems in the order in which they are sampled."""

    problems: tuple[Problem, ...]
    fingerprint: str
    """SHA-256 over ids, questions and gold answers in order: equal if two runs see the same stream."""
    skipped: int = 0
    skipped_examples: tuple[str, ...] = ()
    """The first few rows that were skipped, and why."""
    skipped_reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    """Numbers of skipped rows, by what was expected in them."""

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def __len__(self) -> int:
        return len(self.problems)


GIVEN = "given"
"""The name in records for problems that were passed as objects. No data set has this name."""


def load(config: DataSettings, *, columns: bool = False) -> ProblemSet:
    """The problems that the settings name. With `columns` each keeps its row for reward functions, and needs no gold
    answer. Raises `ConfigError` for problems that were passed as objects."""
    if config.dataset_name == GIVEN:
        raise ConfigError(
            "expected the name of a data set, found a run whose problems were passed as objects; name one with "
            "--dataset_name, or pass the problems from Python"
        )
    return load_problems(
        config.dataset_name,
        config=config.dataset_config,
        split=config.dataset_split,
        question_column=config.question_column,
        answer_column=config.answer_column,
        max_problems=config.max_problems,
        skip_problems=config.skip_problems,
        shuffle_seed=config.shuffle_seed,
        bad_rows=config.bad_rows,
        question_template=config.question_template,
        schema=config.schema,
        columns=columns,
    )


def load_problems(
    name: str | Iterable[Problem],
    *,
    config: str | None = None,
    split: str = "train",
    question_column: str | None = None,
    answer_column: str | None = None,
    max_problems: int | None = None,
    skip_problems: int = 0,
    shuffle_seed: int | None = None,
    bad_rows: BadRows = "skip",
    question_template: str = "",
    schema: str = "",
    columns: bool = False,
) -> ProblemSet:
    """The problems of a named data set, or the given problems. With `columns` each keeps its row, and needs no gold
    answer. Raises `DataError` if the data set is faulty or has no problems."""
    if max_problems is not None and max_problems < 1:
        raise DataError(f"expected at least one problem, found max_problems={max_problems}; leave it out to take all")
    if skip_problems < 0:
        raise DataError(f"expected skip_problems of 0 or more, found {skip_problems}")
    end, skipped = None if max_problems is None else skip_problems + max_problems, _LeftOut()
    early = end if shuffle_seed is None else None
    if isinstance(name, str):
        known = _known(name, (question_column, answer_column, question_template, schema))
    else:
        given, name = name, "the given problems"
        known = DataSet(load=lambda _: given)
    if known is not None and known.load is not None:
        _refuse_endless(known, name, skip_problems, max_problems)
        # From an endless split, only the problems that are taken are shuffled.
        most = (ENDLESS + skip_problems if end is None else end) if known.endless else early
        problems = _unlike(itertools.islice(known.load(split), most), graded_by_gold=not columns)
    else:
        source = open_rows(name, config=config, split=split)
        template = QuestionTemplate(question_template) if question_template else None
        reader = RowReader((question_column, answer_column), template, columns, schema)
        problems = list(itertools.islice(_problems(source.rows, source.stem, split, reader, bad_rows, skipped), early))
    if not problems:
        raise DataError(
            f"expected problems in {name} ({split}), found none{skipped.instead()}; name another file or split, or the "
            "columns"
        )
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(problems)
    chosen = tuple(problems[skip_problems:end])
    if not chosen:
        raise DataError(
            f"expected problems in {name} ({split}) after the first {skip_problems}, found {len(problems)} in all; "
            "lower --skip_problems"
        )
    if skipped.counts:
        logger.warning("%s (%s): %s", name, split, skipped)
    return ProblemSet(
        problems=chosen,
        fingerprint=fingerprint(chosen),
        skipped=skipped.counts.total(),
        skipped_examples=tuple(skipped.examples),
        skipped_reasons=dict(skipped.counts),
    )


def _known(name: str, named: Sequence[str | None]) -> DataSet | None:
    """A registered data set, or None. Raises `ConfigError` if columns are named for one whose problems have none."""
    known = dataset(name)
    flags = ("--question_column", "--answer_column", "--question_template", "--schema")
    given = [flag for flag, value in zip(flags, named, strict=True) if value]
    if given and known is not None and known.load is not None:
        raise ConfigError(
            f"expected a data set of rows with {', '.join(given)}, found {name!r}, whose problems have no columns; "
            "name yours with --dataset_name"
        )
    return known


def _refuse_endless(known: DataSet, name: str, skip_problems: int, max_problems: int | None) -> None:
    """Raise `DataError` for more problems than can be generated in reasonable time."""
    if known.endless and skip_problems + (max_problems or 0) > _MOST_MADE:
        raise DataError(
            f"expected skip_problems and max_problems of at most {_MOST_MADE} in total for {name}, whose problems are "
            f"generated one by one, found {skip_problems} and {max_problems}"
        )


def fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 over the stream of ids, questions and gold answers, and of the columns that problems keep, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        kept = [{name: repr(value) for name, value in problem.columns.items()}] if problem.columns else []
        digest.update(json.dumps([problem.id, problem.question, problem.gold, *kept]).encode("ascii") + b"\n")
    return digest.hexdigest()


def _unlike(problems: Iterable[Problem], *, graded_by_gold: bool = True) -> list[Problem]:
    """The problems as a list. Raises `DataError` if one is incomplete or repeats an id."""
    found: dict[str, Problem] = {}
    for problem in problems:
        has_gold = bool(problem.gold.strip()) or not graded_by_gold
        if problem.id in found or not (problem.id and problem.question.strip() and has_gold):
            raise DataError(
                f"expected problems, each with a question, a gold answer and a unique id, found {problem!r:.200}"
            )
        found[problem.id] = problem
    return list(found.values())


# ---- rows ----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _LeftOut:
    """Rows that were left out, counted by reason."""

    num_rows: int = 0
    """Rows that were read, whether usable or not."""
    counts: Counter[str] = field(default_factory=Counter[str])
    places: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The first few rows for each reason: the index, and the id if there is one."""
    examples: list[str] = field(default_factory=list[str])

    def add(self, index: int, place: str, row: Row, error: BadRow) -> None:
        """Count one row."""
        self.counts[error.reason] += 1
        named = next((f" ({row[name]!s:.40})" for name in ("unique_id", "ID", "id") if row.get(name)), "")
        places = self.places.setdefault(error.reason, [])
        if len(places) < NUM_SHOWN:
            places.append(f"row {index}{named}")
        if len(self.examples) < NUM_SHOWN:
            self.examples.append(f"{place}: {error}")

    def instead(self) -> str:
        """The rest of an error's "found none", for a data set without usable rows."""
        if not self.examples:
            return " at all"
        return f" with a usable question and gold answer among {self.num_rows}: {self.examples[0]}"

    def __str__(self) -> str:
        reasons = (
            f"{count} {reason} ({', '.join(self.places[reason])}{', ...' if count > NUM_SHOWN else ''})"
            for reason, count in self.counts.most_common()
        )
        return (
            f"skipped {_rows(self.counts.total())} without a usable gold answer or question, of {self.num_rows} read: "
            f"{'; '.join(reasons)}; the first: {self.examples[0]}"
        )


class RowReader(NamedTuple):
    """How the rows of one data set are read."""

    columns: tuple[str | None, str | None]
    """The columns of the question and of the gold answer, if they are named."""
    template: QuestionTemplate | None
    kept: bool
    """Each problem keeps its row, and needs no gold answer."""
    named: str = ""
    """The name of the schema, if one is given (`DataSettings.schema`)."""

    def schema(self, place: str, rows: Sequence[Row]) -> Schema:
        """The reader of these rows. Raises `DataError` if they lack what it needs."""
        (asked, answer), template = self.columns, self.template
        if template is not None:
            template.check(place, {name: value for row in reversed(rows) for name, value in row.items()})
            asked = asked or template.columns[0]
        if self.named:
            found = choose_named(place, rows, self.named, kept=self.kept)
        else:
            found = (choose_open if self.kept else choose)(place, rows, asked, answer)
        chat = asked or usual(rows[0], "question_column") if rows else None
        if chat is not None and any(has_system_message(row, chat) for row in rows):
            logger.warning(
                "%s: the system messages in %r are left out, because every role of a flow has its own: set it with "
                "--ROLE_system, such as --answer_system, and check it with flow-dpo prompt",
                place,
                chat,
            )
        if template is None:
            return found
        return Schema(found.columns, lambda row: replace(found.read(row), question=template.fill(row)))


def _rows(num: int) -> str:
    return f"{num} row{'' if num == 1 else 's'}"


def _problems(
    rows: Iterator[tuple[str, Row]],
    stem: str,
    split: str,
    reader: RowReader,
    bad_rows: BadRows,
    left_out: _LeftOut,
) -> Iterator[Problem]:
    """Read the rows as problems. Rows without a question or a gold answer go to `left_out`, or are refused."""
    first = list(itertools.islice(rows, 1))
    if not first:
        return
    try:
        schema = reader.schema(first[0][0], [first[0][1]])
    except DataError:  # a row can lack a column that is null in it
        first += itertools.islice(rows, LOOK_AHEAD)
        schema = reader.schema(first[0][0], [row for _, row in first])
    places: dict[str, str] = {}
    for index, (place, row) in enumerate(itertools.chain(first, rows)):
        left_out.num_rows = index + 1
        try:
            read = schema.read(row)
        except BadRow as error:
            if bad_rows == "refuse":
                raise DataError(f"{place}: {error}; drop the row, or skip such rows with --bad_rows skip") from error
            left_out.add(index, place, row, error)
            continue
        problem = replace(read, id=read.id or f"{stem}/{split}/{index}", source=f"{stem}/{split}")
        if problem.id in places:
            raise DataError(
                f"expected a unique id in every row, found {problem.id!r} in two rows: {places[problem.id]} and "
                f"{place}; drop one, or rename it"
            )
        places[problem.id] = place
        yield problem
