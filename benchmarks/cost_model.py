"""Cost model of sampling: seconds = a * tokens read + b * tokens written + c * steps, fitted, and estimated for a GPU.

    cost = fit(runs)                                 # Cost(read_s=1.6e-4, written_s=2.5e-4, step_s=2e-3)
    cost.seconds(Run(read=3873, written=1744, steps=410))
    gpu_cost(GPUS["H100 SXM"], MODELS["8B"], context_tokens=300)

On a CPU, reading a token costs about as much as writing one. One-shot requests hardly read, so a flow's rate over
theirs is bounded by what the flow reads. On a GPU, a step reads all weights from memory once, however many tokens are
in it: with few requests under way `c` is nearly all of the cost; with hundreds, a token read costs as much as one
written.

The GPU's costs are its maker's published peaks times the shares below: an estimate, nothing was measured on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOPS_SHARE, BANDWIDTH_SHARE, OVERHEAD_S = 0.5, 0.7, 1.5e-3
"""Of the peaks, what a served model reaches in long matrix products and in reading memory, and the seconds that a step
costs whatever is in it: guesses, from what is commonly reported."""


@dataclass(frozen=True)
class Run:
    """What was sampled, and in how many seconds."""

    read: float
    """Prompt tokens that no cache held."""
    written: float
    steps: float
    """Forward passes."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Seconds a token read, a token written, a step."""

    read_s: float
    written_s: float
    step_s: float

    def seconds(self, run: Run) -> float:
        """What such a run takes."""
        return self.read_s * run.read + self.written_s * run.written + self.step_s * run.steps


def fit(runs: Sequence[Run]) -> Cost:
    """The least squares of relative errors, with no cost below 0: the best of the fits of each choice of terms."""
    found: list[tuple[float, Cost]] = []
    seconds = np.array([run.seconds for run in runs])
    terms = np.array([[run.read, run.written, run.steps] for run in runs]) / seconds[:, None]
    for kept in itertools.product((False, True), repeat=3):
        values = np.zeros(3)
        mask = np.array(kept)
        if mask.any():
            values[mask] = np.linalg.lstsq(terms[:, mask], np.ones(len(runs)), rcond=None)[0]
        if (values >= 0).all():
            error = float(np.square(terms @ values - 1).sum())
            found.append((error, Cost(*map(float, values))))
    return min(found, key=lambda one: one[0])[1]


def relative_errors(cost: Cost, runs: Sequence[Run]) -> list[float]:
    """Of the predicted seconds, for each run."""
    return [abs(cost.seconds(run) / run.seconds - 1) for run in runs]


def held_out_errors(runs: Sequence[Run], folds: int = 3) -> list[float]:
    """Relative errors on runs that were not fitted: each part of every so many by a fit of the others."""
    errors: list[float] = []
    for fold in range(folds):
        others = [run for at, run in enumerate(runs) if at % folds != fold]
        errors += relative_errors(fit(others), [run for at, run in enumerate(runs) if at % folds == fold])
    return errors


@dataclass(frozen=True)
class Gpu:
    """Published peaks: dense bf16 operations, and memory bandwidth, a second."""

    flops: float
    bytes_s: float


@dataclass(frozen=True)
class Size:
    """A model in bf16: its parameters, and the bytes of a token's keys and values."""

    parameters: float
    kv_bytes: float


GPUS = {"A100 80 GB SXM": Gpu(312e12, 2.04e12), "H100 SXM": Gpu(989e12, 3.35e12)}
MODELS = {
    "0.5B": Size(0.494e9, 24 * 2 * 64 * 2 * 2),  # Qwen2.5-0.5B: 24 layers, 2 KV heads of 64
    "8B": Size(8.03e9, 32 * 8 * 128 * 2 * 2),  # Llama-3-8B: 32 layers, 8 KV heads of 128
}


def gpu_cost(gpu: Gpu, size: Size, *, context_tokens: float) -> Cost:
    """An estimate: two operations a parameter and token; a step reads all weights, a written token its context."""
    token_s = 2 * size.parameters / (gpu.flops * FLOPS_SHARE)
    bytes_s = gpu.bytes_s * BANDWIDTH_SHARE
    return Cost(
        read_s=token_s,
        written_s=token_s + context_tokens * size.kv_bytes / bytes_s,
        step_s=2 * size.parameters / bytes_s + OVERHEAD_S,
    )
