"""Facts that configs state in many ways: vocabulary size, context window, and lengths at which a model's code changes.

vocabulary_size(model)      # 151936
context_tokens(config)      # 32768: max_position_embeddings, n_positions, max_seq_len, ...
steady_tokens(model)        # None; 4096 for a model with "longrope" scaling
named_lengths(config)       # {"sliding_window": 4096}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from flow_dpo.core.errors import ModelError

_CONTEXTS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "model_max_length", "n_ctx",
    "context_length", "max_target_positions", "seq_length",
)  # fmt: skip
"""Names under which configs state the longest context."""
_LENGTHS = re.compile(
    r"window|chunk|block_size|original_max|index_topk|indexer_budget|floor|extent|local_attention|compress_rate|sink"
)
_NO_LENGTHS = re.compile(r"layers|pattern|feed_forward|lm_head|_heads|ffn")
"""Fields whose names look like lengths but are not."""


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the input embedding: token ids must be below this. Raises `ModelError` if there is no such embedding."""
    try:
        rows = getattr(getattr(model.get_input_embeddings(), "weight", None), "shape", None)
    except NotImplementedError:
        rows = None
    if not rows:
        raise ModelError(
            f"expected a language model with one embedding for tokens, found none in {type(model).__name__}"
        )
    return int(rows[0])


def context_tokens(config: PreTrainedConfig) -> int | None:
    """The longest context that the config states, in tokens; None if it states none (a model without positions)."""
    text = config.get_text_config()
    for name in _CONTEXTS:
        tokens = getattr(text, name, None)
        if type(tokens) is int and tokens > 0:
            return tokens
    return None


def steady_tokens(model: PreTrainedModel) -> int | None:
    """Length up to which a token's rotary embedding depends only on its own position; None if it always does.

    "longrope" and "dynamic" RoPE rotate every token of a forward differently once its longest row passes this length:
    cached keys would be wrong, and rows would depend on their neighbours.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = (
        [rope]
        if "rope_type" in rope
        else [rope_settings for rope_settings in rope.values() if isinstance(rope_settings, dict)]
    )
    limits = [
        rope_settings.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope_settings in ropes
        if rope_settings.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(limits, default=None)


def named_lengths(config: PreTrainedConfig) -> dict[str, int]:
    """Windows, chunks and other lengths in tokens that the text part of a config names, by name."""
    return {name: value for name, value in _lengths("", config.get_text_config().to_dict()) if value > 1}


def _lengths(outer: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in fields.items():
        name = f"{outer}{key}"
        if isinstance(value, dict):
            yield from _lengths(f"{name}.", value)
        elif type(value) is int and is_length(name):
            yield name, value


def is_length(name: str) -> bool:
    """Whether a field of a config is a length in tokens, by its name."""
    return bool(_LENGTHS.search(name) and not _NO_LENGTHS.search(name))
