"""Runner of the parts: each in a process group of its own, under a limit, its outcome kept at once.

    outcome = run_part(part, folder, limit_s=115, flags=["--rehearse"])
    outcome["status"]       # "done", "failed" or "over time"; then outcome["figures"] are those found until then

Invariants: when `run_part` returns or raises, no process that the part started in its group is left; a part whose
runner dies ends itself (`measure`). Results are replaced as a whole file: a killed command leaves the last ones.
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
"""Seconds within which killed processes are expected to be gone."""
_TAIL = 3000
"""Characters of a failed part's log that are kept with its outcome."""


def run_part(part: Part, folder: Path, *, limit_s: float, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Run one part to its end, or kill it with all that it started when the limit is over."""
    own = folder / "parts" / part.name
    shutil.rmtree(own, ignore_errors=True)  # what an earlier try left half done
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
    """Kill whatever is left of the process's group, and wait until it is gone: the next part needs the GPU's memory."""
    end = time.monotonic() + _GONE_WITHIN_S
    with contextlib.suppress(ProcessLookupError):  # the group is empty
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < end:  # an ended process that nobody waits for stays in the group
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    process.wait()


def figures_in(folder: Path) -> list[dict[str, Any]]:
    """The figures that a part kept so far: written as a whole file after each."""
    path = folder / "figures.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def load(folder: Path) -> dict[str, Any]:
    """Outcomes of earlier commands by part's name, under "parts"; empty where there are none."""
    path = folder / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}


def save(folder: Path, results: Mapping[str, Any]) -> None:
    """Replace the file of results."""
    beside = folder / (RESULTS + ".tmp")
    beside.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(folder / RESULTS)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL:]


def _environment(on_cpu: bool) -> dict[str, str]:
    """As for every benchmark, with one GPU, for a peer would spread over several; a rehearsal sees none."""
    threads = 1 if on_cpu else min(8, len(os.sched_getaffinity(0)))
    found = {**measuring.environment(threads), "PYTHONPATH": str(measuring.ROOT), "PYTHONUNBUFFERED": "1"}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return found | {"CUDA_VISIBLE_DEVICES": "" if on_cpu else first}
