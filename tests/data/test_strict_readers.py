"""What have readers of broken files got wrong before? Each case by itself, beside the many of `test_fuzz_readers`.

Traces, JSON, pairs, settings and token ids: what a field must be, and the words that name it where it is not.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from flow_dpo.cli.generate import parse_generate
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.data.strict_json import MAX_DEPTH, parse
from flow_dpo.evaluate.contamination import normalised
from flow_dpo.models.load import LoadedModel, ModelSettings, load_model
from flow_dpo.recipes.single import Single
from flow_dpo.runs import resolve
from flow_dpo.runs.adapters import run_settings
from flow_dpo.runs.records import from_json, to_json
from flow_dpo.traces import sft
from flow_dpo.traces.export import ExportSettings, export
from flow_dpo.traces.trace import Trace, TraceFile, read_traces
from tests.support.record_examples import PAIR, SETTINGS, TRACE


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
        ({"solution": math.nan}, "NaN, which is not JSON"),
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
    assert to_json(trace) == TRACE


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(TRACE) + "\n" + json.dumps(TRACE))
    assert len(read_traces(path).traces) == 1
    assert "t.jsonl, line 2 is incomplete (no newline) and is left out" in caplog.text


def test_json_that_says_two_things_or_is_too_deep_is_refused() -> None:
    for text, message in [
        ('{"a": 1, "a": 2}', "place: expected JSON, found 'a' twice in one object"),
        ("1e999", "too large"),
        ("-Infinity", "-Infinity, which is not JSON"),
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
        resolve.read_settings(path)
    assert "given.yaml" in str(caught.value)


def test_values_that_do_not_fit_are_named_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS | {"lora": {"lora_r": "many"}}))
    words = ["--run", str(tmp_path)]
    with pytest.raises(ConfigError, match=rf"{tmp_path}/config\.yaml: .*lora_r"):
        parse_generate(words)
    (tmp_path / "config.yaml").write_text("model:\n")
    with pytest.raises(ConfigError, match=r"expected names and values under model in .*config\.yaml, found None"):
        parse_generate(words)
    (tmp_path / "config.yaml").write_text("data:\n")
    with pytest.raises(DataError, match=r"config\.yaml: expected an object in 'data', found None"):
        run_settings(tmp_path)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelSettings())


def test_token_ids_that_a_model_does_not_know_are_refused(loaded: LoadedModel) -> None:
    trace = from_json(Trace, TRACE | {"token_ids": [5, 10**6]}, "here")
    file = TraceFile(path=Path("t"), traces=(trace,), header={})
    assert sft.choose(file, sft.SftSettings(num_traces=1)) == (trace,)
    sft.examples([trace], {}, Single(), loaded)  # its words are encoded
    with pytest.raises(DataError, match="found 1000000 in the trace of apples/1"):
        sft.examples([trace], {"tokenizer": loaded.renderer.fingerprint()}, Single(), loaded)
