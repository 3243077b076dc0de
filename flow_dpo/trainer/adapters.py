"""Converts a `peft.LoraConfig` into settings of the roles' adapters.

    lora_settings(LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
    -> {"lora.lora_r": 16, "lora.lora_alpha": 32, "lora.lora_target_modules": ("q_proj", "v_proj")}

Invariant: a field that is set and has no setting is refused by name; no field is silently dropped.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.models.settings import LoraSettings

_SETTINGS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "modules_to_save": "modules_to_save",
}
_NO_EFFECT = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
              "inference_mode")  # fmt: skip
"""Fields that PEFT sets itself, or that do not concern the adapter's shape."""


def lora_settings(config: Any) -> dict[str, Any]:
    """The settings that a `peft.LoraConfig` becomes; each role gets an adapter of this shape. Raises `ConfigError`."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise ConfigError(
            f"expected peft_config to be a peft.LoraConfig, found {type(config).__name__}: every role is a LoRA adapter"
        )
    plain, known = LoraConfig(), {each.name for each in fields(LoraSettings)}
    found: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        setting = _SETTINGS.get(each.name, "")
        if each.name in ("target_modules", "target_parameters") or each.name in _NO_EFFECT:
            continue
        if setting in known and (
            each.name in ("r", "lora_alpha", "lora_dropout") or value != getattr(plain, each.name)
        ):
            found[f"lora.{setting}"] = tuple(value) if isinstance(value, (list, set)) else value
        elif value != getattr(plain, each.name):
            raise ConfigError(
                f"peft_config.{each.name}={value!r:.80} has no place here: adapters have "
                f"{', '.join(name for name, setting in _SETTINGS.items() if setting in known)}, target_modules and "
                "target_parameters; leave it out"
            )
    modules = config.target_modules
    names = {*(modules if isinstance(modules, (list, set, tuple)) else ()), *(config.target_parameters or ())}
    if isinstance(modules, str) and modules != "all-linear":
        raise ConfigError(
            f"peft_config.target_modules={modules!r:.80} has no place here: regular expressions are not supported; "
            'give the names of layers, such as ["q_proj", "v_proj"], or "all-linear"'
        )
    if isinstance(modules, str):
        found["lora.lora_target_modules"] = modules
    elif names:
        found["lora.lora_target_modules"] = tuple(sorted(names))
    return found
