"""Adapter files: a LoRA adapter in PEFT's layout, written and read as `peft`, transformers and vLLM do.

    write(folder, {"base_model.model....q_proj.lora_A.weight": tensor, ...}, config)
    read(folder, config, own)        # {name: tensor}; ModelError for another kind of adapter

Invariant: an adapter that is read has the shape and the meaning that `config` describes. One that depends on something
that these settings cannot express (ranks by layer, an initialisation that changes the base) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import PickleError

import torch
from peft import LoraConfig, PeftConfig, load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import save_file

from flow_dpo.core.errors import ModelError

_SHAPE = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""Fields of PEFT's config that must be equal, and the settings for them here. Adapted weights are compared by name."""
_STRANGE = (
    "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices", "layer_replication", "megatron_config",
    "alora_invocation_tokens",
)  # fmt: skip
"""Fields of PEFT's config for which there is no setting here."""
_PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base as it is."""


def parameter_name(name: str, adapter: str) -> str | None:
    """The name under which PEFT saves the parameter `name` of this adapter; None if it is not the adapter's."""
    part = re.compile(rf"(\.lora_\w+)\.{adapter}(?=\.|$)|\.modules_to_save\.{adapter}(?=\.)")
    if not part.search(name):
        return None
    saved = part.sub(lambda found: found[1] or "", name)
    return saved.removesuffix(".weight") if saved.endswith(".lora_magnitude_vector.weight") else saved


def write(folder: Path, tensors: Mapping[str, torch.Tensor], config: LoraConfig) -> None:
    """Write an adapter; the same tensors and config give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.inference_mode = True
    # PEFT keeps these as sets, which have no order.
    config.target_modules = sorted(config.target_modules or ())
    config.target_parameters = sorted(config.target_parameters or ()) or None
    config.modules_to_save = sorted(config.modules_to_save or ()) or None
    config.save_pretrained(str(folder))


def read(folder: str | Path, wanted: LoraConfig, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter, by name. Raises `ModelError` if its shape or kind is not `wanted`, or if its tensors
    differ from `own` in name or shape."""
    try:
        config = PeftConfig.from_pretrained(str(folder))
        state = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, PickleError, SafetensorError) as error:
        # torch's own message about a pickle advises to run the code in it.
        why = "its weights are a pickle of more than tensors; save them as safetensors"
        why = why if isinstance(error, PickleError) else str(error) or type(error).__name__
        raise ModelError(f"{folder}: expected an adapter in PEFT's layout, PEFT cannot read it: {why}") from error
    for key, setting in _SHAPE.items():
        found, expected = (getattr(each, key, None) for each in (config, wanted))
        if found != expected:
            raise ModelError(
                f"{folder}: the adapter was made with {key} = {found}, this policy has {expected}; use the settings "
                f"that it was made with (--{setting})"
            )
    strange = [key for key in _STRANGE if getattr(config, key, None)]
    strange += ["bias"] if getattr(config, "bias", "none") != "none" else []
    init = getattr(config, "init_lora_weights", True)
    strange += [] if init in _PLAIN_INITS else [f"init_lora_weights = {init}, which changes the base,"]
    if strange:
        raise ModelError(
            f"{folder}: expected a LoRA adapter that a rank, a scale and its modules describe, found one with "
            f"{', '.join(strange)} for which there is no setting here; merge it into its base (PEFT's "
            "merge_and_unload) and train from that"
        )
    odd = sorted(name for name in {*state, *own} if not (name in state and name in own))
    odd = odd or [name for name, tensor in state.items() if tensor.shape != own[name].shape]
    if odd:
        raise ModelError(
            f"{folder}: the adapter is for another model, other target modules or modules_to_save: {len(odd)} names or "
            f"shapes differ, such as {odd[0]}"
        )
    return state
