"""One tree of rollouts as the JSON that its page draws.

    tree_view(row of trees.jsonl, rows of pairs.jsonl and scored.jsonl, of learned.jsonl, {5: ("<end>", True), ...})
    ->  {"kind": "tree", "problem": ..., "nodes": [{"id": 0, "role": "answer", "side": "chosen", "differs": 11, ...}],
         "rollouts": [{"id": 0, "status": "correct", ...}], "examples": [{"kind": "pair", "chosen": 0, ...}]}

Computed here is what a record only implies: the first token by which an alternative differs, the side of each node in
the pairs, visits and values as in a search, the wrong steps (`wrong_steps`), and what was learned from each example
(`tree_examples`). Everything else is passed on unchanged.

Invariants: the result depends only on the rows; it contains every node and every rollout of the row, under its own
number; a field of a wrong type is null, with a note in `notes`. Only a row that is not a tree is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem
from flow_dpo.report.viewer import tree_examples
from flow_dpo.report.viewer.lenient import Reader, pieces, probability, verdict_view, whole
from flow_dpo.report.viewer.wrong_steps import Span, faults, places_of_parts, wrong_spans

_SCHEMAS = ("tree/1", "tree/2")


Tokens = Mapping[int, tuple[str, bool]]
"""A run's tokens.jsonl: the text of each token, and whether it is special. Empty for older runs."""


def tree_view(
    row: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    learned: Sequence[Mapping[str, Any]],
    tokens: Tokens,
) -> dict[str, Any]:
    """What the page of a tree draws: the "tree" of `docs/viewer.md`, without what a library adds about its source.

    `examples` are this problem's rows of pairs.jsonl and scored.jsonl, `learned` those of learned.jsonl. Raises
    `DataError` if the row is not a tree.
    """
    _check_is_tree(row)
    notes: list[str] = []
    reader = Reader(row, notes)
    if row.get("schema") not in _SCHEMAS:
        reader.note(
            f"'schema': expected {' or '.join(_SCHEMAS)}, found {row.get('schema')!r:.60}; read as far as known"
        )
    problem = problem_view(reader.below("problem"))
    nodes = [_node_view(at, each, tokens, notes) for at, each in enumerate(reader.items("nodes"))]
    rollouts = [_rollout_view(at, each, len(nodes), notes) for at, each in enumerate(reader.items("rollouts"))]
    _join(nodes, rollouts)
    _find_differences(nodes)
    _find_values(nodes, rollouts)
    _find_faults(nodes, rollouts, as_problem(problem))
    seen = tree_examples.example_views(examples, learned, nodes, reader)
    tree_examples.mark_sides(nodes, seen, examples)
    return {
        "kind": "tree",
        "problem": problem,
        "roles": list(dict.fromkeys(node["role"] for node in nodes)),
        "words": _words(nodes, reader.below("choices")),
        "special": _special(nodes, tokens),
        "nodes": nodes,
        "rollouts": rollouts,
        "examples": seen,
        "skipped": {role: num for role, num in reader.below("skipped").row.items() if whole(num)},
        "notes": notes,
    }


def problem_view(problem: Reader) -> dict[str, Any]:
    """A problem's columns; "" for a missing one."""
    return {name: problem.text(name) for name in ("id", "question", "gold", "source", "level", "subject", "solution")}


def as_problem(view: Mapping[str, Any]) -> Problem:
    """The problem in the form needed to check steps."""
    return Problem(**view)


def _check_is_tree(row: Any) -> None:
    schema = row.get("schema") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(schema, str) or not schema.startswith("tree/"):
        raise DataError(
            f"expected a row of trees.jsonl, found {'the schema ' + repr(schema) if schema else 'none'}; "
            "check whether the file is another one"
        )
    for name in ("nodes", "rollouts"):
        if not isinstance(row.get(name), list) or not row[name]:
            raise DataError(f"expected a tree with {name}, found {row.get(name)!r:.60}; the row is damaged, drop it")


# ---- nodes and rollouts as recorded ----------------------------------------------------------------------------------


def _node_view(at: int, given: Any, tokens: Tokens, notes: list[str]) -> dict[str, Any]:
    reader = Reader(given if isinstance(given, Mapping) else {}, notes, f"node {at}")
    if not isinstance(given, Mapping):
        reader.note(f"expected an object, found {given!r:.60}")
    ids = reader.ids("token_ids") or []
    # A compact row leaves out the text that the texts of its tokens give.
    text = reader.text("text") or "".join(tokens[id][0] for id in ids if id in tokens and not tokens[id][1])
    parent = reader.count("parent")
    if parent is not None and parent >= at:
        reader.note(f"'parent': expected a node before it, found {parent}; shown at the root")
        parent = None
    choices = [probability(each) for each in reader.items("choice_logprobs")]
    return {
        "id": at,
        "parent": parent,
        "rollout": reader.count("rollout"),
        "depth": reader.count("depth"),
        "role": reader.text("role") or "unknown",
        "version": reader.integer("policy_version"),
        "text": text,
        "ids": ids,
        "pieces": _pieces_of(reader, text, ids, tokens),
        "logprobs": reader.numbers("logprobs") or [None] * len(ids),
        "finish": reader.text("finish_reason"),
        "tags": reader.texts("tags"),
        "choice": reader.count("choice"),
        "choices": choices,
        "yes": choices[0] if len(choices) == 2 else None,
        "differs": None,
        "prompt": _prompt_view(reader, at, tokens),
        "prompt_text": None,
        "visits": 0,
        "value": None,
        "advantage": None,
        "side": "",
        "faults": [],
    }


def _pieces_of(reader: Reader, text: str, ids: Sequence[int], tokens: Tokens) -> list[str] | None:
    """The text by token; None if it is unknown."""
    lengths = reader.row.get("piece_lengths")
    if lengths:
        found = pieces(text, lengths, len(ids))
        if found is None:
            reader.note(
                "'piece_lengths': expected the characters of each token, found lengths that do not fit the text"
            )
        return found
    if any(id not in tokens for id in ids):
        return None
    found = ["" if tokens[id][1] else tokens[id][0] for id in ids]
    return found if "".join(found) == text else None


def _prompt_view(reader: Reader, at: int, tokens: Tokens) -> dict[str, Any] | None:
    if not isinstance(reader.row.get("prompt"), Mapping):
        return None
    prompt = reader.below("prompt", f"node {at} prompt")
    ids, after = prompt.ids("token_ids") or [], prompt.count("after")
    if after is not None and after >= at:
        prompt.note(f"'after': expected a node before it, found {after}")
        return None
    texts = [tokens.get(id, (None, False)) for id in ids]
    return {
        "after": after,
        "kept": prompt.count("kept") or 0,
        "ids": ids,
        "pieces": ["" if special else text for text, special in texts],
    }


def _rollout_view(at: int, given: Any, num_nodes: int, notes: list[str]) -> dict[str, Any]:
    reader = Reader(given if isinstance(given, Mapping) else {}, notes, f"rollout {at}")
    verdict = verdict_view(reader)
    value = reader.number("value")
    ends = {name: reader.count(name) for name in ("start", "leaf")}
    for name, node in ends.items():
        if node is None or node >= num_nodes:
            reader.note(f"{name!r}: expected a node from 0 to {num_nodes - 1}, found {reader.row.get(name)!r:.40}")
            ends[name] = None
    return {
        "id": at,
        **ends,
        "parent": None,
        "status": verdict.pop("status") or ("ungraded" if value is None else "stopped"),
        **verdict,
        "value": value,
        "probe": reader.flag("probe"),
        "ended": reader.flag("ended"),
        "text": reader.text("text"),
        "tokens": 0,
        "logprob": None,
        "faults": [],
    }


def _words(nodes: Sequence[Mapping[str, Any]], choices: Reader) -> dict[str, list[str | None]]:
    """By role, the words that it chose from; for an older row, those that were taken somewhere in the tree."""
    found: dict[str, list[str | None]] = {role: [*choices.texts(role)] for role in choices.row}
    seen: dict[str, list[str | None]] = {}
    for node in nodes:
        if node["choices"] and node["role"] not in found:
            words = seen.setdefault(node["role"], [None] * len(node["choices"]))
            if node["choice"] is not None and node["choice"] < len(words):
                words[node["choice"]] = node["text"].strip()
    return {**found, **seen}


def _special(nodes: Sequence[Mapping[str, Any]], tokens: Tokens) -> dict[str, str]:
    """Names of the special tokens in the tree's prompts and completions."""
    prompts = [node["prompt"]["ids"] for node in nodes if node["prompt"] is not None]
    ids = {id for group in (*prompts, *(node["ids"] for node in nodes)) for id in group}
    return {str(id): tokens[id][0] for id in sorted(ids) if id in tokens and tokens[id][1]}


# ---- what the tree implies -------------------------------------------------------------------------------------------


def _join(nodes: list[dict[str, Any]], rollouts: list[dict[str, Any]]) -> None:
    """Give every node a rollout and every rollout its place, also if a record lacks one; sum up its path."""
    for node in nodes:
        rollout = node["rollout"]
        if rollout is None or rollout >= len(rollouts):
            node["rollout"] = 0 if node["parent"] is None else nodes[node["parent"]]["rollout"]
        if node["depth"] is None:
            node["depth"] = 0 if node["parent"] is None else nodes[node["parent"]]["depth"] + 1
    mine: dict[int, list[int]] = {}
    for node in nodes:
        mine.setdefault(node["rollout"], []).append(node["id"])
    for rollout in rollouts:
        own = mine.get(rollout["id"], [])
        for name, end in (("start", 0), ("leaf", -1)):
            if rollout[name] is None and own:
                rollout[name] = own[end]
        if rollout["start"] is not None:
            rollout["parent"] = nodes[rollout["start"]]["parent"]
        path = path_to(nodes, rollout["leaf"])
        logprobs = [value for node in path for value in nodes[node]["logprobs"]]
        rollout["tokens"] = sum(len(nodes[node]["ids"]) for node in path)
        rollout["logprob"] = None if None in logprobs else sum(logprobs)


def path_to(nodes: Sequence[Mapping[str, Any]], leaf: int | None) -> list[int]:
    """The nodes from the root to this one, including both; empty for None."""
    found: list[int] = []
    while leaf is not None:
        found.append(leaf)
        leaf = nodes[leaf]["parent"]
    return found[::-1]


def _find_differences(nodes: list[dict[str, Any]]) -> None:
    """Find the first token by which a node differs from its first sibling, which is the trunk's if there is one.

    Siblings answered one request: same parent, role, tags and prompt, as far as these are known.
    """
    requests = _requests(nodes)
    first: dict[tuple[Any, ...], list[int]] = {}
    for node, request in zip(nodes, requests, strict=True):
        other = first.setdefault((node["parent"], node["role"], *node["tags"], request), node["ids"])
        if other is not node["ids"] and other != node["ids"]:
            pairs = zip(node["ids"], other, strict=False)
            shorter = min(len(node["ids"]), len(other))
            node["differs"] = next((at for at, (one, two) in enumerate(pairs) if one != two), shorter)


def _requests(nodes: Sequence[Mapping[str, Any]]) -> list[Any]:
    """For each node, a value that is equal for equal prompts, without assembling them; None if unknown."""
    found: list[Any] = []
    lengths: list[int] = []
    for node in nodes:
        prompt = node["prompt"]
        if prompt is None:
            found.append(None)
            lengths.append(0)
            continue
        after, kept, ids = prompt["after"], prompt["kept"], prompt["ids"]
        # The whole of an earlier prompt, with nothing added, is that prompt.
        if after is not None and not ids and kept == lengths[after]:
            found.append(found[after])
        else:
            found.append((after, kept, tuple(ids)))
        lengths.append(kept + len(ids))
    return found


def _find_values(nodes: list[dict[str, Any]], rollouts: Sequence[Mapping[str, Any]]) -> None:
    """Rollouts through each node, and their mean value from -1 to 1, like N and Q in CPL's search (`node_values`): a
    reward r counts as 2 r - 1, a stopped rollout as its estimate, an ungraded one and a probe not at all."""
    values: dict[int, list[float]] = {}
    for rollout in rollouts:
        if rollout["probe"]:
            continue
        reward = {"correct": 1.0, "wrong": 0.0}.get(rollout["status"])
        if reward is not None and rollout["reward"] is not None:
            reward = rollout["reward"]
        value = rollout["value"] if reward is None else 2 * reward - 1
        for node in path_to(nodes, rollout["leaf"]):
            nodes[node]["visits"] += 1
            if value is not None:
                values.setdefault(node, []).append(value)
    for node, found in values.items():
        nodes[node]["value"] = fmean(found)


# ---- wrong steps -----------------------------------------------------------------------------------------------------


def _find_faults(nodes: list[dict[str, Any]], rollouts: list[dict[str, Any]], problem: Problem) -> None:
    """Mark the wrong steps of every solution and of abandoned attempts."""
    known: dict[str, list[Span]] = {}

    def spans_of(text: str) -> list[Span]:
        if text not in known:
            known[text] = wrong_spans(problem, text)
        return known[text]

    left: list[tuple[int, list[dict[str, Any]]]] = []
    writers: set[tuple[str, ...]] = set()
    for rollout in rollouts:
        text = rollout["text"]
        rollout["faults"] = faults(spans_of(text), text)
        path = [nodes[at] for at in path_to(nodes, rollout["leaf"]) if not nodes[at]["choices"]]
        places = places_of_parts(text, [node["text"] for node in path])
        for node, place in zip(path, places, strict=True):
            if place is not None:
                writers.add(_kind_of_text(node))
                if node["rollout"] == rollout["id"]:
                    node["faults"] = faults(spans_of(text), node["text"], place)
        left.append((rollout["id"], [node for node, place in zip(path, places, strict=True) if place is None]))
    for id, apart in left:
        for attempt in _attempts([node for node in apart if _kind_of_text(node) in writers]):
            whole = "".join(node["text"] for node in attempt)
            at = 0
            for node in attempt:
                if node["rollout"] == id:
                    node["faults"] = faults(spans_of(whole), node["text"], at)
                at += len(node["text"])


def _kind_of_text(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Role and tags without the attempt's number: nodes with equal ones write the same kind of text."""
    return (node["role"], *(tag for tag in node["tags"] if not tag.startswith("attempt ")))


def _attempts(apart: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Nodes outside their rollout's solution, grouped by the attempts that they wrote: equal role and tags."""
    found: list[list[dict[str, Any]]] = []
    for node in apart:
        if found and found[-1][-1]["role"] == node["role"] and found[-1][-1]["tags"] == node["tags"]:
            found[-1].append(node)
        else:
            found.append([node])
    return found
