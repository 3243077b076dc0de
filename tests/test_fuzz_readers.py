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
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo import build, config, runs, sft
from flow_dpo.equations import equations, has_invalid_step, value_of
from flow_dpo.errors import ConfigError, DataError
from flow_dpo.export import ExportSettings, export
from flow_dpo.flows.single import Single
from flow_dpo.models import LoadedModel, ModelSettings, load_model
from flow_dpo.overlap import normalised, questions_of
from flow_dpo.sources import settings_of, settings_of_adapter, settings_of_run
from flow_dpo.strict_json import MAX_DEPTH, parse
from flow_dpo.traces import Source, Trace, TraceFile, read_traces
from flow_dpo.types import Problem
from flow_dpo.verify import verify_file

TRACE: dict[str, Any] = {
    "problem_id": "apples/1", "question": "Anna has 12 apples. She buys 7.", "gold": "19", "dataset": "apples/train",
    "level": "", "subject": "", "messages": [{"role": "user", "content": "Anna has 12 apples."}],
    "solution": "12 + 7 = 19\nAnswer: 19", "token_ids": [5, 6, 7], "ended": True,
    "verdict": {"status": "correct", "answer": "19", "reason": ""}, "source": "trained_flow", "draw": 1,
    "draws_used": 2, "tokens_spent": 9,
}  # fmt: skip
HEADER: dict[str, Any] = {
    "complete": True, "source": "trained_flow", "selection": "the first", "model": "seed", "tokenizer": "x",
    "dataset": "a/b", "settings": {"recipe": "flow-dpo", "model": {"model_name_or_path": "seed"}}, "counts": {},
    "cost": {"seconds": 1.5},
}  # fmt: skip
VERDICT = {"status": "wrong", "answer": None, "reason": ""}
PAIR: dict[str, Any] = {
    "prompt": "Q", "chosen": "19", "rejected": "18", "problem_id": "apples/1", "role": "answer", "node": 0,
    "rejected_node": 1, "depth": 0, "tags": [], "margin": 1.0, "weight": 1.0, "chosen_verdict": TRACE["verdict"],
    "rejected_verdict": VERDICT, "policy_version": 0, "prompt_ids": [1], "chosen_ids": [5], "rejected_ids": [6],
}  # fmt: skip
TREE: dict[str, Any] = {"problem": {"id": "a", "question": "What?", "gold": "1"}, "nodes": [], "rollouts": []}
FACTS: dict[str, Any] = {"model": "seed", "num_problems": 3, "command": "flow-dpo train", "versions": {"torch": None}}
SHAPE: dict[str, Any] = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA"}
SETTINGS: dict[str, Any] = {
    "recipe": "flow-dpo", "preset": "seed", "flow_source": "", "flow": {"chunk_tokens": 4},
    "model": {"model_name_or_path": "seed"}, "lora": {"lora_r": 4}, "data": {"dataset_name": "seed"},
}  # fmt: skip
ROW: dict[str, Any] = {"gold": "5", "model_output": "so Answer: 5", "is_correct": True, "policy": None}

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
    assert trace.to_json().keys() == {field.name for field in fields(Trace)}


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
        by_itself(lambda: build.defaults_of([], file.header.get("settings", {}), origin="traces.json"), "traces.json")

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
        return runs.read_facts(folder)

    found = read(broken(FACTS, *case, lines=False), "run.json", reader)
    assert found is None or json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def trees_case(*case: Any) -> None:
    found = read(broken(TREE, *case, lines=True), "trees.jsonl", questions_of)
    assert found is None or (found and all(isinstance(each, str) for each in found))


# ---- settings, shapes of adapters, rows to grade ---------------------------------------------------------------------


def with_settings(found: tuple[dict[str, Any], str]) -> None:
    """What comes with a run or an adapter is either taken or refused by the name of its file."""
    _, defaults = build.defaults_of([], found[0], origin=found[1])
    sections = {**defaults.names(), "flow": defaults.recipe.flow, **defaults.shop.sections()}
    config.parse("t", "t", sections, [], base=found[0], origin=found[1])


def settings_case(*case: Any) -> None:
    content = broken(SETTINGS, *case, lines=False)

    def reader(folder: Path) -> None:
        assert set(settings_of_run(folder)) <= {*SETTINGS, "data"}
        by_itself(lambda: with_settings(settings_of({"run": str(folder)})), "config.yaml")

    read(content, "config.yaml", reader)


def shape_case(*case: Any) -> None:
    def reader(folder: Path) -> None:
        lora = settings_of_adapter(folder)["lora"]
        assert all(type(lora[name]) is int for name in ("lora_r", "lora_alpha") if name in lora)
        with_settings(settings_of({"adapter": str(folder)}))

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
}  # fmt: skip
SLOW_KINDS = ("settings", "shape")
"""Parsing settings takes some 50 ms."""


def tried(kind: str, num: int) -> None:
    @settings(max_examples=num, deadline=None, database=None)
    @given(*CASE)
    def each(changes: Any, damage: Any, form: str, raw: bytes, which: int) -> None:
        CASES[kind](changes, damage, form, raw, which)

    each()


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


# ---- what was found, each by itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [1, True]}, "'token_ids', found"),
        ({"token_ids": [1, "2"]}, "'token_ids', found"),
        ({"token_ids": [-1]}, "'token_ids', found"),
        ({"token_ids": [2**40]}, "'token_ids', found"),
        ({"token_ids": []}, "'token_ids', found"),
        ({"verdict": {"status": "correct", "answer": "1", "reason": "", "sure": 1}}, "expected a verdict"),
        ({"verdict": {"status": "correct", "answer": 1, "reason": ""}}, "verdict: expected a text or null in 'answer'"),
        ({"messages": ["hello"]}, "expected a chat"),
        ({"messages": [{"role": "root", "content": ""}]}, "expected a chat"),
        ({"level": 5}, "expected a text in 'level', found 5"),
        ({"ended": 1}, "expected true or false in 'ended'"),
        ({"source": "me"}, "expected one of 'trained_flow'"),
        ({"draw": 0}, "expected a whole number from 1 in 'draw'"),
        ({"draw": 3}, "expected a 'draw' of at most 'draws_used', found 3 of 2"),
        ({"tokens_spent": 1.5}, "'tokens_spent', found 1.5"),
        ({"solution": math.nan}, "NaN, which is no JSON"),
        ({"solution": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_fields_of_a_trace_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(TRACE) + "\n" + json.dumps(TRACE | change) + "\n")
    with pytest.raises(DataError, match=rf"t\.jsonl, line 2.*{message}"):
        read_traces(path)


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(TRACE).encode() + b"\r\n")
    [trace] = read_traces(path).traces
    assert asdict(trace) | {"messages": TRACE["messages"], "token_ids": TRACE["token_ids"]} == TRACE


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(TRACE) + "\n" + json.dumps(TRACE))
    assert len(read_traces(path).traces) == 1
    assert "t.jsonl, line 2 has no end: it was torn off, and is left out" in caplog.text


def test_json_that_says_two_things_or_is_too_deep_is_refused() -> None:
    for text, message in [
        ('{"a": 1, "a": 2}', "place: expected JSON, found 'a' twice in one object"),
        ("1e999", "too large"),
        ("-Infinity", "-Infinity, which is no JSON"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH} deep"),
        (b"\xed\xa0\x80", "place: expected JSON, found 'utf-8' codec"),
    ]:
        with pytest.raises(DataError, match=message):
            parse(text, "place")
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, "place")
    assert parse('{"a": "\\ud83d\\ude00", "b": [{}, {}]}', "place") == {"a": "\U0001f600", "b": [{}, {}]}
    assert parse('"\\ud800"', "place", any_text=True) == "\ud800"


def test_a_pair_of_one_completion_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR | {"rejected_ids": [5]}) + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1: expected two completions"):
        export(ExportSettings(source=str(tmp_path), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_questions_of_signs_alone_are_told_apart() -> None:
    assert normalised("+ ?") != normalised("- ?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 2024-01-01", "expected a text, a number, .* under beta in .*, found datetime.date"),
        ("beta: !!set {1}", "under beta in"),
        ("beta: !!binary YQ==", "under beta in"),
        ("beta: .nan", "expected a finite number under beta"),
        ("2024-01-01: 3", "expected words as names in"),
        ("flow: &a [*a]", "or a value inside itself"),
        ("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n"
         for i in range(1, 12)), "expected at most"),
    ],
)  # fmt: skip
def test_what_yaml_can_hold_and_no_setting_can_be_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.read_settings(path)
    assert "given.yaml" in str(caught.value)


def test_values_that_do_not_fit_are_named_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS | {"lora": {"lora_r": "many"}}))
    found = settings_of({"run": str(tmp_path)})
    _, defaults = build.defaults_of([], found[0], origin=found[1])
    with pytest.raises(ConfigError, match=rf"{tmp_path}/config\.yaml: .*lora_r"):
        config.parse("t", "t", defaults.shop.sections(), [], base={"lora": found[0]["lora"]}, origin=found[1])
    (tmp_path / "config.yaml").write_text("model:\n")
    with pytest.raises(ConfigError, match=r"expected names and values under model in .*config\.yaml, found None"):
        build.defaults_of([], *settings_of({"run": str(tmp_path)})[:1], origin=str(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").write_text("data:\n")
    with pytest.raises(DataError, match=r"config\.yaml: expected an object in 'data', found None"):
        settings_of_run(tmp_path)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelSettings())


def test_token_ids_that_a_model_does_not_know_are_refused(loaded: LoadedModel) -> None:
    trace = Trace.from_json(TRACE | {"token_ids": [5, 10**6]}, "here")
    file = TraceFile(path=Path("t"), traces=(trace,), header={})
    assert sft.choose(file, sft.SftSettings(num_traces=1)) == (trace,)
    sft.examples([trace], {}, Single(), loaded)  # its words are encoded
    with pytest.raises(DataError, match="found 1000000 in the trace of apples/1"):
        sft.examples([trace], {"tokenizer": loaded.renderer.fingerprint()}, Single(), loaded)
