"""Pool of killable worker processes that compare answers, so no comparison can hang, crash or bloat a run.

`GradingPool` sends pairs of answers to a few child processes (`math_verify_worker`), each over its own pipes. A process
that has used `timeout_s` seconds of processor time on a pair ends itself, and another is started; the other workers
continue meanwhile.

    pool.compare_many([("x+1", "1+x"), ("1", "9^{9^{9^{9}}}")])
    -> [Finding("equal", ""), Finding("timeout", "no result within 5 s of processor time")]

Invariant: every pair gets a finding. Its cost is counted in processor time, so a busy machine changes no finding;
wall-clock time ends a worker only when it cannot be computing any more (`hung_s`). A pair whose worker died is tried
once more on a new one. There are no threads and no shared memory. The children end with this process, however it ends,
because their standard input then closes.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, cast

from flow_dpo.core.errors import ConfigError

Found = Literal["equal", "different", "gold", "error", "timeout", "died"]

START_S = 120.0
"""Seconds after which a worker that is not ready never will be, even on a busy machine."""
MAX_FAILED_STARTS = 3
OUT_OF_TIME = -getattr(signal, "SIGPROF", 0)
"""The exit code of a worker that used up its processor time."""


def hung_s(timeout_s: float) -> float:
    """Wall-clock seconds after which a worker limited to `timeout_s` must be stopped or stuck, on any machine."""
    return 60 + 30 * timeout_s


class Finding(NamedTuple):
    """The result of computer algebra on a pair, or why there is none."""

    found: Found
    reason: str


class _Worker:
    """One child process, the pair that it works on, and its deadline."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("math_verify_worker.py")
        self.process = subprocess.Popen(
            # -P: neither the working directory nor this package's folder (it holds a types.py) is searched for modules.
            [sys.executable, "-P", "-W", "ignore", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's to handle
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy orders terms by hash: equal runs, equal verdicts
        )
        self.deadline = time.monotonic() + START_S
        self.ready = False
        self.item: int | None = None
        self.unread = b""

    def send(self, item: int, gold: str, answer: str, timeout_s: float) -> bool:
        """Send a pair. Returns False if the worker is dead."""
        line = json.dumps({"gold": gold, "answer": answer, "cpu_s": timeout_s}) + "\n"
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode("ascii"))
            self.process.stdin.flush()
        except OSError:
            return False
        self.item = item
        self.deadline = time.monotonic() + hung_s(timeout_s)
        return True

    def read(self) -> Finding | Literal["ready", "ended"] | None:
        """The worker's next reply; None if the line is not complete yet."""
        assert self.process.stdout is not None
        received = os.read(self.process.stdout.fileno(), 65_536)
        if not received:
            return "ended"
        self.unread += received
        line, newline, rest = self.unread.partition(b"\n")
        if not newline:
            return None
        self.unread = rest
        reply = cast("dict[str, str]", json.loads(line))
        if reply["found"] == "ready":
            self.ready = True
            return "ready"
        return Finding(cast("Found", reply["found"]), reply["reason"])

    def kill(self) -> str:
        """Kill the worker. Returns the end of its standard error if it never became ready, otherwise ""."""
        self.process.kill()
        self.process.wait()
        streams = self.process.stdin, self.process.stdout, self.process.stderr
        complaint = b"" if self.ready or streams[2] is None else streams[2].read()
        for stream in streams:
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # the worker never read a buffered line
                continue
        return complaint.decode("utf-8", "replace")[-2_000:].strip()


def _kill_all(workers: list[_Worker], owner: int) -> None:
    """Kill the workers, but only in the process that owns them: a forked child inherits just the list."""
    if os.getpid() == owner:
        while workers:
            workers.pop().kill()


class GradingPool:
    """A few killable worker processes, started when there is work for them."""

    def __init__(self, *, num_workers: int, timeout_s: float) -> None:
        if num_workers < 1 or not timeout_s > 0:
            raise ConfigError(
                f"expected at least one worker and a timeout above 0, found num_workers={num_workers} and "
                f"timeout_s={timeout_s}"
            )
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._end = weakref.finalize(self, _kill_all, self._workers, self._owner)

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The ids of the running processes."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End the workers. A later call starts new ones."""
        _kill_all(self._workers, self._owner)

    def compare_many(self, pairs: Sequence[tuple[str, str]]) -> list[Finding]:
        """The findings of computer algebra on (gold, answer) pairs, in order. Calls from several threads take turns."""
        with self._lock:
            self._adopt()
            findings: dict[int, Finding] = {}
            waiting = deque(range(len(pairs)))
            tried: set[int] = set()
            try:
                while len(findings) < len(pairs):
                    self._assign(pairs, waiting)
                    self._collect(findings, waiting, tried)
            finally:
                for worker in [each for each in self._workers if each.item is not None]:
                    self._drop(worker)  # interrupted: its reply would be mistaken for the next pair's
            return [findings[item] for item in range(len(pairs))]

    def _adopt(self) -> None:
        """After a fork, forget the parent's workers: this process must not use their pipes."""
        if os.getpid() != self._owner:
            self._owner = os.getpid()
            self._workers = []
            self._end.detach()
            self._end = weakref.finalize(self, _kill_all, self._workers, self._owner)

    def _assign(self, pairs: Sequence[tuple[str, str]], waiting: deque[int]) -> None:
        """Send each idle worker a pair, and start workers while more pairs are waiting."""
        for worker in list(self._workers):
            if worker.ready and worker.item is None and waiting:
                item = waiting.popleft()
                if not worker.send(item, *pairs[item], self.timeout_s):
                    waiting.appendleft(item)
                    self._drop(worker)
        idle = sum(worker.item is None for worker in self._workers)
        for _ in range(min(self.num_workers - len(self._workers), len(waiting) - idle)):
            self._workers.append(_Worker())

    def _collect(self, findings: dict[int, Finding], waiting: deque[int], tried: set[int]) -> None:
        """Wait for the first reply, exit or deadline among the busy workers, and record all that have occurred."""
        busy = [worker for worker in self._workers if worker.item is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            wait_s = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
            answered = [cast(_Worker, key.data) for key, _ in selector.select(max(0.0, wait_s))]
        for worker in answered:
            reply = worker.read()
            if reply == "ready":
                self._failed_starts = 0
            elif reply == "ended":
                self._ended(worker, findings, waiting, tried)
            elif reply is not None and worker.item is not None:
                findings[worker.item] = reply
                worker.item = None
        now = time.monotonic()
        for worker in [each for each in busy if each not in answered and each.deadline <= now]:
            if worker.item is None:
                self._ended(worker, findings, waiting, tried)
            else:
                findings[worker.item] = Finding("died", "the grading process was stopped or stuck, and did not compute")
                self._drop(worker)

    def _ended(self, worker: _Worker, findings: dict[int, Finding], waiting: deque[int], tried: set[int]) -> None:
        """Handle a worker that ended or never became ready: its pair is tried once more."""
        item, ready = worker.item, worker.ready
        complaint = self._drop(worker)
        if item is not None and worker.process.returncode == OUT_OF_TIME:
            findings[item] = Finding("timeout", f"no result within {self.timeout_s:g} s of processor time")
        elif item is not None and item not in tried:
            tried.add(item)
            waiting.appendleft(item)
        elif item is not None:
            findings[item] = Finding("died", f"the grading process ended twice, exit code {worker.process.returncode}")
        elif not ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise ConfigError(
                    f"expected the grading process to start ({sys.executable} with math-verify 0.9.0 installed), found "
                    f"{self._failed_starts} failures: {complaint or 'it ended without a message'}; reinstall flow-dpo"
                )

    def _drop(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        return worker.kill()
