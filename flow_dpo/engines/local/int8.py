"""Matrix products in 8-bit integers, for sampling only: each row of a weight and each token's input has its own scale.

    W ~ s_O * Q_OC,  x ~ t_N * q_NC,  W x ~ s_O * t_N * (Q q)        Q and q between -127 and 127, Q q exact in 32 bits

Adapters and attention stay as they are. With VNNI, a product with a large weight takes a third of float32's time, and
reads a quarter of its bytes. Tokens are then sampled from a slightly different distribution than the learner's; the
difference is measured when an engine is opened, and at every update by the drift check.

Invariant: a token's product does not depend on the other tokens, to the bit.

Shapes: N tokens, C inputs, O outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from flow_dpo.models.dense_decoder import Weights

_MOST = 127
"""Largest magnitude of a quantised weight or input."""
_ZERO = 128
"""Stands for an input of 0: oneDNN is fast with unsigned inputs and signed weights."""
LEAST = 1 << 17
"""Size of a weight from which such a product is faster; below it, quantising the inputs costs too much."""
_TINY = 1e-30
"""Lower bound of the scales, for rows of zeros."""


class Int8Product:
    """The base's part of layers that read the same input (like `products.Product`), in 8-bit integers."""

    adds = False

    def __init__(self, layers: Sequence[Weights]) -> None:
        self._layers = tuple(layers)
        quantised = [_quantised(layer.weight.detach()) for layer in layers]
        rows_OC = torch.cat([rows for rows, _ in quantised])
        self._scale_O = torch.cat([scale for _, scale in quantised])
        self._packed = torch.ops.onednn.qlinear_prepack(rows_OC, None)
        self._zero_O = torch.zeros(len(rows_OC), dtype=torch.int32)
        self._bias: torch.Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            biases = [b.weight.new_zeros(len(b.weight)) if b.bias is None else b.bias.detach() for b in layers]
            self._bias = torch.cat(biases).float()
        self.num_outputs, self.packed_bytes = len(rows_OC), rows_OC.nbytes

    def __call__(self, x_NC: torch.Tensor) -> torch.Tensor:
        # 1. Each token's inputs, scaled to 1 to 255, with 0 at 128.
        x = x_NC.float()
        most_N1 = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True).clamp_(min=_TINY)
        q_NC = (x * (_MOST / most_N1)).add_(_ZERO + 0.5).to(torch.uint8)
        # 2. Sums of integers, times the scales of weights and of inputs.
        out_NO = torch.ops.onednn.qlinear_pointwise(
            q_NC, 1.0, _ZERO, self._packed, self._scale_O, self._zero_O, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out_NO.mul_(most_N1 / _MOST)
        if self._bias is not None:
            out_NO.add_(self._bias)
        return out_NO.to(x_NC.dtype)

    def write(self, x_NC: torch.Tensor, begin: int, end: int, out_NO: torch.Tensor, *, add: bool = False) -> None:
        """Write the product for the tokens [begin, end) into their rows of `out_NO`, or add it there."""
        found_NO = self(x_NC[begin:end])
        if add:
            out_NO[begin:end] += found_NO
        else:
            out_NO[begin:end] = found_NO


def _quantised(weight_OC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as integers, and the scale of each."""
    scale_O1 = weight_OC.abs().amax(1, keepdim=True).float().clamp_(min=_TINY) / _MOST
    return (weight_OC / scale_O1).round_().to(torch.int8), scale_O1[:, 0]


@functools.cache
def why_not() -> str:
    """Why this processor cannot multiply 8-bit integers so; "" if it can. Tested by a product, once per process."""
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    if not supported() or not torch.backends.mkldnn.is_available():
        return "the processor has no instructions for products of 8-bit integers (VNNI) that this torch knows of"
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this torch has no such products of oneDNN"
    weight_OC = torch.full((32, 256), float(_MOST))
    weight_OC[::2] *= -1
    found_NO = Int8Product([Weights(weight_OC, None)])(torch.full((4, 256), float(_MOST)))
    if not torch.equal(found_NO, torch.full((4, 256), float(_MOST)) @ weight_OC.T):
        return "the processor's products of 8-bit integers overflow"
    return ""
