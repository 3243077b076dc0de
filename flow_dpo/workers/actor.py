"""Rollout actor: the inside of a worker in its own process: model, adapters, engine, renderer and grader.

    actor = RolloutActor()
    actor.open(setup, expected)                     loads the model, and compares it with the learner's
    actor.sample(shard, {"answer": {"adapter_model.safetensors": b"...", "adapter_config.json": b"..."}})
    actor.sample(shard)                             on the machine that has the shard's adapters

Everything that a call needs comes with it, so a newly started actor can sample any shard. Invariant: no shard is
sampled before versions, code, device, tokenizer and the base model's log-probabilities have been found equal to those
of the learner's process.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flow_dpo.core.errors import ConfigError, ModelError
from flow_dpo.core.grader import Grader
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.types import Adapter, Role
from flow_dpo.engines import factory
from flow_dpo.engines.vllm.checks import MOST_DIVERGENCE, ExpectedModel, divergence
from flow_dpo.learner.policy import Policy
from flow_dpo.models.load import LoadedModel, load_model
from flow_dpo.workers.grading import check_reward_files, open_grader
from flow_dpo.workers.setup import WorkerSetup
from flow_dpo.workers.shard import Shard, ShardResult, sample_and_continue

Weights = Mapping[Role, Mapping[str, bytes]]
"""The files of each role's adapter in PEFT's layout, by name."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the learner's process has, and a worker must have too."""

    device: str
    """The kind of device: "cpu", "cuda"."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    model: ExpectedModel

    @classmethod
    def of(cls, loaded: LoadedModel, *, num_roles: int) -> Expected:
        """The facts of the model in this process, which must not have adapters yet."""
        return cls(
            device=loaded.model.device.type,
            tokenizer=loaded.renderer.fingerprint(),
            model=factory.expected_model(loaded, num_roles=num_roles),
        )

    def differences(self, found: Expected) -> list[str]:
        """How a worker's facts differ from these."""
        lines = [
            f"{name}: {theirs} there, {own} here"
            for name, own, theirs in (
                ("device", self.device, found.device),
                ("tokenizer", self.tokenizer[:12], found.tokenizer[:12]),
            )
            if own != theirs
        ]
        if self.model.encoded != found.model.encoded or self.model.logprobs.keys() != found.model.logprobs.keys():
            return [*lines, "tokenization of probe texts"]
        pairs = [(logprobs, found.model.logprobs[prompt]) for prompt, logprobs in self.model.logprobs.items()]
        if any(len(own) != len(theirs) for own, theirs in pairs):
            return [*lines, "vocabulary"]
        mean = sum(divergence(own, theirs) for own, theirs in pairs) / max(len(pairs), 1)
        if not mean <= MOST_DIVERGENCE:
            lines.append(f"weights: the next-token distribution differs by {mean:.3g} nats")
        return lines


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a ready actor reports about itself."""

    context_tokens: int
    """Size of its context window."""
    warnings: tuple[str, ...]
    """The warnings raised while it opened, since nobody reads its output."""


class RolloutActor:
    """Samples and grades shards with its own model. For one caller, one call at a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._runner: RolloutRunner | None = None
        self._grader: Grader | None = None
        self._policy: Policy | None = None
        self._held: tuple[Adapter, ...] = ()
        """The adapters that are loaded, as the shard named them."""
        self._adapters: dict[Role, Adapter] = {}
        self._folder = Path()
        self._num_loaded = 0

    def facts(self, environment: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What results depend on besides the model, found as in the learner's process, and facts about this process."""
        return {**environment(), "pid": os.getpid(), "num_gpus": torch.cuda.device_count()}

    def open(self, setup: WorkerSetup, expected: Expected) -> Opened:
        """Load the model and open the engine.

        Raises `ConfigError` for a model or a reward function that is missing here or differs from the learner's,
        `ModelError` like `load_model`.
        """
        with warnings.catch_warnings(record=True) as warned:
            room = self._open(setup, expected)
        return Opened(context_tokens=room, warnings=tuple(str(each.message) for each in warned))

    def _open(self, setup: WorkerSetup, expected: Expected) -> int:
        torch.set_num_threads(setup.workers.num_threads)
        name = setup.model.model_name_or_path
        if Path(name).is_absolute() and not Path(name).exists():
            raise ConfigError(
                f"expected the model folder {name} on {platform.node()}, found none; put it under the same path on "
                "every machine (a shared folder, or a copy), or use a hub id"
            )
        check_reward_files(setup.grading, setup.reward_files)
        loaded = load_model(setup.model)
        if found := expected.differences(Expected.of(loaded, num_roles=len(setup.roles))):
            raise ConfigError(
                f"expected the model of this command on {platform.node()}, found another ({'; '.join(found)}); "
                "put the same files on every machine"
            )
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="flow-dpo-")))
        opened = factory.open_engine(setup.engine, loaded, num_roles=len(setup.roles))
        access = None if setup.opener is not None else self._stack.enter_context(opened)
        policy = self._policy = Policy(loaded.model, setup.roles, setup.lora, seed=setup.seed)
        if access is None:
            assert setup.opener is not None
            engine, room = setup.opener(loaded, policy), loaded.context_tokens
        else:
            store = factory.AdapterStore(policy, self._folder / "merged")
            engine, room = access.build(policy, store), access.context_tokens
        self._stack.enter_context(closing(engine))
        self._grader = self._stack.enter_context(open_grader(setup.grading, setup.grader, loaded.renderer))
        self._runner = RolloutRunner(engine, loaded.renderer, self._grader)
        return room

    def sample(self, shard: Shard, weights: Weights | None = None) -> ShardResult:
        """Sample and grade a shard with these weights, by default those in the folders of the shard's adapters."""
        assert self._runner is not None
        assert self._grader is not None
        self._load(shard, weights)
        self._runner.refresh(self._adapters)  # even for the same version: a shard begins with an empty cache
        result = sample_and_continue(self._runner, self._grader, shard)
        return replace(result, stats=self._runner.engine.take_stats())

    def _load(self, shard: Shard, weights: Weights | None) -> None:
        """Load the adapters, unless they are those of the previous shard."""
        assert self._policy is not None
        wanted = tuple(shard.adapters[role] for role in sorted(shard.adapters))
        if wanted == self._held:
            return
        self._num_loaded += 1
        self._held = ()  # until all of them are loaded
        folder = self._folder / str(self._num_loaded)
        for role, files in (files_of(shard.adapters) if weights is None else weights).items():
            (folder / role).mkdir(parents=True)
            for name, content in files.items():
                (folder / role / Path(name).name).write_bytes(content)
            self._policy.load_adapter(role, folder / role)
        self._held = wanted
        self._adapters = {role: replace(adapter, path=str(folder / role)) for role, adapter in shard.adapters.items()}
        # The engine releases the folders of the previous version when it loads this one, which happens next.
        shutil.rmtree(self._folder / str(self._num_loaded - 2), ignore_errors=True)

    def close(self) -> None:
        """Release everything."""
        self._stack.close()


def files_of(adapters: Mapping[Role, Adapter]) -> Weights:
    """The adapters' files. Raises `ModelError` if a folder is gone."""
    try:
        return {
            role: {file.name: file.read_bytes() for file in sorted(Path(adapter.path).iterdir()) if file.is_file()}
            for role, adapter in adapters.items()
        }
    except OSError as error:
        raise ModelError(f"could not read an adapter: {error}") from error
