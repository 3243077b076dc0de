"""What the index holds about one row: the columns by which items are listed, filtered and sorted.

    columns("tree", row)       {"id": "seed/train/0", "status": "wrong", "flipped": 1, "tokens": 118, "yes": 0.31, ...}
    example("pair", line)      Example(problem="seed/train/0", role="answer", depth=0, margin=1.0, version=0)

A row of examples is a kilobyte, of which an index needs sixty bytes. Rows that this package wrote are therefore read by
their layout; any other row is parsed in full, with the same result. Invariant: a row of the wrong kind or shape is a
`DataError`; a single fact of the wrong kind is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer.lines import integer, mapping, number, objects, parse_line, refuse, text

SHOWN = 240
"""Characters of a question shown in a list."""
_FOUND = 2_000
"""Characters of a question that a search covers."""
KEY = 500
"""Most characters of an id, an answer and a gold answer."""
MAIN = {
    "run": ("trees.jsonl", "tree"),
    "traces": ("traces.jsonl", "trace"),
    "evaluation": ("predictions.jsonl", "prediction"),
    "judgements": ("judgements.jsonl", "judgement"),
}
"""The file with the items of each kind of source, and the name of its schema."""
COMPANIONS = {"pairs.jsonl": "pair", "scored.jsonl": "scored", "learned.jsonl": "learned"}
"""Files of a run whose rows belong to its trees, by problem, and the names of their schemas."""
VERSIONS = {
    "tree": (1, 2), "pair": (1,), "scored": (1,), "learned": (1,), "trace": (1,), "prediction": (2,), "judgement": (1,),
}  # fmt: skip
"""Versions of each schema that can be read."""
_STATUSES = ("correct", "wrong", "ungraded")
_ATTEMPT = re.compile(r"attempt (\d{1,6})")


def columns(schema: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The index's facts about one item. Raises `DataError` if it is not a row of this schema."""
    check_schema(schema, row.get("schema"))
    return _COLUMNS[schema](row)


_SKIPPED = ((b', "logprobs": [', b"]"), (b', "prompt": {', b"}"))
"""Beginning and end of a node's fields that no column needs: half of a tree's bytes, and nearly all of its numbers."""


def row_of(schema: str, content: bytes) -> dict[str, Any]:
    """The row of one line; for a tree, only what `columns` reads of it. Raises `DataError`."""
    if schema == "tree":
        skimmed = content
        for start, end in _SKIPPED:
            first, *parts = skimmed.split(start)
            skimmed = first + b"".join([part[part.find(end) + 1 :] for part in parts])
        try:
            return parse_line(skimmed)
        except DataError:  # perhaps a field of another shape was cut in the middle, so the whole line is parsed
            return parse_line(content)
    return parse_line(content)


def check_schema(schema: str, found: object) -> None:
    """Raise `DataError` if a row does not name this schema in a known version."""
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
    found["answer"] = text(verdict.get("answer"), KEY)
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
        "id": text(name, KEY) or "",
        "question": text(row.get("question"), _FOUND),
        "gold": text(row.get("gold"), KEY),
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
    """The number in a tag such as "attempt 2"; 0 for any other tag."""
    found = _ATTEMPT.fullmatch(tag)
    return int(found[1]) if found else 0


def _status(row: Mapping[str, Any]) -> str:
    """Status of a rollout or another row with a verdict: "stopped" if its leaf has an estimated value instead."""
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
        "answer": text(answer, KEY),
        "tokens": integer(row.get("tokens_spent")),
        "draw": integer(row.get("draw")),
    }


def _of_prediction(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = mapping(row.get("verdict")).get("answer")
    return {
        **_of_problem(row, row.get("id")),
        "status": _status(row),
        "answer": text(answer, KEY),
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


class Example(NamedTuple):
    """A row of pairs.jsonl, scored.jsonl or learned.jsonl, with what an index needs. A run has a million of them, and
    making a tuple takes a third of a dataclass's time."""

    problem: str
    role: str
    depth: int | None
    """Depth of its node in the problem's tree; None for a learned row."""
    margin: float | None
    """Only for a pair."""
    version: int | None
    """Version of the policy that sampled it; None for a learned row, from which a later version learned."""


_PROBLEM, _ROLE = rb'"problem_id": "(?P<problem>[^"\\]*)"', rb'"role": "(?P<role>[^"\\]*)"'
_NODE, _DEPTH = rb'"node": [0-9]{1,15}', rb'"depth": (?P<depth>[0-9]{1,15})'
_MARGIN = rb'"margin": (?P<margin>-?[0-9][0-9.eE+-]{0,30})'
_LAYOUTS = {
    "pair": (_PROBLEM, _ROLE, _NODE, rb'"rejected_node": [0-9]{1,15}', _DEPTH, rb'"tags": \[[^\]]*\]', _MARGIN),
    "scored": (_PROBLEM, _ROLE, _NODE, _DEPTH),
    "learned": (rb'"version": [0-9]{1,15}', rb'"reference_version": (?:[0-9]{1,15}|null)', _ROLE, _PROBLEM, _NODE),
}
"""Neighbouring fields of a row as `runs.records` writes it. A quote inside a JSON text follows a backslash, so a match
is never part of a text; the first match is the row's own, since nothing nested comes before it."""
_FIRST = {schema: b", " + fields[0].partition(b": ")[0] + b": " for schema, fields in _LAYOUTS.items()}
_PATTERNS = {schema: re.compile(b", " + b", ".join(fields) + b", ") for schema, fields in _LAYOUTS.items()}
_VERSION = re.compile(rb', "policy_version": (-?[0-9]{1,15}), ')


def example(schema: str, content: bytes) -> Example:
    """The facts of one line. Raises `DataError` if it is not a row of this schema."""
    if content.startswith(b'{"schema": "%b/1", ' % schema.encode()) and content.endswith(b"}\n"):
        at = content.find(_FIRST[schema])
        found = _PATTERNS[schema].match(content, at) if at > 0 else None
        if found is not None:
            return _by_layout(schema, content, found)
    return _parsed(schema, parse_line(content))


def _by_layout(schema: str, content: bytes, found: re.Match[bytes]) -> Example:
    try:
        problem, role = found["problem"].decode()[:KEY], found["role"].decode()[:KEY]
        if schema == "learned":
            return Example(problem, role, None, None, None)
        margin = number(float(found["margin"])) if schema == "pair" else None
    except ValueError as error:
        raise DataError("expected a row of UTF-8 and numbers, found another one") from error
    version = _VERSION.search(content, found.end())
    return Example(problem, role, int(found["depth"]), margin, None if version is None else int(version[1]))


def _parsed(schema: str, row: Mapping[str, Any]) -> Example:
    check_schema(schema, row.get("schema"))
    problem, role = text(row.get("problem_id"), KEY), text(row.get("role"), KEY)
    if problem is None or role is None:
        refuse("a problem_id and a role", row.get("problem_id") if problem is None else row.get("role"))
    if schema == "learned":
        return Example(problem, role, None, None, None)
    margin = number(row.get("margin")) if schema == "pair" else None
    return Example(problem, role, integer(row.get("depth")), margin, integer(row.get("policy_version")))
