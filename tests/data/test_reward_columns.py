"""Does a problem keep its row for reward functions, and is a question put together from columns as named?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem, Verdict
from flow_dpo.data import typed_json
from flow_dpo.data.problems import load_problems
from flow_dpo.data.question_template import QuestionTemplate

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
