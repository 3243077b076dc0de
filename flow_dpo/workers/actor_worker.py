"""Workers that have an actor in another process: they start it, compare it with this process, call it and end it.

    class RayWorker(ActorWorker)        the process is one of Ray's, on any machine
    class ProcessWorker(ActorWorker)    the process is a child of this one

A dead actor and an overdue shard both count as a lost worker: the actor is ended and another one is started.
Invariants: whoever waits for an actor checks every half second whether it was given up. No actor loads a model before
its versions and its code have been found equal to this process's.
"""

from __future__ import annotations

import pickle
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.policy import Policy
from flow_dpo.models.load import LoadedModel
from flow_dpo.verify.rewards import RewardFunctions
from flow_dpo.workers.actor import Expected, Opened
from flow_dpo.workers.adapters import AdapterFolders
from flow_dpo.workers.grading import for_elsewhere, reward_files
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.setup import WorkersAccess, WorkerSetup
from flow_dpo.workers.shard import Shard, ShardResult, WorkerLost

LOOK_S = 0.5
"""Seconds between checks whether a worker was given up."""
PARTING_S = 5.0
"""Seconds for an actor to release what it holds: adapters on its disk, processes of its engine."""
UNPICKLABLE = (TypeError, AttributeError, ValueError, RecursionError, pickle.PicklingError)
"""What pickling raises for an object that cannot be sent to another process."""
_COMPARED = ("versions", "python", "code")
"""The keys of `environment` that results depend on."""


class ActorWorker(ABC):
    """One actor, and those that replace it (`workers.shard.Worker`)."""

    where: str
    """The kind of worker, for people: "Ray worker"."""

    def __init__(self, index: int, setup: WorkerSetup, expected: Expected) -> None:
        self._index, self._setup, self._expected = index, setup, expected
        self._environment = setup.environment()
        self.pid = 0
        """Id of the actor's process."""
        self.context_tokens = 0
        self.warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """ "Ray worker 3 (pid 4711)"."""
        return f"{self.where} {self._index}" + (f" (pid {self.pid})" if self.pid else "")

    @abstractmethod
    def _start(self) -> None:
        """Start an actor without waiting for it."""

    @abstractmethod
    def _call(self, method: str, *args: Any) -> Any:
        """Begin a call of the actor, and return what `_get` takes. Raises `WorkerLost` if the actor is gone."""

    @abstractmethod
    def _get(self, asked: Any, until: float | None) -> Any:
        """Wait for the result of a call. Raises `WorkerLost` if the actor is gone, given up or late; otherwise what the
        call raised."""

    @abstractmethod
    def _weights(self, shard: Shard) -> Any:
        """A shard's adapters, as `RolloutActor.sample` takes them."""

    @abstractmethod
    def _release(self) -> None:
        """Let the idle actor release what it holds, for a limited time."""

    @abstractmethod
    def _kill(self) -> None:
        """End the actor, if there is one. Can be called from any thread."""

    def begin(self) -> Any:
        """Start an actor and ask for its facts; returns what `check` takes."""
        self._start()
        return self._call("facts", self._setup.environment)

    def check(self, facts: Any, until: float) -> Any:
        """Compare the actor with this process, and let it load the model; returns what `finish` takes.

        Raises `WorkerLost` if it does not answer, `ConfigError` if it has other versions or code.
        """
        return self._open(self._get(facts, until))

    def _open(self, found: dict[str, Any]) -> Any:
        """Compare an actor's facts, and ask it to open."""
        self.pid = int(found["pid"])
        if lines := differences(self._environment, found):
            raise ConfigError(
                f"expected the versions and the code of this command in {self.name}, found others:{''.join(lines)}\n"
                "install the same on every machine"
            )
        setup = replace(self._setup, environment=dict)
        return self._call("open", setup, self._expected)

    def finish(self, opened: Any, until: float) -> None:
        """Wait until the actor has loaded its model."""
        found: Opened = self._get(opened, until)
        self.context_tokens, self.warnings = found.context_tokens, found.warnings

    def sample(self, shard: Shard) -> ShardResult:
        """Sample and grade a shard with its adapters."""
        return self._get(self._call("sample", shard, self._weights(shard)), None)

    def restart(self) -> None:
        """Replace this actor by a new one."""
        self._kill()
        until = time.monotonic() + self._setup.workers.start_s
        self.finish(self.check(self.begin(), until), until)

    def abort(self) -> None:
        """End the actor."""
        self._kill()

    def close(self) -> None:
        """Let the actor release what it holds, and end it."""
        self._release()
        self._kill()


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """One line for each version, and one for the code, in which a worker differs."""
    lines: list[str] = []
    for name in _COMPARED:
        own, theirs = here.get(name), there.get(name)
        pairs = [(name, own, theirs)]
        if isinstance(own, Mapping) and isinstance(theirs, Mapping):
            pairs = [(each, own.get(each), theirs.get(each)) for each in dict.fromkeys([*own, *theirs])]
        lines += [f"\n  {each}: {str(b)[:12]} there, {str(a)[:12]} here" for each, a, b in pairs if a != b]
    return lines


def setup_elsewhere(setup: WorkerSetup, loaded: LoadedModel, *, kv_gib: float) -> tuple[WorkerSetup, Expected]:
    """The setup for another process, and what it is compared with. `kv_gib` is the KV budget on a CPU if the settings
    leave it to the device: by itself, each worker would take a quarter of the memory.

    Raises `ConfigError` if the learner has a GPU and the workers have none.
    """
    settings, device = setup.workers, loaded.model.device.type
    if device == "cuda" and not settings.num_gpus:
        raise ConfigError(
            "expected workers with a GPU, since the learner has one, found --workers.num_gpus 0; give each one "
            "(--workers.num_gpus 1), or run everything on processors (--device cpu)"
        )
    name = Path(setup.model.model_name_or_path)
    model = replace(
        setup.model,
        model_name_or_path=str(name.absolute()) if name.is_dir() else setup.model.model_name_or_path,
        device=device,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        num_threads=settings.num_threads,
    )
    grading = for_elsewhere(setup.grading)
    # A named reward function is loaded by each worker; a function object that the caller passed is sent to it.
    found = replace(setup, model=model, grading=grading, reward_files=reward_files(grading))
    if isinstance(found.engine, LocalSettings) and found.engine.kv_budget_gib == "auto" and device == "cpu":
        found = replace(found, engine=replace(found.engine, kv_budget_gib=kv_gib))
    return found, Expected.of(loaded, num_roles=len(setup.roles))


def check_travels(setup: WorkerSetup, dumps: Callable[[Any], bytes], *, to: str) -> None:
    """Raise `ConfigError` if the caller's own grader, reward function or engine cannot be sent to another process."""
    own: list[tuple[str, Any]] = [("grader", setup.grader), ("engine", setup.opener)]
    if isinstance(setup.grader, RewardFunctions):
        own[:1] = [(f"reward function {name}", each) for name, each in setup.grader.functions.items()]
    for what, given in own:
        try:
            dumps(given)
        except UNPICKLABLE as error:
            raise ConfigError(
                f"expected a {what} that can be sent to {to}, found {given!r:.80}: {one_line(error)}; pass "
                "its class or a function that makes one there, or let it hold no locks, files or connections"
            ) from error


def opened(stack: ExitStack, workers: Sequence[ActorWorker], setup: WorkerSetup) -> WorkersAccess:
    """Start all actors at once, and wait until they have loaded; they end with the stack.

    Raises `ConfigError` for a worker that does not start, or that differs from this process.
    """
    for worker in workers:
        stack.callback(worker.abort)
    until = time.monotonic() + setup.workers.start_s
    try:
        facts = [worker.begin() for worker in workers]
        loading = [worker.check(each, until) for worker, each in zip(workers, facts, strict=True)]
        for worker, each in zip(workers, loading, strict=True):
            worker.finish(each, until)
    except WorkerLost as error:
        kind = f"{workers[0].where}{'s' if len(workers) > 1 else ''}"
        raise ConfigError(f"expected {len(workers)} {kind}, found one that did not start: {error}") from error
    for text in dict.fromkeys(text for worker in workers for text in worker.warnings):
        warnings.warn(f"in a worker: {text}", stacklevel=2)

    def begin(policy: Policy, folder: Path) -> PooledWorkers:
        return PooledWorkers(workers, AdapterFolders(policy.save_adapter, folder, roles=setup.roles), setup.workers)

    return WorkersAccess(context_tokens=min(worker.context_tokens for worker in workers), connect=begin)


def one_line(error: BaseException) -> str:
    """An error as one line, cut if it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
