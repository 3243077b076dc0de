"""Adapter targets: which weights of a model get LoRA adapters, by which of PEFT's two ways, and what share that is.

"all-linear" is every linear layer and every stack of experts (one three-dimensional parameter) that a forward over text
uses, except the output head and the embeddings. A layer becomes one of PEFT's target modules, a stack one of its target
parameters. Names are as short as they can be without matching anything else:

    find_targets(qwen3_moe, "all-linear")
        modules ("k_proj", "o_proj", "q_proj", "v_proj"), parameters ("down_proj", "gate_up_proj"), share 0.93

A stack's adapted weights W + B A are computed at every forward. They take as much memory again as the stack, until the
backward pass if activations are not checkpointed. In half precision they are rounded like working copies of float32
weights, in sampling and learning alike.

Layers that an adapter would not affect are left out (an image tower, a layer whose weight is read directly), and so is
what PEFT refuses. With dropout or DoRA all target parameters are left out: PEFT supports neither for them.

Invariant: names match the intended weights and no others, in this process and for every reader of a saved adapter.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer, _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flow_dpo.core.errors import ModelError
from flow_dpo.models.quantization import num_weights
from flow_dpo.models.settings import ALL_LINEAR, LoraSettings

_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError, NotImplementedError)
"""What a model's own code can raise when it is called in a way that it was not made for."""
_TRIAL_TOKENS = 8
_FEW = 0.5
"""If adapters reach a smaller share of the weights than this, a warning says what has no adapter."""


@dataclass(frozen=True, kw_only=True)
class AdapterTargets:
    """The weights of one model that get adapters."""

    modules: tuple[str, ...]
    """PEFT's `target_modules`: the last parts of layer names, as many as distinguish them from all others."""
    parameters: tuple[str, ...]
    """PEFT's `target_parameters`, named in the same way."""
    share: float
    """Share of the model's weights that the adapters reach, 0 to 1."""
    expert_share: float
    """Share of the model's weights that are in stacks of experts."""
    missed_share: float
    """Share of the model's weights that are in stacks of experts without an adapter."""
    whole: tuple[str, ...] = ()
    """PEFT's `modules_to_save`: modules that are trained in full."""

    def config(self, settings: LoraSettings) -> LoraConfig:
        """PEFT's configuration of an adapter on these weights."""
        return LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
            target_modules=list(self.modules),
            target_parameters=list(self.parameters) or None,
            modules_to_save=list(self.whole) or None,
            task_type="CAUSAL_LM",
        )

    def describe(self) -> str:
        """One sentence for the user who starts a run."""
        line = f"Adapters reach {self.share:.0%} of the model's weights"
        return line + (f" (experts without an adapter hold {self.missed_share:.0%})" if self.missed_share else "")


def targets_of(model: PreTrainedModel, settings: LoraSettings) -> AdapterTargets:
    """The targets for these settings. Raises `ModelError` as `find_targets` does."""
    without = "dropout" if settings.lora_dropout else "DoRA" if settings.use_dora else ""
    return find_targets(model, settings.lora_target_modules, without=without, whole=settings.modules_to_save)


_REMEDIES = {"dropout": "set lora_dropout to 0", "DoRA": "leave out use_dora"}


def find_targets(
    model: PreTrainedModel, wanted: str | Sequence[str], *, without: str = "", whole: Sequence[str] = ()
) -> AdapterTargets:
    """The targets that `wanted` names: "all-linear", or the last parts of names of layers, embeddings and stacks.

    `without` is "dropout" or "DoRA" if the settings ask for it, since PEFT does not support it for stacks; `whole` are
    the last parts of the names of modules that are trained in full and get no adapter.

    Warns if "all-linear" leaves most weights without an adapter. Raises `ModelError` for a name that the model does not
    have or that PEFT refuses, and for a model that already has adapters.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError(
            f"this {type(model).__name__} already has an adapter; give the base model, or merge the adapter into "
            "it first (PEFT's merge_and_unload)"
        )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D | torch.nn.Embedding)}
    stacks = {n: p for n, p in model.named_parameters() if _is_stack(model, n, p)}
    refused = {name for name in layers if _refuses(model, name)}
    if wanted == ALL_LINEAR:
        chosen = _all_linear(model, layers, stacks) - refused
    else:
        chosen = _named(model, (wanted,) if isinstance(wanted, str) else tuple(wanted), layers, stacks)
        if chosen & refused:
            raise ModelError(
                f"lora_target_modules: PEFT puts no adapter on {sorted(chosen & refused)[0]} of "
                f"{type(model).__name__}, whose weight is used outside the layer; leave it out"
            )
    # Layers whose names PEFT would take for experts of an older layout are reached as parameters.
    taken = _taken_for_experts(model, {name.rpartition(".")[2] for name in chosen if name in layers})
    as_parameter = {name for name in chosen if name in stacks or name.rpartition(".")[2] in taken}
    if without and as_parameter and wanted != ALL_LINEAR:
        raise ModelError(
            f"lora_target_modules: PEFT has no {without} for {sorted(as_parameter)[0]}, which is reached as a "
            f"parameter; {_REMEDIES[without]}, or leave it out"
        )
    if without:
        chosen -= as_parameter
    kept = _whole(model, whole)
    inside = {name for name in chosen if any(f"{name}.".startswith(f"{one}.") for one in kept)}
    if inside and wanted != ALL_LINEAR:
        raise ModelError(
            f"modules_to_save: {sorted(inside)[0]} would both have an adapter and train in full; leave it out of "
            "lora_target_modules or of modules_to_save"
        )
    chosen -= inside
    if not chosen:
        raise ModelError(f"{type(model).__name__} has no layer that PEFT can put an adapter on")
    targets = _targets(model, chosen, as_parameter, layers, stacks, kept)
    if wanted == ALL_LINEAR and targets.share < _FEW and (targets.missed_share or as_parameter - chosen):
        warnings.warn(
            f"{targets.describe()}: PEFT has no {without} for experts that are one stacked parameter; "
            f"{_REMEDIES.get(without, 'name other layers')} to reach them",
            stacklevel=2,
        )
    return targets


def _targets(
    model: PreTrainedModel,
    chosen: set[str],
    as_parameter: set[str],
    layers: Mapping[str, torch.nn.Module],
    stacks: Mapping[str, torch.nn.Parameter],
    kept: Collection[str],
) -> AdapterTargets:
    modules = {name for name in chosen if name not in as_parameter}
    parameters = {name if name in stacks else f"{name}.weight" for name in chosen & as_parameter}
    # Layers can share one weight: it counts once.
    weights = {id(w): num_weights(w) for w in (_weight(layers[n]) if n in layers else stacks[n] for n in chosen)}
    weights |= {id(w): num_weights(w) for name in kept for w in model.get_submodule(name).parameters()}
    total = sum(map(num_weights, model.parameters()))
    return AdapterTargets(
        modules=_short_names(modules, (name for name, _ in model.named_modules())),
        parameters=_short_names(parameters, (name for name, _ in model.named_parameters())),
        share=sum(weights.values()) / total,
        expert_share=sum(p.numel() for p in stacks.values()) / total,
        missed_share=sum(p.numel() for name, p in stacks.items() if name not in chosen) / total,
        whole=tuple(sorted(kept)),
    )


def _all_linear(
    model: PreTrainedModel, layers: Mapping[str, torch.nn.Module], stacks: Mapping[str, torch.nn.Parameter]
) -> set[str]:
    """Names of the linear layers and stacks that a forward over text uses, except the head."""
    head, used = model.get_output_embeddings(), _used_modules(model)
    linear = {
        name
        for name, layer in layers.items()
        if not isinstance(layer, torch.nn.Embedding) and layer is not head and _is_product(layer)
    }
    return {
        name
        for name in (*linear, *stacks)
        if used is None or _pattern(name if name in linear else name.rpartition(".")[0]) in used
    }


def _named(
    model: PreTrainedModel,
    wanted: Sequence[str],
    layers: Mapping[str, torch.nn.Module],
    stacks: Mapping[str, torch.nn.Parameter],
) -> set[str]:
    """Full names of the layers and stacks that these names stand for."""
    found = {w: {n for n in (*layers, *stacks) if n == w or n.endswith(f".{w}")} for w in wanted}
    for w in wanted:
        # The weight of a layer, as a saved adapter names it if it was reached as a parameter.
        stem = w.removesuffix(".weight")
        found[w] |= {n for n in layers if stem != w and (n == stem or n.endswith(f".{stem}"))}
    missing = [w for w in wanted if not found[w]]
    if missing or not wanted:
        head = model.get_output_embeddings()
        linear = {
            n.rpartition(".")[2] for n, m in layers.items() if m is not head and not isinstance(m, torch.nn.Embedding)
        }
        known = ", ".join(sorted(linear)) + "".join(f", {n}" for n in _short_names(stacks, ()))
        raise ModelError(
            f"lora_target_modules: this model has no linear layer {', '.join(missing) or '()'}; "
            f"its linear layers are {known} (or {ALL_LINEAR!r})"
        )
    return set().union(*found.values())


def _whole(model: PreTrainedModel, names: Sequence[str]) -> set[str]:
    """Full names of the modules that these last parts of names stand for."""
    every = {name: module for name, module in model.named_modules() if name}
    found = {one: {name for name in every if name == one or name.endswith(f".{one}")} for one in names}
    for one, full in found.items():
        if not full or not all(any(True for _ in every[name].parameters()) for name in full):
            known = sorted({name.rpartition(".")[2] for name, module in every.items() if [*module.parameters(False)]})
            raise ModelError(
                f"modules_to_save: {type(model).__name__} has no module {one!r} with weights; its modules are "
                f"{', '.join(known)}"
            )
    return set().union(*found.values())


def _is_stack(model: PreTrainedModel, name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter is a stack of experts' matrices: experts, rows and columns, more than one of each."""
    if parameter.ndim != 3 or min(parameter.shape) == 1:
        return False
    owner = model.get_submodule(name.rpartition(".")[0])
    return "Expert" in type(owner).__name__ or getattr(owner, "num_experts", None) == parameter.shape[0]


def _is_product(layer: torch.nn.Module) -> bool:
    """Whether a layer only multiplies by its weight and adds its bias; a model's own subclass can do otherwise."""
    if not type(layer).__module__.startswith(("transformers.models.", "transformers_modules.")):
        return True
    assert isinstance(layer, torch.nn.Linear | Conv1D)
    with torch.no_grad():
        weight = layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.T
        trial = torch.linspace(-1, 1, weight.shape[1], device=weight.device).to(weight.dtype)[None]
        try:
            found = layer(trial)
        except _FAILURES:
            return False
        expected = torch.nn.functional.linear(trial, weight, layer.bias)
    same = isinstance(found, torch.Tensor) and found.shape == expected.shape
    return same and torch.allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@torch.no_grad()
def _used_modules(model: PreTrainedModel) -> set[str] | None:
    """Patterns of the modules that a forward over a few tokens calls; None if the model cannot be called that way.

    A few tokens call only a few experts of a list; these stand for all.
    """
    called: set[str] = set()
    ids = torch.arange(_TRIAL_TOKENS, device=model.device)[None] % _weight(model.get_input_embeddings()).shape[0]
    with ExitStack() as stack:
        for name, module in model.named_modules():
            pattern = _pattern(name)
            handle = module.register_forward_pre_hook(lambda *_, pattern=pattern: called.add(pattern))
            stack.callback(handle.remove)
        try:
            model(input_ids=ids, use_cache=False)
        except _FAILURES:
            return None
    return called


def _pattern(name: str) -> str:
    """A module's name without the numbers of layers and experts."""
    return re.sub(r"\d+", "N", name)


def _refuses(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT refuses an adapter on this layer: a Mamba block's output, whose weight kernels read directly."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False


def _taken_for_experts(model: PreTrainedModel, last_parts: Iterable[str]) -> set[str]:
    """Those of the names that PEFT turns into stacks of experts, as for adapters made before experts were stacked."""
    taken: set[str] = set()
    for part in last_parts:
        config = LoraConfig(target_modules=[part])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:  # PEFT asks for the other names that belong to the same stack
            taken.add(part)
        else:
            taken |= set() if part in (config.target_modules or ()) else {part}
    return taken


def _short_names(wanted: Iterable[str], everything: Iterable[str]) -> tuple[str, ...]:
    """For each name, the shortest ending that no unwanted name has."""
    wanted = set(wanted)
    others = {end for name in everything if name not in wanted for end in _ends(name)}
    return tuple(sorted({next((end for end in _ends(name) if end not in others), name) for name in wanted}))


def _ends(name: str) -> list[str]:
    """The last part of a dotted name, its last two parts, and so on; none that begins with a number."""
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1) if not parts[at].isdigit()]


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    assert isinstance(layer.weight, torch.Tensor)
    return layer.weight
