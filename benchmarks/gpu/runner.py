"""Runner of the parts: each runs in its own process group, under a time limit, and its outcome is saved at once.

    outcome = run_part(part, folder, limit_s=115, flags=["--rehearse"])
    outcome["status"]       # "done", "failed" or "over time"; outcome["figures"] are those found until then

Invariants: when `run_part` returns or raises, no process of the part's group is left. A part whose runner dies ends
itself (`measure`). The results file is replaced as a whole, so a killed command leaves the previous results.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.gpu.parts import Part, python_of

DONE, FAILED, OVER_TIME, WAITING, MISSING = "done", "failed", "over time", "not started", "left out"
RESULTS = "results.json"
_GONE_WITHIN_S = 5.0
"""Seconds to wait until killed processes are gone."""
_TAIL = 3000
"""Characters from the end of a failed part's log that are saved with its outcome."""


def run_part(part: Part, folder: Path, *, limit_s: float, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Run one part to its end, or kill it with everything it started when the limit is over."""
    own = folder / "parts" / part.name
    shutil.rmtree(own, ignore_errors=True)  # what an unfinished earlier try left
    own.mkdir(parents=True)
    words = [*part.words(python_of(part)), "--folder", str(own), *flags]
    words += ["--soft_s", str(min(part.soft_s, limit_s)), "--runner", str(os.getpid())]
    started = time.monotonic()
    with (own / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=measuring.ROOT, env=_environment("--rehearse" in flags), stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            status = DONE if process.wait(limit_s) == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = OVER_TIME
        finally:
            end_group(process)
    outcome: dict[str, Any] = {
        "name": part.name,
        "status": status,
        "seconds": round(time.monotonic() - started, 2),
        "limit_s": limit_s,
        "figures": figures_in(own),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if status == DONE and not outcome["figures"]:
        outcome |= {"status": FAILED, "why": f"ended well and kept no figure: {_tail(own / 'log.txt')}"}
    elif status == FAILED:
        outcome["why"] = f"ended with status {process.returncode}: {_tail(own / 'log.txt')}"
    elif status == OVER_TIME:
        outcome["why"] = f"killed after {limit_s:.0f} s: {_tail(own / 'log.txt')}"
    return outcome


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process's group and wait until it is gone: the next part needs the GPU's memory."""
    end = time.monotonic() + _GONE_WITHIN_S
    with contextlib.suppress(ProcessLookupError):  # the group is empty
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < end:  # an ended process stays in the group until its parent waits for it
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    process.wait()


def figures_in(folder: Path) -> list[dict[str, Any]]:
    """The figures that a part has saved so far. It rewrites the file after each of them."""
    path = folder / "figures.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def load(folder: Path) -> dict[str, Any]:
    """Results of earlier commands: outcomes by part's name under "parts", which is empty if there are none."""
    path = folder / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}


def save(folder: Path, results: Mapping[str, Any]) -> None:
    """Replace the results file."""
    beside = folder / (RESULTS + ".tmp")
    beside.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(folder / RESULTS)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL:]


def _environment(on_cpu: bool) -> dict[str, str]:
    """The environment of every benchmark, with one GPU, because a peer would use several. A rehearsal sees no GPU."""
    threads = 1 if on_cpu else min(8, len(os.sched_getaffinity(0)))
    found = {**measuring.environment(threads), "PYTHONPATH": str(measuring.ROOT), "PYTHONUNBUFFERED": "1"}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return found | {"CUDA_VISIBLE_DEVICES": "" if on_cpu else first}
