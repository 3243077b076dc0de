"""Precision of a model's weights: what "auto" stands for on the device at hand.

"auto" is the checkpoint's own precision, and float32 where a processor would have to imitate it: without instructions
for it a product in half precision is several times slower than one in float32, whatever the weights take of memory.

    bfloat16 checkpoint, CUDA device                bfloat16
    bfloat16 checkpoint, CPU with avx512_bf16       bfloat16
    bfloat16 checkpoint, CPU without                float32, and a warning that says so

The processor is asked by `torch.cpu.get_capabilities`; where it names no such instruction, yes or no, products are
timed for a tenth of a second. Invariant: a dtype that is given by name is taken as it is.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith"),
}
"""The names of products in half precision among a processor's capabilities, x86's and then Arm's."""
_TRIAL_S = 0.1
"""Seconds that products are timed for."""
_TRIAL_SIZE = 512
"""Rows and columns of the products that are timed."""

Supports = Callable[[torch.dtype], bool]
"""Whether this processor has instructions for products in a half precision."""


def choose_dtype(
    wanted: str, declared: torch.dtype | None, device: torch.device, *, supports: Supports | None = None
) -> torch.dtype | None:
    """The dtype to load in: by name, or for "auto" by what the checkpoint declares; None where it declares nothing."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cpu" and declared in _INSTRUCTIONS and not (supports or cpu_supports)(declared):
        return torch.float32
    return declared


def warn_of_change(name: str, declared: torch.dtype | None, chosen: torch.dtype | None) -> None:
    """One line where "auto" is not the checkpoint's own precision."""
    if declared in _INSTRUCTIONS and chosen == torch.float32:
        half = str(declared).removeprefix("torch.")
        warnings.warn(
            f"{name} is loaded in float32, for this processor has no instructions for its {half}, in which it would be "
            f"several times slower; --dtype {half} keeps it, in half the memory",
            stacklevel=3,
        )


def cpu_supports(dtype: torch.dtype, capabilities: Mapping[str, Any] | None = None) -> bool:
    """Whether the processor multiplies in this precision itself: by its capabilities, or by a trial."""
    if capabilities is None:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    known = [bool(capabilities[name]) for name in _INSTRUCTIONS[dtype] if name in capabilities]
    return any(known) if known else products_per_second(dtype) >= products_per_second(torch.float32)


def products_per_second(dtype: torch.dtype) -> float:
    """Products of two matrices in a second: the fastest of those that half of the trial's time allows."""
    matrix = torch.ones(_TRIAL_SIZE, _TRIAL_SIZE, dtype=dtype)
    fastest, end = 0.0, time.perf_counter() + _TRIAL_S / 2
    while not fastest or time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        fastest = max(fastest, 1 / max(time.perf_counter() - started, 1e-9))
    return fastest
