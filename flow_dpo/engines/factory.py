"""Opens engines: checks each against the model in this process, and connects it to the policy's adapters.

    with open_engine(settings, loaded, num_roles=2) as access:
        engine = access.build(policy, AdapterStore(policy, Path("runs/x/served")))

`local` and `plain` share the learner's model. The others read adapters in PEFT's layout from files that an
`AdapterStore` writes. Invariant: `open_engine` refuses an engine that cannot sample from the model, before any rollout.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Adapter, Role, TokenIds
from flow_dpo.engines import int8_drift
from flow_dpo.engines.kv_budget import budgeted, window_within
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.merged_lora import MergedModels, can_merge, merging, save_merged
from flow_dpo.engines.model_check import Kind, Subject, choose_engine
from flow_dpo.engines.plain import PlainEngine
from flow_dpo.engines.settings import (
    KINDS,
    EngineSettings,
    LocalSettings,
    PlainSettings,
    VllmServerSettings,
    VllmSettings,
    kind_of,
    seeds_from_top_p,
)
from flow_dpo.engines.vllm.checks import ExpectedModel, check_base, connect
from flow_dpo.engines.vllm.client import VllmClient
from flow_dpo.engines.vllm.in_process import VllmEngine, check_installed, open_vllm
from flow_dpo.engines.vllm.requests import ModelFacts
from flow_dpo.engines.vllm.server import VllmServerEngine
from flow_dpo.learner.policy import Policy
from flow_dpo.models import attention
from flow_dpo.models.facts import steady_tokens, vocabulary_size
from flow_dpo.models.load import LoadedModel

_logger = logging.getLogger(__name__)
PROBES = (
    "Anna has 12 apples and buys 7 more. How many does she have now?",
    "Let x^2 + 3x - 4 = 0.\nThen (x - 1)(x + 4) = 0.",
    "Answer: 42",
)
"""Texts that a server must tokenize, and continue, like the model in this process."""


@dataclass(frozen=True)
class EngineAccess:
    """An engine that is available, before it is built."""

    context_tokens: int
    """Size of its context window in tokens: prompt and completion of one request together."""
    build: Callable[[Policy, AdapterStore], Engine]


class AdapterStore:
    """The newest version of each role's adapter, in a folder, for engines that read files."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self._policy, self._folder = policy, folder

    def __call__(self, adapter: Adapter) -> Path:
        """The adapter's folder. If it has none, the policy's current weights are written to one."""
        return Path(adapter.path) if adapter.path else self._put(adapter, self._policy.save_adapter)

    def merged(self, adapter: Adapter) -> Path:
        """The folder of the whole model with the policy's current weights of this role merged in."""
        return self._put(adapter, lambda role, folder: save_merged(self._policy, role, folder))

    def _put(self, adapter: Adapter, write: Callable[[Role, Path], object]) -> Path:
        done = self._folder / adapter.role / str(adapter.version)
        beside = done.with_name(f"{adapter.version}.tmp")
        shutil.rmtree(self._folder / adapter.role, ignore_errors=True)
        write(adapter.role, beside)
        beside.replace(done)
        return done

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def open_engine(
    settings: EngineSettings, loaded: LoadedModel, *, num_roles: int
) -> AbstractContextManager[EngineAccess]:
    """Check that the engine can sample from this model, which must not have adapters yet.

    Raises `ConfigError` on entering: for a server that is unreachable or serves another model, and for a missing vLLM.
    """
    opens = KINDS[kind_of(settings)].open
    if isinstance(opens, str):
        place, _, name = opens.partition(":")
        opens = getattr(import_module(place), name)
    return opens(settings, loaded, num_roles=num_roles)


def local_window(loaded: LoadedModel) -> int:
    """The context window of the engines in this process: a cache is exact only up to `steady_tokens`."""
    return min(loaded.context_tokens, steady_tokens(loaded.model) or loaded.context_tokens)


@contextmanager
def open_local(settings: LocalSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    yield EngineAccess(local_window(loaded), lambda policy, _: _local(settings, loaded, policy))


@contextmanager
def open_plain(settings: PlainSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    def build(policy: Policy, _: AdapterStore) -> Engine:
        return _right(Subject.of(policy, context_tokens=loaded.context_tokens), loaded, _PLAIN)

    yield EngineAccess(local_window(loaded), build)


@contextmanager
def open_vllm_here(settings: VllmSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    check_installed()
    facts = model_facts(loaded, settings, on_gpu=loaded.model.device.type != "cpu")
    settings.check_roles(num_roles)
    settings = budgeted(settings, loaded.model)
    room = min(loaded.context_tokens, int(settings.engine_args.get("max_model_len") or loaded.context_tokens))
    room = window_within(settings, loaded.model, room)
    expected = expected_model(loaded, num_roles=num_roles)
    yield EngineAccess(room, lambda policy, store: _vllm(settings, loaded, facts, policy, store, expected, room))


@contextmanager
def open_vllm_server(settings: VllmServerSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    if len(settings.base_urls) > 1:
        raise ConfigError(
            f"expected one server in --base_url, found {len(settings.base_urls)}: {settings.base_url}; add --workers "
            "servers to sample from all of them"
        )
    facts = model_facts(loaded, settings)
    settings = replace(settings, base_url=settings.base_urls[0])
    client = VllmClient(settings, api_key=os.environ.get("OPENAI_API_KEY", ""))
    try:
        expected = expected_model(loaded, num_roles=num_roles)
        base = connect(client, expected)
        room = min(loaded.context_tokens, base.max_model_len)

        def check() -> None:
            check_base(lambda request: client.complete(base.id, request).reply, expected, where=client.url)

        def build(policy: Policy, store: AdapterStore) -> VllmServerEngine:
            check_readable(policy)
            return VllmServerEngine(client, facts, base=base, context_tokens=room, folder_of=store, check=check)

        yield EngineAccess(room, build)
    finally:
        client.stop()


def check_readable(policy: Policy) -> None:
    """Raise `ConfigError` for adapters that vLLM cannot read from files: DoRA, whole modules (`modules_to_save`), or
    adapters on parameters."""
    for name in ("use_dora", "modules_to_save"):
        if getattr(policy.settings, name):
            merged = "--engine.sync merged (vLLM in this process, one role), " if name == "use_dora" else ""
            raise ConfigError(
                f"expected adapters that vLLM can load, found --{name}, which vLLM does not support; use {merged}"
                f"--engine local, or leave out {name}"
            )
    if policy.targets.parameters:
        raise ConfigError(
            "expected adapters on layers only, which vLLM can read from files, found some on the parameters "
            f"{', '.join(policy.targets.parameters)}; use --engine.sync merged (vLLM in this process, one role), "
            f"another engine, or --lora_target_modules with the names of layers ({', '.join(policy.targets.modules)})"
        )


def model_facts(
    loaded: LoadedModel, settings: VllmSettings | VllmServerSettings, *, on_gpu: bool = False
) -> ModelFacts:
    """The facts needed to read vLLM's replies. Warns if requests have no seeds."""
    seeded = seeds_from_top_p(settings.request_seeds, on_gpu=on_gpu)
    if seeded > 0:
        _logger.warning(
            "requests to vLLM%s have no seed of their own (--engine.request_seeds), for a faster sampler: text that is "
            "sampled again, after --resume or by another worker, differs",
            "" if math.isinf(seeded) else " with a top-p below 1",
        )
    return ModelFacts(
        end_ids=loaded.end_ids,
        vocab_size=vocabulary_size(loaded.model),
        num_top_logprobs=settings.top_logprobs,
        seeds_from_top_p=seeded,
    )


def expected_model(loaded: LoadedModel, *, num_roles: int) -> ExpectedModel:
    """Tokenization and next-token log-probabilities of the model in this process, with which a server is compared."""
    encoded = {text: loaded.renderer.encode(text) for text in PROBES}
    prompts = [ids[:room] for ids in encoded.values() if (room := min(len(ids), loaded.context_tokens - 1))]
    expected: dict[TokenIds, list[float]] = {}
    with torch.inference_mode():
        for ids in prompts:
            logits = loaded.model(input_ids=torch.tensor([ids], device=loaded.model.device)).logits[0, -1]
            expected[ids] = logits.double().log_softmax(-1).tolist()
    return ExpectedModel(name=loaded.name, encoded=encoded, logprobs=expected, num_roles=num_roles)


def _vllm(
    settings: VllmSettings,
    loaded: LoadedModel,
    facts: ModelFacts,
    policy: Policy,
    store: AdapterStore,
    expected: ExpectedModel,
    context_tokens: int,
) -> VllmEngine:
    """vLLM in this process. Raises `ConfigError` if it does not start, or gives other log-probabilities."""
    model = loaded.model
    if settings.sync != "merged":
        check_readable(policy)
    elif policy.settings.modules_to_save or getattr(model, "is_quantized", False):
        raise ConfigError(
            "expected adapters that can be merged into plain weights for --engine.sync merged, found modules_to_save "
            "or a quantised base; use --engine local"
        )
    opened = open_vllm(
        settings,
        model=str(model.name_or_path),
        dtype=str(model.dtype).removeprefix("torch."),
        on_cpu=model.device.type == "cpu",
        context_tokens=context_tokens,
        num_roles=len(policy.roles),
        rank=policy.settings.lora_r,
        revision=loaded.revision,
        trust_remote_code=loaded.trust_remote_code,
    )
    merged = settings.sync == "merged"
    engine = VllmEngine(
        opened,
        facts,
        context_tokens=context_tokens,
        folder_of=store.merged if merged else store,
        merged_into=Path(str(model.name_or_path)) if merged else None,
    )
    with ExitStack() as stack:
        stack.callback(engine.close)
        check_base(engine.sample_base, expected, where="vLLM in this process")
        engine.take_stats()  # the checks are not counted
        stack.pop_all()
    return engine


def _local(settings: LocalSettings, loaded: LoadedModel, policy: Policy) -> Engine:
    """The local engine if it samples correctly from this model and its adapters, otherwise a plain one."""
    settings, role_model = budgeted(settings, loaded.model), role_model_of(policy, settings)

    def make(subject: Subject, **facts: Any) -> Engine:
        assert subject.policy is not None
        own = role_model if subject.policy is policy else role_model_of(subject.policy, settings)
        return _local_engine(settings, subject, own, facts)

    return _right_local(settings, Subject.of(policy, context_tokens=loaded.context_tokens), loaded, make)


@contextmanager
def open_base(settings: LocalSettings, loaded: LoadedModel) -> Iterator[Engine]:
    """The local engine for the base model without adapters, for any role; a plain one if the local one is not
    correct."""

    def make(subject: Subject, **facts: Any) -> Engine:
        return _local_engine(settings, subject, subject.using, facts)

    attention.prepare(loaded.model)
    settings = budgeted(settings, loaded.model)
    subject = Subject.bare(loaded.model, context_tokens=loaded.context_tokens)
    with closing(_right_local(settings, subject, loaded, make)) as engine:
        yield engine


def _right_local(settings: LocalSettings, subject: Subject, loaded: LoadedModel, make: Callable[..., Engine]) -> Engine:
    """The local engine that `make` creates if it samples this model correctly, otherwise a plain one. 8-bit integers
    are checked last, once it is correct without them.

    Raises `ConfigError` if 8-bit integers are requested but not possible, or too far from the model.
    """
    if settings.int8:
        int8_drift.refuse(subject.model.device)
    engine = _right(subject, loaded, {_LOCAL: (make, "layout"), **_PLAIN}, settings)
    if settings.int8:
        int8_drift.report(engine, subject, [loaded.renderer.encode(text) for text in PROBES])
        engine.take_stats()  # the check is not counted
        engine.refresh({})
    return engine


def _right(
    subject: Subject,
    loaded: LoadedModel,
    engines: Mapping[str, tuple[Callable[..., Engine], Kind]],
    settings: LocalSettings | None = None,
) -> Engine:
    """The first of these engines that samples this model correctly."""
    make, _ = engines[choose_engine(subject, engines, settings=settings)]
    to_text = lambda ids: loaded.renderer.to_text((ids,))  # noqa: E731
    return make(subject, end_ids=loaded.end_ids, num_tokens=loaded.num_tokens, to_text=to_text)


def _local_engine(
    settings: LocalSettings,
    subject: Subject,
    role_model: Callable[[Role], AbstractContextManager[PreTrainedModel]],
    facts: Mapping[str, Any],
) -> LocalEngine:
    # Without facts, the engine is the one compared with the model (`model_check`), which must be exact.
    return LocalEngine(
        subject.model,
        role_model=role_model,
        context_tokens=subject.context_tokens,
        settings=settings if facts else replace(settings, int8=False),
        **{"end_ids": (), **facts},
    )


def role_model_of(policy: Policy, settings: LocalSettings) -> Callable[[Role], AbstractContextManager[PreTrainedModel]]:
    """A context manager for each role that yields its model for sampling, with merged weights if set and possible."""
    merge = merging(settings, policy.settings)
    if merge == "never" or (merge == "auto" and not can_merge(policy)):
        return policy.using
    return MergedModels(policy).using  # fails now rather than during rollouts


def _plain_engine(subject: Subject, *, cached: bool = True, **facts: Any) -> PlainEngine:
    return PlainEngine(
        subject.model,
        role_model=subject.using,
        context_tokens=subject.context_tokens,
        cached=cached,
        **{"end_ids": (), **facts},
    )


_LOCAL = "the local engine"
_PLAIN: Mapping[str, tuple[Callable[..., Engine], Kind]] = {
    "the plain engine": (_plain_engine, "cached"),
    "the plain engine without a cache": (partial(_plain_engine, cached=False), "whole"),
}
