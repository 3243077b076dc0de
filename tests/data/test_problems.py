"""Does every known data set load, and does every bad one say what is wrong with it?"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem
from flow_dpo.data.problems import DataSettings, fingerprint, load, load_problems

DATA = Path(os.environ.get("FLOW_DPO_SAMPLE_DATA", Path(__file__).parent.parent.parent.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="no sample data: set FLOW_DPO_SAMPLE_DATA to a folder that holds it"
)


def written(folder: Path, rows: list[Any], name: str = "train.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def test_a_file_has_one_split_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, [{"question": "1 + 1?", "answer": "2"}], "own.jsonl")
    assert len(load_problems(file)) == 1
    assert not caplog.messages
    for split in ("test", "tset"):
        assert len(load_problems(file, split=split)) == 1
        assert f"a single file without splits: '{split}' stands for all of it" in caplog.messages[-1]


@pytest.mark.parametrize(
    "given", [{"question_column": "q"}, {"answer_column": "a"}, {"question_template": "{q}"}, {"schema": "gsm8k"}]
)
def test_problems_that_are_no_rows_have_no_columns(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"with --{next(iter(given))}, found 'seed', whose problems have no columns"):
        load_problems("seed", max_problems=1, **given)


# ---- the public data sets --------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "num", "skipped"),
    [
        ("gsm8k", "train", 7473, 0),
        ("gsm8k", "test", 1319, 0),
        ("math", "train", 7498, 2),
        ("math", "test", 5000, 0),
        ("math500", "test", 500, 0),
        ("svamp", "train", 700, 0),
        ("svamp", "test", 300, 0),
        ("svamp", "all", 1000, 0),
    ],
)
def test_the_public_data_sets(name: str, split: str, num: int, skipped: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = load_problems(str(DATA / name), split=split)
    assert (len(found.problems), found.skipped) == (num, skipped)
    assert len({problem.id for problem in found.problems}) == num
    assert all(problem.gold and problem.question and problem.source == f"{name}/{split}" for problem in found.problems)
    assert load_problems(str(DATA / name), split=split).fingerprint == found.fingerprint
    if skipped:
        assert "skipped 2 rows without a usable gold answer" in caplog.text
        assert "row 5341" in found.skipped_examples[0]
        with pytest.raises(DataError, match=r"row 5341: expected a text in 'answer', found nothing"):
            load_problems(str(DATA / name), split=split, bad_rows="refuse")


@needs_data
def test_golds_of_the_public_data_sets() -> None:
    gsm8k = load_problems(str(DATA / "gsm8k"), split="train").problems
    assert (gsm8k[0].gold, gsm8k[0].id) == ("72", "gsm8k/train/0")
    assert max(int(problem.gold) for problem in gsm8k) > 1_000_000  # written with commas
    assert all(problem.gold.lstrip("-").isdigit() for problem in gsm8k)
    assert gsm8k[0].solution.endswith("altogether in April and May.")
    math = load_problems(str(DATA / "math500"), split="test").problems[0]
    assert (math.gold, math.level, math.subject) == ("\\left( 3, \\frac{\\pi}{2} \\right)", "2", "Precalculus")
    assert math.id == "test/precalculus/807.json"
    svamp = load_problems(str(DATA / "svamp")).problems[0]
    assert svamp.question.endswith("oranges are organized into 93 groups. How big is each group of bananas?")
    assert (svamp.id, svamp.gold) == ("chal-777", "145")


def test_the_embedded_seed() -> None:
    found = load(DataSettings(max_problems=20))
    assert len(found.problems) == 20
    assert found.fingerprint == load_problems("seed", max_problems=20).fingerprint
    assert found.fingerprint != load_problems("seed", split="test", max_problems=20).fingerprint


# ---- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "question", "gold", "solution"),
    [
        ({"question": "Q", "answer": "one\n#### 1,234"}, "Q", "1234", "one"),
        ({"question": "Q", "answer": 14.0}, "Q", "14", ""),
        ({"problem": "Q", "solution": "so \\boxed{\\frac{1}{2}}."}, "Q", "\\frac{1}{2}", "so \\boxed{\\frac{1}{2}}."),
        ({"problem": "Q", "solution": "so \\boxed 2."}, "Q", "2", "so \\boxed 2."),
        ({"problem": "Q", "solution": "long", "answer": "3"}, "Q", "3", "long"),
        ({"Body": "Ann has 3", "Question": "How many?", "Answer": "3.5"}, "Ann has 3. How many?", "3.5", ""),
        ({"Body": "Ann has 3.", "Question": "How many?", "Answer": 3}, "Ann has 3. How many?", "3", ""),
        ({"query": "Q", "response": "So.\nThe answer is: 7", "original_question": "P", "type": "GSM"}, "Q", "7", "So."),
    ],
)
def test_known_columns(tmp_path: Path, row: dict[str, Any], question: str, gold: str, solution: str) -> None:
    (problem,) = load_problems(written(tmp_path, [row])).problems
    assert (problem.question, problem.gold, problem.solution) == (question, gold, solution)
    assert problem.id == "train/train/0"


def test_other_columns_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "target": "so #### 5", "id": 7}, {"prompt": "R", "target": "\\boxed{6}", "id": 8}]
    path = written(tmp_path, rows)
    found = load_problems(path, question_column="prompt", answer_column="target").problems
    assert [(each.id, each.gold) for each in found] == [("7", "5"), ("8", "6")]
    with pytest.raises(DataError, match=r"among id, prompt, target; did you mean --answer_column target\?"):
        load_problems(path, question_column="prompt", answer_column="targets")
    with pytest.raises(DataError, match=r"expected the columns of a known data set .* found id, prompt, target"):
        load_problems(path)


# ---- order, ids, fingerprint -----------------------------------------------------------------------------------------


def test_shuffling_and_taking(tmp_path: Path) -> None:
    path = written(tmp_path, [{"question": f"Q{k}", "answer": str(k)} for k in range(50)])
    plain, shuffled = load_problems(path), load_problems(path, shuffle_seed=1)
    assert sorted(shuffled.problems, key=lambda each: int(each.gold)) == list(plain.problems)
    assert shuffled.fingerprint != plain.fingerprint
    assert load_problems(path, shuffle_seed=1, max_problems=5).problems == shuffled.problems[:5]
    assert load_problems(path, max_problems=5).problems == plain.problems[:5]
    assert load_problems(path, shuffle_seed=1, skip_problems=2, max_problems=3).problems == shuffled.problems[2:5]
    assert load_problems(path, skip_problems=2, max_problems=3).problems == plain.problems[2:5]
    assert load_problems("seed", skip_problems=5, max_problems=3).problems == load_problems("seed").problems[5:8]
    with pytest.raises(DataError, match=r"after the first 10000, found \d+ in all"):
        load_problems(path, skip_problems=10_000)
    with pytest.raises(DataError, match="skip_problems of 0 or more, found -1"):
        load_problems(path, skip_problems=-1)
    with pytest.raises(DataError, match="max_problems=0"):
        load_problems(path, max_problems=0)


def test_the_fingerprint_is_of_the_stream() -> None:
    problem = Problem(id="a", question="Q", gold="1", solution="not part of it")
    assert fingerprint([problem]) == hashlib.sha256(b'["a", "Q", "1"]\n').hexdigest()
    assert fingerprint([problem]) == fingerprint([Problem(id="a", question="Q", gold="1")])
    assert fingerprint([problem]) != fingerprint([Problem(id="a", question="Q1", gold="")])
    assert fingerprint([problem, problem]) != fingerprint([problem])


def test_two_rows_of_one_id(tmp_path: Path) -> None:
    rows = [{"ID": f"c{k % 2}", "Body": "B", "Question": "Q?", "Answer": "1"} for k in range(3)]
    with pytest.raises(DataError, match=r"'c0' in two rows: .*row 0 and .*row 2"):
        load_problems(written(tmp_path, rows))


# ---- files -----------------------------------------------------------------------------------------------------------


def test_kinds_of_files(tmp_path: Path) -> None:
    rows = [{"question": "Q", "answer": "1"}, {"question": "R", "answer": "2"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "d.json").write_text(text)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.json", "e.parquet"):
        assert [each.gold for each in load_problems(str(tmp_path / name)).problems] == ["1", "2"]


def test_folders(tmp_path: Path) -> None:
    row = [{"question": "Q", "answer": "1"}]
    for place in ("set/train.jsonl", "hub/data/test-00000-of-00001.jsonl", "set/main/dev.jsonl"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        written((tmp_path / place).parent, row, Path(place).name)
    assert load_problems(str(tmp_path / "set")).problems[0].id == "set/train/0"
    assert load_problems(str(tmp_path / "hub"), split="test").problems[0].source == "hub/test"
    assert load_problems(str(tmp_path / "set"), config="main", split="dev").problems[0].gold == "1"
    with pytest.raises(DataError, match=r"found train; did you mean --dataset_split train\?"):
        load_problems(str(tmp_path / "set"), split="tran")
    with pytest.raises(DataError, match=r"found none; did you mean --dataset_config main\?"):
        load_problems(str(tmp_path / "set"), config="mian", split="dev")
    assert load_problems(str(tmp_path / "set"), config="other").problems[0].id == "set/train/0"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no data files"):
        load_problems(str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"did you mean .*train.jsonl\?"):
        load_problems(str(tmp_path / "set" / "trian.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "Q", "answer": "1"}\n{"question": "R", "ans', r"a.jsonl, row 1: expected JSON"),
        ("a.jsonl", b"", "found none at all"),
        ("a.jsonl", b"\n\n", "found none at all"),
        ("a.jsonl", b"[1, 2]\n", "row 0: expected an object of columns, found"),
        ("a.jsonl", b"3\n", "row 0: expected an object of columns, found 3"),
        ("a.jsonl", b"{}\n", "found no columns"),
        ("a.jsonl", b'{"question": "Q", "answer": "\xff"}\n', "expected UTF-8 text"),
        (
            "a.jsonl",
            b'{"question": "Q", "answer": null}\n',
            "found none with a usable question and gold answer among 1",
        ),
        ("a.jsonl", b'{"question": "Q", "answer": "x #### "}\n', "expected a gold answer in 'answer', found ''"),
        ("a.jsonl", b'{"question": ["Q"], "answer": "1"}\n', "expected a text in 'question'"),
        ("a.jsonl", b'{"question": "\\ud800", "answer": "1"}\n', "half a surrogate pair"),
        ("a.jsonl", b'{"problem": "Q", "solution": "\\\\boxed{}"}\n', "expected a gold answer in 'solution'"),
        ("a.jsonl", b'{"question": "Q", "answer": NaN}\n', "expected a text in 'answer', found nan"),
        ("a.jsonl", b'{"question": "Q", "answer": "1", "answer": "2"}\n', r"row 0: .*'answer' twice in one object"),
        ("a.jsonl", b'{"question": "Q", "answer": ' + b"9" * 5000 + b"}\n", "row 0: expected JSON"),
        ("a.jsonl", b"[" * 100_000, "row 0: expected JSON"),
        ("a.jsonl.gz", b"not gzip", "expected a readable data set"),
        ("a.jsonl.gz", gzip.compress(b'{"question": "Q"}', mtime=0)[:-9], "expected a readable data set"),
        ("a.json", b"[1", "expected JSON"),
        ("a.parquet", b"PAR1 not really", "expected a Parquet file"),
        ("a.csv", b"question,answer\n", "expected a data set in one of .jsonl"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_problems(str(tmp_path / name))
    assert name in str(caught.value)


def test_bad_rows_are_skipped_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Any] = [{"question": "Q", "answer": "1"}, *({"question": "Q", "answer": ""} for _ in range(5))]
    found = load_problems(written(tmp_path, rows))
    assert (len(found.problems), found.skipped, len(found.skipped_examples)) == (1, 5, 3)
    assert "skipped 5 rows" in caplog.text
    with pytest.raises(DataError, match=r"row 1: .*drop the row, or skip such rows with --bad_rows skip"):
        load_problems(written(tmp_path, rows), bad_rows="refuse")


# ---- anything at all -------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["#### 1", "5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
COLUMNS = ["question", "answer", "problem", "solution", "Body", "Question", "Answer", "query", "response", "ID", "id"]
ROWS = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), VALUES, max_size=6) | VALUES, max_size=5
)


def clean_or_data_error(content: bytes, name: str, columns: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            found = load_problems(str(path), **columns)
        except DataError as error:
            found = str(error)
    if isinstance(found, str):
        assert name in found
        return
    assert all(problem.id and problem.question and problem.gold.strip() for problem in found.problems)
    assert len({problem.id for problem in found.problems}) == len(found.problems)


def fuzz(rows: list[Any], damage: list[tuple[int, int]], name: str, named: bool) -> None:
    content = bytearray("\n".join(json.dumps(row) for row in rows).encode())
    for at, byte in damage:
        if content:
            content[at % len(content)] = byte
    packed = gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content)
    clean_or_data_error(packed, name, {"question_column": "question", "answer_column": "answer"} if named else {})


CASES = (
    ROWS,
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
    st.sampled_from(["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"]),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(*CASES)
def test_any_file_is_read_or_refused(rows: list[Any], damage: list[tuple[int, int]], name: str, named: bool) -> None:
    fuzz(rows, damage, name, named)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(*CASES)
def test_ten_thousand_files_are_read_or_refused(
    rows: list[Any], damage: list[tuple[int, int]], name: str, named: bool
) -> None:
    fuzz(rows, damage, name, named)
