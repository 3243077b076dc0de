"""LoRA merging: for each role a twin of the base model with the role's adapter merged into its weights.

A LoRA layer computes W x and then B A x beside it, at every token (benchmarks/RESULTS.md has the cost). During rollouts
the two can be one matrix. A twin shares every tensor with the base model but the weights that a role's adapter changes,
which are its own, W + scaling B A (Hu et al. 2021, section 4.1):

    merged_models = MergedModels(model, ("answer", "stop"))      before PEFT wraps the model's layers
    merged_models.merge("answer", layers)           the twin, merged again if the adapter has changed since

Invariant: a twin is a function of base and adapter alone (merged from them each time, never from itself), so that a
resumed run samples as an uninterrupted one. Only for float32: in half precision the sum would round the adapter away.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import PreTrainedModel

from flow_dpo.core.types import Role

MAX_BYTES = 2**30
"""Bytes of all twins' own weights up to which adapters are merged by default."""


class MergedModels:
    """A twin of the model for each role, with the role's adapter merged."""

    def __init__(self, model: PreTrainedModel, roles: Sequence[Role]) -> None:
        shared = {id(each): each for each in chain(model.parameters(), model.buffers(), (model.config,))}
        self._models: dict[Role, PreTrainedModel] = {role: copy.deepcopy(model, dict(shared)) for role in roles}
        self._adapters: dict[Role, list[torch.Tensor]] = {}
        """Collected once: `merge` is called before every forward."""
        self._merged: dict[Role, list[int]] = {}
        """Version counters of the adapter's tensors when they were merged."""

    @torch.no_grad()
    def merge(self, role: Role, layers: Mapping[str, LoraLinear]) -> PreTrainedModel:
        """The role's twin, merged now if its adapter has changed. `layers` are the LoRA layers by module name."""
        model = self._models[role]
        if role not in self._adapters:
            self._adapters[role] = [tensor for layer in layers.values() for tensor in _tensors(layer, role)]
        # Torch counts in-place changes of a tensor: an optimizer's step, a loaded adapter.
        versions = [tensor._version for tensor in self._adapters[role]]
        if self._merged.get(role) != versions:
            for name, layer in layers.items():
                model.get_submodule(name).weight = torch.nn.Parameter(merged_weight(layer, role), requires_grad=False)
            self._merged[role] = versions
        return model


@torch.no_grad()
def merged_weight(layer: LoraLinear, role: Role) -> torch.Tensor:
    """W + scaling B A: summed in float32, and rounded once where the base is in another precision."""
    base, [down], [up] = _base(layer), *(list(pair[role].parameters()) for pair in (layer.lora_A, layer.lora_B))
    change = up.float() @ down.float() * layer.scaling[role]
    return (base.float() + (change.T if layer.fan_in_fan_out else change)).to(base.dtype)


def num_bytes(layers: Mapping[str, LoraLinear], num_roles: int) -> int:
    """Bytes of the own weights of the twins of `num_roles` roles."""
    return num_roles * sum(_base(layer).nbytes for layer in layers.values())


def _base(layer: LoraLinear) -> torch.Tensor:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _tensors(layer: LoraLinear, role: Role) -> list[torch.Tensor]:
    return [*layer.lora_A[role].parameters(), *layer.lora_B[role].parameters()]
