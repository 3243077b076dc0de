"""Estimates of how long each part takes, from a card's bandwidth and arithmetic and the host's time per layer.

    step_s(H100, MODELS["8b"], rows=64, context=400)     # 0.029: the host's time, not the 5 ms of reading the weights

A forward takes as long as the slowest of three: reading weights, keys and values; the arithmetic; and the host's time
for Python and the launches of eager layers, which no card shortens. These are bounds for planning the ten minutes. They
are printed beside the measurements and decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Card:
    """A kind of GPU, with the numbers of its data sheet."""

    name: str
    gib: float
    bytes_s: float
    """Memory bandwidth in bytes per second."""
    flops_s: float
    """Dense bf16 matrix products, in operations per second."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The sizes that determine the cost of a model's forward."""

    parameters: float
    layers: int
    kv_bytes: int
    """Bytes of keys and values per token, in the model's precision."""
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
a CPU with a layer so small that its arithmetic takes no time. The 6 microseconds of a launch are assumed."""
EFFICIENCY = 0.4
"""Share of a card's peak arithmetic that large eager layers reach."""
START_S = 14.0
"""Seconds for imports, the CUDA context, and creating a model on the GPU."""
COMPILE_S = 8.0
"""Seconds of Triton's first compilation, on a machine, of FlexAttention's two passes for one shape: a guess."""
Estimate = Callable[[Card], float]


def step_s(card: Card, model: Model, *, rows: int, context: int) -> float:
    """Seconds of one decode step."""
    read = (model.parameters * model.bytes_each + rows * context * model.kv_bytes) / card.bytes_s
    return max(read, 2 * model.parameters * rows / card.flops_s / EFFICIENCY, model.layers * LAYER_S)


def pass_s(card: Card, model: Model, *, tokens: int, passes: float, calls: int) -> float:
    """Seconds of forwards and backwards over `tokens` tokens in `calls` calls. A backward counts as 2 passes."""
    arithmetic = 2 * model.parameters * tokens * passes / card.flops_s / EFFICIENCY
    return max(arithmetic, calls * passes * model.layers * LAYER_S)


def sampling(name: str, *, steps: int, turns: int, rows: int = 64) -> Estimate:
    """Seconds of `turns` turns with `steps` decode steps each."""
    return lambda card: START_S + turns * (2 + steps * step_s(card, MODELS[name], rows=rows, context=300))


def learning(name: str, *, runs: int) -> Estimate:
    """Runs of three updates each on two roles' pairs, ours or a peer's. Every run creates a model and a trainer."""

    def seconds(card: Card) -> float:
        update = pass_s(card, MODELS[name], tokens=17_000, passes=4, calls=4)
        return START_S + 3 * COMPILE_S + runs * (4 + 3 * update)

    return seconds


def fixed(seconds: float) -> Estimate:
    """The same seconds for every card."""
    return lambda _: seconds
