"""Does a problem keep its row for reward functions, and is a question put together from columns as named?"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem, Verdict
from flow_dpo.data import typed_json
from flow_dpo.data.problems import DataSettings, load_problems
from flow_dpo.data.question_template import QuestionTemplate
from flow_dpo.data.rows import problems_from

ROWS = [
    {"prompt": [{"role": "user", "content": "Write f."}], "tests": ["f(1) == 2"], "extra": {"level": 2}},
    {"prompt": [{"role": "user", "content": "Write g."}], "tests": [], "extra": {"level": 3}},
]


def written(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_without_gold_answers_are_problems_where_functions_grade(tmp_path: Path) -> None:
    source = written(tmp_path / "code.jsonl", ROWS)
    with pytest.raises(DataError):
        load_problems(source)
    found = load_problems(source, columns=True)
    assert [(one.question, one.gold, one.columns) for one in found] == [
        ("Write f.", "", ROWS[0]), ("Write g.", "", ROWS[1])
    ]  # fmt: skip
    changed = written(tmp_path / "code.jsonl", [{**ROWS[0], "tests": ["f(1) == 3"]}, ROWS[1]])
    assert load_problems(changed, columns=True).fingerprint != found.fingerprint


def test_gold_answers_are_read_where_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": "a?", "answer": "so #### 5"}, {"question": "b?", "answer": None}]
    found = load_problems(written(tmp_path / "a.jsonl", rows), columns=True)
    assert [one.gold for one in found] == ["5", ""]
    assert found.problems[0].columns["answer"] == "so #### 5"


def test_a_template_makes_the_question(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"context": "{evil}", "q": {"text": "Which?"}, "answer": "5"}]
    source = written(tmp_path / "a.jsonl", rows)
    [found] = load_problems(source, question_template="{context}\n{{kept}} {q.text}", answer_column="answer")
    assert (found.question, found.gold) == ("{evil}\n{kept} Which?", "5")
    # As a shell passes it on.
    [typed] = load_problems(source, question_template=r"{context}\n\t{q.text}", answer_column="answer")
    assert typed.question == "{evil}\n\tWhich?"
    with pytest.raises(DataError, match=r"contxt.*did you mean"):
        load_problems(source, question_template="{contxt}", answer_column="answer")


@pytest.mark.parametrize("template", ["no column", "{", "{}", "{a!r}", "{a:>8}"])
def test_a_template_of_anything_but_columns_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="question template"):
        QuestionTemplate(template)


def test_records_hold_rewards_where_there_are_any_and_no_columns() -> None:
    plain = Verdict(status="correct", answer="5")
    assert typed_json.write(plain) == {"status": "correct", "answer": "5", "reason": ""}
    zero = Verdict(status="wrong", value=0.0, measures={"rewards/f": 0.0})
    assert typed_json.write(zero) == {
        "status": "wrong", "answer": None, "reason": "", "value": 0.0, "measures": {"rewards/f": 0.0}
    }  # fmt: skip
    assert typed_json.read(Verdict, typed_json.write(zero), "here") == zero
    assert "columns" not in typed_json.write(Problem(id="a", question="b", gold="c", columns={"d": object()}))


def test_a_fraction_reaches_a_function_as_json_has_it_and_the_answer_keeps_its_digits(tmp_path: Path) -> None:
    exact = "0.1000000000000000000000001"
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"question": "a?", "answer": {exact}, "d": 0.3, "more": [{{"e": 1e6, "n": 7}}], "t": "0.5"}}\n')
    [found] = load_problems(str(path), columns=True)
    assert found.gold == exact
    assert found.columns == {
        "question": "a?", "answer": 0.1, "d": 0.3, "more": [{"e": 1e6, "n": 7}], "t": "0.5"
    }  # fmt: skip
    assert not any(isinstance(value, Decimal) for value in found.columns.values())
    assert 0.5 * found.columns["d"] == 0.15
    # Rows that were handed over, of which a whole number stays one.
    rows = [{"question": "a?", "answer": Decimal(exact), "d": Decimal("0.3"), "n": Decimal("7")}]
    [given] = problems_from(rows, DataSettings(), columns=True)
    assert given.gold == exact
    assert [(type(given.columns[name]), given.columns[name]) for name in ("d", "n")] == [(float, 0.3), (int, 7)]


def test_a_class_is_its_name_in_a_file_and_in_a_table(tmp_path: Path) -> None:
    letters = ClassLabel(names=["A", "B", "C"])
    table = Dataset.from_dict(
        {"question": ["a?", "b?", "c?"], "answer": [1, 0, -1], "hints": [[2, 0], [], [1]], "w": [0.1, 0.2, 0.3]},
        features=Features({"question": Value("string"), "answer": letters, "hints": [letters], "w": Value("float32")}),
    )
    table.to_parquet(tmp_path / "a.parquet")
    read = load_problems(str(tmp_path / "a.parquet"))
    assert [one.gold for one in read] == ["B", "A"]
    assert read.skipped == 1, "a class of -1 is none"
    kept = load_problems(str(tmp_path / "a.parquet"), columns=True)
    given = problems_from(table, DataSettings(), columns=True)
    for found in (kept, given, problems_from(table.to_iterable_dataset(), DataSettings(), columns=True)):
        assert [one.gold for one in found] == ["B", "A", ""]
        assert [one.columns["hints"] for one in found] == [["C", "A"], [], ["B"]]
        assert [one.columns["w"] for one in found] == [0.1, 0.2, 0.3]
