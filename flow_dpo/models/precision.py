"""Precision of a model's weights: what "auto" stands for on the device at hand.

"auto" is the checkpoint's own precision, but float32 on a processor that multiplies faster in float32: one without
instructions for the half precision emulates it, several times slower, and some that have them are slower anyway.

    bfloat16 checkpoint, CUDA device                            bfloat16
    bfloat16 checkpoint, CPU with a matrix unit (AMX, SME)      bfloat16
    bfloat16 checkpoint, CPU with other instructions for it     by a trial
    bfloat16 checkpoint, CPU without                            float32, and a warning that says so

`torch.cpu.get_capabilities` tells what the processor has; what that does not settle is timed, for a tenth of a second,
once per process and on one thread: an Intel Xeon whose AMX is hidden by its virtual machine has avx512_bf16, with which
it reaches 0.57 of float32's speed in products of 512 rows, and an AMD EPYC with avx512_bf16 4.4 times. Invariant: a
dtype that is given by name is used as it is.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith"),
}
"""A processor's capabilities that mean products in half precision, first x86's and then Arm's."""
_MATRIX_UNITS = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
"""Capabilities that are far faster than float32, so nothing has to be timed."""
_TRIAL_S = 0.1
"""Seconds for which products are timed."""
_TRIAL_SIZE = 512
"""Rows and columns of the products that are timed."""
_SLOWER = 0.8
"""Share of float32's products per second below which a half precision is given up: it can be a little slower, since it
saves memory, and time for reading weights if rows are few."""

Prefers = Callable[[torch.dtype], bool]
"""Whether this processor should multiply in a half precision rather than in float32."""


def choose_dtype(
    wanted: str, declared: torch.dtype | None, device: torch.device, *, prefers: Prefers | None = None
) -> torch.dtype | None:
    """The dtype to load in: the one that is named, or for "auto" by what the checkpoint declares; None if nothing."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cpu" and declared in _INSTRUCTIONS and not (prefers or cpu_prefers)(declared):
        return torch.float32
    return declared


def warn_of_change(name: str, declared: torch.dtype | None, chosen: torch.dtype | None) -> None:
    """Warn if "auto" is not the checkpoint's own precision."""
    if declared in _INSTRUCTIONS and chosen == torch.float32:
        half = str(declared).removeprefix("torch.")
        warnings.warn(
            f"{name} is loaded in float32, in which this processor is faster than in the checkpoint's {half}; "
            f"--dtype {half} keeps that, in half the memory",
            stacklevel=3,
        )


def cpu_prefers(dtype: torch.dtype, capabilities: Mapping[str, Any] | None = None) -> bool:
    """Whether the processor should multiply in this precision: by its capabilities, or by a trial."""
    if capabilities is None:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get(_MATRIX_UNITS[dtype]):
        return True
    known = [bool(capabilities[name]) for name in _INSTRUCTIONS[dtype] if name in capabilities]
    return (any(known) or not known) and products_over_float32(dtype) >= _SLOWER


@functools.cache
def products_over_float32(dtype: torch.dtype) -> float:
    """Products per second in this precision over those in float32, timed once per process: a run keeps one choice.

    Timed on one thread: where other programs use the cores, threads wait for each other, up to 40 times as long as they
    multiply, and the faster precision can look slower.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return products_per_second(dtype) / products_per_second(torch.float32)
    finally:
        torch.set_num_threads(num_threads)


def products_per_second(dtype: torch.dtype) -> float:
    """Matrix products per second, by the fastest one made in half of the trial's time."""
    matrix = torch.ones(_TRIAL_SIZE, _TRIAL_SIZE, dtype=dtype)
    fastest, end = 0.0, time.perf_counter() + _TRIAL_S / 2
    while not fastest or time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        fastest = max(fastest, 1 / max(time.perf_counter() - started, 1e-9))
    return fastest
