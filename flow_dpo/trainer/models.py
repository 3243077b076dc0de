"""The model that a trainer is handed, by its name, and what its tokenizer says that the model's folder does not.

    name_of("Qwen/Qwen2.5-0.5B-Instruct")       # itself; a loaded model is refused with what to pass
    settings_of_tokenizer(name, tokenizer, FlowDPOConfig())     # {"model.chat_template": "..."} where it has its own

Invariant: a run is resumed, evaluated and pushed by its model's name, so that nothing is taken from an object that the
name does not hold, but what a setting can say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.models.settings import ModelSettings
from flow_dpo.trainer.config import FlowDPOConfig


def name_of(model: Any) -> str:
    """A hub id, a folder or "seed". Raises `ConfigError` for a model in memory."""
    if isinstance(model, (str, Path)):
        return str(model)
    known = getattr(model, "name_or_path", "") or getattr(getattr(model, "config", None), "name_or_path", "")
    same = f", or {known!r}, if its weights are still those" if isinstance(known, str) and known else ""
    raise ConfigError(
        f"expected a hub id, a folder or 'seed' as the model, found a {type(model).__name__} in memory: a run is "
        "resumed, evaluated and pushed by its model's name. Save it and its tokenizer (save_pretrained) to one folder "
        f"and pass that{same}"
    )


def settings_of_tokenizer(model: str, tokenizer: Any, config: FlowDPOConfig) -> dict[str, Any]:
    """What a tokenizer says beyond the one in the model's folder: its chat template and the token that ends an answer.

    Raises `ConfigError` for one of other tokens, and for what is no tokenizer.
    """
    if tokenizer is None:
        return {}
    from flow_dpo.models.load import load_renderer

    if not hasattr(tokenizer, "get_vocab"):
        raise ConfigError(
            f"expected processing_class to be the model's tokenizer, found {type(tokenizer).__name__}; leave it out to "
            "take the one in the model's folder"
        )
    init = config.model_init_kwargs or {}
    trusted = bool(config.trust_remote_code or init.get("trust_remote_code"))
    # A base model's own may have no template, which only the one that was handed over makes good for.
    settings = ModelSettings(
        model_name_or_path=model,
        model_revision=init.get("revision"),
        trust_remote_code=trusted,
        chat_template=tokenizer.chat_template or None,
    )
    own = load_renderer(settings)[1].tokenizer
    if tokenizer.get_vocab() != own.get_vocab():
        raise ConfigError(
            f"expected processing_class to be the tokenizer of {model}, found one of other tokens: save it into the "
            "model's folder (save_pretrained), with the embeddings that go with it"
        )
    found: dict[str, Any] = {}
    if tokenizer.chat_template and tokenizer.chat_template != own.chat_template:
        found["model.chat_template"] = tokenizer.chat_template
    if tokenizer.eos_token != own.eos_token:
        found["model.end_tokens"] = (tokenizer.eos_token,)
    return found
