"""Process workers: actors, each with its own model, in processes on this machine, without Ray.

    flow-dpo train --workers processes --workers.num 2                          two processors, one model each
    flow-dpo train --workers processes --workers.num 3 --workers.num_gpus 1     the learner's GPU and three more

Processes are forked from a server that has preloaded their imports (`workers.fork_server`), and read adapters from the
folder to which the learner writes them. Invariants: workers end with this process, however it ends, and so does
everything that they started. A pipe carries one call at a time: giving up a call ends the worker's process.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, util
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.kv_budget import host_memory, of_one_worker
from flow_dpo.models.load import LoadedModel
from flow_dpo.plugins.load import MADE_OF_FILES, RanFile, ran_files
from flow_dpo.ranks.environment import usable_processors
from flow_dpo.workers.actor import Expected
from flow_dpo.workers.actor_worker import (
    LOOK_S,
    PARTING_S,
    UNPICKLABLE,
    ActorWorker,
    check_travels,
    one_line,
    opened,
    setup_elsewhere,
)
from flow_dpo.workers.devices import devices_of_each
from flow_dpo.workers.fork_server import CONTEXT, METHOD, warm_up
from flow_dpo.workers.process_actor import LOG, Surroundings, answer_calls, message
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.setup import WorkersAccess, WorkerSetup
from flow_dpo.workers.shard import Shard, WorkerLost

_NAMED = re.compile(rb"%s\w+" % MADE_OF_FILES.encode())


@dataclass(eq=False, kw_only=True)
class _Running:
    """One process of a worker."""

    process: Any
    calls: Any
    """This end of the pipe to it."""
    folder: Path
    at_exit: util.Finalize
    """Ends it if this process ends without closing it."""
    has: set[RanFile] = field(default_factory=set[RanFile])
    """Files that the process has already run."""
    given_up: bool = False
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards reading the exit status, which only one thread may do."""

    def exit_code(self) -> int | None:
        """The exit code, once it has ended; None if it does not end in time."""
        connection.wait([self.process.sentinel], PARTING_S)
        with self.lock:
            self.process.join(0)
            return self.process.exitcode

    def end(self) -> None:
        """End it, and everything that it started."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
            self.at_exit.cancel()
            _kill_session(self.process)
        self.exit_code()


class ProcessWorker(ActorWorker):
    """A worker whose actor is a child of this process."""

    where = "worker process"
    _running: _Running | None = None

    def __init__(self, index: int, setup: WorkerSetup, expected: Expected, folder: Path, gpus: str | None) -> None:
        """`folder` is for its temporary files; `gpus` are the GPUs that it sees, by CUDA's names."""
        super().__init__(index, setup, expected)
        self._folder, self._gpus = folder, gpus
        self._num_started = 0

    def _start(self) -> None:
        self._num_started += 1
        place = self._folder / f"{self._index}-{self._num_started}"
        place.mkdir(parents=True)
        own = {
            "OMP_NUM_THREADS": str(self._setup.workers.num_threads), "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": str(place),
        }  # fmt: skip
        own |= {} if self._gpus is None else {"CUDA_VISIBLE_DEVICES": self._gpus}
        surroundings = Surroundings(folder=str(place), variables={**os.environ, **own})
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=answer_calls, args=(there, surroundings), name=self.name)
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise WorkerLost(f"it could not be started: {one_line(error)}") from error
        finally:
            there.close()
        at_exit = util.Finalize(None, _kill_session, args=(process,), exitpriority=10)
        self._running = _Running(process=process, calls=here, folder=place, at_exit=at_exit)

    def _call(self, method: str, *args: Any) -> _Running:
        running = self._running
        if running is None or running.ended:
            raise WorkerLost("it was given up")
        try:
            content = _pickled_elsewhere((method, args))
        except UNPICKLABLE as error:
            raise ConfigError(
                f"expected a flow and an exploration that can be sent to worker processes, found that they cannot: "
                f"{one_line(error)}; define them in a file, and let them hold no locks, files or connections"
            ) from error
        named = {name.decode() for name in _NAMED.findall(content)}
        files = [file for file in ran_files(named) if file not in running.has]
        try:
            running.calls.send_bytes(message(files, content))
        except OSError as error:
            raise WorkerLost(self._end_of(running)) from error
        running.has.update(files)
        return running

    def _weights(self, shard: Shard) -> None:
        """None: the actor reads the weights from the adapters' folders."""

    def _get(self, asked: _Running, until: float | None) -> Any:
        try:
            # Also watch for the end of the process: a child that it forked can keep its end of the pipe open.
            while asked.calls not in (ready := connection.wait([asked.calls, asked.process.sentinel], LOOK_S)):
                if ready and not asked.calls.poll(LOOK_S):
                    raise WorkerLost(self._end_of(asked))
                if until is not None and time.monotonic() > until:
                    self._kill()
                    raise WorkerLost(f"not ready within {self._setup.workers.start_s:g} s (--workers.start_s)")
            result, error = pickle.loads(asked.calls.recv_bytes())
        except (EOFError, OSError) as error:
            raise WorkerLost(self._end_of(asked)) from error
        if error is not None:
            raise error
        return result

    def _open(self, found: dict[str, Any]) -> Any:
        """Like any worker, but first check that it sees its own GPUs."""
        num = 0 if self._gpus is None else len(self._gpus.split(","))
        if num and found["num_gpus"] != num:
            raise ConfigError(
                f"expected {num} GPUs ({self._gpus}) in {self.name}, found {found['num_gpus']}: a script that uses "
                "CUDA on import does so before the worker's GPUs are set; put that code under "
                'if __name__ == "__main__":'
            )
        if METHOD == "forkserver" and self._num_started > 1:  # it runs the same code, whatever is on the disk by now
            found = {**found, **self._environment}
        return super()._open(found)

    def _end_of(self, running: _Running) -> str:
        """How a process ended, with the last line that it printed."""
        if running.given_up:
            return "it was given up"
        code = running.exit_code()
        found = f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        with suppress(OSError):
            text = (running.folder / LOG).read_text(encoding="utf-8", errors="replace")
            lines = text.strip().splitlines()
            found += f": {lines[-1][:300]}" if lines else ""
        return found

    def abort(self) -> None:
        """End the current process only: another one may be started meanwhile."""
        if (running := self._running) is not None:
            running.given_up = True
            running.end()

    def _release(self) -> None:
        running = self._running
        if running is not None and not running.ended:
            with suppress(OSError, WorkerLost):
                self._call("close").calls.poll(PARTING_S)

    def _kill(self) -> None:
        if (running := self._running) is not None:
            running.end()
            shutil.rmtree(running.folder, ignore_errors=True)


def _kill_session(process: Any) -> None:
    """End a process and everything that it started."""
    process.kill()
    if hasattr(os, "killpg") and process.pid:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _pickled(given: Any) -> bytes:
    return pickle.dumps(given, protocol=pickle.HIGHEST_PROTOCOL)


@contextmanager
def open_process_workers(setup: WorkerSetup, loaded: LoadedModel) -> Iterator[WorkersAccess]:
    """Start all processes and check them.

    Raises `ConfigError` if the machine has too little, a worker does not start, or an object cannot be sent to it.
    """
    settings = setup.workers
    check_processors(settings)
    gpus = devices_of_each(settings, str(loaded.model.device))
    check_main()
    warm_up()
    setup, expected = setup_elsewhere(setup, loaded, kv_gib=of_one_worker(host_memory()))
    check_travels(setup, _pickled_elsewhere, to="worker processes")
    with (
        tempfile.TemporaryDirectory(prefix="flow-dpo-", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        workers = [ProcessWorker(index, setup, expected, Path(folder), each) for index, each in enumerate(gpus)]
        yield opened(stack, workers, setup)


def _pickled_elsewhere(given: Any) -> bytes:
    """An object as bytes. Raises `PicklingError` if it is defined in a notebook or in `python -c`, where no other
    process can find it."""
    content = _pickled(given)
    nowhere = not getattr(sys.modules["__main__"], "__file__", None)
    if nowhere and b"__main__" in content and any(name == "__main__" for _, name, _ in pickletools.genops(content)):
        raise pickle.PicklingError("it is defined in a notebook or on the command line; put it in a file")
    return content


def check_main() -> None:
    """Raise `ConfigError` if this program is not in a file, which a worker would read again."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is not None and getattr(main, "__spec__", None) is None and not Path(file).is_file():
        raise ConfigError(
            f"expected a program in a file for --workers processes, found {file}: worker processes read it again; save "
            'it, with its main code under if __name__ == "__main__":'
        )


def check_processors(settings: WorkersSettings) -> None:
    """Raise `ConfigError` if the workers need more processors than this process can use."""
    wanted, there = settings.num * settings.num_threads, usable_processors()
    if wanted > there:
        raise ConfigError(
            f"expected {wanted} processors for {settings.num} workers with {settings.num_threads} each "
            f"(--workers.num_threads), found {there}; use fewer workers (--workers.num)"
        )
