"""Problem data sets: questions with gold answers from the seed, local files or the hub.

`load_problems` takes "seed", a local file or folder, or a hub id, and knows the columns of GSM8K, MATH, MATH-500, SVAMP
and MetaMathQA; any other data set names its question and answer columns.

    load_problems("data/gsm8k", split="test").problems[0]
    -> Problem(id="gsm8k/test/0", question="Janet's ducks lay 16 eggs ...", gold="18", source="gsm8k/test", ...)

Invariant: every problem has a question, a gold answer that is not empty, and an id of its own. A row without a usable
gold answer is skipped with a count or refused, by `bad_rows`; what is wrong with the data set as a whole (a
missing column, a truncated row, two rows of one id) is a `DataError` that names the place.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal, NamedTuple

from flow_dpo.core.errors import ConfigError, DataError, expect
from flow_dpo.core.types import Problem
from flow_dpo.data.datasets import DataSet, dataset
from flow_dpo.data.files import Row, open_rows
from flow_dpo.verify.extract import after_answer_is, last_box

logger = logging.getLogger(__name__)

BadRows = Literal["skip", "refuse"]
NUM_SHOWN = 3
ENDLESS = 1000
"""Problems that are taken of a data set without end where no number is given."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Settings of the problem stream: data set, split, columns, selection and order."""

    dataset_name: str = "seed"
    """"seed", a local file or folder (JSONL, gzip, JSON, Parquet), or a data set on the hub."""
    dataset_config: str | None = None
    """The configuration of a hub data set, such as "main" of openai/gsm8k; a subfolder of a local one."""
    dataset_split: str = "train"
    question_column: str | None = None
    """The column of the question, of a data set that is not one of those known by their columns."""
    answer_column: str | None = None
    """The column of the gold answer; a worked solution there is read to its "####", its last box or "answer is".
    The columns `solution`, `level`, and `subject` or `type` are read where there are such."""
    max_problems: int | None = None
    """Take only so many, after shuffling. The seed makes so many."""
    skip_problems: int = 0
    """Leave out so many at the beginning, after shuffling: those that something else learns from."""
    shuffle_seed: int | None = None
    """Shuffle with this seed; None keeps the data set's order."""
    bad_rows: BadRows = "skip"
    """What to do with a row that has no usable question or gold answer."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more, or none for all", lambda value: value is None or value >= 1, "max_problems")
        expect(self, "of 0 or more", lambda value: value >= 0, "skip_problems")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSet:
    """Problems in the order in which they are sampled."""

    problems: tuple[Problem, ...]
    fingerprint: str
    """SHA-256 over ids, questions and gold answers in their order: equal where two runs see the same stream."""
    skipped: int = 0
    skipped_examples: tuple[str, ...] = ()
    """The first few rows that were skipped, and why."""

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def __len__(self) -> int:
        return len(self.problems)


GIVEN = "given"
"""The name by which a record calls problems that were handed over as objects: no data set has it."""


def load(config: DataSettings) -> ProblemSet:
    """The problems that a configuration names. Raises `ConfigError` for those that only objects held."""
    if config.dataset_name == GIVEN:
        raise ConfigError(
            "expected the name of a data set, found a run whose problems were handed over as objects; name one with "
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
) -> ProblemSet:
    """The problems of a data set, or these problems. Raises `DataError` where it is not what it promised to be, or has
    none."""
    if max_problems is not None and max_problems < 1:
        raise DataError(f"expected at least one problem, found max_problems={max_problems}; leave it out to take all")
    if skip_problems < 0:
        raise DataError(f"expected skip_problems of 0 or more, found {skip_problems}")
    end = None if max_problems is None else skip_problems + max_problems
    skipped: list[str] = []
    early = end if shuffle_seed is None else None
    if isinstance(name, str):
        known = dataset(name)
    else:
        given, name = name, "the given problems"
        known = DataSet(load=lambda _: given)
    if known is not None and known.load is not None:
        # Of an endless split so many are shuffled as are taken.
        most = (ENDLESS + skip_problems if end is None else end) if known.endless else early
        problems = _unlike(itertools.islice(known.load(split), most))
    else:
        source = open_rows(name, config=config, split=split)
        rows = _problems(source.rows, source.stem, split, question_column, answer_column, bad_rows, skipped)
        problems = list(itertools.islice(rows, early))
    if not problems:
        raise DataError(
            f"expected problems in {name} ({split}), found none"
            + (f" with a usable question and gold answer among {len(skipped)}: {skipped[0]}" if skipped else " at all")
            + "; name another file or split, or its columns"
        )
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(problems)
    chosen = tuple(problems[skip_problems:end])
    if not chosen:
        raise DataError(
            f"expected problems in {name} ({split}) after the first {skip_problems}, found {len(problems)} in all; "
            "lower --skip_problems"
        )
    if skipped:
        shown = "; ".join(skipped[:NUM_SHOWN])
        logger.warning("%s (%s): skipped %d rows without a usable gold answer: %s", name, split, len(skipped), shown)
    return ProblemSet(
        problems=chosen,
        fingerprint=fingerprint(chosen),
        skipped=len(skipped),
        skipped_examples=tuple(skipped[:NUM_SHOWN]),
    )


def fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 over the stream of ids, questions and gold answers."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.question, problem.gold]).encode("ascii") + b"\n")
    return digest.hexdigest()


def _unlike(problems: Iterable[Problem]) -> list[Problem]:
    """The problems, where each is one and has an id of its own. Raises `DataError` otherwise."""
    found: dict[str, Problem] = {}
    for problem in problems:
        if problem.id in found or not (problem.id and problem.question.strip() and problem.gold.strip()):
            raise DataError(
                f"expected problems with a question, a gold answer and an id of their own, found {problem!r:.200}"
            )
        found[problem.id] = problem
    return list(found.values())


# ---- rows ----------------------------------------------------------------------------------------------------------


def _problems(
    rows: Iterator[tuple[str, Row]],
    stem: str,
    split: str,
    question_column: str | None,
    answer_column: str | None,
    bad_rows: BadRows,
    skipped: list[str],
) -> Iterator[Problem]:
    """The rows as problems. Rows without a question or a gold answer go to `skipped`, or are refused."""
    schema: _Schema | None = None
    places: dict[str, str] = {}
    for index, (place, row) in enumerate(rows):
        if schema is None:
            schema = _choose(place, row, question_column, answer_column)
        try:
            read = schema.read(row)
        except _BadRow as error:
            if bad_rows == "refuse":
                raise DataError(f"{place}: {error}; drop the row, or skip such rows with --bad_rows skip") from error
            skipped.append(f"{place}: {error}")
            continue
        problem = replace(read, id=read.id or f"{stem}/{split}/{index}", source=f"{stem}/{split}")
        if problem.id in places:
            raise DataError(
                f"expected ids of their own, found {problem.id!r} in two rows: {places[problem.id]} and {place}; "
                f"drop one, or rename it"
            )
        places[problem.id] = place
        yield problem


class _BadRow(ValueError):
    """A row without a usable question or gold answer."""


class _Schema(NamedTuple):
    """A data set known by its columns."""

    columns: frozenset[str]
    read: Callable[[Row], Problem]


def _text(row: Row, column: str) -> str:
    """A column's text; numbers as they would be written, without a trailing ".0"."""
    value = row.get(column)
    if isinstance(value, bool) or value is None:
        raise _BadRow(f"expected a text in {column!r}, found {value!r}")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int) and value.bit_length() > 4_000:
        raise _BadRow(
            f"expected an answer that can be written, found a number of {value.bit_length()} bits in {column!r}"
        )
    if not isinstance(value, str | int | float) or value != value:
        raise _BadRow(f"expected a text in {column!r}, found {value!r:.80}")
    text = str(value).strip()
    if not text:
        raise _BadRow(f"expected a text in {column!r}, found nothing")
    if not _is_utf8(text):
        raise _BadRow(f"expected a text in {column!r}, found half a surrogate pair in {text!r:.80}")
    return text


def _is_utf8(text: str) -> bool:
    """JSON may hold lone surrogates, which no tokenizer takes."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _optional(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).strip() if isinstance(value, str) or value.bit_length() < 4_000 else ""


def _gold(text: str, column: str) -> str:
    r"""The final answer in an answer column: after "####", in the last box, after "answer is", or the text itself."""
    box = last_box(text)
    if "####" in text:
        found = text.rpartition("####")[2].strip()
    elif box is not None:
        found = box
    else:
        found = after_answer_is(text) or text
    return _usable(found.strip(), column)


def _usable(gold: str, column: str) -> str:
    if not gold.strip(" $.{}\\"):
        raise _BadRow(f"expected a gold answer in {column!r}, found {gold!r}")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", gold):
        return gold.replace(",", "")
    return gold


def _subject(row: Row) -> str:
    return _optional(row, "subject") or _optional(row, "type")


def _gsm8k(row: Row) -> Problem:
    solution, marker, _ = _text(row, "answer").rpartition("####")
    gold = _gold(_text(row, "answer"), "answer")
    return Problem(
        id="",
        question=_text(row, "question"),
        gold=gold,
        solution=solution.strip() if marker else "",
        level=_optional(row, "level"),
        subject=_subject(row),
    )


def _math(row: Row) -> Problem:
    solution = _text(row, "solution")
    written = row.get("answer")
    if written is None:
        box = last_box(solution, joined=False)
        if box is None:
            raise _BadRow("expected a box in 'solution', found none")
        gold = _usable(box, "solution")
    else:
        gold = _usable(_text(row, "answer"), "answer")
    return Problem(
        id=_optional(row, "unique_id"),
        question=_text(row, "problem"),
        gold=gold,
        solution=solution,
        level=_optional(row, "level"),
        subject=_subject(row),
    )


def _svamp(row: Row) -> Problem:
    body, question = _text(row, "Body"), _text(row, "Question")
    if body[-1] not in ".!?,;:":  # most bodies end without a full stop
        body += "."
    return Problem(
        id=_optional(row, "ID"),
        question=f"{body} {question}",
        gold=_usable(_text(row, "Answer"), "Answer"),
        solution=_optional(row, "Equation"),
        subject=_optional(row, "Type"),
    )


def _metamath(row: Row) -> Problem:
    response = _text(row, "response")
    before, marker, gold = response.rpartition("The answer is:")
    if not marker:
        raise _BadRow(f"expected 'The answer is: ...' at the end of 'response', found {response[-60:]!r}")
    return Problem(
        id="",
        question=_text(row, "query"),
        gold=_usable(gold.strip(), "response"),
        solution=before.strip(),
        subject=_optional(row, "type"),
    )


KNOWN = (
    _Schema(frozenset({"query", "response"}), _metamath),
    _Schema(frozenset({"Body", "Question", "Answer"}), _svamp),
    _Schema(frozenset({"problem", "solution"}), _math),
    _Schema(frozenset({"question", "answer"}), _gsm8k),
)


def _choose(place: str, row: Row, question_column: str | None, answer_column: str | None) -> _Schema:
    """The reader of the rows, chosen once by the columns of the first."""
    columns = sorted(str(column) for column in row)
    if question_column is None and answer_column is None:
        for schema in KNOWN:
            if schema.columns <= set(columns):
                return schema
        raise DataError(
            f"{place}: expected the columns of a known data set (GSM8K question and answer, MATH problem and solution, "
            f"SVAMP Body, Question and Answer, MetaMathQA query and response), found "
            f"{', '.join(columns) or 'no columns'}; name yours with --question_column and --answer_column"
        )
    question, answer = question_column or "question", answer_column or "answer"
    for flag, column in (("question_column", question), ("answer_column", answer)):
        if column not in columns:
            near = get_close_matches(column, columns, n=1, cutoff=0.5)
            raise DataError(
                f"{place}: expected a column {column!r}, found {', '.join(columns) or 'no columns'}; "
                + (f"did you mean --{flag} {near[0]}?" if near else f"choose one of them with --{flag}")
            )

    def read(row: Row) -> Problem:
        id = next((text for column in ("unique_id", "ID", "id") if (text := _optional(row, column))), "")
        text = _text(row, answer)
        before, marker, _ = text.rpartition("####")
        worked = before.strip() if marker else _optional(row, "solution") or (text if last_box(text) else "")
        return Problem(
            id=id,
            question=_text(row, question),
            gold=_gold(text, answer),
            solution=worked,
            level=_optional(row, "level"),
            subject=_subject(row),
        )

    return _Schema(frozenset({question, answer}), read)
