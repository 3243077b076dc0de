"""Does the viewer go on with the other sources where one of them, or the file system, is out of order?"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer import index, shelf
from flow_dpo.report.viewer import library as module
from flow_dpo.report.viewer.found import find_sources
from flow_dpo.report.viewer.index import Index
from flow_dpo.report.viewer.library import Library
from tests.report.viewer.test_library import VERDICTS, by_id, folder, notes, opened, quick, until
from tests.support.record_examples import JUDGEMENT, TRACE
from tests.support.report_sources import run
from tests.support.view_runs import content, source

_ = quick, folder


def totals(library: Library) -> dict[str, int]:
    return {id: library.get("items", {"source": id})["total"] for id in by_id(library)}


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "all") + b"/caf\xe9"))
    run(odd, VERDICTS)
    run(tmp_path / "all" / "fine", VERDICTS)
    with opened([tmp_path / "all"], tmp_path / "cache") as library:
        assert sorted(totals(library).values()) == [2, 2]
        assert not notes(library)


@pytest.mark.parametrize("later", [False, True])
def test_links_in_a_circle(later: bool, tmp_path: Path) -> None:
    one = run(tmp_path / "all" / "one", VERDICTS)
    (one / "pairs.jsonl").unlink()

    def circle() -> None:
        for path in (tmp_path / "all" / "loop", one / "loop", one / "pairs.jsonl"):
            path.symlink_to(path.name)

    if not later:
        circle()
    with opened([tmp_path / "all"], tmp_path / "cache") as library:
        if later:
            circle()
        run(tmp_path / "all" / "two", VERDICTS)
        until(lambda: totals(library) == {"one": 2, "two": 2})
        assert any("pairs.jsonl is a link that leads in a circle" in note for note in notes(library))
    with pytest.raises(DataError, match="found nothing"):
        find_sources([tmp_path / "all" / "loop"])


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a link into the folder of somebody else: nothing about it can be asked."""
    one = run(tmp_path / "all" / "one", VERDICTS)
    (tmp_path / "locked").mkdir()
    (one / "link").symlink_to(tmp_path / "locked" / "file")
    (one / "scored.jsonl").write_text("")
    ask, entries = os.stat, os.scandir

    def stat(path: Any, **others: Any) -> Any:
        if Path(path).name in ("file", "scored.jsonl") and others.get("follow_symlinks", True):
            raise PermissionError(13, "Permission denied")
        return ask(path, **others)

    class Entry:
        def __init__(self, entry: Any) -> None:
            self.entry, self.name = entry, entry.name

        def is_dir(self, **others: Any) -> bool:
            return self.entry.is_dir(**others)

        def is_file(self) -> bool:
            if self.entry.is_symlink():
                raise PermissionError(13, "Permission denied")
            return self.entry.is_file()

    class Entries:
        def __init__(self, path: Any) -> None:
            self.path = path

        def __enter__(self) -> list[Entry]:
            with entries(self.path) as found:
                return [Entry(entry) for entry in found]

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "scandir", Entries)
    with opened([tmp_path / "all"], tmp_path / "cache") as library:
        until(lambda: totals(library) == {"one": 2})
        assert notes(library) == ["one scored.jsonl None: scored.jsonl cannot be read: Permission denied"]
    with pytest.raises(DataError, match=r"expected a path that can be read, found .*Permission denied"):
        find_sources([tmp_path / "locked" / "file"])


def test_numbers_of_a_file_system_that_need_all_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, look = run(tmp_path / "one", VERDICTS), Index._look

    def far(self: Index, name: str) -> Any:
        found = look(self, name)
        large = {"device": 2**64 - 3, "inode": 2**63, "changed": 2**63 + 5}
        return None if found is None else dataclasses.replace(found, **large)

    monkeypatch.setattr(Index, "_look", far)
    made = Index(source(one), tmp_path / "cache")
    while made.step():
        pass
    before = content(made)
    made.close()
    again = Index(source(one), tmp_path / "cache")
    assert again.step() is False
    assert content(again) == before
    with again.reading() as database:
        [(count,)] = database.execute("SELECT count(*) FROM items").fetchall()
    assert count == 2


@pytest.mark.parametrize(("name", "words"), [("follow", "followed"), ("step", "indexed")])
def test_a_source_that_fails_is_given_up_in_words(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for each in ("bad", "good"):
        run(tmp_path / "all" / each, VERDICTS)
    whole = getattr(shelf.Shelf, name)

    def failing(self: shelf.Shelf) -> Any:
        if self.source.id == "bad":
            raise KeyError("what nobody foresaw")
        return whole(self)

    monkeypatch.setattr(shelf.Shelf, name, failing)
    with opened([tmp_path / "all"], tmp_path / "cache") as library:
        assert totals(library) == {"bad": 0, "good": 2}
        assert notes(library) == [f"bad None None: bad can no longer be {words}: KeyError: 'what nobody foresaw'"]
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        run(tmp_path / "all" / "later", VERDICTS)
        until(lambda: totals(library) == {"bad": 0, "good": 2, "later": 2})
    assert len(caplog.records) == 1, "it is said once"


def test_a_look_for_sources_that_fails_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "all" / "one", VERDICTS)
    with opened([tmp_path / "all"], tmp_path / "cache") as library:
        whole = module.find_sources

        def failing(*_: Any) -> Any:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(module, "find_sources", failing)
        until(lambda: any("new sources cannot be looked for" in note for note in notes(library)))
        monkeypatch.setattr(module, "find_sources", whole)
        run(tmp_path / "all" / "two", VERDICTS)
        until(lambda: totals(library) == {"one": 2, "two": 2})
        assert not notes(library)
    assert len({record.message for record in caplog.records}) == len(caplog.records) == 1


def test_a_thread_that_ended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(tmp_path / "one", VERDICTS)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    with opened([one], tmp_path / "cache") as library:
        monkeypatch.setattr(index.Index, "is_behind", lambda _: 1 / 0)
        monkeypatch.setattr(module, "_FAULTS", ())
        until(lambda: any("start the viewer again" in note for note in notes(library)))


# ---- indexes that are removed ----------------------------------------------------------------------------------------


def test_an_index_that_is_removed_is_made_again(tmp_path: Path) -> None:
    """Nothing changes in the runs, as in finished ones."""
    for name in ("one", "two"):
        run(tmp_path / "all" / name, VERDICTS)
    with opened([tmp_path / "all"], tmp_path / "cache") as library:
        stamp = by_id(library)["one"]["stamp"]
        shutil.rmtree(tmp_path / "cache")
        until(lambda: can_be_read(library, "one", "two"))
        assert totals(library) == {"one": 2, "two": 2}
        assert by_id(library)["one"]["stamp"] != stamp, "a page asks again"
        assert (tmp_path / "cache").stat().st_mode & 0o077 == 0, "it is nobody else's"
        [first, _] = (tmp_path / "cache").glob("*.sqlite")
        shutil.copy(first, tmp_path / "copy")
        (tmp_path / "copy").replace(first)
        (tmp_path / "cache").rename(tmp_path / "moved")
        (tmp_path / "cache").write_text("in the way")
        until(lambda: can_be_read(library, "one", "two"))
        assert not any("could not write" in note for note in notes(library))


def can_be_read(library: Library, *ids: str) -> bool:
    try:
        return all(library.get("item", {"source": id, "n": "0"})["notes"] == [] for id in ids)
    except DataError:
        return False


def test_a_source_whose_index_cannot_be_read_costs_only_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [run(tmp_path / name, VERDICTS) for name in ("one", "two", "three")]
    with opened(paths, tmp_path / "cache") as library:
        monkeypatch.setattr(module, "_PAUSE_S", 60.0)
        time.sleep(0.1)
        two = next(shelf for shelf in library._shelves.values() if shelf.source.id == "two")
        two.index._path.unlink()
        item = library.get("item", {"source": "one", "n": "1"})
        assert [each["source"] for each in item["elsewhere"]] == ["three"]
        [note] = item["notes"]
        assert note.startswith("the same problem was not looked for everywhere: expected the index of two")


def test_a_judgement_is_shown_without_traces_that_cannot_be_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = json.loads((folder / "judged" / "judge.json").read_text())
    sides = [{"path": str(folder / "traces" / "traces.jsonl")}, {"path": str(folder / "gone" / "traces.jsonl")}]
    (folder / "judged" / "judge.json").write_text(json.dumps(header | {"traces": sides}))
    row = JUDGEMENT | {"problem_id": TRACE["problem_id"]}
    (folder / "judged" / "judgements.jsonl").write_text(json.dumps(row) + "\n")
    with opened([folder / "judged", folder / "traces"], tmp_path / "cache") as library:
        assert library.get("item", {"source": "judged", "n": "0"})["texts"]
        monkeypatch.setattr(module, "_PAUSE_S", 60.0)
        time.sleep(0.1)
        (folder / "traces" / "traces.jsonl").unlink()
        item = library.get("item", {"source": "judged", "n": "0"})
        assert (item["kind"], item["texts"]) == ("judgement", None)
        assert [note for note in item["notes"] if note.startswith("the solutions are not shown: expected traces.jsonl")]


# ---- words about what is wrong ---------------------------------------------------------------------------------------


def test_that_indexes_are_not_kept_stays_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[int] = []
    look = module.find_sources
    monkeypatch.setattr(module, "find_sources", lambda *args: (scans.append(1), look(*args))[1])
    (tmp_path / "file").write_text("")
    with opened([run(tmp_path / "one", VERDICTS)], tmp_path / "file" / "cache") as library:
        until(lambda: len(scans) > 3)
        assert "only kept for this session" in " ".join(notes(library))


def test_files_that_are_empty_or_were_cut_are_not_called_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(tmp_path / "one", VERDICTS)
    (one / "run.json").write_text("")
    with opened([one], tmp_path / "cache") as library:
        assert notes(library) == ["one run.json None: expected JSON, found an empty file"]
        monkeypatch.setattr(module, "_PAUSE_S", 60.0)
        time.sleep(0.1)
        for left in (0, 50):
            os.truncate(one / "trees.jsonl", left)
            with pytest.raises(DataError, match="expected the row that was indexed, found a shorter file; ask again"):
                library.get("item", {"source": "one", "n": "0"})
