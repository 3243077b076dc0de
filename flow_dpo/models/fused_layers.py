"""Fused layers: what a dense decoder computes around its attention, forward and backward, in few operations.

Autograd keeps and adds a tensor for every small operation, and PEFT's products of rank 8 read and write whole
activations on top of the base's. For a small model on a CPU that is most of an update. Here the adapter and the norm
before it are merged into a copy of the weight; the backward pass is written out, without gradients of frozen weights:

    y = x W'^T,  W' = (W + s B A) diag(n)     dx = dy W'     dA = (s dy B)^T x diag(n)     dB = s dy^T (x diag(n) A^T)

    query, key, value = BeforeAttention.apply(x_NC, block, turn_N1R, *block.before)
    x_NC = AfterAttention.apply(attended_NX, x_NC, block, *block.after)

Invariant: values and gradients are those of the model's own modules up to rounding, and a policy whose adapters change
nothing gives the base's results to the bit.

Shapes: N tokens, C inputs of a product, O outputs, K ranks of all adapters of a product, X query heads and head size in
one, H heads, D head size, R half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import silu

from flow_dpo.models.dense_decoder import AttentionCall, Block, Layer, Norm


class Merged:
    """Linear layers with one input, their outputs side by side, with adapters and the norm before them merged in."""

    def __init__(self, layers: Sequence[Layer], norm: Norm | None = None, order_O: torch.Tensor | None = None) -> None:
        """`order_O`: for each output, its index among the layers' own outputs."""
        bases = [layer.base for layer in layers]
        weight_OC = torch.cat([base.weight for base in bases]) if len(bases) > 1 else bases[0].weight.detach()
        biases = [b.weight.new_zeros(len(b.weight)) if b.bias is None else b.bias.detach() for b in bases]
        bias_O = torch.cat(biases) if any(base.bias is not None for base in bases) else None
        # 1. Adapters side by side: their A stacked, their B on a block diagonal, with the scaling.
        self.adapters = [tensor for layer in layers for down, up, _ in layer.adapters for tensor in (down, up)]
        self._parts: list[tuple[slice, slice, float]] = []
        first = rank = 0
        for layer in layers:
            end = first + len(layer.base.weight)
            for down, _, scaling in layer.adapters:
                self._parts.append((slice(first, end), slice(rank, rank + len(down)), scaling))
                rank += len(down)
            first = end
        up_OK = weight_OC.new_zeros(first, rank)
        for up, (outputs, ranks, scaling) in zip(self.adapters[1::2], self._parts, strict=True):
            up_OK[outputs, ranks] = up.detach() * scaling
        down_KC = torch.cat([down.detach() for down in self.adapters[::2]]) if rank else weight_OC[:0]
        # 2. Merged, in the order of the outputs.
        weight_OC = torch.addmm(weight_OC, up_OK, down_KC) if rank else weight_OC
        self._norm_C = None if norm is None else norm.weight
        if self._norm_C is not None:
            weight_OC, down_KC = weight_OC * self._norm_C, down_KC * self._norm_C
        self._order_O = order_O
        if order_O is not None:
            weight_OC, up_OK = weight_OC[order_O], up_OK[order_O]
            bias_O = None if bias_O is None else bias_O[order_O]
        self.weight_OC, self.bias_O, self._down_KC, self._up_OK = weight_OC, bias_O, down_KC, up_OK

    def __call__(self, x_NC: torch.Tensor, plus_NO: torch.Tensor | None = None) -> torch.Tensor:
        """The outputs plus `plus_NO`."""
        if plus_NO is None:
            plus_NO = self.bias_O
        elif self.bias_O is not None:
            plus_NO = plus_NO + self.bias_O
        weight_CO = self.weight_OC.t()
        return torch.mm(x_NC, weight_CO) if plus_NO is None else torch.addmm(plus_NO, x_NC, weight_CO)

    def back(self, grad_NO: torch.Tensor) -> torch.Tensor:
        """The gradient of the inputs."""
        return torch.mm(grad_NO, self.weight_OC)

    def gradients(self, grad_NO: torch.Tensor, x_NC: torch.Tensor) -> list[torch.Tensor]:
        """The gradients of the adapters, A and B of each, in the order of `adapters`."""
        if not self._parts:
            return []
        down_KC = torch.mm(torch.mm(grad_NO, self._up_OK).t(), x_NC)
        up_KO = torch.mm(torch.mm(x_NC, self._down_KC.t()).t(), grad_NO)
        if self._norm_C is not None:
            down_KC *= self._norm_C
        if self._order_O is not None:
            up_KO = torch.empty_like(up_KO).index_copy_(1, self._order_O, up_KO)
        found: list[torch.Tensor] = []
        for outputs, ranks, scaling in self._parts:
            found += [down_KC[ranks], up_KO[ranks, outputs].t() * scaling]
        return found


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """The norms of query and key heads, side by side."""

    weight_HD: torch.Tensor
    eps: float


class FusedBlock:
    """The weights of a layer, under the adapter that was on."""

    def __init__(self, block: Block, call: AttentionCall) -> None:
        size, kv_heads = call.size, call.kv_heads
        outputs = sum(len(layer.base.weight) for layer in block.qkv)
        self.call, self.turned = call, outputs // size - kv_heads
        """`turned`: number of query and key heads, which are rotated by position."""
        # Rotary positions rotate the pairs (i, i + D/2) of a head. With each pair side by side, in queries and keys
        # alike, they are complex numbers and one product rotates them; attention gives the same result.
        pairs_D = torch.arange(size).view(2, -1).t().flatten()
        order_HD = torch.arange(outputs).view(-1, size)
        order_HD[: self.turned] = order_HD[: self.turned, pairs_D]
        self.eps, self.mlp_eps = block.attention_norm.eps, block.mlp_norm.eps
        self.qkv = Merged(block.qkv, block.attention_norm, order_HD.flatten())
        self.out, self.gate_up, self.down = (
            Merged(block.out), Merged(block.gate_up, block.mlp_norm), Merged(block.down),
        )  # fmt: skip
        self.head_norm: HeadNorm | None = None
        if (query := block.query_norm) is not None and (key := block.key_norm) is not None:
            counts = (self.turned - kv_heads, kv_heads)
            rows = [n.weight[pairs_D].expand(count, size) for n, count in zip((query, key), counts, strict=True)]
            self.head_norm = HeadNorm(torch.cat(rows), query.eps)
        self.before = self.qkv.adapters
        self.after = [*self.out.adapters, *self.gate_up.adapters, *self.down.adapters]
        """`before`, `after`: the adapters' tensors that each half of the layer reads."""


def _normed(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm without a weight, and the factor that was applied."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * scale, scale


def _norm_back(grad: torch.Tensor, normed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The gradient of the norm's input."""
    along = (grad * normed).mean(-1, keepdim=True)
    return torch.addcmul(grad, normed, along, value=-1).mul_(scale)


def _complex(x_NHD: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x_NHD.unflatten(-1, (-1, 2)))


class BeforeAttention(torch.autograd.Function):
    """Norm, then queries, keys and values, queries and keys rotated by position: x_NC to 1HND of each."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        x_NC, block, turn_N1R = args[:3]
        # 1. The heads of queries, keys and values.
        normed_NC, scale_N1 = _normed(x_NC, block.eps)
        heads_NHD = block.qkv(normed_NC).unflatten(1, (-1, block.call.size))
        turned_NHD, value_NHD = heads_NHD[:, : block.turned], heads_NHD[:, block.turned :]
        saved = [normed_NC, scale_N1, turn_N1R]
        if block.head_norm is not None:
            normed_NHD, scale_NH1 = _normed(turned_NHD, block.head_norm.eps)
            turned_NHD = normed_NHD * block.head_norm.weight_HD
            saved += [normed_NHD, scale_NH1]
        # 2. Positions.
        turned_NHD = torch.view_as_real(_complex(turned_NHD) * turn_N1R).flatten(-2)
        ctx.save_for_backward(*saved)
        ctx.block = block
        queries = block.turned - block.call.kv_heads
        parts = (turned_NHD[:, :queries], turned_NHD[:, queries:], value_NHD)
        return tuple(part.transpose(0, 1)[None] for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        block: FusedBlock = ctx.block
        normed_NC, scale_N1, turn_N1R, *head_norm = ctx.saved_tensors
        # 2. The conjugate rotates back.
        query_NHD, key_NHD, value_NHD = (grad[0].transpose(0, 1) for grad in grads)
        grad_NHD = query_NHD.new_empty(len(query_NHD), block.turned + block.call.kv_heads, block.call.size)
        turned_NHD, queries = grad_NHD[:, : block.turned], query_NHD.shape[1]
        back_N1R, into_NHR = turn_N1R.conj().resolve_conj(), _complex(turned_NHD)
        torch.mul(_complex(query_NHD.contiguous()), back_N1R, out=into_NHR[:, :queries])
        torch.mul(_complex(key_NHD.contiguous()), back_N1R, out=into_NHR[:, queries:])
        grad_NHD[:, block.turned :] = value_NHD
        if block.head_norm is not None:
            turned_NHD.copy_(_norm_back(turned_NHD * block.head_norm.weight_HD, *head_norm))
        # 1. The products, and the norm if something before it learns.
        grad_NO = grad_NHD.flatten(1)
        grad_NC = _norm_back(block.qkv.back(grad_NO), normed_NC, scale_N1) if ctx.needs_input_grad[0] else None
        return grad_NC, None, None, *block.qkv.gradients(grad_NO, normed_NC)


class AfterAttention(torch.autograd.Function):
    """The output product, the norm and the gated MLP, each with its residual: attended_NX and x_NC to x_NC."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        attended_NX, x_NC, block = args[:3]
        x_NC = block.out(attended_NX, x_NC)
        normed_NC, scale_N1 = _normed(x_NC, block.mlp_eps)
        gate_up_NO = block.gate_up(normed_NC)
        gate_NO, up_NO = gate_up_NO.chunk(2, -1)
        open_NO = silu(gate_NO)
        ctx.save_for_backward(attended_NX, normed_NC, scale_N1, gate_up_NO, open_NO)
        ctx.block = block
        return block.down(open_NO * up_NO, x_NC)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        block: FusedBlock = ctx.block
        attended_NX, normed_NC, scale_N1, gate_up_NO, open_NO = ctx.saved_tensors
        gate_NO, up_NO = gate_up_NO.chunk(2, -1)
        # 1. The MLP, from its output to the norm.
        grad_NC = grads[0].contiguous()
        down = block.down.gradients(grad_NC, open_NO * up_NO)
        inner_NO = block.down.back(grad_NC)
        grad_NO = torch.empty_like(gate_up_NO)
        torch.mul(inner_NO, open_NO, out=grad_NO.chunk(2, -1)[1])
        torch.ops.aten.silu_backward.grad_input(inner_NO.mul_(up_NO), gate_NO, grad_input=grad_NO.chunk(2, -1)[0])
        gate_up = block.gate_up.gradients(grad_NO, normed_NC)
        grad_NC = _norm_back(block.gate_up.back(grad_NO), normed_NC, scale_N1).add_(grad_NC)
        # 2. The output product; the residual passes its gradient on.
        out = block.out.gradients(grad_NC, attended_NX)
        return block.out.back(grad_NC), grad_NC, None, *out, *gate_up, *down
