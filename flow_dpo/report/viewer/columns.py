"""What the index knows of one row: the columns by which items are listed, filtered and sorted.

    columns("tree", row)       {"id": "seed/train/0", "status": "wrong", "flipped": 1, "tokens": 118, "yes": 0.31, ...}
    example(line)              Example(kind="pair", problem="seed/train/0", role="answer", depth=0, margin=1.0, ...)

A row of examples is a kilobyte of which an index needs sixty bytes, so what this package wrote is read by its layout;
any other row is parsed whole, to the same end. Invariant: a row of the wrong kind or shape is a `DataError`, a single
fact of the wrong kind is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer.lines import integer, mapping, number, objects, parse_line, refuse, text

SHOWN = 240
"""Characters of a question in a list."""
_FOUND = 2_000
"""Characters of a question that a search reads."""
_KEY = 500
"""Characters of an id, of an answer and of a gold answer."""
MAIN = {
    "run": ("trees.jsonl", "tree"),
    "traces": ("traces.jsonl", "trace"),
    "evaluation": ("predictions.jsonl", "prediction"),
    "judgements": ("judgements.jsonl", "judgement"),
}
"""The file that holds the items of each kind of source, and the name of their schema."""
COMPANIONS = {"pairs.jsonl": "pair", "scored.jsonl": "scored", "learned.jsonl": "learned"}
"""Files of a run whose rows belong to its trees, by problem, and the names of their schemas."""
VERSIONS = {
    "tree": (1, 2), "pair": (1,), "scored": (1,), "learned": (1,), "trace": (1,), "prediction": (2,), "judgement": (1,),
}  # fmt: skip
"""Versions of each schema that can be read."""
_STATUSES = ("correct", "wrong", "ungraded")
_ATTEMPT = re.compile(r"attempt (\d{1,6})")


def columns(schema: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The index's facts of one item. Raises `DataError` where it is no row of this schema."""
    check_schema(schema, row.get("schema"))
    return _COLUMNS[schema](row)


def check_schema(schema: str, found: object) -> None:
    """Raise `DataError` where a row does not name this schema, in a version that is known."""
    if found not in _ACCEPTED[schema]:
        expected = " or ".join(map(repr, _ACCEPTED[schema]))
        refuse(f"the schema {expected}", found)


_ACCEPTED = {name: tuple(f"{name}/{one}" for one in versions) for name, versions in VERSIONS.items()}


def _of_tree(row: Mapping[str, Any]) -> dict[str, Any]:
    problem, nodes, rollouts = row.get("problem"), row.get("nodes"), row.get("rollouts")
    if not isinstance(problem, dict):
        refuse("a problem", problem)
    if not isinstance(nodes, list) or not isinstance(rollouts, list):
        refuse("a list of nodes and one of rollouts", nodes if not isinstance(nodes, list) else rollouts)
    rollouts = objects(rollouts)
    trunk = rollouts[0] if rollouts else {}
    verdict = mapping(trunk.get("verdict"))
    found = {**_of_problem(problem, problem.get("id")), **_of_nodes(objects(nodes))}
    found["status"] = own = _status(trunk)
    found["answer"] = text(verdict.get("answer"), _KEY)
    found["rollouts"] = len(rollouts)
    counts = dict.fromkeys(_STATUSES, 0)
    flipped = 0
    for rollout in rollouts:
        status = _status(rollout)
        if status in counts:
            counts[status] += 1
        if rollout is not trunk and rollout.get("probe") is not True:
            flipped |= {status, own} == {"correct", "wrong"}
    right, wrong = counts["correct"], counts["wrong"]
    found["right"], found["wrong"], found["ungraded"], found["flipped"] = right, wrong, counts["ungraded"], int(flipped)
    found["accuracy"] = right / (right + wrong) if right + wrong else None
    return found


def _of_problem(row: Mapping[str, Any], name: object) -> dict[str, Any]:
    return {
        "id": text(name, _KEY) or "",
        "question": text(row.get("question"), _FOUND),
        "gold": text(row.get("gold"), _KEY),
        "level": text(row.get("level"), 80) or None,
        "subject": text(row.get("subject"), 80) or None,
    }


def _of_nodes(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens, version, attempts, yes = 0, None, None, None
    for node in nodes:
        ids, sampled_by = node.get("token_ids"), node.get("policy_version")
        tokens += len(ids) if isinstance(ids, list) else 0
        if sampled_by != version and (known := integer(sampled_by)) is not None:
            version = known if version is None else max(version, known)
        if node.get("rollout") != 0:
            continue
        tags = node.get("tags")
        for tag in tags if isinstance(tags, list) else ():
            attempts = max(_attempt(tag), attempts or 0) or None if isinstance(tag, str) else attempts
        choices = node.get("choice_logprobs")
        if choices and isinstance(choices, list) and (first := number(choices[0])) is not None and first <= 1e-6:
            yes = math.exp(first)
    return {"tokens": tokens, "version": version, "attempts": attempts, "yes": yes}


@lru_cache(maxsize=256)
def _attempt(tag: str) -> int:
    """The number in a tag such as "attempt 2"; 0 of any other."""
    found = _ATTEMPT.fullmatch(tag)
    return int(found[1]) if found else 0


def _status(row: Mapping[str, Any]) -> str:
    """Of a rollout or another row with a verdict: "stopped" where its leaf has an estimated value instead of one."""
    verdict = row.get("verdict")
    status = verdict.get("status") if isinstance(verdict, dict) else None
    if status in _STATUSES:
        return str(status)
    return "stopped" if verdict is None and number(row.get("value")) is not None else "ungraded"


def _of_trace(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = mapping(row.get("verdict")).get("answer")
    return {
        **_of_problem(row, row.get("problem_id")),
        "status": _status(row),
        "answer": text(answer, _KEY),
        "tokens": integer(row.get("tokens_spent")),
        "draw": integer(row.get("draw")),
    }


def _of_prediction(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = mapping(row.get("verdict")).get("answer")
    return {
        **_of_problem(row, row.get("id")),
        "status": _status(row),
        "answer": text(answer, _KEY),
        "tokens": integer(row.get("tokens")),
        "draw": integer(row.get("draw")),
        "yes": number(row.get("yes")),
        "ungraded": int(_status(row) == "ungraded"),
    }


def _of_judgement(row: Mapping[str, Any]) -> dict[str, Any]:
    preferred = row.get("preferred")
    return {
        **_of_problem({}, row.get("problem_id")),
        "status": str(preferred) if preferred in ("a", "b", "tie") else "ungraded",
        "tokens": integer(row.get("tokens")),
        "ungraded": int(preferred not in ("a", "b", "tie")),
    }


_COLUMNS = {"tree": _of_tree, "trace": _of_trace, "prediction": _of_prediction, "judgement": _of_judgement}


# ---- rows that belong to a tree --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row of pairs.jsonl, scored.jsonl or learned.jsonl, as far as an index needs it."""

    kind: str
    """"pair", "scored" or "learned"."""
    problem: str
    role: str
    node: int | None
    """In the problem's tree; of a pair the chosen one."""
    depth: int | None
    margin: float | None
    """Of a pair."""
    version: int | None
    """Of the policy that sampled it; of a learned row, of the one that learned from it."""


_STRING = rb'"((?:[^"\\]|\\.)*)"'
_HEAD = rb', "problem_id": ' + _STRING + rb', "role": ' + _STRING + rb', "node": (\d{1,15}), '
_PAIR = re.compile(
    _HEAD + rb'"rejected_node": \d{1,15}, "depth": (\d{1,15}), "tags": \[[^\]]*\], "margin": ([-+.\deE]{1,30}), '
)
_SCORED = re.compile(_HEAD + rb'"depth": (\d{1,15}), ()')
_FIELD = re.compile(rb', "policy_version": (-?\d{1,15})[,}]')
_LAYOUTS = {"pair": _PAIR, "scored": _SCORED}
"""What stands in a row as `runs.records` writes it. Quotes inside a JSON text have a backslash before them, so a name
in quotes between a comma and a colon is a key; and the first one of it is the row's own, for nothing nested stands
before it."""


def example(schema: str, content: bytes) -> Example:
    """The facts of one line. Raises `DataError` where it is no row of this schema."""
    layout = _LAYOUTS.get(schema)
    if layout is not None and content.startswith(b'{"schema": "%s/1", ' % schema.encode()) and content[-2:] == b"}\n":
        at = content.find(b', "problem_id": "')
        found = layout.match(content, at) if at > 0 else None
        if found is not None and b"\\" not in found[1] + found[2]:
            return _by_layout(schema, content, found)
    return _parsed(schema, parse_line(content))


def _by_layout(schema: str, content: bytes, found: re.Match[bytes]) -> Example:
    version = _FIELD.search(content, found.end())
    try:
        problem, role = found[1].decode(), found[2].decode()
        margin = number(float(found[5])) if schema == "pair" else None
    except ValueError as error:
        raise DataError("expected a row of UTF-8 and numbers, found another one") from error
    return Example(
        kind=schema, problem=problem[:_KEY], role=role, node=int(found[3]), depth=int(found[4]), margin=margin,
        version=None if version is None else int(version[1]),
    )  # fmt: skip


def _parsed(schema: str, row: Mapping[str, Any]) -> Example:
    check_schema(schema, row.get("schema"))
    problem, role = text(row.get("problem_id"), _KEY), text(row.get("role"), _KEY)
    if problem is None or role is None:
        refuse("a problem_id and a role", row.get("problem_id") if problem is None else row.get("role"))
    return Example(
        kind=schema, problem=problem, role=role, node=integer(row.get("node")), depth=integer(row.get("depth")),
        margin=number(row.get("margin")) if schema == "pair" else None,
        version=integer(row.get("version" if schema == "learned" else "policy_version")),
    )  # fmt: skip
