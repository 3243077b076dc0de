"""Can this model be played with rows of our own, and how large are its keys and values?

Asked once, before the first step, by running it: two prompts in one flat row must give the logits that each gives
alone. A model whose layers carry something else from token to token (a recurrent state, attention sinks, a bias of its
own) fails here with a clear error, instead of saying something else than what it would say.

    probe(model)        # Shapes(layers={0: (2, 64, 64), ...}, dtype=torch.bfloat16, device=...)
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from flow_dpo.core.errors import ModelError
from flow_dpo.engines.local.flat_batch import Fed, Step
from flow_dpo.engines.local.kv_rows import Rows, Shapes
from flow_dpo.models.attention import layout_inputs

_LENGTHS = (11, 7)


class _Measure:
    """A layout that notes what it is handed; what it answers is of the right shape and never used."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[int, int, int]] = {}
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
        self.layers[layer] = (key_1KND.shape[1], key_1KND.shape[-1], value_1KND.shape[-1])
        self.dtype = key_1KND.dtype
        return value_1KND.repeat_interleave(query_1HND.shape[1] // key_1KND.shape[1], 1)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the embedding: ids below it can be read."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def steady_tokens(model: PreTrainedModel) -> int | None:
    """Positions up to which a token's rotation depends on its own position alone; None where it always does.

    "longrope" and "dynamic" rotate every token of a forward otherwise once its longest row passes this length: then
    nothing that was kept is right, and rows would depend on their neighbours.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    limits = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(limits, default=None)


@torch.inference_mode()
def probe(model: PreTrainedModel) -> Shapes:
    """The sizes of this model's keys and values. Raises `ModelError` where rows of our own change what it says."""
    num_words = vocabulary_size(model)
    prompts = [[(7 * index + 3 + length) % num_words for index in range(length)] for length in _LENGTHS]
    inputs = layout_inputs(model.device)
    flat_1N = torch.tensor([[token for prompt in prompts for token in prompt]], device=model.device)
    measure = _Measure()
    model(input_ids=flat_1N, position_ids=torch.zeros_like(flat_1N), layout=measure, **inputs)
    num_layers = model.config.get_text_config().num_hidden_layers
    if len(measure.layers) < num_layers:
        raise ModelError(
            f"expected {num_layers} layers of {type(model).__name__} to hand their attention to a layout, found "
            f"{len(measure.layers)}: the others carry something else from token to token, or attend in a way of their "
            "own. Play this model with another engine"
        )
    shapes = Shapes(measure.layers, measure.dtype, model.device)
    rows = Rows(shapes)
    fed = [Fed(0, length) for length in sorted(_LENGTHS)]
    rows.reserve(len(fed), max(_LENGTHS), max(_LENGTHS), 0)
    step = Step(rows, fed)
    flat_1N = torch.tensor([[token for prompt in sorted(prompts, key=len) for token in prompt]], device=model.device)
    ours_NV = model(input_ids=flat_1N, position_ids=step.position_N[None], layout=step, **inputs).logits[0].float()
    plain = [
        model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits[0].float()
        for prompt in sorted(prompts, key=len)
    ]
    plain_NV = torch.cat(plain)
    error = ((ours_NV - plain_NV).abs().max() / plain_NV.abs().max().clamp(min=1e-6)).item()
    allowed = 1e-3 if shapes.dtype == torch.float32 else 0.1
    if not error <= allowed:
        raise ModelError(
            f"{type(model).__name__} says something else when its prompts lie in rows of ours: the logits differ by "
            f"{error:.2g} of their size, at most {allowed} is rounding. Its attention cannot be played by the local "
            "engine; play it with another engine"
        )
    return shapes
