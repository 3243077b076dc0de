"""Dense decoders: the weights of a transformers model whose layers have the usual structure.

That is an embedding, layers of attention and a gated MLP, each after an RMS norm, and a head: Llama, Qwen 2 and 3,
Mistral, Phi-3 and similar families. Weights are read by names and types of the modules, with the adapters of one role:

    decoder = read_decoder(model)       # None if it contains anything else: another norm, a router, a hook
    decoder.blocks[0].qkv               # [Layer, Layer, Layer], or a single one if the family has them in one weight

Invariant: no module or parameter is left unread; what the model computes with them is not checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from flow_dpo.models.attention import layout_inputs


@dataclass(frozen=True, slots=True)
class Weights:
    """A linear layer's weight and bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer and the adapters that are on: (A, B, scaling) of each."""

    base: Weights
    adapters: tuple[tuple[torch.Tensor, torch.Tensor, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm."""

    weight: torch.Tensor
    eps: float
    scaled: torch.Tensor
    """The weight times the square root of its size, to multiply what was divided by a vector norm instead of an RMS."""
    shift: torch.Tensor
    """The square root of epsilon times the size."""

    @staticmethod
    def of(weight: torch.Tensor, eps: float) -> Norm:
        size = len(weight)
        return Norm(weight, eps, weight * size**0.5, torch.tensor((size * eps) ** 0.5, device=weight.device))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32 and x.device.type == "cpu":
            # Four operations, two of them in place, instead of the eight that torch needs on a CPU.
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x.div(norm.hypot_(self.shift)).mul_(self.scaled)
        if x.dtype == torch.float32:
            return rms_norm(x, self.weight.shape, self.weight, self.eps)
        # Rounded where transformers rounds, to differ as little as possible from the learner's forward.
        return rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype).mul_(self.weight)


@dataclass(frozen=True, slots=True)
class Block:
    """A decoder layer. The linear layers in one list read the same input."""

    attention_norm: Norm
    qkv: list[Layer]
    query_norm: Norm | None
    key_norm: Norm | None
    out: list[Layer]
    mlp_norm: Norm
    gate_up: list[Layer]
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: list[Layer]

    @property
    def inputs(self) -> tuple[list[Layer], ...]:
        return self.qkv, self.out, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class Decoder:
    """The weights of a model under one role."""

    embedding_VC: torch.Tensor
    rotary: torch.nn.Module
    blocks: list[Block]
    norm: Norm
    head: list[Layer]


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """How a layer calls attention."""

    scaling: float
    window: int | None
    kv_heads: int
    size: int


def read_decoder(model: PreTrainedModel) -> Decoder | None:
    """The model's weights; None if it has a module that the lean forward does not know."""
    if not is_plain(model):
        return None
    inner = _children(model, {"model": 1, "lm_head": 1})
    decoder = inner and _children(inner["model"], {"embed_tokens": 1, "layers": 1, "norm": 1, "rotary_emb": 1})
    if not inner or not decoder or type(decoder["embed_tokens"]) is not torch.nn.Embedding:
        return None
    blocks = [_read_block(layer) for layer in decoder["layers"].children()]
    head, norm = read_linear(inner["lm_head"]), _read_norm(decoder["norm"])
    if head is None or norm is None or not blocks or any(block is None for block in blocks):
        return None
    known = [block for block in blocks if block is not None]
    return Decoder(decoder["embed_tokens"].weight.detach(), decoder["rotary_emb"], known, norm, [head])


def read_linear(module: torch.nn.Module | None) -> Layer | None:
    """A plain linear layer, or PEFT's LoRA around one with the adapters that are on; None for anything else."""
    if type(module) is torch.nn.Linear:
        return Layer(Weights(module.weight, module.bias))
    if type(module) is not LoraLinear or type(base := module.get_base_layer()) is not torch.nn.Linear:
        return None
    if module.merged or module.fan_in_fan_out:
        return None
    on = [] if module.disable_adapters else [name for name in module.active_adapters if name in module.lora_A]
    if any(name in module.lora_variant or module.lora_bias[name] for name in on):
        return None
    adapters: list[tuple[torch.Tensor, torch.Tensor, float]] = []
    for name in on:
        (down,), (up,) = (list(pair[name].parameters()) for pair in (module.lora_A, module.lora_B))
        adapters.append((down, up, module.scaling[name]))
    return Layer(Weights(base.weight, base.bias), tuple(adapters))


def attention_calls(model: PreTrainedModel, decoder: Decoder) -> list[AttentionCall] | None:
    """How each layer calls attention, recorded in a forward of the model; None if heads differ in size."""
    recorder = _Recorder()
    ids_1N = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    model(input_ids=ids_1N, position_ids=ids_1N, layout=recorder, **layout_inputs(model.device))
    return recorder.calls if len(recorder.calls) == len(decoder.blocks) and recorder.alike else None


class _Recorder:
    """A layout that records the arguments of attention; its output has the right shape and is never used."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.alike = True
        """Whether queries, keys and values have heads of one size."""

    def attend(
        self,
        layer: int,
        query_1HND: torch.Tensor,
        key_1KND: torch.Tensor,
        value_1KND: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        del layer
        self.calls.append(AttentionCall(scaling, window, *key_1KND.shape[1::2]))
        self.alike &= query_1HND.shape[-1] == key_1KND.shape[-1] == value_1KND.shape[-1]
        return value_1KND.repeat_interleave(query_1HND.shape[1] // key_1KND.shape[1], 1)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether no module has hooks or a replaced forward, and all weights are plain parameters on one device."""
    busy = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    whole = all(type(p) is torch.nn.Parameter and p.device == model.device for p in model.parameters())
    return whole and not busy and model.device.type != "meta"


def _read_block(layer: torch.nn.Module) -> Block | None:
    sub = _children(
        layer,
        {"self_attn": 1, "mlp": 1, "input_layernorm": 1, "post_attention_layernorm": 1}
        | dict.fromkeys(("resid_attn_dropout", "resid_mlp_dropout"), 0),
    )
    if not sub:
        return None
    fused = {"qkv_proj": 1, "o_proj": 1}
    attention = _children(
        sub["self_attn"], {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 1, "q_norm": 0, "k_norm": 0}
    )
    attention = attention or _children(sub["self_attn"], fused)
    mlp = _children(sub["mlp"], {"gate_proj": 1, "up_proj": 1, "down_proj": 1, "act_fn": 1})
    mlp = mlp or _children(sub["mlp"], {"gate_up_proj": 1, "down_proj": 1, "activation_fn": 1})
    first, second = _read_norm(sub["input_layernorm"]), _read_norm(sub["post_attention_layernorm"])
    if not attention or not mlp or first is None or second is None:
        return None
    groups = [
        _layers(attention, ("qkv_proj",) if "qkv_proj" in attention else ("q_proj", "k_proj", "v_proj")),
        _layers(attention, ("o_proj",)),
        _layers(mlp, ("gate_up_proj",) if "gate_up_proj" in mlp else ("gate_proj", "up_proj")),
        _layers(mlp, ("down_proj",)),
    ]
    norms = [_read_norm(attention[name]) for name in ("q_norm", "k_norm") if name in attention]
    qkv, out, gate_up, down = groups
    if qkv is None or out is None or gate_up is None or down is None or None in norms or len(norms) == 1:
        return None
    query_norm, key_norm = norms or (None, None)
    activation: Any = mlp.get("act_fn") or mlp.get("activation_fn")
    return Block(first, qkv, query_norm, key_norm, out, second, gate_up, activation, down)


def _layers(modules: Mapping[str, torch.nn.Module], names: Sequence[str]) -> list[Layer] | None:
    found = [read_linear(modules[name]) for name in names]
    return None if None in found else [layer for layer in found if layer is not None]


def _read_norm(module: torch.nn.Module) -> Norm | None:
    """A norm with only a weight and transformers' name for its epsilon; that it is an RMS norm is measured later."""
    eps, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, torch.Tensor) or weight.dim() != 1:
        return None
    return Norm.of(weight.detach(), eps) if [name for name, _ in module.named_parameters()] == ["weight"] else None


def _children(module: torch.nn.Module, names: Mapping[str, int]) -> dict[str, torch.nn.Module]:
    """The module's children by name; empty if a required one (1) is missing, or one has another name."""
    found = dict(module.named_children())
    complete = all(name in found for name, needed in names.items() if needed) and set(found) <= set(names)
    return found if complete else {}
