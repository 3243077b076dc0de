"""Does an index hold what the files hold, however they grew, were cut, replaced or damaged?"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer import columns, index, lines
from flow_dpo.report.viewer.index import Index
from flow_dpo.runs.records import Judgement, LearnedRow, PairRow, Prediction, ScoredRow, Trace
from flow_dpo.runs.tree_rows import TreeRow
from tests.support.record_examples import JUDGEMENT, PAIR, PREDICTION, SCORED, TRACE, TREE
from tests.support.view_runs import FILES, content, database_of, indexed, revision, rows, source

KINDS = {"tree": TreeRow, "pair": PairRow, "scored": ScoredRow, "learned": LearnedRow, "trace": Trace,
         "prediction": Prediction, "judgement": Judgement}  # fmt: skip


@pytest.fixture(scope="module")
def run(seeded: Path) -> Path:
    return seeded


def batches(run: Path) -> list[dict[str, bytes]]:
    """What each batch of four problems appends to each file."""
    number = {row["problem"]["id"]: at for at, row in enumerate(rows(run / "trees.jsonl"))}
    found: list[dict[str, bytes]] = [dict.fromkeys(FILES, b"") for _ in range(3)]
    for name in FILES:
        batch = 0
        for line in (run / name).read_bytes().splitlines(keepends=True):
            row = json.loads(line)
            # A row that is learned again belongs to the batch in which it is.
            batch = max(batch, number[row.get("problem_id") or row["problem"]["id"]] // 4)
            found[batch][name] += line
    return found


def test_the_versions_that_are_read_are_those_of_the_records() -> None:
    for name, kind in KINDS.items():
        accepted = {kind.SCHEMA, *getattr(kind, "OLDER", ())}
        assert accepted == {f"{name}/{version}" for version in columns.VERSIONS[name]}


def test_what_grew_piece_by_piece_is_what_is_read_at_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "STEP", 20_000)
    growing = Index(source(tmp_path / "run"), tmp_path / "cache")
    (tmp_path / "run").mkdir()
    chance = random.Random(0)
    for batch in batches(run):
        for name, added in batch.items():
            cuts = sorted(chance.sample(range(len(added) + 1), 3)) if len(added) > 3 else [0]
            for start, end in pairwise([0, *cuts, len(added)]):
                with (tmp_path / "run" / name).open("ab") as file:
                    file.write(added[start:end])
                growing.step()
    while growing.step():
        pass
    assert content(growing) == content(indexed(run, tmp_path / "other"))
    assert growing.progress == 1.0


def line_ends(path: Path) -> list[tuple[int, int]]:
    ends: list[tuple[int, int]] = []
    at = 0
    for line in path.read_bytes().splitlines(keepends=True):
        ends.append((at, at + len(line)))
        at += len(line)
    return ends


def test_lines_lie_where_the_index_says(run: Path, tmp_path: Path) -> None:
    found = indexed(run, tmp_path)
    with found.reading() as database:
        trees = database.execute("SELECT offset, length, id FROM items JOIN texts USING (n) ORDER BY n").fetchall()
        for kind, name in (("pair", "pairs.jsonl"), ("scored", "scored.jsonl")):
            query = "SELECT offset, length, id, role FROM examples JOIN texts USING (n) WHERE kind = ? ORDER BY line"
            places = database.execute(query, (kind,)).fetchall()
            content = (run / name).read_bytes()
            read = [json.loads(content[offset : offset + length]) for offset, length, _, _ in places]
            assert [(row["problem_id"], row["role"]) for row in read] == [(id, role) for _, _, id, role in places]
            assert read == rows(run / name)
        learned = database.execute("SELECT count(*) FROM learned").fetchone()[0]
    assert learned == len(rows(run / "learned.jsonl")) > 0
    content = (run / "trees.jsonl").read_bytes()
    assert [json.loads(content[o : o + n])["problem"]["id"] for o, n, _ in trees] == [id for _, _, id in trees]


def test_an_index_is_kept_and_not_made_again(run: Path, tmp_path: Path) -> None:
    indexed(run, tmp_path)
    before = content(indexed(run, tmp_path))
    path = database_of(tmp_path)
    again = Index(source(run), tmp_path)
    assert again.is_behind(), "it has not looked yet"
    read = revision(path)
    assert again.step() is False
    assert again.step() is False
    assert not again.is_behind()
    assert revision(path) <= read + 1
    assert content(again) == before


@pytest.mark.parametrize("how", ["cut", "replaced", "edited", "shorter and longer", "gone"])
def test_a_file_that_is_no_longer_what_was_read_is_read_anew(how: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    trees = tmp_path / "run" / "trees.jsonl"
    found = indexed(tmp_path / "run", tmp_path / "cache")
    whole = trees.read_bytes().splitlines(keepends=True)
    if how == "cut":  # as a run that is resumed does
        for name in FILES:
            path = tmp_path / "run" / name
            ends = [end for _, end in line_ends(path)]
            os.truncate(path, ends[len(ends) // 2])
    elif how == "replaced":
        (tmp_path / "new").write_bytes(b"".join(whole[6:]))
        (tmp_path / "new").replace(trees)
    elif how == "edited":
        middle = len(whole) // 2
        whole[middle] = whole[middle].replace(b'"id": "seed/train/', b'"id": "SEED/train/')
        with trees.open("r+b") as file:
            file.write(b"".join(whole))
    elif how == "shorter and longer":
        with trees.open("wb") as file:
            file.write(b"".join(reversed(whole)) + whole[0])
    else:
        trees.unlink()
    while found.step():
        pass
    assert content(found) == content(indexed(tmp_path / "run", tmp_path / "other"))
    num = {"cut": 7, "replaced": 6, "edited": 12, "shorter and longer": 13, "gone": 0}[how]
    assert len(content(found)["items"]) == num


@pytest.mark.parametrize("how", ["bytes", "half", "version", "empty", "tables"])
def test_a_damaged_index_is_thrown_away(how: str, run: Path, tmp_path: Path) -> None:
    first = indexed(run, tmp_path)
    before = content(first)
    first.close()
    path = database_of(tmp_path)
    if how == "bytes":
        path.write_bytes(random.Random(0).randbytes(20_000))
    elif how == "half":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        database = sqlite3.connect(path)
        database.execute("UPDATE meta SET version = 99" if how == "version" else "DROP TABLE texts")
        database.execute("UPDATE files SET offset = 0" if how == "tables" else "DELETE FROM items")
        database.commit()
        database.close()
    assert content(indexed(run, tmp_path)) == before


def test_two_viewers_share_one_index(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "STEP", 10_000)
    one, other = (Index(source(run), tmp_path) for _ in range(2))
    while one.step() | other.step():
        pass
    assert content(one) == content(other) == content(indexed(run, tmp_path / "other"))


def test_examples_of_a_problem_that_came_twice_belong_to_the_tree_of_their_policy(tmp_path: Path) -> None:
    trees = [TREE, json.loads(json.dumps(TREE).replace('"policy_version": 0', '"policy_version": 3'))]
    pairs = [PAIR | {"problem_id": "a", "policy_version": version} for version in (3, 0, 3, 7)]
    write(tmp_path / "run" / "trees.jsonl", trees)
    write(tmp_path / "run" / "pairs.jsonl", pairs)
    with indexed(tmp_path / "run", tmp_path / "cache").reading() as database:
        assert database.execute("SELECT pairs FROM items ORDER BY n").fetchall() == [(2,), (2,)]


def write(path: Path, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


# ---- damage ----------------------------------------------------------------------------------------------------------

GOOD = (json.dumps(TREE) + "\n").encode()
BOMB = b'{"schema": "tree/2", "problem": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
BROKEN = {
    "half": (GOOD[:100] + b"\n", "expected JSON"),
    "foreign": (b'{"step": 3, "loss": 0.25}\n', "expected the schema 'tree/1' or 'tree/2'"),
    "another version": (GOOD.replace(b"tree/2", b"tree/9"), "expected the schema 'tree/1' or 'tree/2'"),
    "null nodes": (GOOD.replace(b'"nodes": [', b'"nodes": null, "x": ['), "expected a list of nodes"),
    "problem a text": (GOOD.replace(b'"problem": {', b'"problem": "p", "x": {'), "expected a problem"),
    "a list": (b"[1, 2]\n", "expected a JSON object, found list"),
    "empty": (b"\n", "found an empty line"),
    "null bytes": (b"\x00" * 512 + b"\n", "expected JSON"),
    "invalid UTF-8": (GOOD.replace(b"What?", b"\xff\xfe\xfa"), "expected UTF-8, found the byte 0xff"),
    "a bomb": (BOMB, "nested too deeply"),
    "a number of 5,000 digits": (GOOD.replace(b'"id": 0', b'"id": ' + b"9" * 5_000, 1), "expected JSON"),
}
LENIENT = {
    "a verdict that is a number": GOOD.replace(b'"verdict": {', b'"verdict": 5, "x": {'),
    "half a surrogate pair": GOOD.replace(b"What?", b"\\ud800 What \\udfff"),
    "not a number": GOOD.replace(b"-0.5", b"NaN"),
    "infinite": GOOD.replace(b'"value": null', b'"value": 1e999'),
    "five megabytes": GOOD.replace(b"What?", b"x" * 5_000_000),
    "wrong types": GOOD.replace(b'"token_ids": [5, 2]', b'"token_ids": "no"').replace(
        b'"tags": []', b'"tags": {"a": 1}'
    ),
    "a large number": GOOD.replace(b'"policy_version": 0', b'"policy_version": 99999999999999999999'),
    "nodes of nothing": GOOD.replace(b'"nodes": [', b'"nodes": [null, 3, "x", '),
    "no rollouts": GOOD.replace(b'"rollouts": [', b'"rollouts": [], "x": ['),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_line_costs_itself(how: str, tmp_path: Path) -> None:
    line, words = BROKEN[how]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trees.jsonl").write_bytes(GOOD + line + GOOD)
    with indexed(tmp_path / "run", tmp_path / "cache").reading() as database:
        assert database.execute("SELECT n, offset FROM items").fetchall() == [(0, 0), (2, len(GOOD) + len(line))]
        [(file, number, text)] = database.execute("SELECT file, line, text FROM notes").fetchall()
    assert (file, number) == ("trees.jsonl", 2)
    assert words in text
    assert len(text) < 400


@pytest.mark.parametrize("how", LENIENT)
def test_a_strange_field_costs_its_fact_alone(how: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trees.jsonl").write_bytes(GOOD + LENIENT[how] + GOOD)
    with indexed(tmp_path / "run", tmp_path / "cache").reading() as database:
        assert database.execute("SELECT count(*) FROM items").fetchone() == (3,)
        assert database.execute("SELECT text FROM notes").fetchall() == []
        [(question,)] = database.execute("SELECT question FROM texts WHERE n = 1").fetchall()
        assert len(question) <= columns.SHOWN


def test_a_line_beyond_all_bounds_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST", 2_000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trees.jsonl").write_bytes(GOOD + GOOD.replace(b"What?", b"x" * 10_000) + GOOD)
    with indexed(tmp_path / "run", tmp_path / "cache").reading() as database:
        assert [n for (n,) in database.execute("SELECT n FROM items")] == [0, 2]
        assert "found a longer one" in database.execute("SELECT text FROM notes").fetchone()[0]


def test_many_broken_lines_keep_a_hundred_notes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trees.jsonl").write_bytes(b"x\n" * 300 + GOOD)
    with indexed(tmp_path / "run", tmp_path / "cache").reading() as database:
        assert database.execute("SELECT count(*) FROM notes").fetchone() == (100,)
        assert database.execute("SELECT wrong FROM files WHERE name = 'trees.jsonl'").fetchone() == (300,)


@pytest.mark.parametrize(("num", "more"), [(1, ""), (2_000, ", and 1,999 more such rows")])
def test_rows_that_belong_to_no_tree_have_a_note(num: int, more: str, tmp_path: Path) -> None:
    write(tmp_path / "run" / "trees.jsonl", [TREE])
    write(tmp_path / "run" / "pairs.jsonl", [PAIR | {"problem_id": "a"}, *[PAIR | {"problem_id": "b"}] * num])
    with indexed(tmp_path / "run", tmp_path / "cache").reading() as database:
        assert database.execute("SELECT file, line, text FROM notes").fetchall() == [
            ("pairs.jsonl", 2, f"expected a problem that trees.jsonl has, found 'b'{more}")
        ]


@pytest.mark.parametrize("kind", ["pair", "scored", "learned"])
def test_a_row_read_by_its_layout_is_the_row_parsed(kind: str, run: Path) -> None:
    name = {kind: name for name, kind in columns.COMPANIONS.items()}[kind]
    content = (run / name).read_bytes().splitlines(keepends=True)
    for line in content:
        # Another spacing is another layout: the row is parsed whole.
        assert columns.example(kind, line) == columns.example(kind, line.replace(b'", "', b'","'))
    hostile = json.loads(content[0]) | {"problem_id": 'a", "role": "b', "role": "r\\\u20ac"}
    found = columns.example(kind, (json.dumps(hostile) + "\n").encode())
    assert (found.problem, found.role) == ('a", "role": "b', "r\\\u20ac")
    inside = json.dumps(
        json.loads(content[0]) | {"prompt": ', "problem_id": "x", "role": "y", "node": 1, "depth": 2, '}
    )
    assert columns.example(kind, (inside + "\n").encode()).problem == json.loads(content[0])["problem_id"]


ROWS = {"tree": TREE, "trace": TRACE, "prediction": PREDICTION, "judgement": JUDGEMENT, "pair": PAIR, "scored": SCORED}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@settings(max_examples=80, deadline=None, database=None)
@given(st.sampled_from(sorted(ROWS)), st.lists(st.tuples(st.integers(0, 400), JSON), max_size=3), st.binary(max_size=8),
       st.integers(0, 2_000))  # fmt: skip
def test_any_line_gives_facts_or_an_error(kind: str, changes: list[Any], damage: bytes, at: int) -> None:
    row = json.loads(json.dumps(ROWS[kind]))
    for where, value in changes:
        places = list(inside(row))
        holder, key = places[where % len(places)]
        holder[key] = value
    line = json.dumps(row).encode()
    at = at % len(line)
    for each in (line, line[:at] + damage + line[at + len(damage) :]):
        try:
            if kind in ("pair", "scored"):
                found: Any = columns.example(kind, each + b"\n")._asdict()
            else:
                found = columns.columns(kind, columns.row_of(kind, each + b"\n"))
        except DataError:
            continue
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode("utf-8")


def inside(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, dict | list):
            found += inside(item)
    return found


@settings(max_examples=20, deadline=None, database=None)
@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=5), st.binary(max_size=5))
def test_any_bytes_are_indexed(found: list[bytes], torn: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        path.mkdir()
        for name in FILES:
            (path / name).write_bytes(b"".join(line + b"\n" for line in found) + torn)
        made = indexed(path, Path(folder) / "cache")
        with made.reading() as database:
            assert database.execute("SELECT count(*) FROM items").fetchone() == (0,)
        made.close()
