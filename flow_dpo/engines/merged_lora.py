"""LoRA adapters merged into weights: sampling without the adapter's cost for every token.

A LoRA layer computes W x and, beside it, B A x for every token (benchmarks/RESULTS.md has the cost); on a stack of
experts it computes W + B A at every forward. Between updates the two can be one matrix. A merged model is a twin of the
policy's model that shares all its tensors except the weights that a role's adapter changes. Those are its own: W +
scaling B A (for DoRA, with its rows scaled to their magnitudes):

    merged = MergedModels(policy)
    with merged.using("answer") as model: ...    the twin, merged again if the adapter has changed since
    save_merged(policy, "answer", folder)           the same as a whole model on disk

Invariant: a twin is a function of base and adapter only (always merged from them, never from itself), so a resumed run
samples like an uninterrupted one. Twins exist only in float32: in half precision the sum would round the adapter away.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedModel

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Role
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.policy import LoraSettings, Policy

_Adapted = LoraLinear | ParamWrapper
"""PEFT's wrappers of a linear layer, and of a module with an adapter on one of its parameters."""

MAX_BYTES = 2**30
"""Bytes of all twins' weights together above which adapters are merged only on request."""


def can_merge(policy: Policy, *, within: int = MAX_BYTES) -> bool:
    """Whether roles can be sampled with merged weights: in float32, and if those take at most so many bytes in all."""
    layers = _lora_layers(policy)
    if policy.model.dtype != torch.float32 or layers is None:
        return False
    return len(policy.roles) * sum(_base(layer).nbytes for layer in layers.values()) <= within


def merging(engine: LocalSettings, lora: LoraSettings) -> Literal["auto", "never", "always"]:
    """The value of `merge_adapters` in force: "auto" merges nothing with 8-bit integers, which would round an adapter
    away and be rebuilt for each adapter. DoRA is merged nevertheless, because it is not a plain sum."""
    return "never" if engine.merge_adapters == "auto" and engine.int8 and not lora.use_dora else engine.merge_adapters


class MergedModels:
    """A merged twin for each role. Raises `ModelError` if the policy's adapters cannot be merged."""

    def __init__(self, policy: Policy) -> None:
        layers = _lora_layers(policy)
        if policy.model.dtype != torch.float32 or layers is None:
            raise ModelError(
                "adapters can only be merged in float32, into linear layers and stacks of experts (no modules_to_save, "
                f"no quantised base); this model is {policy.model.dtype}: use --merge_adapters never"
            )
        self._layers = layers
        self._models = {role: _twin(policy.model, layers) for role in policy.roles}
        self._adapters = {role: policy.parameters(role) for role in policy.roles}
        """Collected once: `using` is called before every forward."""
        self._merged: dict[Role, list[int]] = {}
        """Version counters of the adapter's tensors at the time of the merge."""

    @contextmanager
    def using(self, role: Role) -> Iterator[PreTrainedModel]:
        """The role's twin: the same distribution as under `Policy.using(role)`, up to rounding."""
        yield self._merge(role)

    @torch.no_grad()
    def _merge(self, role: Role) -> PreTrainedModel:
        model = self._models[role]
        # Torch counts in-place changes of a tensor, such as an optimizer's step or a loaded adapter.
        now = [tensor._version for tensor in self._adapters[role]]
        if self._merged.get(role) != now:
            for name, layer in self._layers.items():
                module, _, parameter = name.rpartition(".")
                merged = torch.nn.Parameter(_merged_weight(layer, role), requires_grad=False)
                setattr(model.get_submodule(module), parameter, merged)
            self._merged[role] = now
        return model


def save_merged(policy: Policy, role: Role, folder: str | Path) -> Path:
    """Write the whole model with the role's adapter in its weights, as transformers and vLLM load it.

    In half precision the sum is rounded: the distribution then differs from that of `Policy.using(role)`. Raises
    `ModelError` if a wrapped layer is not a plain linear one, or is the head to which the embeddings are tied.
    """
    policy.names(role)  # raises if there is no such role
    model, layers = policy.model, _lora_layers(policy)
    if model.config.tie_word_embeddings and isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ModelError("a head that is tied to the embeddings cannot be changed without them; leave out lm_head")
    if layers is None:
        raise ModelError(
            "adapters can only be merged into linear layers and stacks of experts; this model has others, "
            "modules_to_save or a quantised base"
        )
    state = {_bare_name(name): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    state |= {name: _merged_weight(layer, role) for name, layer in layers.items()}
    model.save_pretrained(str(folder), state_dict=state)
    return Path(folder)


def _lora_layers(policy: Policy) -> dict[str, _Adapted] | None:
    """The wrapped layers by the names of their weights; None if one is neither a plain linear layer nor a parameter."""
    found: dict[str, _Adapted] = {}
    for name, module in policy.model.named_modules():
        if isinstance(module, _Adapted):
            parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            found[f"{_bare_name(name)}.{parameter}"] = module
        elif isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            return None
    return found


def _bare_name(name: str) -> str:
    """A name as it was before PEFT wrapped the module, for one or several parameters."""
    return re.sub(r"(\.base_layer)+(?=\.|$)", "", name)


def _twin(model: PreTrainedModel, layers: Mapping[str, _Adapted]) -> PreTrainedModel:
    """The model as it was before PEFT wrapped its layers, sharing every tensor."""
    # deepcopy uses what its memo holds instead of a copy: the tensors themselves, and bare layers for wrapped ones.
    memo = {id(each): each for each in chain(model.parameters(), model.buffers(), (model.config,))}
    bare = {id(layer): copy.deepcopy(layer.get_base_layer(), dict(memo)) for layer in layers.values()}
    return copy.deepcopy(model, {**memo, **bare})


@torch.no_grad()
def _merged_weight(layer: _Adapted, role: Role) -> torch.Tensor:
    """W + scaling B A: summed in float32, and rounded once if the base has another precision."""
    base = _base(layer)
    if isinstance(layer, ParamWrapper) and layer.num_experts > 1:
        left, right, scaling = layer.get_delta_factors(role)
        return torch.baddbmm(base.float(), left.float(), right.float(), alpha=scaling).to(base.dtype)
    [down], [up] = (list(pair[role].parameters()) for pair in (layer.lora_A, layer.lora_B))
    change = up.float() @ down.float() * layer.scaling[role]
    merged = (base.T if layer.fan_in_fan_out else base).float() + change
    if role in layer.lora_magnitude_vector:  # DoRA
        magnitude = layer.lora_magnitude_vector[role].weight.float()
        merged = merged * (magnitude / torch.linalg.norm(merged, dim=1))[:, None]
    return (merged.T if layer.fan_in_fan_out else merged).contiguous().to(base.dtype)


def _base(layer: _Adapted) -> torch.Tensor:
    weight = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    return weight
