"""The registry of engines: a name to the settings that choose an engine, and to how it is opened.

    kind_of(LocalSettings())                      # "local"
    with open_engine(settings, loaded, num_roles=2) as access:
        engine = access.build(policy, AdapterStore(policy, Path("runs/x/served")))

Another engine joins by `register_engine`, or as an installed plug-in: an `EngineKind` under an entry point of the group
"flow_dpo.engines", found when `--engine` names it.

`local` shares the learner's memory. The others read adapters from files, in PEFT's layout, that an `AdapterStore`
writes for them. Invariant: what an engine cannot sample is refused by `open_engine`, before any rollout.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.plugins import installed, load_object
from flow_dpo.core.types import Adapter, Role, TokenIds
from flow_dpo.engines.local.compatibility import vocabulary_size
from flow_dpo.engines.local.engine import LocalEngine, LocalSettings
from flow_dpo.engines.vllm.checks import ExpectedModel, check_base, connect
from flow_dpo.engines.vllm.client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm.in_process import VllmEngine, VllmSettings, check_installed, open_vllm
from flow_dpo.engines.vllm.requests import ModelFacts
from flow_dpo.engines.vllm.server import VllmServerEngine
from flow_dpo.learner.policy import Policy
from flow_dpo.models.load import LoadedModel


class EngineSettings(Protocol):
    """The settings of an engine: an instance of a dataclass, whose type tells which engine is meant."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


PROBES = (
    "Anna has 12 apples and buys 7 more. How many does she have now?",
    "Let x^2 + 3x - 4 = 0.\nThen (x - 1)(x + 4) = 0.",
    "Answer: 42",
)
"""Texts that a server must tokenize, and continue, as the model in this process does."""


@dataclass(frozen=True)
class EngineAccess:
    """An engine that is available, before it is built."""

    context_tokens: int
    """Tokens of its context window: prompt and completion of one request together."""
    build: Callable[[Policy, AdapterStore], Engine]


class AdapterStore:
    """The folder with the policy's adapters for an engine that reads files: the newest version of each role."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self._policy, self._folder = policy, folder

    def __call__(self, adapter: Adapter) -> Path:
        """The adapter's folder; the policy's present weights are written there where it has none."""
        return Path(adapter.path) if adapter.path else self._put(adapter, self._policy.save_adapter)

    def merged(self, adapter: Adapter) -> Path:
        """The folder of the whole model with the policy's present weights of this role merged in."""
        return self._put(adapter, self._policy.save_merged)

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


class OpensEngine(Protocol):
    """How an engine is opened: what cannot sample from this model is refused with `ConfigError` on entering."""

    def __call__(
        self, settings: Any, loaded: LoadedModel, *, num_roles: int
    ) -> AbstractContextManager[EngineAccess]: ...


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What `--engine NAME` stands for."""

    settings: type[Any]
    """A frozen dataclass; every field has a default. No other engine has the same."""
    open: OpensEngine


KINDS: dict[str, EngineKind] = {}
"""The engines by the word that chooses them: `--engine vllm_server`. Installed plug-ins join when they are named."""


def register_engine(name: str, settings: type[Any], open: OpensEngine) -> None:
    """Let `--engine name` choose an engine. Raises `ConfigError` where the name or the settings are another's."""
    kind = EngineKind(settings=settings, open=open)
    for known, other in KINDS.items():
        if other != kind and (known == name or other.settings is settings):
            raise ConfigError(
                f"expected a new name and settings for the engine {name!r}, found those of {known!r}; choose others"
            )
    KINDS[name] = kind


def kind_of(settings: EngineSettings) -> str:
    """The word that chooses this engine. Raises `ConfigError` for settings of no registered engine."""
    for name, kind in KINDS.items():
        if type(settings) is kind.settings:
            return name
    raise ConfigError(
        f"expected settings of one of the engines {', '.join(KINDS)}, found {type(settings).__name__}; call "
        f"register_engine first"
    )


def default_settings(kind: str) -> EngineSettings:
    """An engine's default settings. Raises `ConfigError` for an unknown name."""
    if kind not in KINDS:
        plugins = installed("engine")
        if kind not in plugins:
            raise ConfigError(f"unknown engine {kind!r}; there are {', '.join([*KINDS, *plugins])}")
        found = load_object(kind, kind="engine")
        if not isinstance(found, EngineKind):
            raise ConfigError(f"expected an EngineKind from the plug-in of engine {kind!r}, found {found!r:.200}")
        register_engine(kind, found.settings, found.open)
    return KINDS[kind].settings()


def open_engine(
    settings: EngineSettings, loaded: LoadedModel, *, num_roles: int
) -> AbstractContextManager[EngineAccess]:
    """Make sure that the engine can sample from this model. The model must not have been given adapters yet.

    Raises `ConfigError`, on entering, for a server that is not there or serves something else, and where vLLM is not
    installed.
    """
    return KINDS[kind_of(settings)].open(settings, loaded, num_roles=num_roles)


@contextmanager
def _open_local(settings: LocalSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    yield EngineAccess(loaded.context_tokens, lambda policy, _: _local(settings, loaded, policy))


@contextmanager
def _open_vllm(settings: VllmSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    check_installed()
    facts = _facts(loaded, settings.top_logprobs)
    settings.check_roles(num_roles)
    room = min(loaded.context_tokens, int(settings.engine_args.get("max_model_len") or loaded.context_tokens))
    expected = expected_model(loaded, num_roles=num_roles)
    yield EngineAccess(room, lambda policy, store: _vllm(settings, loaded, facts, policy, store, expected, room))


@contextmanager
def _open_vllm_server(settings: VllmServerSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    facts = _facts(loaded, settings.top_logprobs)
    client = VllmClient(settings, api_key=os.environ.get("OPENAI_API_KEY", ""))
    try:
        expected = expected_model(loaded, num_roles=num_roles)
        base = connect(client, expected)
        room = min(loaded.context_tokens, base.max_model_len)

        def check() -> None:
            check_base(lambda request: client.complete(base.id, request).reply, expected, where=client.url)

        yield EngineAccess(
            room,
            lambda _, store: VllmServerEngine(
                client, facts, base=base, context_tokens=room, folder_of=store, check=check
            ),
        )
    finally:
        client.stop()


register_engine("local", LocalSettings, _open_local)
register_engine("vllm", VllmSettings, _open_vllm)
register_engine("vllm_server", VllmServerSettings, _open_vllm_server)


def _facts(loaded: LoadedModel, top_logprobs: int) -> ModelFacts:
    return ModelFacts(
        end_ids=loaded.end_ids, vocab_size=vocabulary_size(loaded.model), num_top_logprobs=top_logprobs
    )  # fmt: skip


def expected_model(loaded: LoadedModel, *, num_roles: int) -> ExpectedModel:
    """What the model in this process says where a server is compared with it."""
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
    """vLLM in this process. Raises `ConfigError` where it cannot be started, or gives other log-probabilities."""
    model = loaded.model
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


def _local(settings: LocalSettings, loaded: LoadedModel, policy: Policy) -> LocalEngine:
    return LocalEngine(
        policy.model,
        role_model=role_model_of(policy, settings),
        end_ids=loaded.end_ids,
        context_tokens=loaded.context_tokens,
        settings=settings,
    )


def role_model_of(policy: Policy, settings: LocalSettings) -> Callable[[Role], AbstractContextManager[PreTrainedModel]]:
    """The context manager that yields a role's model for sampling: with merged weights where set and possible."""
    if settings.merge_adapters == "never" or (settings.merge_adapters == "auto" and not policy.can_merge()):
        return policy.using
    with policy.using_merged(policy.roles[0]):  # refused now rather than amid rollouts
        return policy.using_merged
