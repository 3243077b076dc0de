"""Policy: one frozen base model with a LoRA adapter for each role, in PEFT, and frozen snapshots as reference policies.

At most one adapter is on at a time:

    policy = Policy(model, ("answer", "stop"), LoraSettings(lora_r=8), seed=7)
    with policy.using("answer"): ...                     # the Answer role's distribution
    with policy.using("answer", training=True): ...      # the same, and gradients reach its parameters
    with policy.using(None): ...                         # the base alone: the reference policy of DPO

Invariants: a parameter requires a gradient only while its own role is in use with `training=True`; the parameter list
of a role is collected once, by name, and never by `requires_grad`, which PEFT flips at every switch; building a policy
leaves the process's random state unchanged.

Half-precision models have half-precision adapters, so sampling and learning run the same kernels. The optimizer updates
float32 `weights`, which `publish` rounds into the adapter; for a float32 model the two are the same tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from flow_dpo.core.errors import ModelError
from flow_dpo.core.seeds import derive
from flow_dpo.core.types import Role
from flow_dpo.learner.settings import LoraSettings
from flow_dpo.models import adapter_files, attention
from flow_dpo.models.adapter_targets import targets_of

REFERENCE = "reference_"
"""Prefix of the adapter names of frozen snapshots."""


@dataclass(slots=True)
class _Weights:
    """The tensors of one adapter."""

    names: list[str]
    """Names of the parameters in PEFT's layout, without the adapter's name."""
    parameters: list[torch.nn.Parameter]
    weights: list[torch.Tensor] = field(init=False)
    """Float32 copies; the parameters themselves if these are float32."""

    def __post_init__(self) -> None:
        self.weights = [
            p if p.dtype == torch.float32 else p.detach().to(torch.float32, copy=True) for p in self.parameters
        ]


class Policy:
    """One base model and an adapter for each role."""

    def __init__(
        self, model: PreTrainedModel, roles: Sequence[Role], settings: LoraSettings | None = None, *, seed: int = 0
    ) -> None:
        self.settings = settings or LoraSettings()
        self.roles: tuple[Role, ...] = tuple(roles)
        self.seed = seed
        model.eval()
        self.targets = targets_of(model, self.settings)
        """Which weights the adapters reach, and what share of the model that is."""
        _check_names(model, self.roles)
        attention.prepare(model)
        self.model = model
        """The transformers model itself, its linear layers wrapped by PEFT. `using` chooses its adapter."""
        self._adapters: dict[str, _Weights] = {}
        self._peft: PeftModel | None = None
        for role in self.roles:
            self._add(role, derive(seed, "adapter", role))
        # Collected once: a walk over all modules at every switch costs more than the switch.
        self._tuner_layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | ModulesToSaveWrapper)]
        self._training_modules = [module for name, module in model.named_modules() if "lora_dropout" in name]
        self._state: tuple[str | None, bool] | None = None
        self._depth, self._counting = 0, Lock()
        self._switch(None, training=False)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of all adapters: the roles and the snapshots."""
        return tuple(self._adapters)

    @contextmanager
    def using(self, adapter: str | None, *, training: bool = False) -> Iterator[PreTrainedModel]:
        """A context in which `model` has this role's adapter on, or a snapshot's, or none (None). Contexts nest.

        `training` lets gradients reach the adapter and turns on its dropout and gradient checkpointing; the base's own
        dropout stays off. The backward pass belongs inside the context. The outermost context leaves its adapter on,
        since the next one often needs the same: outside all contexts it is undefined which adapter is on. Inside a
        context, several threads can open contexts of its adapter. Raises `ModelError` for an unknown adapter.
        """
        previous = self._state
        self._switch(adapter, training=training)
        with self._counting:
            self._depth += 1
        try:
            yield self.model
        finally:
            with self._counting:
                self._depth -= 1
            if previous is not None and (self._depth > 0 or training):
                # requires_grad, dropout and checkpointing never stay on.
                self._switch(previous[0], training=previous[1])

    def is_at_base(self) -> bool:
        """Whether every role's distribution is the base's: one factor of every product is still zero. False with DoRA
        and with modules that are trained in full, for which it is not known."""
        return not (self.settings.use_dora or self.settings.modules_to_save) and all(
            not weight.any()
            for role in self.roles
            for name, weight in zip(self.names(role), self.weights(role), strict=True)
            if ".lora_B" in name or ".lora_embedding_A" in name
        )

    def parameters(self, adapter: str) -> list[torch.nn.Parameter]:
        """The parameters of this role (or snapshot) and no other, always in the same order."""
        return list(self._entry(adapter).parameters)

    def weights(self, adapter: str) -> list[torch.Tensor]:
        """The float32 master copies of `parameters`, for an optimizer to update in place; then `publish` them."""
        return list(self._entry(adapter).weights)

    def names(self, adapter: str) -> list[str]:
        """The parameters' names, as `save_adapter` writes them."""
        return list(self._entry(adapter).names)

    @torch.no_grad()
    def publish(self, adapter: str) -> None:
        """Copy the adapter's float32 weights into the model's parameters."""
        entry = self._entry(adapter)
        for parameter, weight in zip(entry.parameters, entry.weights, strict=True):
            if parameter is not weight:
                parameter.copy_(weight)

    @contextmanager
    def holding(self, adapter: str, weights: Sequence[torch.Tensor]) -> Iterator[None]:
        """A context in which the adapter is on, with these weights instead of its own."""
        own = [weight.detach().clone() for weight in self.weights(adapter)]
        self._put(adapter, weights)
        try:
            with self.using(adapter):
                yield
        finally:
            self._put(adapter, own)

    def checkpoint_activations(self) -> None:
        """Turn on gradient checkpointing: layers are recomputed in the backward pass instead of kept."""
        try:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ModelError(f"gradient_checkpointing: {error}") from error
        # Only reentrant checkpoints need inputs with a gradient, and the hook for it breaks inference mode.
        self.model.disable_input_require_grads()
        # Layers are checkpointed only in training mode.
        self._training_modules += [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def dropout_from(self, seed: int) -> AbstractContextManager[None]:
        """A context in which dropout draws from this seed; restores the generators. Does nothing without dropout."""
        return _own_randomness(seed) if self.settings.lora_dropout else nullcontext()

    def snapshot(self, role: Role) -> str:
        """Freeze a copy of this role's adapter as its reference policy, and return the copy's adapter name."""
        name = REFERENCE + role
        if name not in self._adapters:
            self._add(name, seed=0)
            self.model.eval()  # PEFT's new dropout is in training mode, and a reference has none
            state, self._state = self._state, None  # PEFT made the new adapter trainable
            name_before, training = state or (None, False)
            self._switch(name_before, training=training)
        self.move_snapshot(role, 1.0)
        return name

    @torch.no_grad()
    def move_snapshot(self, role: Role, lerp: float) -> None:
        """Move the role's snapshot a fraction `lerp` of the way towards the role's present weights."""
        own, frozen = self._entry(role), self._entry(REFERENCE + role)
        for target, weight in zip(frozen.weights, own.weights, strict=True):
            target.lerp_(weight, lerp)  # an exact copy at 1
        self.publish(REFERENCE + role)

    def save_adapter(self, role: str, folder: str | Path) -> Path:
        """Write the adapter in PEFT's own layout, which peft, transformers and vLLM can load."""
        entry = self._entry(role)
        state = get_peft_model_state_dict(self._peft, adapter_name=role, save_embedding_layers=False)
        if sorted(state) != sorted(entry.names):
            raise ModelError(f"expected PEFT to save {sorted(entry.names)[:3]}..., found {sorted(state)[:3]}...")
        config = self.targets.config(self.settings)
        config.base_model_name_or_path = self.model.name_or_path
        adapter_files.write(Path(folder), state, config)
        return Path(folder)

    def load_adapter(self, role: str, folder: str | Path) -> None:
        """Load an adapter that `save_adapter` wrote. Raises `ModelError` if its shape is not this policy's."""
        entry = self._entry(role)
        own = dict(zip(entry.names, entry.parameters, strict=True))
        state = adapter_files.read(folder, self.targets.config(self.settings), own)
        self._put(role, [state[name] for name in entry.names])

    @torch.no_grad()
    def _put(self, adapter: str, values: Sequence[torch.Tensor]) -> None:
        for weight, value in zip(self.weights(adapter), values, strict=True):
            weight.copy_(value)
        self.publish(adapter)

    def _entry(self, adapter: str) -> _Weights:
        if adapter not in self._adapters:
            raise ModelError(f"no adapter {adapter!r}; this policy has {sorted(self._adapters)}")
        return self._adapters[adapter]

    def _add(self, name: str, seed: int) -> None:
        """Put one more adapter on the model; the first wraps it."""
        with _own_randomness(seed), warnings.catch_warnings():
            # PEFT 0.21 reads an attribute of transformers 5 by its old name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            # Head and embeddings that share a weight get separate adapters here, and merging refuses those.
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
            options: dict[str, Any] = {"adapter_name": name, "autocast_adapter_dtype": False}
            config = self.targets.config(self.settings)
            try:
                if self._peft is None:
                    self._peft = cast(PeftModel, get_peft_model(self.model, config, **options))
                else:
                    self._peft.add_adapter(peft_config=config, **options)
            except (ValueError, TypeError, NotImplementedError, AttributeError, LookupError) as error:
                raise ModelError(
                    f"PEFT cannot put an adapter on {type(self.model).__name__}: {error}; name the layers to adapt "
                    "(--lora_target_modules)"
                ) from error
        self._adapters[name] = self._collect(name)
        if self._adapters[name].names != self._adapters[self.roles[0]].names:
            raise ModelError(f"PEFT put {name!r} on other weights of {type(self.model).__name__} than other adapters")

    def _collect(self, name: str) -> _Weights:
        """The parameters of this adapter, with the names under which PEFT saves them."""
        assert self._peft is not None
        named = ((adapter_files.parameter_name(n, name), p) for n, p in self._peft.named_parameters())
        found = [(saved, p) for saved, p in named if saved is not None]
        return _Weights([saved for saved, _ in found], [p for _, p in found])

    def _switch(self, adapter: str | None, *, training: bool) -> None:
        """Switch by PEFT's method of each layer: 0.5 ms for 28 layers. The model's method would walk all modules."""
        if self._state == (adapter, training):
            return
        if adapter is not None:
            self._entry(adapter)
        names = [] if adapter is None else [adapter]
        for layer in self._tuner_layers:
            layer.set_adapter(names, inference_mode=not training)
        if self._state is None or self._state[1] != training:
            for module in self._training_modules:
                # Not `train()`, which would also turn on the base's own dropout inside.
                module.training = training
        self._state = (adapter, training)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """A context with seeded global generators, from which PEFT draws initial weights; restores the old ones."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _check_names(model: PreTrainedModel, roles: Sequence[Role]) -> None:
    """Raise `ModelError` for role names that would be ambiguous inside parameter names."""
    parts = {part for name, _ in model.named_modules() for part in name.split(".")}
    if not roles or len(set(roles)) != len(roles):
        raise ModelError(f"a policy needs one or more distinct roles, found {list(roles)}")
    for role in roles:
        if not role.isidentifier() or role.startswith((REFERENCE, "lora_")) or role in parts:
            raise ModelError(
                f"a role cannot be called {role!r}: expected a plain word that names no part of the model "
                f"and begins with neither {REFERENCE!r} nor 'lora_'"
            )
