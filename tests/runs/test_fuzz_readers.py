"""Are traces, pairs, trees, settings, adapters' shapes and rows to grade, however broken, read cleanly or refused by
file, row and field? And is any text at all read for equations?

Every case begins with a valid file and breaks it: another value in a field, a field without or twice, odd JSON, bytes
changed or cut off. The short form tries hundreds of cases, the long one ten thousand.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem
from flow_dpo.evaluate.contamination import normalised, questions_of
from flow_dpo.evaluate.grade_file import verify_file
from flow_dpo.evaluate.step_validity import equations, has_invalid_step, value_of
from flow_dpo.runs import resolve, run_folder
from flow_dpo.runs.adapters import adapter_settings, run_settings, source_settings
from flow_dpo.runs.records import (
    Judgement,
    LearnedRow,
    Metrics,
    Prediction,
    ScoredRow,
    append_rows,
    read_rows,
    to_json,
)
from flow_dpo.runs.resolve import Given
from flow_dpo.runs.settings import named_settings
from flow_dpo.runs.tree_rows import TokenRow, TreeRow
from flow_dpo.traces.export import ExportSettings, export
from flow_dpo.traces.trace import Source, Trace, TraceFile, read_traces
from tests.support.record_examples import (
    FACTS,
    HEADER,
    JUDGEMENT,
    LEARNED,
    METRICS,
    PAIR,
    PREDICTION,
    ROW,
    SCORED,
    SETTINGS,
    SHAPE,
    TOKEN,
    TRACE,
    TREE,
)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**31, 2**63, -(2**70), 10**400, math.nan, math.inf, -math.inf, "\ud800", "\0", "\ufeff", ""])
    | st.floats()
    | st.text(max_size=8)
)
NAMES = sorted({*TRACE, *HEADER, *PAIR, *TREE, *FACTS, *SHAPE, *SETTINGS, *ROW, "content", "status", "question"})
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
RAW = [
    b"[" * 30_000, b'{"a":' * 600 + b"1" + b"}" * 600, b'{"a": 1, "a": 2}', b"\xff\xfe", b"\xed\xa0\x80", b"\0", b"",
    b"{", b"null", b"[]", b'"', b"1e999", b"9" * 5_000, b"NaN", b'{"question": 1e999}', b'{"problem": [1]}',
]  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 99), VALUES), max_size=2)
"""Which field gets which value; -1 of it removes the field."""
BYTES = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), max_size=2)
FORM = st.sampled_from(["plain", "plain", "crlf", "bom", "torn", "twice", "raw", "gone", "deep"])
CASE = (CHANGES, BYTES, FORM, st.sampled_from(RAW), st.integers(0, 99))


def changed(row: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """The row with other values in some of its fields, or of those one level below."""
    found = json.loads(json.dumps(row))
    for which, value in changes:
        names = sorted(found)
        name = names[which % len(names)]
        inner = found[name]
        if which >= 50 and isinstance(inner, dict) and inner:
            inner[sorted(inner)[which % len(inner)]] = value
        elif which >= 50 and isinstance(inner, list):
            inner.append(value)
        else:
            found[name] = value
    return found


def broken(row: dict[str, Any], changes: Any, damage: Any, form: str, raw: bytes, which: int, *, lines: bool) -> bytes:
    """A file of three rows (or of one object), the middle one broken as `form` says."""
    bad = changed(row, changes)
    names = sorted(bad)
    if form == "gone":
        del bad[names[which % len(names)]]
    if form == "deep":
        deep: Any = 1
        for _ in range(20 + which):
            deep = [deep]
        bad[names[which % len(names)]] = deep
    text = json.dumps(bad).encode()
    if form == "twice":
        text = text[:-1] + f', "{names[which % len(names)]}": 1}}'.encode()
    if form == "raw":
        text = raw
    good = json.dumps(row).encode()
    content = b"\n".join([good, text, good]) + b"\n" if lines else text
    if form == "torn":
        content = content[: -2 - which]
    if form == "crlf":
        content = content.replace(b"\n", b"\r\n")
    if form == "bom":
        content = b"\xef\xbb\xbf" + content
    after = bytearray(content)
    for at, byte in damage:
        if after:
            after[at % len(after)] = byte
    return bytes(after)


def read(content: bytes, name: str, reader: Callable[[Path], Any], **others: bytes) -> Any:
    """What the reader makes of a folder with this file; None where it refuses the file by its name."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "made"
        folder.mkdir()
        (folder / name).write_bytes(content)
        for other, text in others.items():
            (folder / other.replace("_json", ".json")).write_bytes(text)
        try:
            return reader(folder)
        except (DataError, ConfigError) as error:
            refused = str(error)
    assert name in refused, refused
    return None


def by_itself(reader: Callable[[], Any], name: str) -> None:
    """The reader refuses the file by its name, or a recipe, a preset or a flow that there is none of by theirs."""
    try:
        reader()
    except ConfigError as error:
        refused = str(error)
    else:
        return
    assert name in refused or "unknown recipe" in refused or "unknown preset" in refused or "file.py" in refused


# ---- traces ----------------------------------------------------------------------------------------------------------


def a_whole_trace(trace: Trace) -> None:
    texts = ("problem_id", "question", "gold", "dataset", "level", "subject", "solution")
    assert all(isinstance(getattr(trace, name), str) for name in texts)
    assert all(type(each) is int and 0 <= each < 2**31 for each in trace.token_ids)
    assert trace.token_ids
    assert all(set(message) == {"role", "content"} for message in trace.messages)
    assert trace.verdict.status == "correct"
    assert isinstance(trace.verdict.answer, (str, type(None)))
    assert isinstance(trace.verdict.reason, str)
    assert type(trace.ended) is bool
    assert 1 <= trace.draw <= trace.draws_used
    assert trace.source in get_args(Source)
    assert to_json(trace).keys() == {"schema", *(field.name for field in fields(Trace))}


def traces_case(*case: Any) -> None:
    def reader(folder: Path) -> TraceFile:
        file = read_traces(folder)
        out = folder / "out"
        export(ExportSettings(source=str(folder), output_dir=str(out)))
        assert len((out / "train.jsonl").read_bytes().splitlines()) == len(file.traces)
        assert len(questions_of(folder)) >= 1
        return file

    found = read(broken(TRACE, *case, lines=True), "traces.jsonl", reader)
    for trace in found.traces if found else ():
        a_whole_trace(trace)


def header_case(*case: Any) -> None:
    rows = (json.dumps(TRACE) + "\n").encode()

    def reader(folder: Path) -> None:
        (folder / "traces.jsonl").write_bytes(rows)
        file = read_traces(folder)
        export(ExportSettings(source=str(folder), output_dir=str(folder / "out")))
        by_itself(lambda: brought((file.header.get("settings", {}), "traces.json")), "traces.json")

    read(broken(HEADER, *case, lines=False), "traces.json", reader)


# ---- pairs, trees, a run's facts -------------------------------------------------------------------------------------


def pairs_case(*case: Any) -> None:
    def reader(folder: Path) -> int:
        return export(ExportSettings(source=str(folder), output_dir=str(folder / "out")))[1]

    read(broken(PAIR, *case, lines=True), "pairs.jsonl", reader)


def facts_case(*case: Any) -> None:
    def reader(folder: Path) -> dict[str, Any]:
        (folder / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
        export(ExportSettings(source=str(folder), output_dir=str(folder / "out")))
        return run_folder.read_facts(folder)

    found = read(broken(FACTS, *case, lines=False), "run.json", reader)
    assert found is None or json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def trees_case(*case: Any) -> None:
    found = read(broken(TREE, *case, lines=True), "trees.jsonl", questions_of)
    assert found is None or (found and all(isinstance(each, str) for each in found))


ROWS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "metrics": (Metrics, METRICS), "whole_trees": (TreeRow, TREE), "scored": (ScoredRow, SCORED),
    "learned": (LearnedRow, LEARNED), "tokens": (TokenRow, TOKEN),
    "predictions": (Prediction, PREDICTION), "judgements": (Judgement, JUDGEMENT),
}  # fmt: skip


def rows_case(name: str, *case: Any) -> None:
    """What is read of a file of rows is written again, and read back equal."""
    kind, row = ROWS[name]

    def reader(folder: Path) -> None:
        rows = read_rows(folder / f"{name}.jsonl", kind)
        append_rows(folder / "again.jsonl", rows)
        assert not rows or read_rows(folder / "again.jsonl", kind) == rows

    read(broken(row, *case, lines=True), f"{name}.jsonl", reader)


# ---- settings, shapes of adapters, rows to grade ---------------------------------------------------------------------


def brought(found: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """The defaults that these settings, from a file, choose; refused where they choose what is none."""
    given = Given.read([]).over(*found)
    given.refuse_unasked()
    defaults = named_settings(given)
    return {**defaults.names(), "flow": defaults.recipe.flow, **defaults.runtime.sections()}


def with_settings(*words: str) -> None:
    """What comes with a run or an adapter is either taken or refused by the name of its file."""
    found = source_settings(Given.read(words))
    resolve.resolve("t", "t", [], lambda _: brought(found), brings=lambda _: found)


def settings_case(*case: Any) -> None:
    content = broken(SETTINGS, *case, lines=False)

    def reader(folder: Path) -> None:
        assert set(run_settings(folder)) <= {*SETTINGS, "data"}
        by_itself(lambda: with_settings("--run", str(folder)), "config.yaml")

    read(content, "config.yaml", reader)


def shape_case(*case: Any) -> None:
    def reader(folder: Path) -> None:
        lora = adapter_settings(folder)["lora"]
        assert all(type(lora[name]) is int for name in ("lora_r", "lora_alpha") if name in lora)
        with_settings("--adapter", str(folder))

    read(broken(SHAPE, *case, lines=False), "adapter_config.json", reader)


def verify_case(*case: Any) -> None:
    def reader(folder: Path) -> None:
        summary = verify_file(folder / "answers.jsonl", folder / "out")
        rows = [json.loads(line) for line in (folder / "out" / "verdicts.jsonl").read_text().splitlines()]
        assert len(rows) == summary["num_rows"]
        assert {row["status"] for row in rows} <= {"correct", "wrong", "ungraded"}
        assert all(isinstance(row["model_output"], str) for row in rows)

    read(broken(ROW, *case, lines=True), "answers.jsonl", reader)


CASES = {
    case.__name__.removesuffix("_case"): case
    for case in (
        traces_case, header_case, pairs_case, facts_case, trees_case, settings_case, shape_case, verify_case
    )
} | {name: partial(rows_case, name) for name in ROWS}  # fmt: skip
SLOW_KINDS = ("settings", "shape")
"""Parsing settings takes some 50 ms."""


def tried(kind: str, num: int) -> None:
    @settings(max_examples=num, deadline=None, database=None)
    @given(*CASE)
    def each(changes: Any, damage: Any, form: str, raw: bytes, which: int) -> None:
        CASES[kind](changes, damage, form, raw, which)

    each()


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("kind", CASES)
def test_any_file_is_read_or_refused(kind: str) -> None:
    tried(kind, 25 if kind in SLOW_KINDS else 80)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_ten_thousand_files_are_read_or_refused(kind: str) -> None:
    tried(kind, 500 if kind in SLOW_KINDS else 1_500)


# ---- equations -------------------------------------------------------------------------------------------------------

SUMS = st.text("0123456789+-*/=().,$ \u00d7\u00f7\u2212\u0663\n^%x", max_size=300) | st.text(max_size=60)
SEED_PROBLEM = Problem(
    id="s", question="Q", gold="19", source="seed/train", solution="She buys 7: 12 + 7 = 19\nAnswer: 19"
)


def any_text(text: str) -> None:
    for equation in equations(text):
        assert type(equation.holds) is bool
    value_of(text)
    assert has_invalid_step(Problem(id="p", question="Q", gold="1", source="a/b"), text) in (True, False, None)
    assert has_invalid_step(SEED_PROBLEM, text) in (True, False)
    assert normalised(text) == normalised(text)


@settings(max_examples=300, deadline=None)
@given(SUMS)
def test_any_text_is_read_for_equations(text: str) -> None:
    any_text(text)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(SUMS)
def test_ten_thousand_texts_are_read_for_equations(text: str) -> None:
    any_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 200_000 + "=", "1 + 1 = " + " " * 200_000, "(" * 200_000 + "=1", "1=1" * 70_000, "-" * 200_000 + "1 = 1",
        "(" * 64 + "1" + ")" * 64 + " + 1 = 2", "-" * 150 + "1 + 1 = 2", ("1" * 201 + "=") * 1_000,
        "a: 1 + " + "9" * 5_000 + " = 2", "She buys 7: 12 + 7 = " + "9" * 5_000,
    ],
    ids=range(10),
)  # fmt: skip
def test_long_texts_are_read_for_equations_in_one_pass(text: str) -> None:
    """One of 300,000 signs took 5 seconds; the bound is loose, for busy machines."""
    before = time.process_time()
    any_text(text)
    assert time.process_time() - before < 2
