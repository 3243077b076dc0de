"""Are rows read as a stranger wrote them: nested columns, chats, numbers, answers beside solutions, odd files?"""

from __future__ import annotations

import bz2
import decimal
import json
import logging
import lzma
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_dpo.core.errors import DataError
from flow_dpo.data.columns import MISSING, find
from flow_dpo.data.problems import DataSettings, load, load_problems
from flow_dpo.data.schemas import boxed_gold
from flow_dpo.verify.verifier import Verifier
from tests.data.test_problems import DATA, needs_data, written

VERL: dict[str, Any] = {
    "data_source": "openai/gsm8k", "ability": "math",
    "prompt": [{"role": "system", "content": "Be good."}, {"role": "user", "content": "2 + 3? Think first."}],
    "reward_model": {"style": "rule", "ground_truth": "5"},
    "extra_info": {"index": 0, "split": "train", "question": "2 + 3?", "answer": "It is 5.\n#### 5"},
}  # fmt: skip


def table(folder: Path, rows: Any, name: str = "train.parquet") -> str:
    made = pyarrow.Table.from_pylist(rows) if isinstance(rows, list) else pyarrow.table(rows)
    pyarrow.parquet.write_table(made, folder / name)
    return str(folder / name)


# ---- nested columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("extra_info.question", "reward_model.ground_truth", ("2 + 3?", "5", "")),
        ("extra_info.question", "extra_info.answer", ("2 + 3?", "5", "It is 5.")),
        ("prompt", "reward_model.ground_truth", ("2 + 3? Think first.", "5", "")),
        ("prompt.1.content", "reward_model.ground_truth", ("2 + 3? Think first.", "5", "")),
        ("prompt.-1.content", "reward_model.ground_truth", ("2 + 3? Think first.", "5", "")),
    ],
)
def test_nested_columns_are_named(
    tmp_path: Path, kind: str, question: str, answer: str, found: tuple[str, ...]
) -> None:
    path = table(tmp_path, [VERL]) if kind == "parquet" else written(tmp_path, [VERL])
    (problem,) = load_problems(path, question_column=question, answer_column=answer).problems
    assert (problem.question, problem.gold, problem.solution) == found


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("prompt", "reward_model", r"an object of that name .* mean --answer_column reward_model\.ground_truth\?"),
        ("prompt", "ground_truth", r"no such column .* mean --answer_column reward_model\.ground_truth\?"),
        ("prompt", "reward_model.groundtruth", r"mean --answer_column reward_model\.ground_truth\?"),
        ("extra_info.qestion", "reward_model.ground_truth", r"mean --question_column extra_info\.question\?"),
        ("extra_info", "reward_model.ground_truth", r"mean --question_column extra_info\.question\?"),
        ("prompt.5.content", "reward_model.ground_truth", r"mean --question_column prompt\.0\.content\?"),
        (None, None, r"--question_column prompt and --answer_column extra_info\.answer"),
    ],
)
def test_a_wrong_name_is_answered_with_the_leaf_that_fits(
    tmp_path: Path, question: str | None, answer: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_problems(written(tmp_path, [VERL]), question_column=question, answer_column=answer)
    assert "extra_info.answer, extra_info.index, extra_info.question" in str(caught.value)


def test_a_literal_name_comes_first(tmp_path: Path) -> None:
    row = {"a.b": "Q", "a": {"b": "not this"}, "c": {"d.e": "7", "d": {"e": "8"}}, "choices": ["x", "9"]}
    for answer, gold in (("c.d.e", "7"), ("choices.1", "9")):
        (problem,) = load_problems(written(tmp_path, [row]), question_column="a.b", answer_column=answer).problems
        assert (problem.question, problem.gold) == ("Q", gold)


@given(st.lists(st.sampled_from(["a", "b.c", "0", "x"]), min_size=1, max_size=4), st.booleans())
def test_every_path_is_found_again(keys: list[str], in_list: bool) -> None:
    value: Any = "leaf"
    for key in reversed(keys):
        value = {key: [value, "other"] if in_list else value, "else": 1}
    assert find(value, (".0." if in_list else ".").join(keys) + (".0" if in_list else "")) == "leaf"
    assert find(value, ".".join([*keys, "more"])) is MISSING or in_list


def test_a_column_that_is_null_in_the_first_rows_is_found(tmp_path: Path) -> None:
    rows = [{"q": "P", "meta": None}, {"q": "R"}, {"q": "S", "meta": {"gold": "9"}}]
    found = load_problems(written(tmp_path, rows), question_column="q", answer_column="meta.gold")
    assert [(each.id, each.gold) for each in found] == [("train/train/2", "9")]
    assert found.skipped_reasons == {"expected a text in 'meta.gold'": 2}


@pytest.mark.parametrize(
    ("chat", "found"),
    [
        ([{"role": "user", "content": "Q"}], "Q"),
        ([{"role": "developer", "content": "D"}, {"role": "user", "content": "Q"}], "Q"),
        ([{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "R"}]}], "Q\nR"),
        ({"role": "user", "content": "Q"}, "Q"),
        ({"role": ["system", "user"], "content": ["S", "Q"]}, "Q"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}],
         "one user message in 'prompt', found user, assistant, user; name .* prompt.-1.content"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "So"}], "found user, assistant"),
        ([{"from": "human", "value": "How many?"}], "found no role; name .* prompt.-1.value"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a message with text only"),
        (["Q"], r"expected a text in 'prompt', found \['Q'\]"),
        (12, "expected a text in 'prompt', found 12"),
        ([], "expected a text in 'prompt'"),
    ],
)  # fmt: skip
def test_a_chats_question_is_its_one_user_message(tmp_path: Path, chat: Any, found: str) -> None:
    path = written(tmp_path, [{"prompt": chat, "answer": "1"}])
    if len(found) < 4:
        assert load_problems(path, question_column="prompt").problems[0].question == found
    else:
        with pytest.raises(DataError, match=found):
            load_problems(path, question_column="prompt")


def test_a_system_message_is_not_left_out_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    load_problems(written(tmp_path, [{"prompt": chat[1:], "answer": "1"}]), question_column="prompt")
    assert not caplog.messages
    load_problems(written(tmp_path, [{"prompt": chat, "answer": "1"}]), question_column="prompt")
    assert [message for message in caplog.messages if "the system messages in 'prompt' are left out" in message]


def test_a_completion_that_is_a_chat_is_read(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "Q"}],
        "completion": [{"role": "assistant", "content": "so \\boxed{3}"}],
    }
    (problem,) = load_problems(written(tmp_path, [row]), question_column="prompt", answer_column="completion").problems
    assert (problem.question, problem.gold, problem.solution) == ("Q", "3", "so \\boxed{3}")


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "gold", "solution"),
    [
        ({"problem": "P", "answer": "6", "solution": ""}, "6", ""),
        ({"problem": "P", "answer": "6", "solution": None}, "6", ""),
        ({"problem": "P", "answer": "6"}, "6", ""),
        ({"problem": "P", "answer": "6", "solution": "no box"}, "6", "no box"),
        ({"problem": "P", "answer": 6, "solution": "   "}, "6", ""),
        ({"problem": "P", "answer": "", "solution": "so \\boxed{7}"}, "7", "so \\boxed{7}"),
        ({"problem": "P", "answer": None, "solution": "so \\boxed{7}"}, "7", "so \\boxed{7}"),
        ({"problem": "P", "answer": " ", "solution": "so \\boxed{7}"}, "7", "so \\boxed{7}"),
        ({"problem": "P", "answer": "8", "solution": "so \\boxed{7}"}, "8", "so \\boxed{7}"),
        ({"question": "P", "answer": "", "solution": "so \\boxed{7}"}, "7", "so \\boxed{7}"),
        ({"question": "P", "answer": "7", "solution": "w"}, "7", "w"),
        ({"problem": "P", "answer": "", "solution": ""}, "", "expected a text in 'answer', found nothing"),
        ({"problem": "P", "answer": "", "solution": "no box"}, "", "expected a text in 'answer', found nothing"),
        ({"problem": "P", "solution": ""}, "", "expected a text in 'solution', found nothing"),
        ({"problem": "P", "solution": "no box"}, "", "expected a box in 'solution', found none"),
        ({"question": "P", "answer": True}, "", "found True; write the word of the answer"),
        ({"question": "P", "answer": ["5"]}, "5", ""),
        ({"question": "P", "answer": ["5", "6"]}, "", r"found a list of 2: .*name a part of it, such as answer\.0"),
        ({"question": "P", "answer": []}, "", "found a list of 0"),
        ({"question": "P", "answer": {"value": "5"}}, "", r"an object: .*such as answer\.value"),
        ({"question": "P", "answer": '["\\\\frac{1}{2}"]'}, "\\frac{1}{2}", ""),
        ({"question": "P", "answer": "[5]"}, "[5]", ""),
    ],
)
def test_the_gold_answer_is_the_answers_columns(tmp_path: Path, row: dict[str, Any], gold: str, solution: str) -> None:
    path = written(tmp_path, [row])
    if not gold:
        with pytest.raises(DataError, match=solution):
            load_problems(path, bad_rows="refuse")
        return
    (problem,) = load_problems(path, bad_rows="refuse").problems
    assert (problem.gold, problem.solution) == (gold, solution)


@pytest.mark.parametrize(
    ("literal", "gold"),
    [
        ("1.0", "1"),
        ("1e6", "1000000"),
        ("-0.0", "0"),
        ("1.50", "1.5"),
        ("0.1", "0.1"),
        ("1e-7", "0.0000001"),
        ("9223372036854775809", "9223372036854775809"),
        ("12345678901234567.0", "12345678901234567"),
        ("0.10000000000000000001", "0.10000000000000000001"),
        ("1e22", "1" + "0" * 22),
    ],
)
def test_a_number_loses_no_digit(tmp_path: Path, literal: str, gold: str) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"question": "Q", "answer": {literal}}}\n')
    assert load_problems(str(tmp_path / "train.jsonl")).problems[0].gold == gold


@pytest.mark.parametrize("literal", ["1e400", "-1e999999", "1e99999999999999999999", "Infinity", "NaN"])
def test_numbers_that_are_no_answer(tmp_path: Path, literal: str) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"question": "Q", "answer": {literal}}}\n')
    with pytest.raises(DataError, match=r"expected a (?:text|number of at most 400 digits) in 'answer'"):
        load_problems(str(tmp_path / "train.jsonl"))


def test_numbers_of_a_table(tmp_path: Path) -> None:
    columns = {
        "single": pyarrow.array([0.1, 2.5], pyarrow.float32()),
        "double": pyarrow.array([0.1, 2.0**-20], pyarrow.float64()),
        "exact": pyarrow.array([decimal.Decimal("12.500"), decimal.Decimal("7.000")], pyarrow.decimal128(10, 3)),
        "whole": pyarrow.array([2**62 + 1, -3], pyarrow.int64()),
        "inside": pyarrow.array([{"x": 0.1}, {"x": 3.0}], pyarrow.struct([("x", pyarrow.float32())])),
    }
    path = table(tmp_path, {"question": ["P", "Q"], **columns})
    golds = {
        "single": ["0.1", "2.5"], "double": ["0.1", "0.00000095367431640625"], "exact": ["12.5", "7"],
        "whole": [str(2**62 + 1), "-3"], "inside.x": ["0.1", "3"],
    }  # fmt: skip
    for column, expected in golds.items():
        assert [each.gold for each in load_problems(path, answer_column=column)] == expected


@pytest.mark.parametrize(
    ("question", "solution", "gold"),
    [
        ("Find all points where they meet.", "are $\\boxed{(-2,18)}$ and $\\boxed{(8,38)}$.", "(-2,18), (8,38)"),
        ("Enter all $t$, separated by commas.", "$t = \\boxed{\\frac13}$ or $t = \\boxed{-2}$.", "\\frac13, -2"),
        ("Enter the angles, separated by commas.", "is $\\boxed{30}.$ Then\n\nthe other is $\\boxed{60}.$", "30, 60"),
        ("Find all possible values of $x$.", "$x = \\boxed{4}$. If not, $x = \\boxed{-4}$. So $\\boxed{4}$.", "4, -4"),
        ("What is the final expression?", "yields $\\boxed{-b+2}$, or $\\boxed{2 - b}$.", "2 - b"),
        ("Find the coordinates of either of the foci.", "are $\\boxed{(0,1)}$ and $\\boxed{(0,7)}$.", "(0,7)"),
        ("What is $N$?", "this is $\\boxed{28}$ or $\\boxed{28_9}$.", "28_9"),
        ("What is it?", "First $\\boxed{3}$ of them. Another way gives $\\boxed{5}$.", "5"),
        ("Find all solutions.", "nothing", None),
        ("Find all solutions.", "so $\\boxed{}$", ""),
    ],
)  # fmt: skip
def test_two_boxes_are_one_answer_where_the_question_asks_for_several(
    question: str, solution: str, gold: str | None
) -> None:
    assert boxed_gold(question, solution) == gold


@needs_data
def test_golds_of_math_with_several_boxes() -> None:
    """Of 12,500 rows 20 box several answers to a question that asks for several; the rest keep their last box."""
    changed: dict[str, str] = {}
    for split in ("train", "test"):
        for problem in load_problems(str(DATA / "math"), split=split):
            last = boxed_gold("", problem.solution) or ""
            if problem.gold != last and problem.gold != last.replace(",", ""):
                changed[problem.id] = problem.gold
    assert len(changed) == 20
    assert changed["train/algebra/152.json"] == "(-2,18), (8,38)"
    assert changed["test/intermediate_algebra/1020.json"] == "5 - 10i, 11, -3 + 6i"
    assert not set(changed) & {"train/prealgebra/452.json", "train/intermediate_algebra/396.json"}


# ---- rows left out ---------------------------------------------------------------------------------------------------


def test_rows_left_out_are_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Any] = [{"question": "Q", "answer": "1"}]
    rows += [{"id": f"no{k}", "question": "Q", "answer": ""} for k in range(5)]
    rows += [{"question": " ", "answer": "2"}, {"question": "Q", "answer": " #### "}]
    found = load_problems(written(tmp_path, rows))
    assert (len(found), found.skipped) == (1, 7)
    assert found.skipped_reasons == {
        "expected a text in 'answer'": 5,
        "expected a text in 'question'": 1,
        "expected a gold answer in 'answer'": 1,
    }
    assert "skipped 7 rows without a usable gold answer or question, of 8 read: " in caplog.text
    assert "5 expected a text in 'answer' (row 1 (no0), row 2 (no1), row 3 (no2), ...)" in caplog.text
    caplog.clear()
    caplog.set_level(logging.WARNING)
    load_problems(written(tmp_path, rows[:1]))
    assert not caplog.text


# ---- files and names -------------------------------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


LINE = b'{"question": "Q", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + LINE),
        ("a.jsonl", LINE.replace(b"\n", b"\r\n") * 1),
        ("a.jsonl", b"[" + LINE + b"]"),
        ("a.JSONL", LINE),
        ("a.ndjson", LINE),
        ("a.jsonl.zst", zstd(LINE)),
        ("a.jsonl.bz2", bz2.compress(LINE)),
        ("a.json.xz", lzma.compress(LINE)),
        ("a.json", json.dumps({"version": 1, "data": [json.loads(LINE)]}, indent=1).encode()),
    ],
)
def test_odd_files_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (problem,) = load_problems(str(tmp_path / name)).problems
    assert (problem.question, problem.gold, problem.id) == ("Q", "1", "a/train/0")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer; .* git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "is that of a .gz file"),
        ("a.jsonl", json.dumps({"question": "Q", "answer": "1"}).encode("utf-16"), "save it as UTF-8"),
        ("a.jsonl.zst", b"nope", "expected a readable data set"),
        ("a.jsonl.bz2", b"nope", "expected a readable data set"),
        ("a.jsonl.xz", b"nope", "expected a readable data set"),
        ("a.json", b'{"question": ["Q"],\n "answer": ["1"]}', "found one object of question, answer"),
    ],
)
def test_odd_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_problems(str(tmp_path / name))


def test_a_table_without_rows_and_one_in_parts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none at all"):
        load_problems(table(tmp_path, {"question": pyarrow.array([], pyarrow.string()), "answer": []}))
    parts = tmp_path / "parts"
    parts.mkdir()
    for at in range(2):
        table(parts, [{"question": f"Q{at}", "answer": str(at)}], f"train-0000{at}-of-00002.parquet")
    found = load_problems(str(parts)).problems
    assert [(each.id, each.gold) for each in found] == [("parts/train/0", "0"), ("parts/train/1", "1")]
    (parts / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"expected one file of split 'train' in .*, or all its parts"):
        load_problems(str(parts))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./sett", "found nothing there; did you mean set?"),
        ("set/tran.jsonl", "found nothing there; did you mean set/train.jsonl?"),
        ("set/trainn", "found no local one of that name; did you mean set/train.jsonl?"),
        ("other.csv", "expected a data set at other.csv, found nothing there"),
        ("other.jsonl.zst", "found nothing there"),
        ("a/b/c", "found nothing there: . holds no a"),
        ("~nobody-of-this-name/a", "expected a path or a data set's name"),
        ("/no/such/place.parquet", "found nothing there: / holds no no"),
        ("sead", "did you mean seed? For a data set on the hub, name its owner"),
        ("x" * 5000 + ".jsonl", "File name too long"),
        ("", "found none; give one with --dataset_name"),
    ],
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    written(tmp_path / "set", [{"question": "Q", "answer": "1"}])
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(DataError) as caught:
        load_problems(name)
    assert message in str(caught.value)


def test_a_worked_solution_is_a_gold_answer_of_which_the_verifier_reads_the_value(tmp_path: Path) -> None:
    """The text stays as it is, for graders of one's own and reward functions."""
    answers = ["She adds 5 and 3.\nSo she has 8 apples.", "48/2 = 24\n48+24 = 72", "He has 72 clips.",
               "Roses are red\nViolets are blue"]  # fmt: skip
    rows = [{"question": f"Q{at}", "answer": answer} for at, answer in enumerate(answers)]
    for columns in (False, True):
        found = load(DataSettings(dataset_name=written(tmp_path, rows)), columns=columns).problems
        assert [problem.gold for problem in found] == answers
    with Verifier() as verifier:
        said = ["\\boxed{8}", "\\boxed{72}", "\\boxed{72}", "\\boxed{blue}"]
        verdicts = verifier.grade_many([(problem.gold, each, True) for problem, each in zip(found, said, strict=True)])
    assert [verdict.status for verdict in verdicts] == ["correct", "correct", "correct", "ungraded"]
