"""Reduced configuration: for a tiny model of the same class, with the same kinds of layers and with short windows.

What a family does with positions, windows, chunks and shared keys is decided by its code and the pattern of its layers,
not by its size. Exceeding a window of 4,096 tokens takes long; exceeding one of 8 takes no time. So a check that must
go beyond every length that a config names uses a random model of the reduced config:

    reduced(Gemma3TextConfig(num_hidden_layers=26))     4 layers: sliding, sliding, full, full; a window of 8

Invariant: every distinct kind of layer in the config is in the reduced one, twice if it occurs twice or more, in the
same order; whatever multiplies, caps or adds (`logit_scale`, `final_logit_softcapping`, ...) stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from flow_dpo.models.facts import is_length

WINDOW = 8
"""Size in tokens of every sliding window, chunk and block of the reduced config."""
POSITIONS = 512
"""Number of positions that have embeddings."""
VOCABULARY = 128
"""Size of the vocabulary."""
_HIDDEN, _HEADS, _HEAD = 64, 4, 16

_SIZES = (
    (VOCABULARY, "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length max_target_positions "
        "context_length max_source_positions",
    ),
    (
        _HIDDEN,
        "hidden_size d_model n_embd embedding_size word_embed_proj_dim emb_dim embedding_dim lru_width "
        "input_embedding_size output_embedding_size backbone_hidden_size",
    ),
    (
        2 * _HIDDEN,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff ffn_hidden_size d_inner n_inner "
        "intermediate_size_mlp dense_intermediate_size attention_hidden_size mamba_d_ssm feed_forward_size",
    ),
    (
        _HIDDEN // 2,
        "attention_head_dim moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
        "shared_experts_intermediate_size shared_intermediate_size expert_ffn_hidden_size ple_embed_dim "
        "router_hidden_size q_lora_rank",
    ),
    (
        _HEAD,
        "head_dim qk_nope_head_dim v_head_dim kv_lora_rank linear_key_head_dim linear_value_head_dim linear_head_dim "
        "swa_head_dim swa_v_head_dim index_head_dim kv_channels dim_head d_head attention_head_size global_head_dim "
        "mamba_d_head mamba_head_dim mamba_headdim mamba_d_state state_size ssm_state_size mamba_dt_rank "
        "time_step_rank hidden_size_per_layer_input laurel_rank adapter_rank o_lora_rank gated_norm_rank hc_lowrank "
        "query_pre_attn_scalar mamba_chunk_size",
    ),
    (
        WINDOW,
        "sliding_window sliding_window_size attention_chunk_size window_size local_attention keep_window_size "
        "attention_window_size chunk_size block_size index_topk floor_scale log_scaling_n_floor mamba_n_heads "
        "mamba_num_heads n_mamba_heads qk_rope_head_dim rotary_dim d_rel rel_extent lsh_attn_chunk_length "
        "local_attn_chunk_length local_attention_window_len index_block_size",
    ),
    (
        _HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads num_query_groups "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads index_n_heads "
        "linear_num_value_heads linear_num_heads swa_num_attention_heads num_experts n_routed_experts "
        "num_local_experts moe_num_experts",
    ),
    (
        2,
        "num_experts_per_tok num_experts_per_token moe_topk moe_k num_codebooks linear_num_key_heads mamba_n_groups "
        "n_groups mamba_ngroups encoder_layers swa_num_key_value_heads num_global_key_value_heads index_topk_blocks "
        "layer_group_size attn_layer_period expert_layer_period sliding_window_pattern _sliding_window_pattern "
        "no_rope_layer_interval global_attn_every_n_layers o_groups zero_expert_num num_encoder_layers "
        "n_layers_per_attn_res_block num_layers_per_stack",
    ),
    (
        1,
        "n_group topk_group num_expert_group attn_layer_offset expert_layer_offset num_mem_blocks n_shared_experts "
        "num_shared_experts moe_num_shared_experts num_nextn_predict_layers",
    ),
)
_REDUCED = {name: size for size, names in _SIZES for name in names.split()}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers",
           "num_blocks")  # fmt: skip
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2}
"""Special tokens inside the vocabulary; others that the config names are outside it and never occur."""
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Fields that hold the index of a layer; the layers before it are of another kind."""
_LAST_LAYERS = ("num_kv_shared_layers",)
"""Fields that hold the number of layers at the end that are of another kind."""


def reduced(config: PreTrainedConfig, **own: Any) -> PreTrainedConfig:
    """The reduced copy of a config, including the parts of a composite one; `own` fields are set as given.

    Raises `ValueError`, or whatever the config's class raises, if its own rules forbid a size.
    """
    try:
        return type(config).from_dict({**_reduced_fields(config), **own})
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error


def _reduced_fields(config: PreTrainedConfig) -> dict[str, Any]:
    whole = {name: value for name, value in config.to_dict().items() if name not in ("id2label", "label2id")}
    fields = whole | _reduced_layers(whole)
    for name, value in list(fields.items()):
        part = vars(config).get(name)
        fields[name] = _reduced_fields(part) if isinstance(part, PreTrainedConfig) else _sized(name, value, whole)
    _settle_heads(fields, whole)
    for name in ("initializer_range", "init_std"):
        if name in fields:
            fields[name] = 0.15  # wide enough that attention is far from uniform, and a misplaced key shows
    _reduce_rope(fields)
    return fields


def _sized(name: str, value: Any, whole: Mapping[str, Any]) -> Any:
    """One field's value, made small if it is a size."""
    if isinstance(value, list) and value and name in _REDUCED and all(type(v) is int for v in value):
        return [_sized(name, v, whole) for v in value]
    if name == "per_layer_config" and isinstance(value, dict):
        return {i: {key: _sized(key, v, whole | own) for key, v in own.items()} for i, own in value.items()}
    if name in _TOKENS and value is not None:
        return _TOKENS[name]
    if isinstance(value, dict) and is_length(name):
        return {key: _sized(name, v, whole) for key, v in value.items()}
    if type(value) is not int:
        return value
    if name in _KEY_HEADS:
        heads = next((whole[each] for each in ("num_attention_heads", "n_head") if each in whole), None)
        return _HEADS if value == heads else min(value, _HEADS // 2)
    if _REDUCED.get(name) in (_HIDDEN, 2 * _HIDDEN) and value == whole.get("hidden_size"):
        return _HIDDEN  # what is as wide as the model stays so
    return min(value, _REDUCED.get(name, WINDOW if is_length(name) else value))


def _settle_heads(fields: dict[str, Any], whole: Mapping[str, Any]) -> None:
    """Sizes that must fit others: heads of latent attention, and the heads of a recurrent state."""
    if "head_dim" in fields and fields["head_dim"] is None:
        fields["head_dim"] = _HEAD
    if fields.get("qk_rope_head_dim") and whole.get("head_dim") == whole["qk_rope_head_dim"]:
        fields["head_dim"] = fields["qk_rope_head_dim"]
    if fields.get("qk_head_dim"):
        fields["qk_head_dim"] = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
    if "mamba_n_heads" in fields:
        fields["mamba_d_head"] = _HEAD
    if "state_size" in fields and "num_heads" in fields and "expand" in fields:
        fields["num_heads"] = int(fields["expand"] * _HIDDEN) // _HEAD


def _reduced_layers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that describe layers, for a selection of layers that has every kind."""
    count_name = next((name for name in _LAYERS if isinstance(fields.get(name), int)), None)
    if count_name is None:
        return {}
    count = int(fields[count_name])
    # 1. The kind of each layer: its entry in every list with one entry per layer, and which lists of layers it is in.
    listed = {name: v for name, v in fields.items() if isinstance(v, list)}
    ids = {name: v for name, v in listed.items() if re.search("layer|idx", name) and _are_layers(v, count)}
    lists = {name: v for name, v in listed.items() if name not in ids and len(v) == count and count > 1}
    own = {int(i): v for i, v in (fields.get("per_layer_config") or {}).items()}
    kinds = [
        (
            *(repr(v[i]) for v in lists.values()),
            *(i in v for v in ids.values()),
            *(i < int(fields[name]) for name in _FIRST_LAYERS if isinstance(fields.get(name), int)),
            repr(own.get(i)),
        )
        for i in range(count)
    ]
    # 2. The first two layers of each kind, in their order.
    chosen = [i for i in range(count) if kinds[:i].count(kinds[i]) < 2]
    if pattern := fields.get("block_types"):  # a pattern that repeats
        chosen = list(range(min(count, 2 * len(pattern))))
    # 3. The fields for these layers.
    out: dict[str, Any] = {count_name: len(chosen)}
    out |= {name: [v[i] for i in chosen] for name, v in lists.items()}
    out |= {name: [at for at, i in enumerate(chosen) if i in v] for name, v in ids.items()}
    for name in _FIRST_LAYERS:
        if isinstance(fields.get(name), int):
            out[name] = sum(i < fields[name] for i in chosen)
    if own:
        out["per_layer_config"] = {at: own[i] for at, i in enumerate(chosen) if i in own}
    for name in _LAST_LAYERS:
        if fields.get(name):
            out[name] = min(int(fields[name]), len(chosen) // 2)
    return out


def _are_layers(value: Sequence[Any], count: int) -> bool:
    return all(type(v) is int and 0 <= v < count for v in value) and sorted(set(value)) == list(value)


def _reduce_rope(fields: dict[str, Any]) -> None:
    """Rotary parameters for the reduced head: short original lengths, and one factor per frequency."""
    ropes = fields.get("rope_parameters")
    if not isinstance(ropes, dict):
        return
    head = fields.get("qk_rope_head_dim") or fields.get("head_dim") or _HEAD
    for rope in (ropes, *(each for each in ropes.values() if isinstance(each, dict))):
        share = rope.get("partial_rotary_factor", fields.get("partial_rotary_factor")) or 1.0
        frequencies = int(head * share) // 2
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = 4 * WINDOW
        for name in ("short_factor", "long_factor"):
            if name in rope:
                rope[name] = list(rope[name])[:frequencies]
        if "mrope_section" in rope:
            sections = len(rope["mrope_section"])
            rope["mrope_section"] = [(frequencies + sections - 1 - i) // sections for i in range(sections)]
    if "original_max_position_embeddings" in fields:
        fields["original_max_position_embeddings"] = 4 * WINDOW
