"""Which models do the tests run? Random ones of a few thousand weights, one for each family that we promise to play.

Invariant: the same `kind`, `seed` and `vocab_size` give the same weights, and the process's random state is untouched.
Weights are drawn ten times wider than usual, so that attention is far from uniform and a misplaced key or mask shows:

    model = tiny_model("gemma3")      # 4 layers, a sliding window of 8 in two of them, grouped key-value heads
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

KINDS = ("llama", "qwen2", "qwen3", "phi3", "gemma3")
SLIDING_WINDOW = 8
"""Of the Phi-3 and Gemma 3 models: shorter than any prompt worth testing."""


def tiny_model(kind: str, seed: int = 0, vocab_size: int = 128) -> PreTrainedModel:
    """A random float32 model of this family in eval mode; token 0 is its padding."""
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _build(kind, shared).eval()


def _build(kind: str, shared: dict[str, Any]) -> PreTrainedModel:
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**{**shared, "num_key_value_heads": 4, "tie_word_embeddings": True}))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**shared))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=16))
        case "phi3":
            return Phi3ForCausalLM(Phi3Config(**shared, sliding_window=SLIDING_WINDOW))
        case "gemma3":
            sizes = {**shared, "num_hidden_layers": 4, "num_key_value_heads": 1}
            layer_types = ["sliding_attention", "full_attention"] * 2
            return Gemma3ForCausalLM(
                Gemma3TextConfig(
                    **sizes,
                    head_dim=16,
                    query_pre_attn_scalar=16,
                    sliding_window=SLIDING_WINDOW,
                    layer_types=layer_types,
                )
            )
    raise ValueError(f"expected one of {KINDS}, found {kind!r}")
