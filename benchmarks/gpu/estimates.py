"""Estimates of how long each part takes, from a card's bandwidth and arithmetic and the host's time a layer.

    step_s(H100, MODELS["8b"], rows=64, context=400)     # 0.029: the host's, not the 5 ms of reading the weights

A forward takes as long as the slowest of three: reading weights, keys and values; the arithmetic; and what Python and
the launches of an eager layer take on the host, which no card makes shorter. These are bounds for planning ten minutes,
printed beside what was measured; nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Card:
    """A kind of GPU, as its data sheet has it."""

    name: str
    gib: float
    bytes_s: float
    """Memory bandwidth in bytes a second."""
    flops_s: float
    """Dense products in bf16, in operations a second."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a forward of a model costs."""

    parameters: float
    layers: int
    kv_bytes: int
    """Of keys and values a token, in the model's precision."""
    bytes_each: int = 2


H100 = Card(name="H100-class", gib=80, bytes_s=3.35e12, flops_s=990e12)
CARD_24 = Card(name="24 GB card", gib=24, bytes_s=1.0e12, flops_s=165e12)
CARDS = (H100, CARD_24)
MODELS = {
    "seed": Model(parameters=0.9e6, layers=4, kv_bytes=4096, bytes_each=4),
    "0.5b": Model(parameters=0.49e9, layers=24, kv_bytes=24 * 2 * 2 * 64 * 2),
    "8b": Model(parameters=8.03e9, layers=32, kv_bytes=32 * 2 * 8 * 128 * 2),
}
LAYER_S = 0.37e-3 + 89 * 6e-6
"""Host seconds of an eager Llama layer under PEFT: 0.37 ms of Python and dispatch, and 89 operations, both measured on
a CPU with a layer too small to compute anything; the 6 microseconds of a launch are assumed."""
EFFICIENCY = 0.4
"""Share of a card's arithmetic that eager layers reach where they are large."""
START_S = 14.0
"""Imports, the CUDA context, and a model made on the GPU."""
COMPILE_S = 8.0
"""FlexAttention forward and backward by Triton, for one shape and for the first time on a machine: a guess."""
Estimate = Callable[[Card], float]


def step_s(card: Card, model: Model, *, rows: int, context: int) -> float:
    """Seconds of a decode step."""
    read = (model.parameters * model.bytes_each + rows * context * model.kv_bytes) / card.bytes_s
    return max(read, 2 * model.parameters * rows / card.flops_s / EFFICIENCY, model.layers * LAYER_S)


def pass_s(card: Card, model: Model, *, tokens: int, passes: float, calls: int) -> float:
    """Seconds of forwards and backwards over so many tokens in so many calls; a backward is 2 passes."""
    arithmetic = 2 * model.parameters * tokens * passes / card.flops_s / EFFICIENCY
    return max(arithmetic, calls * passes * model.layers * LAYER_S)


def sampling(name: str, *, steps: int, turns: int, rows: int = 64) -> Estimate:
    """Turns of so many decode steps in all."""
    return lambda card: START_S + turns * (2 + steps * step_s(card, MODELS[name], rows=rows, context=300))


def learning(name: str, *, runs: int) -> Estimate:
    """Runs of three updates each on two roles' pairs, ours or a peer's, every one with a model and a trainer made."""

    def seconds(card: Card) -> float:
        update = pass_s(card, MODELS[name], tokens=17_000, passes=4, calls=4)
        return START_S + 3 * COMPILE_S + runs * (4 + 3 * update)

    return seconds


def fixed(seconds: float) -> Estimate:
    """What hardly depends on the card."""
    return lambda _: seconds
