"""Compatibility check: whether a model can run on the local engine's flat batches, and the shapes of its KV cache.

A first look, by two prompts in one flat row, which must give the logits that each gives alone. A model whose layers
carry something else from token to token (a recurrent state, attention sinks, a bias of its own) fails here with a clear
error. Decoding, reuse and windows are compared by `engines.model_check` before a run uses the engine.

    probe(model)        # Shapes(calls={0: (2, 64, 64), ...}, dtype=torch.bfloat16, device=...)
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from flow_dpo.core.errors import ModelError
from flow_dpo.engines.local.flat_batch import FlatBatch, RowInput
from flow_dpo.engines.local.kv_rows import KvRows, Shapes
from flow_dpo.models.attention import layout_inputs
from flow_dpo.models.facts import vocabulary_size

_LENGTHS = (11, 7)
"""Tokens of the two prompts: different, so that a mix-up of rows shows."""


class _ShapeRecorder:
    """A layout that records the shapes of keys and values; its output has the right shape and is never used."""

    def __init__(self) -> None:
        self.calls: dict[int, tuple[int, int, int]] = {}
        self.dtype = torch.float32

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
        del layer, scaling, window
        self.calls[len(self.calls)] = (key_1KND.shape[1], key_1KND.shape[-1], value_1KND.shape[-1])
        self.dtype = key_1KND.dtype
        return value_1KND.repeat_interleave(query_1HND.shape[1] // key_1KND.shape[1], 1)


@torch.inference_mode()
def probe(model: PreTrainedModel) -> Shapes:
    """The shapes of this model's keys and values. Raises `ModelError` where flat batches change its logits."""
    vocab_size = vocabulary_size(model)
    prompts = [[(7 * index + 3 + length) % vocab_size for index in range(length)] for length in _LENGTHS]
    inputs = layout_inputs(model.device)
    flat_1N = torch.tensor([[token for prompt in prompts for token in prompt]], device=model.device)
    # 1. One forward that only records the shapes of every layer's keys and values.
    recorder = _ShapeRecorder()
    model(input_ids=flat_1N, position_ids=torch.zeros_like(flat_1N), layout=recorder, **inputs)
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
    if len(recorder.calls) < num_layers:
        raise ModelError(
            f"expected {num_layers} layers of {type(model).__name__} to call the registered attention, found "
            f"{len(recorder.calls)}: the others carry something else from token to token, or attend in a way of their "
            "own, which the local engine cannot compute"
        )
    shapes = Shapes(recorder.calls, recorder.dtype, model.device)
    # 2. Both prompts in one flat batch: [N, V] logits.
    rows = KvRows(shapes)
    row_inputs = [RowInput(0, length) for length in sorted(_LENGTHS)]
    rows.reserve(len(row_inputs), max(_LENGTHS), max(_LENGTHS), 0)
    batch = FlatBatch(rows, row_inputs)
    flat_1N = torch.tensor([[token for prompt in sorted(prompts, key=len) for token in prompt]], device=model.device)
    flat_NV = model(input_ids=flat_1N, position_ids=batch.position_N[None], layout=batch, **inputs).logits[0].float()
    # 3. Each prompt alone, and the difference relative to the largest logit.
    plain = [
        model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits[0].float()
        for prompt in sorted(prompts, key=len)
    ]
    plain_NV = torch.cat(plain)
    error = ((flat_NV - plain_NV).abs().max() / plain_NV.abs().max().clamp(min=1e-6)).item()
    allowed = 1e-3 if shapes.dtype == torch.float32 else 0.1
    if not error <= allowed:
        raise ModelError(
            f"{type(model).__name__} gives other logits when its prompts are batched in one flat row: they differ by "
            f"{error:.2g} of their size, at most {allowed} is rounding; the local engine cannot compute its attention"
        )
    return shapes
