"""Ray workers: actors with a model each, on this machine or on a cluster, one for each lane of a pool.

    flow-dpo train --workers ray --workers.num 4                             a Ray of its own on this machine
    flow-dpo train --workers ray --workers.num 16 --workers.address auto     the cluster that this machine is part of

Adapters travel once a version, as the bytes of their folders. What becomes of an actor or its node, or a shard that
takes too long, is a lost worker: the actor is ended and another one started. Invariant: no call waits for Ray without
looking every half second whether it was given up.
"""

from __future__ import annotations

import pickle
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Adapter, Role
from flow_dpo.engines.settings import USUAL_KV_GIB, LocalSettings
from flow_dpo.learner.policy import Policy
from flow_dpo.models.load import LoadedModel
from flow_dpo.verify.rewards import RewardFunctions
from flow_dpo.workers.actor import Expected, Opened, RolloutActor, files_of
from flow_dpo.workers.adapters import AdapterFolders
from flow_dpo.workers.grading import for_elsewhere, reward_files
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.ray_cluster import cluster
from flow_dpo.workers.setup import WorkersAccess, WorkerSetup
from flow_dpo.workers.shard import Shard, ShardResult, WorkerLost

_LOOK_S = 0.5
_PARTING_S = 5.0
"""For an actor to release what it holds: adapters on its disk, processes of its engine."""
_CUSTOM = "flow_dpo_custom_"
"""How `plugins.load` names modules that it has loaded from files, which no other process can import."""
_COMPARED = ("versions", "python", "code")
"""What `environment` says that results depend on."""


class _Published:
    """Weights in Ray's object store, each version once."""

    def __init__(self, ray: Any) -> None:
        self._ray, self._lock = ray, threading.Lock()
        self._refs: dict[tuple[Adapter, ...], Any] = {}

    def __call__(self, adapters: Mapping[Role, Adapter]) -> Any:
        """A reference to the adapters' files."""
        key = tuple(adapters[role] for role in sorted(adapters))
        with self._lock:
            if key not in self._refs:
                self._refs = {k: ref for k, ref in self._refs.items() if all(Path(one.path).exists() for one in k)}
                self._refs[key] = self._ray.put(files_of(adapters))
            return self._refs[key]


class RayWorker:
    """One actor, and those that come after it (`workers.shard.Worker`)."""

    def __init__(self, ray: Any, index: int, setup: WorkerSetup, expected: Expected, published: _Published) -> None:
        self._ray, self._setup, self._expected, self._published = ray, setup, expected, published
        self._environment = setup.environment()
        self._index = index
        self._aborted = threading.Event()
        self._actor: Any = None
        self.pid = 0
        """Of the actor's process."""
        self.context_tokens = 0
        self.warnings: tuple[str, ...] = ()
        settings = setup.workers
        environment = {"OMP_NUM_THREADS": str(settings.num_threads), "TOKENIZERS_PARALLELISM": "false"}
        self._kind = ray.remote(
            num_cpus=settings.num_threads, num_gpus=settings.num_gpus, max_restarts=0, max_task_retries=0,
            runtime_env={"env_vars": environment},
        )(RolloutActor)  # fmt: skip

    @property
    def name(self) -> str:
        """ "Ray worker 3 (pid 4711)"."""
        return f"Ray worker {self._index}" + (f" (pid {self.pid})" if self.pid else "")

    def begin(self) -> Any:
        """Ask Ray for an actor; a reference to its facts."""
        self._aborted.clear()
        self._actor = self._kind.remote()
        return self._actor.facts.remote(self._setup.environment)

    def check(self, facts: Any, until: float) -> Any:
        """Compare the actor with the head, and let it load the model; a reference to its context window.

        Raises `WorkerLost` where it is not there, `ConfigError` where it has other versions or code.
        """
        found = self._get(facts, until)
        self.pid = int(found["pid"])
        if lines := differences(self._environment, found):
            raise ConfigError(
                f"expected the versions and the code of this command in {self.name}, found others:{''.join(lines)}\n"
                "install the same on every machine"
            )
        setup = replace(self._setup, environment=dict)
        return self._actor.open.remote(setup, self._expected)

    def finish(self, opened: Any, until: float) -> None:
        """Wait until the actor is there with its model."""
        found: Opened = self._get(opened, until)
        self.context_tokens, self.warnings = found.context_tokens, found.warnings

    def sample(self, shard: Shard) -> ShardResult:
        """Sample and grade a shard with its adapters."""
        actor, weights = self._actor, self._published(shard.adapters)
        if actor is None:  # its time was over at the moment at which it was done with the shard before
            raise WorkerLost("it was given up")
        return self._get(actor.sample.remote(shard, weights), None)

    def restart(self) -> None:
        """Another actor in the place of this one."""
        self._kill()
        until = time.monotonic() + self._setup.workers.start_s
        self.finish(self.check(self.begin(), until), until)

    def abort(self) -> None:
        """End the actor."""
        self._aborted.set()
        self._kill()

    def close(self) -> None:
        """Let the actor, which is idle, release what it holds, and end it."""
        if self._actor is not None and self._ray.is_initialized():
            with suppress(self._ray.exceptions.RayError):
                self._ray.wait([self._actor.close.remote()], timeout=_PARTING_S)
        self._kill()

    def _kill(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None and self._ray.is_initialized():
            with suppress(self._ray.exceptions.RayError):  # a cluster that is gone has no actors either
                self._ray.kill(actor, no_restart=True)

    def _get(self, ref: Any, until: float | None) -> Any:
        """What a call returns. Raises `WorkerLost` where the actor is gone, given up, or late, and else what the call
        raised."""
        errors = self._ray.exceptions
        try:
            while not self._ray.wait([ref], timeout=_LOOK_S)[0]:
                if self._aborted.is_set():
                    raise WorkerLost("it was given up")
                if until is not None and time.monotonic() > until:
                    self._kill()
                    raise WorkerLost(
                        f"not there within {self._setup.workers.start_s:g} s (--workers.start_s); the cluster has "
                        f"{_named(self._ray.available_resources())} free of {_named(self._ray.cluster_resources())}"
                    )
            return self._ray.get(ref, timeout=60)
        except errors.RayTaskError as error:
            if isinstance(error.cause, BaseException) and not isinstance(error.cause, errors.RayError):
                raise error.cause from error
            raise
        except errors.RayError as error:
            raise WorkerLost(_one_line(error)) from error


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """A line for each version, and one for the code, that a worker has otherwise."""
    lines: list[str] = []
    for name in _COMPARED:
        own, theirs = here.get(name), there.get(name)
        pairs = [(name, own, theirs)]
        if isinstance(own, Mapping) and isinstance(theirs, Mapping):
            pairs = [(each, own.get(each), theirs.get(each)) for each in dict.fromkeys([*own, *theirs])]
        lines += [f"\n  {each}: {str(b)[:12]} there, {str(a)[:12]} here" for each, a, b in pairs if a != b]
    return lines


@contextmanager
def open_ray_workers(setup: WorkerSetup, loaded: LoadedModel) -> Iterator[WorkersAccess]:
    """Start all actors, on a cluster of this command's own or the one at the address, and check them.

    Raises `ConfigError` for too small a cluster, a worker that does not come, and one that is another than this.
    """
    settings, device = setup.workers, str(loaded.model.device)
    if device.startswith("cuda") and not settings.num_gpus:
        raise ConfigError(
            "expected workers with a GPU, as the learner has one, found --workers.num_gpus 0; give them one each "
            "(--workers.num_gpus 1), or leave all of them on processors (--device cpu)"
        )
    expected = Expected.of(loaded, num_roles=len(setup.roles))
    name = Path(setup.model.model_name_or_path)
    model = replace(
        setup.model,
        model_name_or_path=str(name.absolute()) if name.is_dir() else setup.model.model_name_or_path,
        device=loaded.model.device.type,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        num_threads=settings.num_threads,
    )
    grading = for_elsewhere(setup.grading)
    # A reward function that is named is loaded by each worker; one that was handed over travels as it is.
    setup = replace(setup, model=model, grading=grading, reward_files=reward_files(grading))
    if isinstance(setup.engine, LocalSettings) and setup.engine.kv_budget_gib == "auto" and model.device == "cpu":
        # Several may share a machine, of which each alone would take a quarter.
        setup = replace(setup, engine=replace(setup.engine, kv_budget_gib=USUAL_KV_GIB))
    with cluster(settings, learner_device=device) as ray, _by_value(ray), ExitStack() as stack:
        _check_travels(ray, setup)
        published = _Published(ray)
        workers = [RayWorker(ray, index, setup, expected, published) for index in range(settings.num)]
        for worker in workers:
            stack.callback(worker.abort)
        _begin_all(workers, time.monotonic() + settings.start_s)
        room = min(worker.context_tokens for worker in workers)
        for text in dict.fromkeys(text for worker in workers for text in worker.warnings):
            warnings.warn(f"in a worker: {text}", stacklevel=2)

        def begin(policy: Policy, folder: Path) -> PooledWorkers:
            return PooledWorkers(workers, AdapterFolders(policy.save_adapter, folder, roles=setup.roles), settings)

        yield WorkersAccess(context_tokens=room, connect=begin)


def _begin_all(workers: Sequence[RayWorker], until: float) -> None:
    """Let all actors start and load at once."""
    facts = [worker.begin() for worker in workers]
    try:
        opened = [worker.check(each, until) for worker, each in zip(workers, facts, strict=True)]
        for worker, each in zip(workers, opened, strict=True):
            worker.finish(each, until)
    except WorkerLost as error:
        raise ConfigError(f"expected {len(workers)} workers on Ray, found that one did not start: {error}") from error


def _check_travels(ray: Any, setup: WorkerSetup) -> None:
    """Raise `ConfigError` for a grader, a reward function or an engine of the caller's own that cannot be sent to
    another process."""
    own: list[tuple[str, Any]] = [("grader", setup.grader), ("engine", setup.opener)]
    if isinstance(setup.grader, RewardFunctions):
        own[:1] = [(f"reward function {name}", each) for name, each in setup.grader.functions.items()]
    for what, given in own:
        try:
            ray.cloudpickle.dumps(given)
        except (TypeError, AttributeError, ValueError, RecursionError, pickle.PicklingError) as error:
            raise ConfigError(
                f"expected a {what} that can be sent to workers on Ray, found {given!r:.80}: {_one_line(error)}; hand "
                "over its class or a function that makes one there, or let it hold no locks, files or connections"
            ) from error


@contextmanager
def _by_value(ray: Any) -> Iterator[None]:
    """Let flows, recipes and graders from files travel as they are: no other process could import them."""
    modules = [module for name, module in [*sys.modules.items()] if name.startswith(_CUSTOM)]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _named(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} processors and {resources.get('GPU', 0):g} GPUs"


def _one_line(error: BaseException) -> str:
    """What Ray says, without the many lines that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"
