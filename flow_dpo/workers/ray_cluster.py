"""Ray cluster: a private one on this machine, which ends with this command, or one that is named by its address.

    with cluster(WorkersSettings(kind="ray", num=4), learner_device="cuda:0") as ray: ...

Ray is an optional extra. It is imported only here, with its usage statistics off. An existing cluster is joined only if
the address names it. A private cluster has a secret token, without which nobody can connect. Invariant: a need for more
processors or GPUs than the cluster has is refused with the numbers, because Ray would wait for them for ever; and a
private cluster ends with this command. (If the command is killed, Ray notices: its workers end at once, its last
processes after a minute.)
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.ranks import environment
from flow_dpo.workers.devices import visible_devices
from flow_dpo.workers.fork_server import short_folder
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.shard import Outcome

NAMESPACE = "flow-dpo"
_TRIES = 3
"""Tries at starting a private cluster: on a busy machine Ray gives its own processes too little time."""
_STORE_BYTES = 512 << 20
"""Size of a private cluster's object store, which holds adapters, and trees in transit."""
_OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Otherwise a late call from a thread, after the shutdown, would start another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}


@contextmanager
def cluster(settings: WorkersSettings, *, learner_device: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster that has what the workers need.

    Raises `ConfigError` if there is none, if it cannot be started, or if it has too little.
    """
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)
    if not settings.address and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all of the machine's addresses, and anybody who reaches it can run code.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray  # pyright: ignore

    joined = ray.is_initialized()
    if joined and not settings.address:
        raise ConfigError(
            "expected a process without Ray for workers on a private cluster, found that ray.init was called; "
            "add workers.address=auto to use that cluster"
        )
    folder = Path(tempfile.mkdtemp(prefix="fdr", dir=short_folder()))
    try:
        if settings.address:
            _join(ray, settings.address)
        else:
            _start(ray, folder, learner_device)
        check_resources(settings, ray.cluster_resources(), learner_device)
        yield ray
    finally:
        if not joined:
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def check_resources(settings: WorkersSettings, found: Mapping[str, float], learner_device: str) -> None:
    """Raise `ConfigError` if the workers need more than the whole cluster has."""
    of_others = " besides the learner's" if not settings.address and learner_device.startswith("cuda") else ""
    needs = (
        ("processors", "CPU", settings.num_threads, "--workers.num_threads", ""),
        ("GPUs", "GPU", settings.num_gpus, "--workers.num_gpus", of_others),
    )
    for what, name, each, flag, more in needs:
        wanted, there = settings.num * each, found.get(name, 0.0)
        if wanted > there:
            raise ConfigError(
                f"expected {wanted:g} {what} for {settings.num} workers with {each:g} each ({flag}), found "
                f"{there:g} in the Ray cluster{more}; use fewer workers (--workers.num), or less for each"
            )


def _start(ray: Any, folder: Path, learner_device: str) -> None:
    """Start a cluster on this machine, whose processes end with this one."""
    import torch

    causes: list[str] = []
    # Files that killed actors leave behind are removed with the cluster.
    inherited = {"TMPDIR": str(folder)}
    if learner_device.startswith("cuda"):
        visible, num_ranks = os.environ.get("CUDA_VISIBLE_DEVICES"), environment.place().local_num
        others = visible_devices(learner_device, visible, torch.cuda.device_count(), num_ranks)
        inherited["CUDA_VISIBLE_DEVICES"] = others
    for number in range(_TRIES):
        place, outcome = folder / str(number), Outcome()  # Ray raises errors of all kinds, even `Exception`
        with outcome, _environment(inherited), _signals_kept():
            ray.init(
                address="local", include_dashboard=False, namespace=NAMESPACE, log_to_driver=False,
                logging_level="ERROR", object_store_memory=_STORE_BYTES, _temp_dir=str(place),
            )  # fmt: skip
        if outcome.error is None:
            return
        if not isinstance(outcome.error, Exception):  # Ctrl-C
            raise outcome.error
        causes.append(_last_line(place) or str(outcome.error).partition("\n")[0])
        ray.shutdown()
    raise ConfigError(
        f"expected a Ray cluster on this machine, found that it did not start {_TRIES} times: {'; '.join(causes)}. On "
        "a busy machine start it yourself (ray start --head) and add --workers.address auto"
    )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets these variables for processes started in this context; this process has read its own already."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _join(ray: Any, address: str) -> None:
    if ray.is_initialized():
        return
    outcome = Outcome()
    with outcome, _signals_kept():
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    if isinstance(outcome.error, Exception):
        raise ConfigError(
            f"expected a Ray cluster at {address!r} (--workers.address), found none: "
            f"{str(outcome.error).strip()[:300]}; start one with: ray start --head, or leave the address out for a "
            "private cluster on this machine"
        ) from outcome.error
    if outcome.error is not None:
        raise outcome.error


def _last_line(folder: Path) -> str:
    """The last line that Ray's processes logged, which says why Ray did not start."""
    for name in ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out"):
        for file in sorted(folder.glob(f"session_2*/logs/{name}"), reverse=True):
            lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if lines:
                return f"{name}: {lines[-1][:300]}"
    return ""


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Delays signals until Ray has started: Ray sets its own handler for SIGTERM, which here means to stop and keep the
    results, and interrupting a start leaves processes behind. A second signal interrupts at once."""
    names: Sequence[int] = (signal.SIGTERM, signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    before = {name: handler for name in names if main and (handler := signal.getsignal(name)) is not None}
    came: list[int] = []

    def late(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    for name in before:
        signal.signal(name, late)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        if len(came) == 1:
            signal.raise_signal(came[0])
