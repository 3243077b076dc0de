"""Are lists filtered and ordered as one would by hand, on a run's real rows?"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer import queries
from flow_dpo.report.viewer.index import Index
from flow_dpo.report.viewer.queries import Wanted
from tests.support.report_sources import run as drawn_run
from tests.support.view_runs import indexed, rows

Row = dict[str, Any]


@pytest.fixture(scope="module")
def run(seeded: Path) -> Path:
    return seeded


@pytest.fixture(scope="module")
def index(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return indexed(run, tmp_path_factory.mktemp("cache"))


def by_hand(run: Path) -> list[Row]:
    """The facts of every tree, worked out from the records as they stand."""
    pairs, scored = rows(run / "pairs.jsonl"), rows(run / "scored.jsonl")
    found: list[Row] = []
    for n, tree in enumerate(rows(run / "trees.jsonl")):
        problem, rollouts = tree["problem"], tree["rollouts"]
        statuses = [rollout["verdict"]["status"] for rollout in rollouts]
        right, wrong = statuses.count("correct"), statuses.count("wrong")
        own = {
            kind: [row for row in some if row["problem_id"] == problem["id"]]
            for kind, some in (("pairs", pairs), ("scored", scored))
        }
        both = [*own["pairs"], *own["scored"]]
        trunk = [node for node in tree["nodes"] if node["rollout"] == 0]
        chosen = [node["choice_logprobs"][0] for node in trunk if node["choice_logprobs"]]
        attempts = [int(tag.split()[1]) for node in trunk for tag in node["tags"] if tag.startswith("attempt ")]
        others = {status for rollout, status in zip(rollouts[1:], statuses[1:], strict=True) if not rollout["probe"]}
        places: dict[str, list[int]] = {}
        for row in both:
            places.setdefault(row["role"], []).append(row["depth"])
        found.append(
            {
                "n": n,
                "id": problem["id"],
                "question": problem["question"][:240],
                "gold": problem["gold"],
                "status": statuses[0],
                "answer": rollouts[0]["verdict"]["answer"],
                "rollouts": len(rollouts),
                "right": right,
                "wrong": wrong,
                "ungraded": statuses.count("ungraded"),
                "accuracy": right / (right + wrong) if right + wrong else None,
                "flipped": {"correct": "wrong", "wrong": "correct"}.get(statuses[0]) in others,
                "pairs": len(own["pairs"]),
                "scored": len(own["scored"]),
                "by_role": {role: len(depths) for role, depths in places.items()},
                "places": {role: sorted(depths) for role, depths in places.items()},
                "depth": max((row["depth"] for row in both), default=None),
                "tokens": sum(len(node["token_ids"]) for node in tree["nodes"]),
                "version": max(node["policy_version"] for node in tree["nodes"]),
                "attempts": max(attempts, default=None),
                "yes": math.exp(chosen[-1]) if chosen else None,
                "margin": max((row["margin"] for row in own["pairs"]), default=None),
                "draw": None,
                "level": problem["level"],
                "subject": problem["subject"],
            }
        )
    return found


FILTERS: dict[str, tuple[list[str], Callable[[Row, str], bool]]] = {
    "q": (["SHELLS ", "train/1", "no such", "  has"], lambda row, value: any(
        value.strip().lower() in (row[name] or "").lower() for name in ("question", "id", "answer", "gold"))),
    "role": (["answer", "stop", "other"], lambda row, value: value in row["places"]),
    "depth": (["0", "3", "4", "99"], lambda row, value: any(int(value) in depths for depths in row["places"].values())),
    "status": (["correct", "wrong", "ungraded"], lambda row, value: row["status"] == value),
    "flipped": (["1", "0"], lambda row, value: value == "0" or row["flipped"]),
    "examples": (["pair", "scored", "none"], lambda row, value: {
        "pair": row["pairs"] > 0, "scored": row["scored"] > 0, "none": row["pairs"] + row["scored"] == 0}[value]),
    "ungraded": (["1"], lambda row, value: row["ungraded"] > 0),
    "version": (["0", "1-2", "2-", "-1"], lambda row, value: in_range(row["version"], value)),
    "from": (["0", "5"], lambda row, value: row["n"] >= int(value)),
    "to": (["0", "9", "400"], lambda row, value: row["n"] < int(value)),
    "level": (["2", "3"], lambda row, value: row["level"] == value),
    "subject": (["total", "compare"], lambda row, value: row["subject"] == value),
}  # fmt: skip
SORTS: dict[str, Callable[[Row], Any]] = {
    "time": lambda row: row["n"], "accuracy": lambda row: row["accuracy"], "tokens": lambda row: row["tokens"],
    "examples": lambda row: row["pairs"] + row["scored"], "margin": lambda row: row["margin"],
}  # fmt: skip


def in_range(version: int, value: str) -> bool:
    low, dash, high = value.partition("-")
    return int(low or 0) <= version <= (int(high or 999) if dash else int(low))


def passes(row: Row, params: dict[str, str]) -> bool:
    left = dict(params)
    if "role" in left and "depth" in left:  # together: of that role at that depth
        depths = row["places"].get(left.pop("role"), ())
        return int(left.pop("depth")) in depths and passes(row, left)
    return all(FILTERS[name][1](row, value) for name, value in left.items())


def ordered(found: list[Row], sort: str) -> list[int]:
    value = SORTS[sort.removeprefix("-")]
    there = sorted((row for row in found if value(row) is not None), key=lambda row: row["n"])
    there.sort(key=value, reverse=sort.startswith("-"))  # stable, in reverse, too
    return [row["n"] for row in there] + [row["n"] for row in found if value(row) is None]


def listed(index: Index, params: dict[str, str]) -> tuple[int, list[int]]:
    with index.reading() as database:
        wanted = Wanted.of(params)
        return queries.total(database, wanted), queries.numbers(database, wanted)


def test_the_facts_of_every_tree_are_those_worked_out_by_hand(run: Path, index: Index) -> None:
    with index.reading() as database:
        found = queries.rows(database, range(12))
    expected = by_hand(run)
    assert found == [
        {name: pytest.approx(row[name]) if name == "yes" else row[name] for name in found[0]} for row in expected
    ]
    assert sum(row["pairs"] for row in expected) > 5


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_alone(name: str, run: Path, index: Index) -> None:
    expected = by_hand(run)
    for value in FILTERS[name][0]:
        wanted = [row["n"] for row in expected if passes(row, {name: value})]
        assert listed(index, {name: value}) == (len(wanted), wanted), value


def test_filters_and_orders_together(run: Path, index: Index) -> None:
    expected, chance = by_hand(run), random.Random(0)
    sorts = [sign + sort for sign in ("", "-") for sort in SORTS]
    tried = set[int]()
    for sort, _ in itertools.product(sorts, range(40)):
        names = chance.sample(sorted(FILTERS), chance.randrange(4))
        params = {name: chance.choice(FILTERS[name][0]) for name in names}
        wanted = ordered([row for row in expected if passes(row, params)], sort)
        assert listed(index, {**params, "sort": sort}) == (len(wanted), wanted), (params, sort)
        offset, limit = chance.randrange(6), chance.randrange(1, 5)
        page = listed(index, {**params, "sort": sort, "offset": str(offset), "limit": str(limit)})
        assert page == (len(wanted), wanted[offset : offset + limit])
        tried.add(len(wanted))
    assert len(tried) > 6


def test_what_could_be_filtered_by_is_counted(run: Path, index: Index) -> None:
    expected = by_hand(run)
    with index.reading() as database:
        facets = queries.facets(database)
    assert facets["statuses"] == Counter(row["status"] for row in expected)
    roles: Counter[str] = Counter()
    for row in expected:
        roles.update(row["by_role"])
    assert facets["roles"] == roles
    assert facets["versions"] == [min(row["version"] for row in expected), max(row["version"] for row in expected)]
    assert facets["max_depth"] == max(row["depth"] or 0 for row in expected)
    assert facets["levels"] == Counter(row["level"] for row in expected)


def test_trees_that_could_not_be_graded_and_ties(tmp_path: Path) -> None:
    verdicts = [("ungraded",) * 5, ("correct",) * 5, ("wrong", "correct", "ungraded", "wrong", "wrong")]
    made = indexed(drawn_run(tmp_path / "run", verdicts), tmp_path / "cache")
    with made.reading() as database:
        found = queries.rows(database, [0, 1, 2])
    assert [(row["status"], row["accuracy"], row["flipped"], row["ungraded"]) for row in found] == [
        ("ungraded", None, False, 5), ("correct", 1.0, False, 0), ("wrong", 0.25, True, 1)
    ]  # fmt: skip
    assert listed(made, {"ungraded": "1"})[1] == [0, 2]
    assert listed(made, {"sort": "accuracy"})[1] == [2, 1, 0]
    assert listed(made, {"sort": "-accuracy"})[1] == [1, 2, 0]
    assert listed(made, {"examples": "none"})[1] == [0, 1]
    assert found[1]["margin"] is None


def test_a_search_covers_more_of_a_question_than_is_shown(tmp_path: Path) -> None:
    question = "x" * 300 + " Needle " + "y" * 2_000 + " beyond"
    made = indexed(drawn_run(tmp_path / "run", [("correct",) * 5], question=question), tmp_path / "cache")
    assert listed(made, {"q": "needle "})[1] == [0]
    assert listed(made, {"q": "beyond"})[1] == []
    with made.reading() as database:
        assert len(queries.rows(database, [0])[0]["question"]) == 240
        assert "needle" in queries.searched(database, [0, 1])[0]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"limit": "501"}, "at most 500"), ({"limit": "-1"}, "whole number from 0"), ({"offset": "1e3"}, "offset"),
        ({"offset": "\u0663"}, "whole number"), ({"sort": "n"}, "expected sort to be one of"), 
        ({"sort": "--time"}, "sort"),
        ({"version": "a"}, "version"), ({"version": "-"}, "version"), ({"version": "1-2-3"}, "version"),
        ({"examples": "all"}, "pair, scored, none"), ({"flipped": "yes"}, "flipped to be 1"), ({"depth": "x"}, "depth"),
        ({"where": "1"}, "the parameter 'where'"), ({"q": "\ud800"}, "half a surrogate"), ({"from": "9" * 16}, "from"),
        ({"depth": "x", "role": "answer"}, "depth"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(params: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Wanted.of(params)


@pytest.mark.parametrize("value", ["'; DROP TABLE items; --", '" OR 1=1', "%", "_", "\x00", "x" * 3_000, '":', "\\"])
def test_values_are_values(value: str, index: Index) -> None:
    for name in ("q", "role", "status", "level", "subject"):
        assert listed(index, {name: value})[0] == 0, name
    assert listed(index, {})[0] == 12
