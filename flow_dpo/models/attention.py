"""Attention backend: how packed rows and the KV cache get their own attention into any transformers model.

It uses transformers' registry of attention functions; nothing is patched. A prepared model runs every plain forward
exactly as under SDPA. Given a `layout`, its attention layers call that layout instead:

    prepare(model)
    model(input_ids=flat_1N, position_ids=positions_1N, layout=layout, **layout_inputs(model.device))

The tokens are one flat row; the layout knows which of them attend to which, and keeps the keys and values that it needs
later. `model` passes unknown keyword arguments down to its attention layers: that is transformers' contract for
attention backends (`_supports_attention_backend`). Invariant: without a layout nothing changes.

Shapes: B = 1 row, H query heads, K key-value heads, N tokens, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "flow_dpo"
"""The name of this attention in transformers' registry."""


class Layout(Protocol):
    """The attention of one flat row of tokens: decides, layer by layer, which tokens attend to which."""

    def attend(
        self,
        layer: int,
        query_1HND: torch.Tensor,
        key_1KND: torch.Tensor,
        value_1KND: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention output, 1HND. `window` is the size of a sliding window in positions, including the token itself."""
        ...


def layout_inputs(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Arguments of a forward with a layout: they turn off transformers' own KV cache and the building of a mask.

    transformers passes a four-dimensional mask on as it is instead of building one; this one is never read.
    """
    return {"attention_mask": torch.zeros(1, 1, 1, 1, device=device), "use_cache": False}


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The registered attention function: SDPA without a layout. query BHND, key and value BKND; returns BNHD."""
    # 1. A plain forward.
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # 2. A forward with a layout, which knows its own mask and its own keys and values.
    scaling = kwargs.get("scaling")
    out = layout.attend(
        int(module.layer_idx),  # pyright: ignore[reportArgumentType]
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
    )
    # 3. Heads last, as transformers expects: 1HND -> 1NHD.
    return out.transpose(1, 2).contiguous(), None


def prepare(model: PreTrainedModel) -> None:
    """Register the attention function, so that `model` accepts a `layout`. Plain forwards stay those of SDPA.

    A model that caps its attention scores (Gemma 2) or has attention sinks (GPT-OSS) supports neither: it gets
    transformers' eager attention, which ignores layouts. Every user of a layout first compares it with plain forwards
    and so detects that it is ignored.
    """
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped or not model._supports_sdpa:
        model.set_attn_implementation("eager")
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def give_up(model: PreTrainedModel) -> bool:
    """Switch the model to its family's own eager attention, which ignores layouts. Returns whether this is a change.

    Some families check the attention's name, and compute something else under a name that they do not know.
    """
    if model.config._attn_implementation == "eager" or not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation("eager")
    return True
