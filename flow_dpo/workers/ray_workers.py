"""Ray workers: actors, each with its own model, on this machine or on a cluster, one for each lane of a pool.

    flow-dpo train --workers ray --workers.num 4                             a private Ray cluster on this machine
    flow-dpo train --workers ray --workers.num 16 --workers.address auto     the cluster that this machine is part of

Each version of the adapters is sent once, as the bytes of its folders.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flow_dpo.core.types import Adapter, Role
from flow_dpo.engines.settings import USUAL_KV_GIB
from flow_dpo.models.load import LoadedModel
from flow_dpo.plugins.load import MADE_OF_FILES
from flow_dpo.workers.actor import Expected, RolloutActor, files_of
from flow_dpo.workers.actor_worker import (
    LOOK_S,
    PARTING_S,
    ActorWorker,
    check_travels,
    one_line,
    opened,
    setup_elsewhere,
)
from flow_dpo.workers.ray_cluster import cluster
from flow_dpo.workers.setup import WorkersAccess, WorkerSetup
from flow_dpo.workers.shard import Shard, WorkerLost


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


class RayWorker(ActorWorker):
    """A worker whose actor is one of Ray's."""

    where = "Ray worker"

    def __init__(self, ray: Any, index: int, setup: WorkerSetup, expected: Expected, published: _Published) -> None:
        super().__init__(index, setup, expected)
        self._ray, self._published = ray, published
        self._actor: Any = None
        self._aborted = threading.Event()
        settings = setup.workers
        environment = {"OMP_NUM_THREADS": str(settings.num_threads), "TOKENIZERS_PARALLELISM": "false"}
        self._kind = ray.remote(
            num_cpus=settings.num_threads, num_gpus=settings.num_gpus, max_restarts=0, max_task_retries=0,
            runtime_env={"env_vars": environment},
        )(RolloutActor)  # fmt: skip

    def _start(self) -> None:
        self._aborted.clear()
        self._actor = self._kind.remote()

    def _call(self, method: str, *args: Any) -> Any:
        actor = self._actor
        if actor is None:  # it was given up just as it finished its previous shard
            raise WorkerLost("it was given up")
        return getattr(actor, method).remote(*args)

    def abort(self) -> None:
        """End the actor, and wake the call that waits for it."""
        self._aborted.set()
        super().abort()

    def _weights(self, shard: Shard) -> Any:
        return self._published(shard.adapters)

    def _release(self) -> None:
        if self._actor is not None and self._ray.is_initialized():
            with suppress(self._ray.exceptions.RayError):
                self._ray.wait([self._actor.close.remote()], timeout=PARTING_S)

    def _kill(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None and self._ray.is_initialized():
            with suppress(self._ray.exceptions.RayError):  # a cluster that is gone has no actors
                self._ray.kill(actor, no_restart=True)

    def _get(self, asked: Any, until: float | None) -> Any:
        errors = self._ray.exceptions
        try:
            while not self._ray.wait([asked], timeout=LOOK_S)[0]:
                if self._aborted.is_set():
                    raise WorkerLost("it was given up")
                if until is not None and time.monotonic() > until:
                    self._kill()
                    raise WorkerLost(
                        f"not ready within {self._setup.workers.start_s:g} s (--workers.start_s); the cluster has "
                        f"{_named(self._ray.available_resources())} free of {_named(self._ray.cluster_resources())}"
                    )
            return self._ray.get(asked, timeout=60)
        except errors.RayTaskError as error:
            if isinstance(error.cause, BaseException) and not isinstance(error.cause, errors.RayError):
                raise error.cause from error
            raise
        except errors.RayError as error:
            raise WorkerLost(one_line(error)) from error


@contextmanager
def open_ray_workers(setup: WorkerSetup, loaded: LoadedModel) -> Iterator[WorkersAccess]:
    """Start all actors, on a private cluster or the one at the address, and check them.

    Raises `ConfigError` for too small a cluster, a worker that does not start, and one that differs from this process.
    """
    settings = setup.workers
    setup, expected = setup_elsewhere(setup, loaded, kv_gib=USUAL_KV_GIB)
    with (
        cluster(settings, learner_device=str(loaded.model.device)) as ray,
        _by_value(ray),
        ExitStack() as stack,
    ):
        check_travels(setup, ray.cloudpickle.dumps, to="workers on Ray")
        published = _Published(ray)
        workers = [RayWorker(ray, index, setup, expected, published) for index in range(settings.num)]
        yield opened(stack, workers, setup)


@contextmanager
def _by_value(ray: Any) -> Iterator[None]:
    """Let flows, recipes and graders from files be pickled by value: no other process could import them."""
    modules = [module for name, module in [*sys.modules.items()] if name.startswith(MADE_OF_FILES)]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _named(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} processors and {resources.get('GPU', 0):g} GPUs"
