"""Does a run survive SIGKILL and a full disk? A few points here; `make soak` tries two hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run_harness(*words: str) -> str:
    # A process of its own: it forks, and torch's threads must not have been used before.
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_runs", *words],
        cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("lag", ["0", "2"])
def test_a_killed_run_resumes_to_the_bit(lag: str) -> None:
    assert "kills at 3 of" in run_harness("--points", "3", "--lag", lag)
