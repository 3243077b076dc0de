"""Commands and processes that tests begin, watch and end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 300.0


def wait_until(done: Callable[[], bool], at_most_s: float = LIMIT_S) -> None:
    end = time.monotonic() + at_most_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def process_state(pid: int) -> str:
    """The letter that the system gives it, as "S" for sleeping, "T" for stopped, "Z" for dead; "" if there is none."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def alive(pid: int) -> bool:
    return process_state(pid) not in ("", "Z")


def children(pid: int) -> list[int]:
    """The processes that a process has begun, and those that they have."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


@contextlib.contextmanager
def begun(*words: str, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A command of flow-dpo in a session of its own, all of whose processes are gone in the end."""
    command = [sys.executable, "-W", "default", "-m", "flow_dpo", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finished(*words: str) -> str:
    with begun(*words) as process:
        out = process.communicate(timeout=2 * LIMIT_S)[0].decode()
        assert process.returncode == 0, out[-3000:]
    return out
