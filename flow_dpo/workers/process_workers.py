"""Process workers: actors with a model each in processes of this machine, without Ray.

    flow-dpo train --workers processes --workers.num 2                          two processors, one model each
    flow-dpo train --workers processes --workers.num 3 --workers.num_gpus 1     the learner's GPU and three more

Processes are forked from a server that has imported what they need (`workers.fork_server`), and read adapters where the
learner writes them. Invariant: they end with this process, however it ends, and leave nothing behind.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.kv_budget import host_memory, of_one_worker
from flow_dpo.models.load import LoadedModel
from flow_dpo.plugins.load import ran_files
from flow_dpo.ranks.environment import usable_processors
from flow_dpo.workers.actor import Expected
from flow_dpo.workers.actor_worker import LOOK_S, PARTING_S, ActorWorker, check_travels, opened, setup_elsewhere
from flow_dpo.workers.devices import devices_of_each
from flow_dpo.workers.fork_server import CONTEXT, warm_up
from flow_dpo.workers.process_actor import LOG, Surroundings, answer_calls
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.setup import WorkersAccess, WorkerSetup
from flow_dpo.workers.shard import Shard, WorkerLost


class ProcessWorker(ActorWorker):
    """A worker whose actor is a child of this process."""

    where = "worker process"

    def __init__(self, index: int, setup: WorkerSetup, expected: Expected, folder: Path, devices: str | None) -> None:
        """`folder` is for its temporary files; `devices` are the GPUs that it sees, None: all."""
        super().__init__(index, setup, expected)
        self._folder, self._num_started = folder, 0
        self._devices = devices
        self._process: Any = None
        self._connection: Any = None

    def _start(self) -> None:
        self._num_started += 1
        place = self._folder / f"{self._index}-{self._num_started}"
        place.mkdir(parents=True)
        variables = {
            "OMP_NUM_THREADS": str(self._setup.workers.num_threads), "TOKENIZERS_PARALLELISM": "false",
            "TMPDIR": str(place),
        }  # fmt: skip
        if self._devices is not None:
            variables["CUDA_VISIBLE_DEVICES"] = self._devices
        surroundings = Surroundings(folder=str(place), variables=variables, files=ran_files())
        self._connection, there = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=answer_calls, args=(there, surroundings), name=self.name)
        self._process.start()
        there.close()

    def _call(self, method: str, *args: Any) -> Any:
        try:
            self._connection.send_bytes(_pickled((method, args)))
        except OSError as error:
            raise WorkerLost(self._end()) from error

    def _weights(self, shard: Shard) -> None:
        """It reads them itself, where it has not read them before."""

    def _get(self, asked: None, until: float | None) -> Any:
        try:
            while not self._connection.poll(LOOK_S):
                if self._aborted.is_set():
                    raise WorkerLost("it was given up")
                if until is not None and time.monotonic() > until:
                    self._kill()
                    raise WorkerLost(f"not there within {self._setup.workers.start_s:g} s (--workers.start_s)")
            result, error = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise WorkerLost("it was given up" if self._aborted.is_set() else self._end()) from error
        if error is not None:
            raise error
        return result

    def _end(self) -> str:
        """How the process ended, with the last line that it printed."""
        self._process.join(PARTING_S)
        code = self._process.exitcode
        found = f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        log = self._folder / f"{self._index}-{self._num_started}" / LOG
        with suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            found += f": {lines[-1][:300]}" if lines else ""
        return found

    def _release(self) -> None:
        if self._process is not None and self._process.is_alive():
            with suppress(OSError, WorkerLost):
                self._call("close")
                self._connection.poll(PARTING_S)

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.is_alive():
            process.kill()
            process.join(PARTING_S)


@contextmanager
def open_process_workers(setup: WorkerSetup, loaded: LoadedModel) -> Iterator[WorkersAccess]:
    """Start all processes and check them.

    Raises `ConfigError` for more than the machine has, a worker that does not come, and what cannot be sent to one.
    """
    settings = setup.workers
    check_processors(settings)
    devices = devices_of_each(settings, str(loaded.model.device))
    warm_up()
    setup, expected = setup_elsewhere(setup, loaded, kv_gib=of_one_worker(settings.num, host_memory()))
    check_travels(setup, _pickled, to="worker processes")
    with tempfile.TemporaryDirectory(prefix="flow-dpo-") as folder, ExitStack() as stack:
        workers = [ProcessWorker(index, setup, expected, Path(folder), each) for index, each in enumerate(devices)]
        yield opened(stack, workers, setup)


def _pickled(given: Any) -> bytes:
    return pickle.dumps(given, protocol=pickle.HIGHEST_PROTOCOL)


def check_processors(settings: WorkersSettings) -> None:
    """Raise `ConfigError` where the workers need more processors than this process may use."""
    wanted, there = settings.num * settings.num_threads, usable_processors()
    if wanted > there:
        raise ConfigError(
            f"expected {wanted} processors for {settings.num} workers with {settings.num_threads} each "
            f"(--workers.num_threads), found {there}; ask for fewer workers with --workers.num"
        )
