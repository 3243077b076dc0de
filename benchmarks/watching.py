"""Timestamps and memory of a run, observed from another process.

A run is started as a user starts it, in a process of its own. Its folder and its memory are looked at twenty times a
second. Nothing is added to the run itself.

    watched = watch(["train", "--max_problems", "64"], folder, num_threads=1)
    watched.rows[3]     # Batch(row={"problems_seen": 128, ...}, at_s=31.2, rss_mib=512.0)
    watched.total_s
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measuring

_EVERY_S = 0.05


@dataclass(frozen=True)
class Batch:
    """One row of metrics.jsonl."""

    row: dict[str, Any]
    at_s: float
    """Seconds from the process's start to when the row stood in the file."""
    rss_mib: float
    """Memory that the process held then."""


@dataclass(frozen=True)
class Watched:
    """A run that is over."""

    rows: list[Batch]
    total_s: float
    """From the process's start to its end."""


def watch(words: Sequence[str], folder: Path, *, num_threads: int) -> Watched:
    """Run `flow-dpo` with these words and this output_dir to its end. Exits where it fails."""
    log = folder.with_name(folder.name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flow_dpo", *words, "--output_dir", str(folder)]
    started = time.perf_counter()
    rows: list[Batch] = []
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=measuring.ROOT, env=measuring.environment(num_threads), stdout=out, stderr=out
        )
        while process.poll() is None:
            time.sleep(_EVERY_S)
            for row in _rows(folder)[len(rows) :]:
                rows.append(Batch(row, time.perf_counter() - started, _rss_mib(process.pid)))
        total_s = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{command} failed with status {process.returncode}:\n{log.read_text()}")
    return Watched(rows, total_s)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the metrics so far."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _rss_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        # It has just ended.
        return 0.0
    return pages * 4096 / 2**20
