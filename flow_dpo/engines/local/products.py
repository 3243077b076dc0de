"""Matrix products of a decoder's linear layers: one product for layers with the same input, weights packed for a CPU.

A product combines the layers that read one input, such as q, k and v, or gate and up; their outputs are side by side.
Their adapters are two small products for all of them: the A matrices stacked, and the B matrices on a block diagonal.
On a CPU, a product in half precision rearranges its weights at every call, and one in float32 uses MKL, which does not
use the widest instructions of every processor; a weight packed once by oneDNN has neither cost. On Intel's processors
MKL does use them, so all but the largest weights are transposed once instead: a call of oneDNN alone takes as long as a
small product, and MKL can write into an existing output or add to it. Packed and transposed weights are copies, and
have a budget.

    layers = [read_linear(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    products = ProductCache(max_packed_bytes=1 << 30)
    products.get([layer.base for layer in layers])(x_NC)              # [N, outputs of q, k and v]
    LowRank.of(layers).add(x_NC, out_NO)                              # the adapters' share is added in place

Invariant: packing changes no bit in half precision, and only the rounding of sums in float32. A token's product with a
transposed weight of few inputs does not depend on the other tokens, to the bit.

Shapes: N tokens, C inputs, O outputs, K rank.
"""

from __future__ import annotations

import functools
import platform
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import linear

from flow_dpo.engines.local.int8 import LEAST, Int8Product
from flow_dpo.models.dense_decoder import Layer, Weights

_FEW = 8
"""Below so many tokens, an unpacked float32 product is faster: calling a packed one costs some 8 microseconds."""
_TURNED = 8192, 1 << 25
"""Inputs, and elements of a weight, up to which MKL is faster: .86 to .94 of oneDNN's time on layers of half a billion
parameters, at 8 to 128 tokens. For a head of 152,000 outputs, oneDNN is as fast or faster."""
_STEADY = 512
"""Inputs up to which MKL, on Intel's processors, sums a token's products in the same order for any number of tokens
except one. On AMD's it does not."""
_BUCKETS = ((8, 1), (64, 8), (256, 16), (1024, 64))
"""Numbers of tokens up to the first are rounded up to multiples of the second; larger ones, see `bucket`."""


def bucket(num_tokens: int) -> int:
    """The number of tokens to pad to: oneDNN generates code for every new shape, in a third of a millisecond, and keeps
    that of the last thousand shapes."""
    for most, unit in _BUCKETS:
        if num_tokens <= most:
            return -(-num_tokens // unit) * unit
    unit = 1 << ((num_tokens - 1).bit_length() - 3)
    return -(-num_tokens // unit) * unit


class LowRank:
    """The adapters of layers that read one input, as two products."""

    def __init__(self, down_KC: torch.Tensor, up_KO: torch.Tensor, scaling: float) -> None:
        self._down_CK, self._up_KO, self._scaling = down_KC.T, up_KO, scaling

    @staticmethod
    def of(layers: Sequence[Layer]) -> LowRank | None:
        """The adapters of these layers, in the order of their outputs; None if no layer has one."""
        found = [(at, *adapter) for at, layer in enumerate(layers) for adapter in layer.adapters]
        if not found:
            return None
        ends = [0]
        for layer in layers:
            ends.append(ends[-1] + len(layer.base.weight))
        down_KC = torch.cat([down for _, down, _, _ in found])
        up_KO = down_KC.new_zeros(len(down_KC), ends[-1])
        row = 0
        for at, down, up, scaling in found:
            up_KO[row : row + len(down), ends[at] : ends[at + 1]] = up.T.float() * (scaling / found[0][3])
            row += len(down)
        return LowRank(down_KC, up_KO, found[0][3])

    def add(self, x_NC: torch.Tensor, out_NO: torch.Tensor) -> None:
        """Add the adapters' part to the base's, in place."""
        low_NK = torch.mm(x_NC, self._down_CK)
        if out_NO.dtype == torch.float32:
            out_NO.addmm_(low_NK, self._up_KO, alpha=self._scaling)
        else:  # rounded where PEFT rounds
            out_NO.add_(torch.mm(low_NK, self._up_KO).mul_(self._scaling))


class Product:
    """The base's part of layers that read one input."""

    def __init__(self, layers: Sequence[Weights], *, pack: bool) -> None:
        self._layers = tuple(layers)
        self._packed: torch.Tensor | None = None
        self._turned_CO: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self.packed_bytes = 0
        self.num_outputs = sum(len(layer.weight) for layer in layers)
        first = layers[0].weight
        self._least = _FEW if first.dtype == torch.float32 else 1
        if pack:
            weight = (torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else first).detach()
            if can_turn([layer.weight for layer in layers]):
                self._turned_CO = weight.T.contiguous()
            else:
                self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
            self.packed_bytes = weight.nbytes
            if any(layer.bias is not None for layer in layers):
                self._bias = torch.cat([_bias(layer) for layer in layers])

    @property
    def adds(self) -> bool:
        """Whether adding to an existing output costs nothing extra."""
        return self._turned_CO is not None

    def __call__(self, x_NC: torch.Tensor) -> torch.Tensor:
        if self._turned_CO is not None:
            out_NO = x_NC.new_empty(len(x_NC), self.num_outputs)
            self._write(self._turned_CO, x_NC, out_NO, add=False)
            return out_NO
        if self._packed is not None and len(x_NC) >= self._least:
            return torch.ops.mkldnn._linear_pointwise(x_NC, self._packed, self._bias, "none", [], "")
        outs = [linear(x_NC, layer.weight, layer.bias) for layer in self._layers]
        return outs[0] if len(outs) == 1 else torch.cat(outs, -1)

    def write(self, x_NC: torch.Tensor, begin: int, end: int, out_NO: torch.Tensor, *, add: bool = False) -> None:
        """Write the product for the tokens [begin, end) into their rows of `out_NO`, or add it there. Tokens after them
        are computed as well, up to a number of tokens that recurs."""
        if self._turned_CO is None:
            found_NO = self(x_NC[begin : begin + bucket(end - begin)])[: end - begin]
            if add:
                out_NO[begin:end] += found_NO
            else:
                out_NO[begin:end] = found_NO
        else:
            self._write(self._turned_CO, x_NC[begin:end], out_NO[begin:end], add=add)

    def _write(self, turned_CO: torch.Tensor, x_NC: torch.Tensor, out_NO: torch.Tensor, *, add: bool) -> None:
        if len(x_NC) == 1 and x_NC.shape[1] <= _STEADY:  # a single token would be summed in another order
            both_NO = out_NO.repeat(2, 1)
            self._write(turned_CO, x_NC.repeat(2, 1), both_NO, add=add)
            out_NO.copy_(both_NO[:1])
        elif add:
            out_NO.addmm_(x_NC, turned_CO)
            if self._bias is not None:
                out_NO.add_(self._bias)
        elif self._bias is not None:
            torch.addmm(self._bias, x_NC, turned_CO, out=out_NO)
        else:
            torch.mm(x_NC, turned_CO, out=out_NO)


class ProductCache:
    """Products by the weights that they consist of, so roles over one base share them."""

    def __init__(self, max_packed_bytes: int, *, int8: bool = False) -> None:
        self._max_packed_bytes, self.int8 = max_packed_bytes, int8
        self._known: weakref.WeakValueDictionary[tuple[int, ...], Product | Int8Product]
        self._known = weakref.WeakValueDictionary()

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed copies in use."""
        return sum(product.packed_bytes for product in self._known.values())

    def get(self, layers: Sequence[Weights]) -> Product | Int8Product:
        """The product of these layers: packed if possible and within the budget; in 8-bit integers if those are set and
        faster."""
        # A product keeps its weights alive, so no other weights can get their ids.
        key = tuple(id(layer.weight) for layer in layers)
        product = self._known.get(key)
        if product is None:
            size = sum(layer.weight.nbytes for layer in layers)
            if self.int8 and sum(layer.weight.numel() for layer in layers) >= LEAST:
                product = Int8Product(layers)
            else:
                pack = can_pack(layers[0].weight) and self.packed_bytes + size <= self._max_packed_bytes
                product = Product(layers, pack=pack)
            self._known[key] = product
        return product


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN can pack such a weight on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def can_turn(weights: Sequence[torch.Tensor]) -> bool:
    """Whether these weights, side by side, are transposed for MKL rather than packed by oneDNN."""
    first, size = weights[0], sum(weight.numel() for weight in weights)
    fits = first.shape[1] <= _TURNED[0] and size <= _TURNED[1]
    return fits and first.device.type == "cpu" and first.dtype == torch.float32 and _on_intel()


@functools.cache
def _on_intel() -> bool:
    """Whether MKL is available on an Intel processor."""
    try:
        name = Path("/proc/cpuinfo").read_text(errors="replace")[:4096]
    except OSError:
        name = platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in name


def _bias(layer: Weights) -> torch.Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
