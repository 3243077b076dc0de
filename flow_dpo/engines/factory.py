"""Which engine plays, and what does it need of the model and the adapters in this process?

    kind_of(LocalSettings())                      # "local"
    with reached(settings, loaded, num_roles=2) as reach:
        engine = reach.build(policy, Shelf(policy, Path("runs/x/served")))

`local` shares the learner's memory. The others read adapters from files, in PEFT's layout, that a `AdapterStore`
writes for them. Invariant: what an engine cannot play is refused by `open_engine`, before anything is played.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Adapter, Role, TokenIds
from flow_dpo.engines.local.compatibility import vocabulary_size
from flow_dpo.engines.local.engine import LocalEngine, LocalSettings
from flow_dpo.engines.merged_lora import MergedModels, can_merge, save_merged
from flow_dpo.engines.plain import PlainEngine, PlainSettings
from flow_dpo.engines.vllm.checks import Wanted, check_base, connect
from flow_dpo.engines.vllm.client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm.in_process import VllmEngine, VllmSettings, check_installed, open_vllm
from flow_dpo.engines.vllm.requests import ModelFacts
from flow_dpo.engines.vllm.server import VllmServerEngine
from flow_dpo.learner.policy import Policy
from flow_dpo.models.load import LoadedModel

EngineSettings = LocalSettings | PlainSettings | VllmSettings | VllmServerSettings
KINDS: dict[str, type[LocalSettings] | type[PlainSettings] | type[VllmSettings] | type[VllmServerSettings]] = {
    "local": LocalSettings,
    "plain": PlainSettings,
    "vllm": VllmSettings,
    "vllm_server": VllmServerSettings,
}
"""The engines by the word that chooses them: `--engine vllm_server`."""
PROBES = (
    "Anna has 12 apples and buys 7 more. How many does she have now?",
    "Let x^2 + 3x - 4 = 0.\nThen (x - 1)(x + 4) = 0.",
    "Answer: 42",
)
"""Texts that a server must encode, and go on from, as the model in this process does."""


@dataclass(frozen=True)
class EngineAccess:
    """An engine that can be had."""

    context_tokens: int
    """The most tokens that it takes in one request."""
    build: Callable[[Policy, AdapterStore], Engine]


class AdapterStore:
    """Where the policy's adapters lie for an engine that reads files. The newest version of each role is kept."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self._policy, self._folder = policy, folder

    def __call__(self, adapter: Adapter) -> Path:
        """The adapter's folder; the policy's present weights are written there where it has none."""
        return Path(adapter.path) if adapter.path else self._put(adapter, self._policy.save_adapter)

    def merged(self, adapter: Adapter) -> Path:
        """The folder of the whole model with the policy's present weights of this role in it."""
        return self._put(adapter, lambda role, folder: save_merged(self._policy, role, folder))

    def _put(self, adapter: Adapter, write: Callable[[Role, Path], object]) -> Path:
        done = self._folder / adapter.role / str(adapter.version)
        beside = done.with_name(f"{adapter.version}.tmp")
        shutil.rmtree(self._folder / adapter.role, ignore_errors=True)
        write(adapter.role, beside)
        beside.replace(done)
        return done

    def close(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)


def kind_of(settings: EngineSettings) -> str:
    """The word that chooses this engine."""
    return next(kind for kind, settings_of in KINDS.items() if type(settings) is settings_of)


def default_settings(kind: str) -> EngineSettings:
    """What an engine does where nothing is said. Raises `ConfigError` for a word that names none."""
    if kind not in KINDS:
        raise ConfigError(f"unknown engine {kind!r}; there are {', '.join(KINDS)}")
    return KINDS[kind]()


@contextmanager
def open_engine(settings: EngineSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    """Make sure that the engine can play this model. The model must not have been given adapters yet.

    Raises `ConfigError` for a server that is not there or serves something else, and where vLLM is not installed.
    """
    if isinstance(settings, LocalSettings):
        yield EngineAccess(loaded.context_tokens, lambda policy, _: _local(settings, loaded, policy))
        return
    if isinstance(settings, PlainSettings):
        yield EngineAccess(loaded.context_tokens, lambda policy, _: _plain(loaded, policy))
        return
    if isinstance(settings, VllmSettings):
        check_installed()
    speech = ModelFacts(
        end_ids=loaded.end_ids, num_words=vocabulary_size(loaded.model), top_logprobs=settings.top_logprobs
    )
    if isinstance(settings, VllmSettings):
        settings.check_roles(num_roles)
        room = min(loaded.context_tokens, int(settings.engine_args.get("max_model_len") or loaded.context_tokens))
        said = wanted(loaded, num_roles=num_roles)
        yield EngineAccess(room, lambda policy, store: _vllm(settings, loaded, speech, policy, store, said, room))
        return
    client = VllmClient(settings, api_key=os.environ.get("OPENAI_API_KEY", ""))
    try:
        said = wanted(loaded, num_roles=num_roles)
        base = connect(client, said)
        room = min(loaded.context_tokens, base.max_model_len)

        def check() -> None:
            check_base(lambda ask: client.complete(base.id, ask).heard, said, where=client.url)

        yield EngineAccess(
            room,
            lambda _, store: VllmServerEngine(
                client, speech, base=base, context_tokens=room, folder_of=store, check=check
            ),
        )
    finally:
        client.stop()


def wanted(loaded: LoadedModel, *, num_roles: int) -> Wanted:
    """What the model in this process says where a server is compared with it."""
    encoded = {text: loaded.renderer.encode(text) for text in PROBES}
    prompts = [ids[:room] for ids in encoded.values() if (room := min(len(ids), loaded.context_tokens - 1))]
    said: dict[TokenIds, list[float]] = {}
    with torch.inference_mode():
        for ids in prompts:
            logits = loaded.model(input_ids=torch.tensor([ids], device=loaded.model.device)).logits[0, -1]
            said[ids] = logits.double().log_softmax(-1).tolist()
    return Wanted(name=loaded.name, encoded=encoded, said=said, num_roles=num_roles)


def _vllm(
    settings: VllmSettings,
    loaded: LoadedModel,
    speech: ModelFacts,
    policy: Policy,
    store: AdapterStore,
    said: Wanted,
    context_tokens: int,
) -> VllmEngine:
    """vLLM in this process. Raises `ConfigError` where it cannot be started, or speaks otherwise than the model."""
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
        speech,
        context_tokens=context_tokens,
        folder_of=store.merged if merged else store,
        merged_into=Path(str(model.name_or_path)) if merged else None,
    )
    with ExitStack() as stack:
        stack.callback(engine.close)
        check_base(engine.hear, said, where="vLLM in this process")
        engine.take_stats()  # the checks are no play
        stack.pop_all()
    return engine


def _local(settings: LocalSettings, loaded: LoadedModel, policy: Policy) -> LocalEngine:
    return LocalEngine(
        policy.model,
        speaking=speaking_of(policy, settings),
        end_ids=loaded.end_ids,
        context_tokens=loaded.context_tokens,
        settings=settings,
    )


def _plain(loaded: LoadedModel, policy: Policy) -> PlainEngine:
    return PlainEngine(
        policy.model, speaking=policy.speaking, end_ids=loaded.end_ids, context_tokens=loaded.context_tokens
    )


def speaking_of(policy: Policy, settings: LocalSettings) -> Callable[[Role], AbstractContextManager[PreTrainedModel]]:
    """How roles speak while they play: with merged weights where that is wanted and can be."""
    if settings.merge_adapters == "never" or (settings.merge_adapters == "auto" and not can_merge(policy)):
        return policy.speaking
    return MergedModels(policy).speaking  # refused now rather than in the midst of sampling
