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

from flow_dpo.models.reduced import reduced

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16},
    "granitemoehybrid": {"mamba_d_head": 16},
    "mamba2": {"num_heads": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "nemotron": {"num_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "reformer": {"is_decoder": True},
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
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
