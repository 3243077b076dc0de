"""Does a run survive SIGKILL and a full disk? A few points here; `make soak` tries two hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.once import Once

LAGS = ("0", "2")


@pytest.fixture(scope="module")
def said(once: Once) -> list[str]:
    """What the harness prints of runs of each lag."""
    return (once("killed", run_harness) / "said.txt").read_text().splitlines()


def run_harness(folder: Path) -> None:
    # A process of its own: it forks, and torch's threads must not have been used before.
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_runs", "--points", "3", "--lag", *LAGS],
        cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "said.txt").write_text(done.stdout)


@pytest.mark.parametrize("lag", LAGS)
def test_a_killed_run_resumes_to_the_bit(lag: str, said: list[str]) -> None:
    [line] = [line for line in said if line.startswith(f"lag {lag}: ")]
    assert "kills at 3 of" in line
