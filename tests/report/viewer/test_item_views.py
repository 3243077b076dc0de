"""Are traces, predictions and judgements shown as they were recorded, and does a damaged field cost itself alone?"""

from __future__ import annotations

import json
from typing import Any

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer.item_views import item_view
from tests.support.record_examples import JUDGEMENT, PREDICTION, TRACE

ROWS = {"traces": TRACE, "evaluation": PREDICTION, "judgements": JUDGEMENT}


def test_a_trace_has_its_chat_its_draw_and_its_wrong_steps():
    found = item_view("traces", TRACE | {"solution": "12 + 7 = 18\n12 + 7 = 19\nAnswer: 19"})
    assert (found["kind"], found["status"], found["answer"]) == ("solution", "correct", "19")
    assert found["problem"] == {
        "id": "apples/1", "question": "Anna has 12 apples. She buys 7.", "gold": "19", "source": "apples/train",
        "level": "", "subject": "", "solution": "",
    }  # fmt: skip
    assert found["messages"] == [{"role": "user", "content": "Anna has 12 apples."}]
    assert found["facts"] == {"draw": 1, "draws_used": 2, "tokens_spent": 9, "who": "trained_flow", "ended": True}
    assert found["faults"] == [{"from": 0, "to": 11, "why": "not true: 12 + 7 = 18"}]
    assert found["notes"] == []


def test_a_prediction_has_what_stop_and_answer_thought_of_it():
    found = item_view("evaluation", PREDICTION)
    assert (found["kind"], found["status"], found["text"]) == ("solution", "correct", "6 + 8 = 14")
    assert found["facts"] == {"draw": 1, "tokens": 5, "yes": 0.5, "mean_logprob": -0.25, "ended": True}
    assert found["ids"] == [5, 6]
    ungraded = item_view("evaluation", PREDICTION | {"verdict": None, "token_ids": None, "yes": None})
    assert (ungraded["status"], ungraded["answer"], ungraded["ids"]) == ("ungraded", None, None)


def test_a_judgement_has_its_verdict_and_the_judges_words():
    found = item_view("judgements", JUDGEMENT)
    assert (found["kind"], found["verdict"], found["preferred"], found["first"]) == ("judgement", "A", "b", "b")
    assert (found["words"], found["status"], found["problem"]["id"]) == ("Verdict: A", "b", "p")
    none = item_view("judgements", JUDGEMENT | {"verdict": None, "preferred": None, "reason": "no verdict found"})
    assert (none["status"], none["reason"]) == ("ungraded", "no verdict found")


@pytest.mark.parametrize("kind", list(ROWS))
@pytest.mark.parametrize("value", [None, True, -1, 10**400, "x", [], [None], {}, {"status": 5}, float("nan")])
def test_a_wrong_type_in_any_field_costs_that_field_alone(kind: str, value: Any):
    for name in ROWS[kind]:
        if name != "schema":
            found = item_view(kind, ROWS[kind] | {name: value})
            assert json.loads(json.dumps(found, allow_nan=False))["kind"] in ("solution", "judgement")


def test_what_could_not_be_read_has_a_note():
    found = item_view("traces", TRACE | {"messages": ["x"], "draw": "first"})
    assert (found["messages"], found["facts"]["draw"]) == (None, None)
    assert len(found["notes"]) == 2


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("run", TRACE, "expected traces, evaluation or judgements"),
        ("traces", PREDICTION, "'trace/', found 'prediction/2'"),
        ("evaluation", [], "found None"),
    ],
)
def test_another_kind_of_row_is_refused(kind: str, row: Any, words: str):
    with pytest.raises(DataError, match=words):
        item_view(kind, row)
