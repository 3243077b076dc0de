"""Is everything that stands at some paths found, followed and answered, whatever state it is in?"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.headers import JudgeHeader, JudgeSummary
from flow_dpo.report.viewer import index, shelf
from flow_dpo.report.viewer import library as module
from flow_dpo.report.viewer.found import find_sources
from flow_dpo.report.viewer.items import Missing
from flow_dpo.report.viewer.library import Library
from flow_dpo.runs.headers import RunFacts, TracesHeader, write_header
from flow_dpo.runs.settings import BudgetSettings, RunSettings
from tests.support.record_examples import HEADER, JUDGEMENT, TRACE
from tests.support.report_sources import evaluation, run

VERDICTS: list[tuple[Any, ...]] = [("correct", "wrong", "correct", "wrong", "wrong"), ("wrong",) * 5]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.02)
    monkeypatch.setattr(module, "_SCAN_S", 0.05)


@contextmanager
def opened(paths: Sequence[Path], cache: Path) -> Iterator[Library]:
    with Library(paths, cache=cache) as library:
        library.wait()
        yield library


def until(holds: Callable[[], Any]) -> Any:
    """What it gives once that is true; fails where it is not within ten seconds."""
    end = time.monotonic() + 10
    while not (found := holds()):
        assert time.monotonic() < end, "it did not happen within ten seconds"
        time.sleep(0.01)
    return found


def by_id(library: Library) -> dict[str, dict[str, Any]]:
    return {source["id"]: source for source in library.get("sources", {})["sources"]}


def notes(library: Library) -> list[str]:
    found = library.get("sources", {})["notes"]
    return [f"{note['source']} {note['file']} {note['line']}: {note['text']}" for note in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of everything, and what is none of it."""
    top = tmp_path / "all"
    run(top / "runs" / "done", VERDICTS * 6)
    run(top / "runs" / "half", VERDICTS * 3, facts={"num_problems": 100})
    begun = run(top / "runs" / "begun", VERDICTS)
    for name in ("trees.jsonl", "metrics.jsonl", "pairs.jsonl"):
        (begun / name).unlink()
    evaluation(top / "evaluated")
    (top / "asked").mkdir()
    batch = {"schema": "sampled_batch/1", "problems": ["a", "b", "c"], "seed": 0, "policy_version": 0, "context": ""}
    (top / "asked" / "sampled.jsonl").write_text((json.dumps(batch) + "\n") * 2 + '{"sche')
    (top / "traces").mkdir()
    (top / "traces" / "traces.jsonl").write_text(json.dumps(TRACE) + "\n")
    (top / "traces" / "traces.json").write_text(json.dumps(HEADER | {"counts": {"num_problems_sampled": 7}}))
    judge(top / "judged")
    (top / "notes").mkdir()
    (top / "notes" / "a.txt").write_text("x")
    (top / "runs" / "done" / "checkpoints" / "1" / "deep").mkdir(parents=True)
    (top / "runs" / "done" / "checkpoints" / "1" / "deep" / "traces.jsonl").write_text("")
    return top


def judge(path: Path) -> None:
    path.mkdir()
    (path / "judgements.jsonl").write_text(json.dumps(JUDGEMENT) + "\n")
    write_header(path / "judge.json", JudgeHeader, {"question": {}, "num_pairs": 3, "judge": "m"})
    of = {"win_rate": {}, "decided": {}, "agreement": {}, "position": {}, "longer": {}}
    numbers = {"pairs": {"a": 2, "b": 1, "tie": 0}, "ties": {}, "unparsed": {}}
    write_header(path / "summary.json", JudgeSummary, {"a": {}, "b": {}, **of, **numbers})


def test_one_of_everything(folder: Path, tmp_path: Path) -> None:
    with opened([folder], tmp_path / "cache") as library:
        found = by_id(library)
        states = {id: (source["kind"], source["state"], source["num_items"]) for id, source in found.items()}
        assert states == {
            "runs-done": ("run", "finished", 12), "runs-half": ("run", "interrupted", 6),
            "runs-begun": ("run", "interrupted", 0), "evaluated": ("evaluation", "finished", 1),
            "asked": ("evaluation", "interrupted", 0), "traces": ("traces", "finished", 1),
            "judged": ("judgements", "finished", 1),
        }  # fmt: skip
        assert all(source["indexed"] == 1 for source in found.values())
        facts = {id: source["facts"] for id, source in found.items()}
        assert facts["runs-done"] | {"accuracy": 0.5, "pairs": 18, "updates": 3} == facts["runs-done"]
        assert facts["runs-done"]["seconds"] == pytest.approx(3 * 2.25)
        assert facts["runs-half"]["problems_seen"] == 6
        assert facts["runs-begun"]["accuracy"] is None
        assert facts["evaluated"]["accuracy"] == 0.5
        assert facts["asked"]["num_problems"] == 6, "of an evaluation that has not finished: what it has sampled"
        assert facts["traces"]["problems"] == 7
        assert facts["judged"]["wins_a"] == 2
        kinds = {id: library.get("item", {"source": id, "n": "0"})["kind"] for id in found if found[id]["num_items"]}
        assert kinds == {
            "runs-done": "tree", "runs-half": "tree", "evaluated": "solution", "traces": "solution",
            "judged": "judgement",
        }  # fmt: skip
        assert not notes(library), "a folder of something else below one that was named is nobody's fault"
        row = library.get("items", {"source": "judged"})["rows"][0]
        assert (row["status"], row["pairs"], row["tokens"]) == ("b", None, 7)


def test_what_is_none_of_these_is_named_beside_what_is(folder: Path, tmp_path: Path) -> None:
    with opened(
        [folder / "evaluated", folder / "notes", folder / "runs" / "done" / "trees.jsonl"], tmp_path
    ) as library:
        assert list(by_id(library)) == ["evaluated", "done"]
        [note] = notes(library)
        assert "notes: expected a run" in note
        assert note.endswith("found a.txt")
    with pytest.raises(DataError, match="expected a run"):
        Library([folder / "notes"], cache=tmp_path)


def test_sources_of_one_name_have_names_of_their_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs" / "done", folder / "other" / "done")
    found, _ = find_sources([folder / "runs" / "done", folder / "other" / "done", folder / "runs" / "done"])
    assert [(source.id, source.name) for source in found] == [("runs-done", "runs/done"), ("other-done", "other/done")]
    (folder / "a b").mkdir()
    for name in ("a b", "a_b", "a/b", "\u202e<i>"):
        shutil.copytree(folder / "evaluated", folder / "odd" / name)
    ids = [source.id for source in find_sources([folder / "odd"])[0]]
    assert len(set(ids)) == 4
    assert all(set(id) <= set("abcdefghijklmnopqrstuvwxyz-_.0123456789") for id in ids)


def test_a_run_is_followed(tmp_path: Path) -> None:
    whole, live = run(tmp_path / "whole", VERDICTS * 4), tmp_path / "live"
    live.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(whole / name, live / name)
    trees, metrics = ((whole / name).read_bytes().splitlines(True) for name in ("trees.jsonl", "metrics.jsonl"))
    lock = FileLock(live / ".lock")
    with lock, opened([live], tmp_path / "cache") as library:
        assert by_id(library)["live"]["state"] == "going on"
        stamps = {by_id(library)["live"]["stamp"]}

        def changed() -> bool:
            stamps.add(by_id(library)["live"]["stamp"])
            return len(stamps) > num

        with (live / "trees.jsonl").open("wb", buffering=0) as file:
            num = len(stamps)
            file.write(b"".join(trees[:4]) + trees[4][:50])
            until(lambda: library.get("items", {"source": "live"})["total"] == 4)
            until(changed)
            assert not notes(library), "the last line is being written"
            assert library.get("items", {"source": "live"})["rows"][3]["batch"] is None
            num = len(stamps)
            (live / "metrics.jsonl").write_bytes(metrics[0])
            until(lambda: library.get("curves", {"source": "live"})["batches"] == [{"from": 0, "to": 4}])
            until(changed)
            assert library.get("items", {"source": "live"})["rows"][3]["batch"] == 0
            num = len(stamps)
            file.write(trees[4][50:])
            until(lambda: library.get("items", {"source": "live"})["total"] == 5)
            until(changed)
            file.write(trees[5][:9])
        shutil.copytree(live, tmp_path / "stopped")
    with opened([tmp_path / "stopped"], tmp_path / "cache") as library:
        assert by_id(library)["stopped"]["state"] == "interrupted"
        assert notes(library) == ["stopped trees.jsonl 6: the last line has no end: it was torn off"]


def test_a_run_that_is_half_indexed_is_neither_torn_nor_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "STEP", 2_000)
    [source], _ = find_sources([run(tmp_path / "one", VERDICTS * 6)])
    one = shelf.Shelf(source, index.Index(source, tmp_path / "cache"))
    seen: list[float] = []
    while one.follow():
        one.step()
        value = one.value()
        seen.append(value["indexed"])
        assert one.notes() == []
        assert (value["facts"]["pairs"] is None) == (seen[-1] < 1)
    one.index.close()
    assert len(seen) > 3
    assert seen[-1] == 1.0


@pytest.mark.parametrize(("budget", "state"), [(3, "finished"), (4, "interrupted")])
def test_a_run_that_spent_its_budget_is_finished(budget: int, state: str, tmp_path: Path) -> None:
    config = {"run": RunSettings(budget=BudgetSettings(budget_updates=budget, budget_verdicts=1))}
    one = run(tmp_path / "one", VERDICTS * 6, facts={"num_problems": 999}, config=config)
    with opened([one], tmp_path / "cache") as library:
        assert by_id(library)["one"]["state"] == state


def test_an_index_that_was_replaced_is_made_again(tmp_path: Path) -> None:
    """Two viewers share an index; one of them may throw it away."""
    one = run(tmp_path / "one", VERDICTS)
    trees = (one / "trees.jsonl").read_bytes()
    with opened([one], tmp_path / "cache") as library:
        for file in (tmp_path / "cache").iterdir():
            file.unlink()
            if file.suffix == ".sqlite":
                file.write_bytes(b"")
        (one / "trees.jsonl").write_bytes(trees * 2)
        until(lambda: by_id(library)["one"]["num_items"] == 4)
        assert library.get("items", {"source": "one"})["total"] == 4


def test_growth_tells_of_a_writer_whose_lock_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = run(tmp_path / "half", VERDICTS, facts={"num_problems": 100})
    with opened([half], tmp_path / "cache") as library:
        assert by_id(library)["half"]["state"] == "interrupted"
        with (half / "trees.jsonl").open("ab") as file:
            file.write(b"{")
        until(lambda: by_id(library)["half"]["state"] == "going on")
        monkeypatch.setattr(shelf, "_GROWING_S", 0.0)
        until(lambda: by_id(library)["half"]["state"] == "interrupted")


def test_a_run_that_begins_later_and_one_that_goes_away(tmp_path: Path) -> None:
    one = run(tmp_path / "runs" / "one", VERDICTS)
    with opened([tmp_path / "runs"], tmp_path / "cache") as library:
        run(tmp_path / "runs" / "two", VERDICTS)
        until(lambda: "two" in by_id(library))
        until(lambda: library.get("items", {"source": "two"})["total"] == 2)
        shutil.rmtree(one)
        until(lambda: by_id(library)["one"]["num_items"] == 0)
        assert any("no longer exists" in note for note in notes(library))
        with pytest.raises(Missing):
            library.get("item", {"source": "one", "n": "0"})
        shutil.rmtree(tmp_path / "runs")
        until(lambda: any("found nothing" in note for note in notes(library)))


def test_a_file_that_is_replaced_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(tmp_path / "one", VERDICTS * 2)
    with opened([one], tmp_path / "cache") as library:
        monkeypatch.setattr(module, "_PAUSE_S", 60.0)
        time.sleep(0.1)
        lines = (one / "trees.jsonl").read_text().splitlines(True)
        for content in ("".join(reversed(lines)), "x" * 99_999, ""):
            (one / "trees.jsonl").write_text(content)
            with pytest.raises(DataError, match=r"trees.jsonl, line 1"):
                library.get("item", {"source": "one", "n": "0"})


def test_broken_companions_cost_their_rows(tmp_path: Path) -> None:
    one = run(tmp_path / "one", VERDICTS * 2)
    pairs = (one / "pairs.jsonl").read_bytes().splitlines(True)
    # Damage behind what an index reads of a row: it is seen when the row is.
    (one / "pairs.jsonl").write_bytes(pairs[0].replace(b'"prompt_ids": [', b'"prompt_ids": [[[') + b"".join(pairs[1:]))
    (one / "config.yaml").write_text("recipe: [")
    (one / "run.json").write_text('{"num_problems": ' + "[" * 99_999)
    with (one / "metrics.jsonl").open("a") as file:
        file.write('{"schema": "metrics/1", "problems_seen": "many"}\nNaN\n')
    (one / "scored.jsonl").mkdir()
    os.mkfifo(one / "learned.jsonl")
    (tmp_path / "secret").write_text('{"id": 1, "text": "secret"}\n')
    (one / "tokens.jsonl").symlink_to(tmp_path / "secret")
    with opened([one], tmp_path / "cache") as library:
        found = " ".join(notes(library))
        for words in ("config.yaml None: expected YAML", "run.json None: expected a row, found JSON that is nested",
                      "metrics.jsonl 2", "metrics.jsonl 3", "something else named scored.jsonl",
                      "something else named learned.jsonl"):  # fmt: skip
            assert words in found
        item = library.get("item", {"source": "one", "n": "0"})
        assert len(item["examples"]) == 2
        assert any("pairs.jsonl: expected JSON" in note for note in item["notes"])
        assert by_id(library)["one"]["facts"]["recipe"] is None
        assert len(library.get("curves", {"source": "one"})["batches"]) == 1
        assert "secret" not in json.dumps([library.get("sources", {}), item]), "a link out of a run is not followed"


def test_a_data_file_that_is_a_link_out_of_the_run_is_not_read(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", VERDICTS), run(tmp_path / "other", VERDICTS)
    (one / "trees.jsonl").unlink()
    (one / "trees.jsonl").symlink_to(other / "trees.jsonl")
    with opened([one], tmp_path / "cache") as library:
        assert library.get("items", {"source": "one"})["total"] == 0
        assert any("a link to a file outside" in note for note in notes(library))


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    one = run(tmp_path / "one", VERDICTS * 5)
    with opened([one], tmp_path / "cache") as library:
        found = library.get("curves", {"source": "one"})
    assert found["batches"] == [{"from": 0, "to": 4}, {"from": 4, "to": 8}, {"from": 8, "to": 10}]
    assert found["x"] == {
        "problems": [4, 8, 10], "updates": [1, 2, 3], "tokens": [111, 222, 333],
        "hours": [pytest.approx(2.25 * n / 3600) for n in (1, 2, 3)],
    }  # fmt: skip
    assert found["series"]["learn/answer/margin"] == [0.0, 1.0, 2.0]
    assert all(len(values) == 3 for values in found["series"].values())


def test_hours_where_workers_sample_elsewhere(tmp_path: Path) -> None:
    one = run(tmp_path / "one", VERDICTS * 4)
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    rows[1] |= {"rollout/wait_seconds": 3.0, "rollout/seconds": 99.0}
    (one / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with opened([one], tmp_path / "cache") as library:
        assert library.get("curves", {"source": "one"})["x"]["hours"] == [0.5 / 3600, 4.0 / 3600]


def test_the_same_problem_elsewhere(tmp_path: Path) -> None:
    paths = [run(tmp_path / name, VERDICTS * 2) for name in ("one", "two")]
    with opened(paths, tmp_path / "cache") as library:
        found = library.get("item", {"source": "one", "n": "1"})["elsewhere"]
        assert found == [
            {"source": "two", "name": "two", "kind": "run", "n": 1, "status": "wrong", "version": found[0]["version"]}
        ]


@pytest.mark.parametrize(
    ("kind", "params", "error"),
    [
        ("items", {}, Missing), ("items", {"source": "../one"}, Missing),
        ("item", {"source": "one", "n": "4"}, Missing),
        ("item", {"source": "one", "n": "-1"}, DataError), ("item", {"source": "one", "n": "1", "x": ""}, DataError),
        ("curves", {"source": "one", "n": "1"}, DataError), ("sources", {"a": "b"}, DataError), ("files", {}, Missing),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(kind: str, params: dict[str, str], error: type, tmp_path: Path) -> None:
    with opened([run(tmp_path / "one", VERDICTS)], tmp_path / "cache") as library, pytest.raises(error):
        library.get(kind, params)


def test_a_line_that_could_not_be_read_says_why(tmp_path: Path) -> None:
    one = run(tmp_path / "one", VERDICTS)
    lines = (one / "trees.jsonl").read_text().splitlines(True)
    (one / "trees.jsonl").write_text(lines[0] + "{\n" + lines[1])
    with opened([one], tmp_path / "cache") as library:
        with pytest.raises(Missing, match=r"trees.jsonl, line 2: expected JSON"):
            library.get("item", {"source": "one", "n": "1"})
        assert library.get("item", {"source": "one", "n": "2"})["problem"]["id"] == "p1"
        assert [row["n"] for row in library.get("items", {"source": "one"})["rows"]] == [0, 2]


def test_a_judgement_shows_what_it_compares_where_the_traces_are_named_too(folder: Path, tmp_path: Path) -> None:
    header = json.loads((folder / "judged" / "judge.json").read_text())
    sides = [{"path": str(folder / "traces" / "traces.jsonl")}, {"path": str(folder / "gone" / "traces.jsonl")}]
    (folder / "judged" / "judge.json").write_text(json.dumps(header | {"traces": sides}))
    row = JUDGEMENT | {"problem_id": TRACE["problem_id"]}
    (folder / "judged" / "judgements.jsonl").write_text(json.dumps(row) + "\n")
    with opened([folder / "judged", folder / "traces"], tmp_path / "cache") as library:
        item = library.get("item", {"source": "judged", "n": "0"})
        assert item["texts"] == {"a": TRACE["solution"], "b": None}
        assert item["problem"]["question"] == TRACE["question"]
        assert [each["source"] for each in item["elsewhere"]] == ["traces"]
    with opened([folder / "judged"], tmp_path / "cache") as library:
        assert library.get("item", {"source": "judged", "n": "0"})["texts"] is None, "no path leaves what was named"


def test_nothing_is_written_into_the_sources(folder: Path, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}

    before = state()
    with opened([folder], tmp_path / "cache") as library:
        for source in library.sources:
            library.get("items", {"source": source.id})
    assert state() == before


def test_headers_of_another_kind_cost_their_facts(tmp_path: Path) -> None:
    one = run(tmp_path / "one", VERDICTS)
    write_header(one / "run.json", RunFacts, {"model": 5, "num_problems": "many", "command": ["x"]})
    (tmp_path / "t").mkdir()
    write_header(tmp_path / "t" / "traces.json", TracesHeader, {"counts": 3, "cost": [], "complete": False})
    with opened([one, tmp_path / "t"], tmp_path / "cache") as library:
        facts = by_id(library)["one"]["facts"]
        assert (facts["model"], facts["num_problems"], facts["command"]) == (None, None, None)
        assert by_id(library)["t"]["facts"]["problems"] is None
        assert by_id(library)["t"]["state"] == "interrupted"
