"""A trainer's model by its name, and the settings in which its tokenizer differs from the model folder's.

    name_of("Qwen/Qwen2.5-0.5B-Instruct")       # the name itself; a loaded model is refused with what to pass
    settings_of_tokenizer(name, tokenizer, FlowDPOConfig())     # {"model.chat_template": "..."} if it has its own

Invariant: a run is resumed, evaluated and pushed by its model's name. So nothing is taken from an object unless the
name leads to it or a setting can express it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.models.settings import ModelSettings
from flow_dpo.trainer.config import FlowDPOConfig


def name_of(model: Any) -> str:
    """The model's name: a hub id, a folder or "seed". Raises `ConfigError` for a model in memory."""
    if isinstance(model, (str, Path)):
        return str(model)
    known = getattr(model, "name_or_path", "") or getattr(getattr(model, "config", None), "name_or_path", "")
    same = f", or {known!r}, if its weights are unchanged" if isinstance(known, str) and known else ""
    raise ConfigError(
        f"expected a hub id, a folder or 'seed' as the model, found a {type(model).__name__} in memory: a run is "
        "resumed, evaluated and pushed by its model's name. Save it and its tokenizer (save_pretrained) to one folder "
        f"and pass that{same}"
    )


def settings_of_tokenizer(model: str, tokenizer: Any, config: FlowDPOConfig) -> dict[str, Any]:
    """The settings in which a tokenizer differs from the model folder's: its chat template and its end-of-answer token.

    Raises `ConfigError` for a tokenizer with other tokens, and for anything that is no tokenizer.
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
    # A base model's own tokenizer may lack a template; the one that was passed supplies it.
    settings = ModelSettings(
        model_name_or_path=model,
        model_revision=init.get("revision"),
        trust_remote_code=trusted,
        chat_template=tokenizer.chat_template or None,
    )
    own = load_renderer(settings)[1].tokenizer
    if tokenizer.get_vocab() != own.get_vocab():
        raise ConfigError(
            f"expected processing_class to be the tokenizer of {model}, found one with other tokens: save it to the "
            "model's folder (save_pretrained), with the embeddings that belong to it"
        )
    found: dict[str, Any] = {}
    if tokenizer.chat_template and tokenizer.chat_template != own.chat_template:
        found["model.chat_template"] = tokenizer.chat_template
    if tokenizer.eos_token != own.eos_token:
        found["model.end_tokens"] = (tokenizer.eos_token,)
    return found
