"""Setup of workers elsewhere: what each is made of, and which kinds of workers fit which engines.

    check_workers(settings, engine)                 refuses before anything is loaded
    with open_workers(setup, loaded) as access:     servers are connected, actors have loaded the model
        access.context_tokens, access.connect(policy, Path("runs/x/served"))

Invariant: every worker has the model, the engine's settings, the flow and the grader of this process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.settings import EngineSettings, VllmServerSettings, kind_of
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LoraSettings
from flow_dpo.models.load import LoadedModel
from flow_dpo.models.render import Renderer
from flow_dpo.models.settings import ModelSettings
from flow_dpo.verify.grader import GradingSettings
from flow_dpo.workers.grading import GraderSource
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.settings import WorkersSettings

EngineOpener = Callable[[LoadedModel, Policy], Engine]
"""Makes a custom engine for a loaded model and its adapters."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What a worker is made of."""

    workers: WorkersSettings
    model: ModelSettings
    lora: LoraSettings
    engine: EngineSettings
    grading: GradingSettings
    roles: tuple[Role, ...]
    seed: int = 0
    grader: GraderSource | None = None
    """The caller's own grader, if there is one."""
    reward_files: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Checksums of the code of the reward functions that `grading` names; a worker compares them with its own."""
    opener: EngineOpener | None = None
    """Opens the caller's own engine, if there is one."""
    environment: Callable[[], Mapping[str, Any]] = dict
    """Returns the versions and the code that results depend on, in the process that calls it."""


@dataclass(frozen=True, kw_only=True)
class WorkersAccess:
    """Workers that are ready, before they are used."""

    context_tokens: int
    """Size of the smallest context window among them."""
    connect: Callable[[Policy, Path], PooledWorkers]
    """Prepares the workers to sample from a policy, whose adapters are published in a folder."""


def check_workers(settings: WorkersSettings, engine: EngineSettings, *, own_engine: bool = False) -> None:
    """Raise `ConfigError` for an engine that these workers cannot use."""
    several = isinstance(engine, VllmServerSettings) and len(engine.base_urls) > 1
    if settings.kind == "here" and several and not own_engine:
        assert isinstance(engine, VllmServerSettings)
        raise ConfigError(
            f"expected one server in --base_url, found {len(engine.base_urls)}: {engine.base_url}; add --workers "
            "servers to sample from all of them"
        )
    if settings.kind == "servers" and (own_engine or not isinstance(engine, VllmServerSettings)):
        found = "an engine object" if own_engine else f"--engine {kind_of(engine)}"
        raise ConfigError(
            f"expected the engine vllm_server with --workers servers, found {found}: a worker is a running `vllm "
            "serve`; leave --engine out and name the servers with --base_url a,b,c, or use --workers ray"
        )
    if settings.of_actors and isinstance(engine, VllmServerSettings) and not own_engine:
        raise ConfigError(
            f"expected an engine in the worker's own process with --workers {settings.kind}, found vllm_server; use "
            "--workers servers --base_url a,b,c for servers that run, or --engine vllm for one in each worker"
        )
    if settings.kind == "ray":
        check_ray()


def starting(settings: WorkersSettings, engine: EngineSettings) -> str:
    """A description of opening these workers, which may take a minute; "" for this process."""
    if settings.kind == "here":
        return ""
    if isinstance(engine, VllmServerSettings):
        num = len(engine.base_urls)
        return f"connecting to {num} server{'s' if num > 1 else ''}"
    workers = f"starting {settings.num} worker{'s' if settings.num > 1 else ''}"
    if settings.kind == "processes":
        return f"{workers} in processes of this machine"
    where = f"the Ray cluster at {settings.address}" if settings.address else "a private Ray cluster"
    return f"{workers} on {where}"


def check_ray() -> None:
    """Raise `ConfigError` if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "--workers ray needs Ray, which is not installed here; install it with: pip install -e '.[ray]' (on "
            "every machine of a cluster)"
        )


def open_workers(setup: WorkerSetup, loaded: LoadedModel) -> AbstractContextManager[WorkersAccess]:
    """Connect to the workers, or start them, and check that they have this model, which must not have adapters yet.

    Raises `ConfigError` on entering, for anything that is missing or differs.
    """
    if setup.workers.kind == "servers":
        from flow_dpo.workers.servers import open_servers

        return open_servers(setup, loaded)
    if setup.workers.kind == "processes":
        from flow_dpo.workers.process_workers import open_process_workers

        return open_process_workers(setup, loaded)
    from flow_dpo.workers.ray_workers import open_ray_workers

    return open_ray_workers(setup, loaded)


def dated(settings: ModelSettings, renderer: Renderer) -> ModelSettings:
    """The settings with the fixed date that this process uses for a chat template that reads the clock."""
    template = renderer.template
    return replace(settings, template_date=template.date) if template.reads_clock else settings


def as_loaded(settings: ModelSettings, loaded: LoadedModel) -> ModelSettings:
    """The settings with which any machine loads the same model as this process: `dated`, and in its precision, since
    "auto" can mean another one on another processor."""
    found = dated(settings, loaded.renderer)
    auto = found.dtype == "auto" and not found.quantization.wanted
    return replace(found, dtype=str(loaded.model.dtype).removeprefix("torch.")) if auto else found


class EngineElsewhere(Engine):
    """Takes the place of a runtime's engine while workers elsewhere do all the sampling."""

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> NoReturn:
        raise ConfigError("this process has no engine, its workers are elsewhere; sample with Runtime.workers")

    def poll(self) -> list[tuple[int, Completion]]:
        return []

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Does nothing: it has no adapters."""
