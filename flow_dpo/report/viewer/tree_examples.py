"""The examples of one tree: pairs and scored completions, with policy and reference when they were learned.

    a row of pairs.jsonl (nodes 0 and 6) and a row of learned.jsonl (version 3, nodes 0 and 6)
    ->  {"kind": "pair", "chosen": 0, "rejected": 6, "margin": 1.0, "learned": [{"version": 3, "policy": [[..], [..]]}]}

What was learned can differ from what was sampled: a judge learns the right word at a node that took the wrong one, and
some recipes learn an answer without the guideline that it was sampled with. If they differ, the example has its own
`completion` and `prompt` as text, otherwise None. A completion can begin before its node (a whole attempt that ends
there): `before` is the number of its tokens there, None if the completion is not the node's.

Invariant: an example names nodes of the tree; one that does not is left out, with a note.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.report.viewer.lenient import Reader, finite, objects

_Key = tuple[str, int | None, int | None]
"""Role, node and rejected node of an example."""


def example_views(
    examples: Sequence[Any], learned: Sequence[Any], nodes: Sequence[Mapping[str, Any]], tree: Reader
) -> list[dict[str, Any]]:
    """The examples in the order of their rows, pairs and scored completions mixed."""
    by_key = _learned_by_key(learned, tree.notes)
    found: list[dict[str, Any]] = []
    for at, row in enumerate(objects(examples)):
        reader = Reader(row, tree.notes, f"example {at}")
        example = _example(row, reader)
        sides = [example[name] for name in ("chosen", "rejected", "node") if name in example]
        if any(side is None or side >= len(nodes) for side in sides):
            reader.note(f"expected nodes of this tree, found {sides}; left out")
            continue
        names = ("completion_ids",) if example["kind"] == "scored" else ("chosen_ids", "rejected_ids")
        given = [(reader.ids(name), nodes[side]["ids"]) for name, side in zip(names, sides, strict=True)]
        example["before"] = [_before(ids, own) if ids and own else 0 for ids, own in given]
        rejected = example.get("rejected")
        example["learned"] = by_key.get((example["role"], sides[0], rejected), [])
        if not any(example["before"]):
            example["prompt"] = _other_prompt(reader, _prompt_ids(nodes, sides[0]))
        if example["kind"] == "scored":
            example["completion"] = reader.text("completion") if example["before"] == [None] else None
        found.append(example)
    return found


def _other_prompt(reader: Reader, ids: Sequence[int] | None) -> str | None:
    """The prompt that was learned under, if it differs from this one; None if it does not, or is unknown."""
    own = reader.ids("prompt_ids")
    return None if ids is None or own is None or own == list(ids) else reader.text("prompt")


def _prompt_ids(nodes: Sequence[Mapping[str, Any]], at: int) -> list[int] | None:
    """The tokens of a node's prompt; None if they were not recorded."""
    parts: list[Sequence[int]] = []
    prompt, limit = nodes[at]["prompt"], sys.maxsize
    # From end to beginning: at most `limit` tokens are kept of an earlier prompt with its completion.
    while prompt is not None:
        parts.append(prompt["ids"][: max(0, limit - prompt["kept"])])
        limit = min(limit, prompt["kept"])
        if prompt["after"] is None:
            return [id for part in reversed(parts) for id in part]
        before = nodes[prompt["after"]]
        prompt = before["prompt"]
        if prompt is not None:
            parts.append(before["ids"][: max(0, limit - prompt["kept"] - len(prompt["ids"]))])
    return None


def mark_sides(nodes: list[dict[str, Any]], examples: Sequence[Mapping[str, Any]], rows: Sequence[Any]) -> None:
    """Give every node its side in the pairs, its advantage, and its prompt as text if its own record has none."""
    for example in examples:
        if example["kind"] == "scored":
            nodes[example["node"]]["advantage"] = example["advantage"]
            continue
        for name in ("chosen", "rejected"):
            node = nodes[example[name]]
            node["side"] = name if node["side"] in ("", name) else "both"
    for row in objects(rows):
        for name in ("node", "rejected_node"):
            at, prompt = row.get(name), row.get("prompt")
            if isinstance(at, int) and 0 <= at < len(nodes) and isinstance(prompt, str) and nodes[at]["prompt"] is None:
                nodes[at]["prompt_text"] = prompt


def _example(row: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """One example. A row with a rejected side is a pair, whatever its schema says."""
    shared = {
        "role": reader.text("role"),
        "depth": reader.count("depth"),
        "weight": reader.number("weight"),
        "tags": reader.texts("tags"),
        "version": reader.integer("policy_version"),
    }
    if "rejected_node" not in row:
        return {
            "kind": "scored",
            **shared,
            "node": reader.count("node"),
            "advantage": reader.number("advantage"),
            "status": _status(reader, "verdict"),
        }
    return {
        "kind": "pair",
        **shared,
        "chosen": reader.count("node"),
        "rejected": reader.count("rejected_node"),
        "margin": reader.number("margin"),
        "statuses": [_status(reader, "chosen_verdict"), _status(reader, "rejected_verdict")],
    }


def _before(ids: Sequence[int], own: Sequence[int]) -> int | None:
    """Tokens of a completion before a node's own, with which it ends; None if it does not end with them."""
    return len(ids) - len(own) if list(ids[-len(own) :]) == list(own) else None


def _status(reader: Reader, name: str) -> str:
    return reader.below(name, name).text("status") or "ungraded"


def _learned_by_key(learned: Sequence[Any], notes: list[str]) -> dict[_Key, list[dict[str, Any]]]:
    """What was recorded during learning, by the example's role and nodes, in the order of the updates."""
    found: dict[_Key, list[dict[str, Any]]] = {}
    for at, row in enumerate(objects(learned)):
        reader = Reader(row, notes, f"learned {at}")
        key = (reader.text("role"), reader.count("node"), reader.count("rejected_node"))
        found.setdefault(key, []).append(
            {
                "version": reader.integer("version"),
                "policy": _by_token(reader, "policy") or [],
                "reference": _by_token(reader, "reference"),
                "reference_version": reader.integer("reference_version"),
            }
        )
    return found


def _by_token(reader: Reader, name: str) -> list[list[float | None]] | None:
    """Log-probabilities by token, one list per completion; None if there are none."""
    given = reader.items(name)
    if any(not isinstance(each, list) for each in given):
        reader.note(f"{name!r}: expected one list of log-probabilities per completion")
        return None
    return [[finite(value) for value in each] for each in given] or None
