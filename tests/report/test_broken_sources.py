"""Does a report show what can be read, and say what is wrong with the rest?"""

from __future__ import annotations

import html
import re
import shlex
import sys
from pathlib import Path

import pytest

from flow_dpo.cli import main
from flow_dpo.core.errors import DataError
from flow_dpo.report.sources import read_sources
from tests.report.test_report import RIGHT, WRONG, rendered, traces, words
from tests.support import report_sources


def damaged(folder: Path) -> dict[str, Path]:
    """Sources as interruptions and accidents leave them, and one with the part of `found` that it should say."""
    made = {"nothing in it": folder / "empty", "only a lock": folder / "locked"}
    for path in made.values():
        path.mkdir()
    (folder / "locked" / ".lock").touch()
    made["line 1: expected JSON"] = traces(folder / "bad rows", "words")
    (folder / "bad rows" / "traces.jsonl").write_text("{not json\n")
    for name, lost, expected in (
        ("half", "trees.jsonl", "a run without its trees.jsonl"), ("other half", "config.yaml", "without its config."),
    ):  # fmt: skip
        made[expected] = report_sources.run(folder / name, [RIGHT])
        (folder / name / lost).unlink()
    made["the file is damaged"] = report_sources.run(folder / "torn", [RIGHT])
    (folder / "torn" / "config.yaml").write_text("recipe: flow-dpo\ndata: se")
    made["found 0: something has changed"] = report_sources.run(folder / "trees lost", [RIGHT])
    (folder / "trees lost" / "trees.jsonl").write_bytes(b"")
    made["expected JSON"] = report_sources.evaluation(folder / "void")
    (folder / "void" / "summary.json").write_bytes(b"\xff\x00")
    made["an evaluation without its summary.json"] = report_sources.evaluation(folder / "unfinished")
    (folder / "unfinished" / "summary.json").unlink()
    (folder / "unfinished" / "predictions.jsonl").rename(folder / "unfinished" / "sampled.jsonl")
    made["Is a directory"] = report_sources.evaluation(folder / "strange")
    (folder / "strange" / "predictions.jsonl").unlink(missing_ok=True)
    (folder / "strange" / "predictions.jsonl").mkdir()
    return made


def test_a_broken_source_ends_no_report(tmp_path: Path) -> None:
    broken = damaged(tmp_path)
    good = report_sources.evaluation(tmp_path / "good")
    shown = words(rendered([*broken.values(), good]))
    below = shown.split(" Left out ")[1].split(" How to reproduce it ")[0]
    for expected, path in broken.items():
        assert expected in below.split(f"{path.name}: ")[1][:600]
    assert f"{len(broken)} of {len(broken) + 1} sources are left out: empty, locked, bad" in shown
    assert "empty is left out: expected a run" in words(rendered([broken["nothing in it"], good]))
    assert "good: 50.0 %" in shown
    # Alone, each is refused with the same words, so are all of them together, and a path with nothing beside any.
    for expected, path in broken.items():
        with pytest.raises(DataError, match=re.escape(expected)):
            read_sources([path])
    with pytest.raises(DataError, match="nothing in it"):
        read_sources(list(broken.values()))
    with pytest.raises(DataError, match="found nothing at"):
        read_sources([good, tmp_path / "nowhere"])


def test_traces_of_which_none_was_found_are_a_row(tmp_path: Path) -> None:
    made = traces(tmp_path / "none", "untrained_flow")
    (made / "traces.jsonl").write_bytes(b"")
    shown = words(rendered([made]))
    assert "none untrained_flow 0 0 - 321" in shown


def test_odd_names_are_drawn_and_every_command_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / 'it\'s "odd" $x_1$ & <né> 数 {}%s\\'
    odd.mkdir()
    folders = [str(report_sources.run(odd / "run", [RIGHT, WRONG])), str(report_sources.evaluation(odd / "$eval_{"))]
    typed = ["flow-dpo", "report", *folders, "--output_dir", str(odd / "out put")]
    monkeypatch.setattr(sys, "argv", typed)
    assert main.main(typed[1:]) == 0
    page = html.unescape((odd / "out put" / "report.html").read_text(encoding="utf-8"))
    assert shlex.join(typed) in page
    assert "out put" in " ".join(capsys.readouterr().out.split())
