"""A training run over several ranks: what rank 0 sends to the others, and what these do.

    rank 0    with leading(settings) as ranks: ...       the run, as in a single process
    others    follow()                                   model, adapters and learner; no folder, engine, grader or data

Invariant: the other ranks print nothing, write nothing, and take every setting from rank 0, which may have read it from
a folder that they cannot see. Other versions, code or devices on a rank are refused before the model is loaded.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Role
from flow_dpo.engines import settings as engines
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.models.load import device_of, load_model
from flow_dpo.models.settings import ModelSettings
from flow_dpo.plugins.load import Kind, fingerprint, installed, is_source, load_object
from flow_dpo.ranks import environment
from flow_dpo.ranks.environment import Place
from flow_dpo.ranks.group import Ended, Ranks, joined
from flow_dpo.ranks.learner import follow as follow_learner
from flow_dpo.recipes.presets import OBJECTIVE_LINES, RECIPES
from flow_dpo.runs import run_folder
from flow_dpo.runs.settings import TrainSettings
from flow_dpo.runs.starting_adapters import start_from

_SAME = ("versions", "python", "code")
"""Facts of the environment on which all ranks must agree."""
_OWN_WEIGHTS = ("vllm", "vllm_server")
"""Engines that sample with weights of their own."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Everything that is needed to make a replica of the learner."""

    model: ModelSettings
    lora: LoraSettings
    roles: tuple[Role, ...]
    seed: int
    learner: LearnerSettings
    kept_versions: int
    sources: tuple[tuple[Kind, str, str | None], ...]
    """Kind, place and checksum of code from outside the package, whose classes examples and objective can have."""


@contextmanager
def leading(settings: TrainSettings, *, kept_versions: int = 0, engine: object = None) -> Iterator[Ranks | None]:
    """Rank 0's context around a run; yields None in a single process. `engine` is what the caller passed as one."""
    where = environment.place()
    _check_sharing(settings, where, engine)
    if where.num > 1:
        _check_device(settings.runtime.model, where)
    with joined() as ranks:
        if ranks is not None:
            run = _Run(
                model=settings.runtime.model,
                lora=settings.runtime.lora,
                roles=tuple(settings.recipe.flow.roles),
                seed=settings.run.seed,
                learner=settings.learner,
                kept_versions=kept_versions,
                sources=code_of_run(settings),
            )
            ranks.share(run)
            _compare_environments(ranks, device := device_of(run.model))
            ranks.use_device(device)
        yield ranks


def follow() -> None:
    """What every other rank does until rank 0's run ends. Raises whatever keeps this rank from taking part."""
    # Until the ranks have met, a signal from their launcher ends them silently; after that, rank 0 ends them.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"), joined() as ranks:
        assert ranks is not None
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        try:
            run: _Run = ranks.share()
            _check_device(run.model, ranks.place)
            _compare_environments(ranks, device := device_of(run.model))
            ranks.use_device(device)
            load_code(run.sources)
            policy = Policy(load_model(run.model).model, run.roles, run.lora, seed=run.seed)
            start_from(policy)
            follow_learner(ranks, policy, run.learner, kept_versions=run.kept_versions)
        except Ended:
            return


def code_of_run(settings: TrainSettings) -> tuple[tuple[Kind, str, str | None], ...]:
    """Kind, place and checksum of the code that the other ranks need from files and installed plug-ins."""
    named: dict[Kind, str] = {"flow": settings.flow_source, "explore": settings.explore_source}
    named |= {"credit": settings.credit_source}
    named |= {} if settings.objective_source in OBJECTIVE_LINES else {"objective": settings.objective_source}
    named |= {} if settings.recipe_name in RECIPES else {"recipe": settings.recipe_name}
    return tuple(
        (kind, source, fingerprint(source, kind))
        for kind, source in named.items()
        if is_source(source) or source in installed(kind)
    )


def load_code(sources: Sequence[tuple[Kind, str, str | None]]) -> None:
    """Load the code that rank 0 has loaded. Raises `ConfigError` if it is missing here, or differs."""
    for kind, source, expected in sources:
        load_object(source, kind=kind)
        if (found := fingerprint(source, kind)) != expected:
            raise ConfigError(
                f"expected the same code for {source} on all ranks, found {found} here and {expected} on rank 0: use "
                "the same on every machine"
            )


def _check_sharing(settings: TrainSettings, where: Place, engine: object) -> None:
    """Raise `ConfigError` for a sharded base with an engine that samples with this process's model: the other ranks do
    not take part in its forward passes."""
    if not settings.learner.rows.shard_base:
        return
    if settings.runtime.model.quantization.wanted:
        raise ConfigError(
            "expected a base in full or half precision with --learner.rows.shard_base true, found one in 4 or 8 bits, "
            "whose weights cannot be gathered: leave shard_base out, or load_in_4bit and load_in_8bit"
        )
    chosen, here = settings.runtime.engine, settings.runtime.workers.kind == "here"
    merged = isinstance(chosen, engines.VllmSettings) and chosen.sync == "merged"
    if here and (callable(engine) or merged or engines.kind_of(chosen) not in _OWN_WEIGHTS):
        raise ConfigError(
            "expected an engine outside of this process with --learner.rows.shard_base true, found one that needs "
            "the learner's own model, which is split over the ranks: sample with --workers processes, ray or "
            "servers, or leave shard_base out"
        )
    if where.num == 1:
        logging.getLogger("flow_dpo").warning(
            "--learner.rows.shard_base has no effect in one process: start several with torchrun --nproc-per-node N"
        )


def _check_device(model: ModelSettings, where: Place) -> None:
    """Select this rank's device. Raises `ConfigError` if a machine has fewer GPUs than ranks."""
    if device_of(model).type != "cuda":
        return
    if where.local_num > (found := torch.cuda.device_count()):
        raise ConfigError(
            f"expected a GPU for each of the {where.local_num} ranks of this machine, found {found}: start as many "
            "ranks as there are GPUs (--nproc-per-node), or give --device cpu"
        )
    if ":" in model.device and where.local_num > 1:
        raise ConfigError(
            f"expected --device cuda, so that each of the {where.local_num} ranks takes its own GPU, found "
            f"{model.device!r}: choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(where.local_rank)


def _compare_environments(ranks: Ranks, device: torch.device) -> None:
    """Raise `ConfigError` on all ranks if one has other versions or code, or another kind of device."""
    facts = run_folder.environment()
    found = ranks.gather({name: facts[name] for name in _SAME} | {"device": device.type})
    for rank, theirs in enumerate(found):
        if differing := run_folder.differences(found[0], theirs):
            name, (first, other) = next(iter(differing.items()))
            raise ConfigError(
                f"expected the same code, versions and kind of device on all ranks, found {name} {other!r} on rank "
                f"{rank} and {first!r} on rank 0: use the same on every machine"
            )
