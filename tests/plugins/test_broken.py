"""Does a plug-in that is broken say so in one line, and leave the others alone?"""

from __future__ import annotations

from pathlib import Path

import pytest

from flow_dpo.cli.main import main
from flow_dpo.core.errors import ConfigError
from flow_dpo.plugins import load


def install(site: Path, name: str, entry_points: str) -> None:
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    load._warn_unreadable.cache_clear()
    return tmp_path


def test_one_that_raises_at_import_is_named_with_file_and_line(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "raising_plugin.py").write_text("VALUE = 1\nraise ValueError('no \x1b[31m licence')\n")
    install(site, "raising", "[flow_dpo.recipes]\nmine = raising_plugin:VALUE\n")
    assert main(["train", "--recipe", "mine"]) == 1
    said = capsys.readouterr().err
    assert "raising_plugin could not be run: ValueError: no" in said
    assert "raising_plugin.py, line 2" in said
    assert "Traceback" not in said
    assert "\x1b" not in said


def test_a_file_that_raises_anything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("\n1 / 0\n")
    with pytest.raises(ConfigError, match=r"could not be run: ZeroDivisionError: .*mine\.py, line 2"):
        load.load_object(f"{tmp_path / 'mine.py'}:f", kind="reward")


def test_an_entry_point_that_names_no_object_is_listed_and_refused(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "odd", "[flow_dpo.flows]\nodd = not a valid::value\n")
    assert main(["plugins"]) == 0
    assert "refused" in capsys.readouterr().out
    for ask in (load.load_object, load.fingerprint):
        with pytest.raises(ConfigError, match=r"entry point 'odd' of odd 1\.0"):
            ask("odd", kind="flow")


def test_entry_points_that_cannot_be_read_leave_those_of_others(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(site, "unreadable", "[flow_dpo.flows]\na line without an equals sign\n")
    install(site, "good", "[flow_dpo.rewards]\nfine = good_module:reward\n")
    assert "fine" in load.installed("reward")
    assert load.installed("reward") == load.installed("reward")
    assert caplog.text.count("unreadable") == 1
