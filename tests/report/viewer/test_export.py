"""Is a copy of the page what the server gives, file by file, without a path of this machine?"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import view
from flow_dpo.core.errors import ConfigError, StorageError
from flow_dpo.evaluate.headers import JudgeHeader
from flow_dpo.report.viewer.export import Copied, export, without_paths
from flow_dpo.report.viewer.library import Library
from flow_dpo.report.viewer.server import page_file
from flow_dpo.runs.headers import write_header
from tests.support.record_examples import JUDGEMENT
from tests.support.report_sources import HOSTILE, evaluation, run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    verdicts = [("correct", "wrong", "correct", "wrong", "wrong"), ("wrong",) * 5] * 6
    made = [run(tmp_path / "runs" / name, verdicts, question=f"{name} {HOSTILE}\u2028") for name in ("one", "other")]
    config = made[0] / "config.yaml"
    config.write_text(config.read_text().replace("dataset_name: seed", "dataset_name: /home/me/data/mine.jsonl"))
    facts = json.loads((made[0] / "run.json").read_text())
    (made[0] / "run.json").write_text(json.dumps(facts | {"command": "flow-dpo train --base_url http://me@there"}))
    return made


def copy(runs: list[Path], folder: Path, num_items: int) -> tuple[Copied, dict[str, Any]]:
    """The values of a copy by key."""
    with Library(runs, cache=folder.parent / "cache") as library:
        copied = export(library, folder, num_items=num_items)
    return copied, {key: value for file in (folder / "data").iterdir() for key, value in [read(file)]}


def read(file: Path) -> tuple[str, Any]:
    text = file.read_bytes().decode("ascii")
    found = re.fullmatch(r'flowDpo\.put\(("[^"]*"), (.*)\);\n', text)
    assert found, text[:100]
    return json.loads(found[1]), json.loads(found[2])


def test_a_copy_holds_what_the_server_gives(runs: list[Path], tmp_path: Path) -> None:
    copied, values = copy(runs, tmp_path / "site", 5)
    assert copied.items == {"one": 5, "other": 5}
    with Library(runs, cache=tmp_path / "cache") as library:
        library.wait()
        everything = library.get("items", {"source": "one", "limit": "500"})
        assert everything["total"] == 12
        rows = values["items/one"]["rows"]
        assert [row["n"] for row in rows] == [0, 2, 4, 7, 9], "evenly spaced"
        assert rows == [everything["rows"][row["n"]] for row in rows]
        assert values["items/one"]["facets"] == everything["facets"]
        assert values["curves/one"] == library.get("curves", {"source": "one"})
        for n in (0, 7):
            assert values[f"item/one/{n}"] == library.get("item", {"source": "one", "n": str(n)})
    assert len(values) == 1 + 2 * (2 + 5)
    assert values["sources"]["static"] is True
    assert [source["copied"] for source in values["sources"]["sources"]] == [5, 5]
    page = (tmp_path / "site" / "index.html").read_text()
    assert '<meta name="flow-dpo-static"' in page
    assert "Content-Security-Policy" in page
    for name in re.findall(r'(?:src|href)="([^":,]+\.(?:js|css))"', page):
        assert (tmp_path / "site" / name).read_bytes() == page_file(name)


def test_links_lead_to_what_is_copied_alone(runs: list[Path], tmp_path: Path) -> None:
    with Library(runs, cache=tmp_path / "cache") as library:
        library.wait()
        assert [each["source"] for each in library.get("item", {"source": "one", "n": "2"})["elsewhere"]] == ["other"]
    _, values = copy(runs, tmp_path / "site", 12)
    assert [each["n"] for each in values["item/one/3"]["elsewhere"]] == [3]
    (runs[1] / "trees.jsonl").write_text("".join((runs[1] / "trees.jsonl").read_text().splitlines(True)[:3]))
    _, values = copy(runs, tmp_path / "site", 2)
    assert [values[f"item/one/{n}"]["elsewhere"] for n in (0, 6)] == [values["item/one/0"]["elsewhere"], []]
    assert "item/one/3" not in values, "an earlier copy is replaced"


def test_no_path_and_no_command_leaves_this_machine(runs: list[Path], tmp_path: Path) -> None:
    copy(runs, tmp_path / "site", 3)
    for file in (tmp_path / "site").rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert str(tmp_path).encode() not in text, file
            assert b"/home/me" not in text, file
    [source, _] = read(tmp_path / "site" / "data" / "sources.js")[1]["sources"]
    assert source["facts"]["dataset"] == "mine.jsonl/train"
    with Library(runs[:1], cache=tmp_path / "cache") as library:
        library.wait()
        assert library.get("sources", {})["sources"][0]["facts"]["command"]
    assert source["facts"]["command"] is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/Users/alice/My Drive/models/qwen", "qwen"), (r"C:\Users\Alice Smith\models\q", "q"), ("~/models/q", "q"),
        ("models/here", "here"), ("runs/secret/train", "train"), ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("data/mine.jsonl", "mine.jsonl"), ("seed", "seed"),
    ],
)  # fmt: skip
def test_names_of_models_and_data_are_cut_where_they_are_paths(name: str, shown: str, tmp_path: Path) -> None:
    """Relative ones are looked up where the command began, wherever the copy is made; ids of the hub stay whole."""
    (tmp_path / "models" / "here").mkdir(parents=True)
    settings = {
        "run": {"output_dir": "runs/one"}, "flow_source": "flow code/mine.py:Mine", "recipe": "/home/me/a b/r.py:Own",
        "data": {"dataset_name": name, "dataset_config": "main", "dataset_split": "train"},
    }  # fmt: skip
    one = run(tmp_path / "runs" / "one", [("wrong",) * 5], config=settings, facts={"model": name})
    two, three = evaluation(tmp_path / "runs" / "two", run="/home/alice smith/secret/runs/train"), tmp_path / "three"
    summary = json.loads((two / "summary.json").read_text())
    summary |= {"model": name, "dataset": f"{name}/test"}
    summary["settings"]["output_dir"] = "runs/two"
    (two / "summary.json").write_text(json.dumps(summary))
    three.mkdir()
    (three / "judgements.jsonl").write_text(json.dumps(JUDGEMENT) + "\n")
    sides = [{"path": "/home/me/my traces/a"}, {"path": "secret/b"}]
    header = {"question": {"settings": {}}, "num_pairs": 1, "judge": "/home/me/judge", "traces": sides}
    write_header(three / "judge.json", JudgeHeader, header)
    _, values = copy([one, two, three], tmp_path / "site", 1)
    facts = [source["facts"] for source in values["sources"]["sources"]]
    assert (facts[0]["model"], facts[0]["dataset"]) == (shown, f"{shown}/main/train")
    assert (facts[0]["flow"], facts[0]["recipe"]) == ("mine.py:Mine", "r.py:Own")
    assert (facts[1]["model"], facts[1]["dataset"]) == (shown, f"{shown}/test")
    assert facts[1]["who"] == "flow, adapters of train"
    assert (facts[2]["judge"], facts[2]["sides"]) == ("judge", ["a", "b"])
    with Library([one, two], cache=tmp_path / "cache") as library:
        library.wait()
        assert [each["facts"]["model"] for each in library.get("sources", {})["sources"]] == [name, name]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("it cannot be read: [Errno 13] Permission denied: '/home/me/x/config.yaml'",
         "it cannot be read: [Errno 13] Permission denied: 'config.yaml'"),
        ("found '/home/bob jones/a b/c d.yaml' and \"C:\\Users\\Al Bo\\q\"", "found 'c d.yaml' and \"q\""),
        ("/home/al smith/runs/one cannot be read: no room", "one cannot be read: no room"),
        ("could not write /home/al smith/runs/one/deep/x.json: no room", "could not write x.json: no room"),
        ("/home/al smithers is another", "al smithers is another"),
        ("(~/x/y), file=/a/b, at:/c/d", "(y), file=b, at:d"),
        (r"expected \boxed{3/4}, found '\frac{\sqrt{2}}{2}'", r"expected \boxed{3/4}, found '\frac{\sqrt{2}}{2}'"),
        (r"in C:\a\b, .\c\d and \\host\e\f", "in b, d and f"),
        ("see https://e.org/a/b: 1/2 of 3 / 4, and/or", "see https://e.org/a/b: 1/2 of 3 / 4, and/or"),
    ],
)  # fmt: skip
def test_paths_in_notes_are_cut(words: str, shown: str) -> None:
    assert without_paths(words, ["/home/al smith/runs/one", "/home/al smith/runs", "/home/al smith"]) == shown


def test_a_reason_and_a_note_leave_without_their_paths(runs: list[Path], tmp_path: Path) -> None:
    """What models and people wrote stays as it is."""
    trees = (runs[0] / "trees.jsonl").read_bytes().splitlines(True)
    row = json.loads(trees[0])
    row["rollouts"][0]["verdict"] = {"status": "ungraded", "reason": "could not read '/home/al smith/x.py'"}
    row["rollouts"][0]["text"] = "the file '/home/a b/c'"
    (runs[0] / "trees.jsonl").write_bytes(json.dumps(row).encode() + b"\n" + b"".join(trees[1:]))
    (runs[0] / "run.json").write_text("[")
    _, values = copy(runs, tmp_path / "site", 3)
    rollout = values["item/one/0"]["rollouts"][0]
    assert rollout["reason"] == "could not read 'x.py'"
    assert rollout["text"] == "the file '/home/a b/c'"
    notes = [note["text"] for note in values["sources"]["notes"]]
    assert notes
    assert not any("/" in words for words in notes)


def test_a_folder_of_another_kind_is_left_alone(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match="holds no earlier copy of the page; name another with --export"):
        view.view([str(runs[0]), "--export", str(tmp_path / "mine")])
    with pytest.raises(ConfigError, match="found the file"):
        view.view([str(runs[0]), "--export", str(tmp_path / "mine" / "index.html")])
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"
    assert view.view([str(runs[0]), "--export", str(tmp_path / "new"), "--num_items", "4"]) == 0
    assert "one: 4 items" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"num_items"):
        view.view([str(runs[0]), "--export", str(tmp_path / "new"), "--num_items", "0"])


# ---- what goes wrong on the way --------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def damage(run: Path, n: int) -> None:
    """Take the nodes out of a tree: it is listed, and cannot be drawn."""
    trees = (run / "trees.jsonl").read_bytes().splitlines(True)
    trees[n] = json.dumps(json.loads(trees[n]) | {"nodes": []}).encode() + b"\n"
    (run / "trees.jsonl").write_bytes(b"".join(trees))


def test_a_damaged_row_costs_only_itself(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    damage(runs[0], 3)
    copied, values = copy(runs, tmp_path / "site", 12)
    assert (copied.items, copied.left_out) == ({"one": 11, "other": 12}, 1)
    assert [row["n"] for row in values["items/one"]["rows"]] == [n for n in range(12) if n != 3]
    assert "item/one/3" not in values
    assert (values["item/other/3"]["elsewhere"], len(values["item/other/4"]["elsewhere"])) == ([], 1)
    [note] = values["sources"]["notes"]
    assert (note["source"], note["text"][:50]) == ("one", "number 3 is not in this copy: trees.jsonl, line 4:")
    assert [source["copied"] for source in values["sources"]["sources"]] == [11, 12]
    words = [*map(str, runs), "--export", str(tmp_path / "site"), "--num_items", "12"]
    assert view.view(words) == 0
    assert "1 could not be read and are left out" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_what_was_there(
    error: BaseException, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"

    def failing(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("flow_dpo.report.viewer.export.headers.write_header", failing)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            copy(runs, site, 3)
    assert contents(site) == {}
    copy(runs, site, 3)  # a first export that failed is no other folder
    before = contents(site)
    assert before
    with monkeypatch.context() as patched:
        patched.setattr("flow_dpo.report.viewer.export.headers.write_header", failing)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            copy(runs, site, 5)
    assert contents(site) == before


def test_an_export_that_was_killed_can_be_made_again(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "site" / ".flow-dpo-view-abc" / "data").mkdir(parents=True)
    (tmp_path / "site" / ".flow-dpo-view-abc" / "index.html").write_text("")
    copy(runs, tmp_path / "site", 3)
    (tmp_path / "site" / "CNAME").write_text("mine")
    copy(runs, tmp_path / "site", 4)
    assert (tmp_path / "site" / "CNAME").read_text() == "mine"
    assert not [path for path in (tmp_path / "site").iterdir() if path.name.startswith(".")]


def test_a_run_that_begins_while_a_copy_is_made_is_not_in_it(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flow_dpo.report.viewer.library._SCAN_S", 0.01)
    monkeypatch.setattr("flow_dpo.report.viewer.library._PAUSE_S", 0.01)
    whole, begun = Library.described, False

    def described(self: Library, *named: Any) -> dict[str, Any]:
        nonlocal begun
        found = whole(self, *named)
        if not begun:
            begun = True
            run(tmp_path / "runs" / "new", [("wrong",) * 5] * 6)
            end = time.monotonic() + 10
            while "new" not in [source.id for source in self.sources] and time.monotonic() < end:
                time.sleep(0.01)
            self.wait()
        return found

    monkeypatch.setattr(Library, "described", described)
    copied, values = copy([tmp_path / "runs"], tmp_path / "site", 3)
    assert copied.items == {"one": 3, "other": 3}
    assert {each["source"] for each in values["item/one/0"]["elsewhere"]} == {"other"}
    assert not [key for key in values if "new" in key]
