"""Can what is printed as the next command be typed, and does a command find a free folder?"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flow_dpo.cli import evaluate as evaluate_module
from flow_dpo.cli.main import main
from flow_dpo.runs import resolve
from flow_dpo.runs.run_folder import free_folder


def test_the_command_that_is_named_can_be_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve.shutil, "which", lambda name: f"/bin/{name}")
    assert resolve.typed_command() == "flow-dpo"
    monkeypatch.setattr(resolve.shutil, "which", lambda _: None)
    done = subprocess.run([*shlex.split(resolve.typed_command()), "--version"], capture_output=True, check=False)
    assert done.returncode == 0
    # From the folder of an environment, its script; where there is none, the module by the interpreter that runs.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolve, "sys", SimpleNamespace(executable=str(tmp_path / ".venv" / "bin" / "python")))
    assert resolve.typed_command() == ".venv/bin/python -m flow_dpo"
    (tmp_path / ".venv" / "bin" / "flow-dpo").touch()
    assert resolve.typed_command() == ".venv/bin/flow-dpo"


def test_evaluate_takes_a_folder_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    taken: list[str] = []

    def measured(*given: Any, **_: Any) -> dict[str, Any]:
        taken.append(given[4].output_dir)
        (tmp_path / taken[-1]).mkdir(parents=True)
        (tmp_path / taken[-1] / "summary.json").touch()
        return {}

    monkeypatch.setattr("flow_dpo.evaluate.run.measure_run", measured)
    monkeypatch.setattr(evaluate_module, "_lines", lambda _: [])
    assert [main(["evaluate"]) for _ in range(3)] == [0, 0, 0]
    assert taken == ["runs/evaluation", "runs/evaluation-2", "runs/evaluation-3"]
    # One that was interrupted has no summary yet: the same command goes on with it.
    (tmp_path / taken[1] / "summary.json").unlink()
    assert free_folder("runs/evaluation", "summary.json") == "runs/evaluation-2"


def test_an_older_python_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    makefile = Path(__file__).parents[2] / "Makefile"
    old = tmp_path / "python3.10"
    pretend = "import sys; code = sys.argv[1]; sys.version_info = (3, 10, 4); exec(code)"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{pretend}' \"$2\"\n")
    old.chmod(0o755)
    words = ["make", "-f", str(makefile), f"PYTHON={old}", "VENV=nowhere", "quickstart"]
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer, found 3.10; name another: make PYTHON=python3.11 quickstart" in done.stderr
    assert not (tmp_path / "nowhere").exists()
