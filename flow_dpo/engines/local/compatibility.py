"""Compatibility check: whether a model can run on the local engine's flat batches, and the shapes of its KV cache.

A first check: two prompts in one flat row must give the logits that each gives alone. A model whose layers carry other
state from token to token (a recurrent state, attention sinks, a bias of its own) fails here with a clear error.
Decoding, reuse and windows are compared by `engines.model_check` before a run uses the engine.

    shapes = probe(model)                   # Shapes(calls={0: (2, 64, 64), ...}, dtype=torch.bfloat16, device=...)
    choose_forward(role_model, "answer", shapes, settings, most_positions=None)

The lean forward is chosen if the model is built in the known way and gives the same logits through it in the same
steps, prefill and decode. In half precision rounding could hide a fault, so there the model's reduced copy is compared
as well, in float32.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from flow_dpo.core.errors import ConfigError, ModelError
from flow_dpo.core.types import Role
from flow_dpo.engines.local.flat_batch import FlatBatch, RowInput
from flow_dpo.engines.local.forward import Forward, PlainForward, RoleModel, RoleSlice
from flow_dpo.engines.local.int8 import LEAST
from flow_dpo.engines.local.kv_rows import KvRows, Shapes
from flow_dpo.engines.local.lean_forward import LeanForward, lean_forward
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.models import attention
from flow_dpo.models.attention import layout_inputs
from flow_dpo.models.facts import vocabulary_size
from flow_dpo.models.own_forward import FAULTS
from flow_dpo.models.probes import reduced_model

_LENGTHS = (11, 7)
"""Lengths of the two prompts in tokens. They differ, so a mix-up of rows is noticed."""
_STEPS = (
    [RowInput(0, 7), RowInput(0, 11)],
    [RowInput(7, 8), RowInput(11, 12), RowInput(0, 5)],
    [RowInput(8, 9), RowInput(12, 13), RowInput(5, 6)],
)
"""Steps in which two forwards are compared: prefill, both, decode only."""
_LEAN_TOLERANCE = 1e-4
"""How far the lean forward's logits may differ in float32, as a share of the largest logit."""


class _ShapeRecorder:
    """A layout that records the shapes of keys and values. Its output only has the right shape; nobody reads it."""

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
    """The shapes of this model's keys and values. Raises `ModelError` if flat batches change its logits."""
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
            f"{error:.2g} of their size, more than rounding ({allowed}); the local engine cannot compute its attention"
        )
    return shapes


def choose_forward(
    role_model: RoleModel, role: Role, shapes: Shapes, settings: LocalSettings, *, most_positions: int | None
) -> Forward:
    """The lean forward if it is correct for this role's model, otherwise the plain one.

    Raises `ConfigError` for 8-bit integers if the lean forward is not correct.
    """
    packed, exact = int(settings.packed_gib * 2**30), _exact_forward(role_model, role, shapes, settings, most_positions)
    if not settings.int8:
        return exact
    if not isinstance(exact, LeanForward):
        raise ConfigError(
            "expected a dense model that the lean forward computes for --engine.int8, with adapters on linear layers "
            "only, found another, or --engine.lean false (docs/engines.md); leave int8 out (--engine.int8 false)"
        )
    del exact
    int8 = lean_forward(role_model, role, max_packed_bytes=packed, most_positions=most_positions, int8=True)
    assert int8 is not None
    if not int8.num_weights >= LEAST:
        raise ConfigError(
            f"expected a layer of at least {LEAST:,} weights for --engine.int8, found {int8.num_weights:,} in the "
            "largest: so small a model samples faster without it; leave int8 out (--engine.int8 false)"
        )
    return int8


def _exact_forward(
    role_model: RoleModel, role: Role, shapes: Shapes, settings: LocalSettings, most_positions: int | None
) -> Forward:
    plain = PlainForward(role_model, shapes.device)
    if not settings.lean:
        return plain
    packed = 0 if settings.int8 else int(settings.packed_gib * 2**30)
    lean = lean_forward(role_model, role, max_packed_bytes=packed, most_positions=most_positions)
    if lean is None:
        return plain
    with role_model(role) as model:
        vocab_size = vocabulary_size(model)
        if shapes.dtype != torch.float32 and not _lean_is_exact(model):
            return plain
    allowed = _LEAN_TOLERANCE if shapes.dtype == torch.float32 else 0.1
    return lean if _difference(lean, plain, role, shapes, vocab_size) <= allowed else plain


def _lean_is_exact(model: PreTrainedModel) -> bool:
    """Whether the lean forward is correct for the model's reduced copy, in float32."""
    try:
        small = reduced_model(model)
        attention.prepare(small)
        shapes = probe(small)
    except (*FAULTS, ModelError):
        return False
    role_model: RoleModel = lambda _: nullcontext(small)  # noqa: E731
    lean = lean_forward(role_model, "", max_packed_bytes=0)
    plain = PlainForward(role_model, shapes.device)
    return lean is not None and _difference(lean, plain, "", shapes, vocabulary_size(small)) <= _LEAN_TOLERANCE


@torch.inference_mode()
def _difference(lean: Forward, plain: Forward, role: Role, shapes: Shapes, vocab_size: int) -> float:
    """The largest difference between the two forwards' logits in the same steps, relative to the largest logit."""
    found: list[torch.Tensor] = []
    for forward in (lean, plain):
        rows = KvRows(shapes)
        rows.reserve(len(_STEPS[-1]), 13, 13, 0)
        for number, row_inputs in enumerate(_STEPS):
            count = sum(row_input.end - row_input.begin for row_input in row_inputs)
            ids = [(7 * index + 3 + number) % vocab_size for index in range(count)]
            batch = FlatBatch(rows, row_inputs)
            found.append(forward(ids, batch, [RoleSlice(role, 0, count)], wants_choices=False).logits_AV.float())
    lean_AV, plain_AV = torch.cat(found[: len(_STEPS)]), torch.cat(found[len(_STEPS) :])
    difference = (lean_AV - plain_AV).abs().max() / plain_AV.abs().max().clamp(min=1e-6)
    return difference.nan_to_num(nan=torch.inf).item()
