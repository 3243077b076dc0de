"""How do packed rows and cached rows get their attention into any transformers model?

Through transformers' own registry of attention functions, and nothing is patched. A model prepared here runs every
plain forward exactly as under SDPA. Handed a `layout`, its attention layers ask that layout instead:

    prepare(model)
    model(input_ids=flat_1N, position_ids=flat_1N, layout=layout, **LAYOUT_INPUTS)

The tokens lie in one flat row; the layout knows which of them may see which, and keeps whatever keys and values it
wants to remember. `model` hands unknown keyword arguments down to its attention layers: that is transformers' contract
for attention backends (`_supports_attention_backend`).

Shapes: B = 1 row, H query heads, K key-value heads, N tokens, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "flow_dpo"
"""The name of the attention in transformers' registry."""


class Layout(Protocol):
    """Decides which of the flat tokens see which, layer by layer."""

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
        """Attention output, 1HND. `window` is the number of latest positions a token sees, itself counted."""
        ...


def layout_inputs(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Arguments of a forward under a layout: no cache of transformers' own, and no mask built for nothing.

    A ready-made four-dimensional mask is passed on by transformers as it is; this one is never read.
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
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling")
    out = layout.attend(
        int(module.layer_idx),  # pyright: ignore[reportArgumentType]
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window"),
    )
    return out.transpose(1, 2).contiguous(), None


def prepare(model: PreTrainedModel) -> None:
    """Let `model` accept a `layout`. Plain forwards stay those of SDPA.

    A model that caps its attention scores (Gemma 2) or gives them sinks (GPT-OSS) can have neither: it gets
    transformers' eager attention, which ignores layouts. Whoever means to use one compares it with plain forwards
    first, and finds that it is ignored.
    """
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped or not model._supports_sdpa:
        model.set_attn_implementation("eager")
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
