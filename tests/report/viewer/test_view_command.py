"""Does `flow-dpo view` say where it answers, open a browser where there is one, end quietly and refuse what is none?"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path

import pytest

from flow_dpo.cli import main, view
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.report.viewer.server import ViewServer
from tests.support.report_sources import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return run(tmp_path / "runs" / "one", [("correct", "wrong", "correct", "wrong", "wrong")] * 4)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_an_address_and_ends_quietly(how: signal.Signals, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    words = [sys.executable, "-m", "flow_dpo", "view", str(folder.parent), "--no-browser"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"1 source at (http://127\.0\.0\.1:\d+/)", line)
        assert found, line
        with urllib.request.urlopen(f"{found[1]}data/items?source=one", timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(how)
        rest, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    assert "Traceback" not in rest
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "nothing is written into a run"


def interrupted(_server: ViewServer, poll_interval: float = 0.5) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("display", "words", "opened"), [(":0", [], 1), ("", [], 0), (":0", ["--no-browser"], 0)])
def test_a_browser_is_opened_where_there_is_a_display(
    display: str,
    words: list[str],
    opened: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setattr(ViewServer, "serve_forever", interrupted)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    assert main.main(["view", str(folder), *words]) == 0
    assert len(addresses) == opened
    said = capsys.readouterr().out
    assert all(address in said for address in addresses)


def test_a_port_that_is_taken_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main.main(["view", str(folder), "--port", str(taken.getsockname()[1]), "--no-browser"]) == 1
    assert "to be free" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="port"):
        view.parse([str(folder), "--port", "70000"])


def test_what_is_no_source_is_refused_with_what_could_be_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["view", str(folder.parent / "onne")]) == 1
    assert f"in {folder.parent} there is one" in capsys.readouterr().err
    assert main.main(["view", str(tmp_path / "nothing" / "at" / "all")]) == 1
    assert f"in {tmp_path} there is" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    assert main.main(["view", str(tmp_path / "empty")]) == 1
    assert "found notes.txt" in capsys.readouterr().err
    assert main.main(["view"]) == 1
    assert "flow-dpo view FOLDER" in capsys.readouterr().err


def test_the_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        view.parse(["--help"])
    said = capsys.readouterr().out
    assert all(
        name in said for name in ("--port", "--no_browser", "--export", "--num_items", "flow-dpo view runs/train")
    )


def test_an_index_that_cannot_be_kept_is_made_for_this_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flow_dpo.report.viewer.library import Library, cache_folder

    (folder.parent.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent.parent / "file"))
    assert cache_folder() == folder.parent.parent / "file" / "flow-dpo" / "view"
    with Library([folder]) as library:
        library.wait()
        assert library.get("items", {"source": "one"})["total"] == 4
        assert "only kept for this session" in library.get("sources", {})["notes"][0]["text"]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", os.sep + "home")
    assert cache_folder() == Path("/home/.cache/flow-dpo/view"), "a relative folder is none, says the standard"


def test_indexes_of_long_ago_are_removed(folder: Path, tmp_path: Path) -> None:
    from flow_dpo.report.viewer.library import Library

    (tmp_path / "kept").mkdir()
    for name, age_days in (("old.sqlite", 40), ("new.sqlite", 20), ("other.txt", 40)):
        (tmp_path / "kept" / name).write_text("")
        os.utime(tmp_path / "kept" / name, (time.time() - age_days * 86_400,) * 2)
    with Library([folder], cache=tmp_path / "kept"):
        assert {path.name for path in (tmp_path / "kept").glob("*.*")} >= {"new.sqlite", "other.txt"}
        assert not (tmp_path / "kept" / "old.sqlite").exists()


def test_a_named_path_that_does_not_exist_is_a_data_error(tmp_path: Path) -> None:
    from flow_dpo.report.viewer.library import Library

    with pytest.raises(DataError, match="found nothing"):
        Library([tmp_path / "missing"], cache=tmp_path / "cache")
