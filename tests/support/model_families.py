"""Model families: a tiny random model of every kind of causal language model that transformers can build.

The default config of each entry of transformers' mapping of causal models is reduced (`models.reduced`), with a few
overrides where a family's own rules demand a size. Invariant: the same name and seed give the same weights, and the
process's random state is untouched.

    names()                     # ("afmoe", "apertus", ..., "zaya")
    build("gemma2")             # Gemma2ForCausalLM of 4 layers, a window of 8 in two of them
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flow_dpo.models.reduced import WINDOW, reduced

_HYBRID = ["linear_attention", "full_attention"] * 2

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], "num_hidden_layers": 4},
    "granitemoehybrid": {"layer_types": _HYBRID, "num_hidden_layers": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]}
    | {"num_layers": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
    "mistral": {"sliding_window": WINDOW},
    "ministral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "layer_types": None},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "layer_types": None},
    "starcoder2": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "falcon_h1": {"lm_head_multiplier": 0.05},
}
"""Fields that a family needs beyond what `reduced` does."""


def names() -> tuple[str, ...]:
    """All kinds of causal models that this version of transformers knows."""
    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **own: Any) -> PreTrainedModel:
    """A tiny random model of this family in eval mode. Raises what transformers raises where it cannot be built."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config = reduced(CONFIG_MAPPING[name](), **{**OVERRIDES.get(name, {}), **own})
        if hasattr(config, "is_decoder") and "is_decoder" not in own:
            config.is_decoder = True  # as a language model; without it the family reads both ways
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
