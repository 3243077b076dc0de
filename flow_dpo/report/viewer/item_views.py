"""One trace, prediction or judgement as the JSON that its page draws.

    item_view("evaluation", row of predictions.jsonl)
    ->  {"kind": "solution", "status": "wrong", "answer": "39", "text": "...", "faults": [...], "facts": {"draw": 1}}

The invariants are those of `tree_view`: the result depends only on the row, a field of a wrong type is null with a
note, and only a row of another kind is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer.lenient import Reader, verdict_view
from flow_dpo.report.viewer.tree_view import as_problem
from flow_dpo.report.viewer.wrong_steps import faults, wrong_spans

_SCHEMAS = {"traces": "trace/", "evaluation": "prediction/", "judgements": "judgement/"}


def item_view(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page of one row draws. `kind` is that of its source: "traces", "evaluation" or "judgements".

    Raises `DataError` if the row is not of this kind.
    """
    expected = _SCHEMAS.get(kind)
    if expected is None:
        raise DataError(f"expected traces, evaluation or judgements as the kind of a source, found {kind!r:.60}")
    schema = row.get("schema") if isinstance(row, Mapping) else None
    if not isinstance(schema, str) or not schema.startswith(expected):
        raise DataError(f"expected a row of the schema {expected!r}, found {schema!r:.60}; it is from another file")
    reader = Reader(row)
    make = {"traces": _trace, "evaluation": _prediction, "judgements": _judgement}[kind]
    return {**make(reader), "notes": reader.notes}


def _trace(reader: Reader) -> dict[str, Any]:
    problem = _problem(reader, id="problem_id")
    names = ("draw", "draws_used", "tokens_spent")
    facts = {**{name: reader.count(name) for name in names}, "who": reader.text("source")}
    return _solution(reader, problem, {**facts, "ended": reader.flag("ended")}, messages=_messages(reader))


def _prediction(reader: Reader) -> dict[str, Any]:
    facts = {
        "draw": reader.count("draw"),
        "tokens": reader.count("tokens"),
        "yes": reader.number("yes"),
        "mean_logprob": reader.number("mean_logprob"),
        "ended": reader.flag("ended"),
    }
    return _solution(reader, _problem(reader, id="id"), facts, messages=None)


def _solution(
    reader: Reader, problem: dict[str, Any], facts: dict[str, Any], *, messages: list[dict[str, str]] | None
) -> dict[str, Any]:
    text = reader.text("solution")
    verdict = verdict_view(reader)
    return {
        "kind": "solution",
        "problem": problem,
        **verdict,
        "status": verdict["status"] or "ungraded",
        "text": text,
        "ids": reader.ids("token_ids"),
        "pieces": None,
        "logprobs": None,
        "faults": faults(wrong_spans(as_problem(problem), text), text),
        "messages": messages,
        "facts": facts,
    }


def _judgement(reader: Reader) -> dict[str, Any]:
    return {
        "kind": "judgement",
        "problem": _problem(reader, id="problem_id"),
        "status": reader.text("preferred") or "ungraded",
        "verdict": reader.text_or_none("verdict"),
        "preferred": reader.text_or_none("preferred"),
        "first": reader.text("first"),
        "words": reader.text("words"),
        "log_odds": reader.number("log_odds"),
        "reason": reader.text("reason"),
        "tokens": reader.count("tokens"),
        "texts": None,
    }


def _problem(reader: Reader, *, id: str) -> dict[str, Any]:
    """The problem in the form of `tree_view.problem_view`, from the columns of a row that contains them."""
    columns = {"id": id, "question": "question", "gold": "gold", "source": "dataset", "level": "level"}
    columns |= {"subject": "subject", "solution": "worked_solution"}
    return {name: reader.text(column) for name, column in columns.items()}


def _messages(reader: Reader) -> list[dict[str, str]] | None:
    """The chat before a solution; None if there is none."""
    given = reader.items("messages")
    found = [each for each in given if isinstance(each, Mapping)]
    if len(found) < len(given):
        reader.note("'messages': expected messages with a role and a content each")
    read = [Reader(each, reader.notes, "message") for each in found]
    return [{"role": each.text("role"), "content": each.text("content")} for each in read] or None
