"""Quantised base: frozen weights in 4 or 8 bits by bitsandbytes, adapters in full precision over them.

    options = loading_options(QuantizationSettings(load_in_4bit=True), torch.bfloat16, torch.device("cuda:0"))
    AutoModelForCausalLM.from_pretrained(name, **options)      # and then settle(model)

With 4 bits (NF4 or FP4, arXiv 2305.14314) weights are unpacked for every product. With 8 bits (arXiv 2208.07339) the
inputs of a product are rounded as well, token by token. The paper keeps the outliers of a batch apart; that is off here
(`llm_int8_threshold` 0), since a token would then depend on its neighbours in a forward.

Invariant: a token's result does not depend on the batch, and gradients reach every adapter; so no layer keeps its
weights in bitsandbytes' packed layout for some CPUs, which rounds them again and has no gradient.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from flow_dpo.core.errors import ConfigError
from flow_dpo.models.settings import QuantizationSettings

_DEVICES = ("cuda", "cpu", "xpu")


def check_quantization(settings: QuantizationSettings, device: torch.device) -> None:
    """Raise `ConfigError` if bitsandbytes is missing or does not support the device."""
    if not settings.wanted:
        return
    flag = "--load_in_4bit" if settings.load_in_4bit else "--load_in_8bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{flag} needs bitsandbytes, which is not installed here; install it with: pip install -e '.[quantised]', "
            f"or leave {flag} out"
        )
    if device.type not in _DEVICES:
        raise ConfigError(
            f"{flag} needs a device that bitsandbytes knows ({', '.join(_DEVICES)}), found {device}; give another "
            f"--device, or leave {flag} out"
        )


def loading_options(settings: QuantizationSettings, dtype: torch.dtype | None, device: torch.device) -> dict[str, Any]:
    """Additional arguments for `from_pretrained`; empty if the base is not to be quantised."""
    if not settings.wanted:
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=settings.load_in_4bit,
        load_in_8bit=settings.load_in_8bit,
        llm_int8_threshold=0.0,
        bnb_4bit_quant_type=settings.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=settings.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=dtype or torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def settle(model: PreTrainedModel) -> None:
    """Keep the layers of a quantised model from packing their weights on a CPU, and from logging a line for every
    product in 8 bits."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def num_weights(parameter: torch.Tensor) -> int:
    """Number of weights in a parameter: two per byte if they have 4 bits each."""
    packed = type(parameter).__name__ == "Params4bit" and not parameter.is_floating_point()
    return parameter.numel() * (2 if packed else 1)
