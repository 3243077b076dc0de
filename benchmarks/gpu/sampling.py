"""Sampling parts: a flow on the local engine against transformers' `generate`, and variants of the engine.

    playing.play and playing.whole (benchmarks.playing), one after the other in this process

On a GPU an eager step takes as long as the host needs for it, so what counts is how many sequences share a step: see
tokens per forward. Problems are the seed's, prompts the preset `small`'s. Random weights never end a completion early.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from benchmarks import measuring, playing
from benchmarks.gpu.measure import OURS, Context, Reports, best
from benchmarks.measuring import Figure, Report

AGAINST_WHOLE = {"seed": ">= 1", "0.5b": ">= 1.8", "8b": ">= 1"}
AGAINST_CALLS = {"seed": "", "0.5b": ">= 5"}
SIZES = {"seed": (64, 128, 256), "0.5b": (32, 64, 128), "8b": (32, 64)}
"""Batch sizes of the uninterrupted `generate`."""
VARIANTS: dict[str, dict[str, Any]] = {
    "merged": {"merge_adapters": "always"},
    "beside": {"merge_adapters": "never"},
    "captured": {"captured": "always"},
    "eager": {"captured": "never"},
    "256 rows": {"max_batch_size": 256},
}
"""Settings of the local engine, by the variant's name. Variants whose settings the engine lacks are left out."""


def options(context: Context, side: str, *, num_problems: int = 32, rounds: int = 1) -> argparse.Namespace:
    """The options for `benchmarks.playing`."""
    settings = playing.options().parse_args(["--tiny"] if context.rehearse else [])
    settings.case, settings.side = context.case, side
    settings.num_problems, settings.rounds = (4, 1) if context.rehearse else (num_problems, rounds)
    return settings


def sampling(context: Context) -> None:
    """Our engine, one `generate` call per chunk, and one uninterrupted `generate` at several batch sizes."""
    size = context.name.rpartition("-")[2]
    problems = {"num_problems": 32, "rounds": 2 if size == "seed" else 1}
    sides: dict[str, Callable[[], Report]] = {OURS: partial(playing.play, options(context, OURS, **problems), 0)}
    wholes = [f"whole-{batch}" for batch in ((4,) if context.rehearse else SIZES[size])]
    for side in wholes:
        sides[side] = partial(playing.whole, options(context, side, **problems), int(side.partition("-")[2]))
    if size in AGAINST_CALLS:
        sides["calls"] = partial(playing.play, options(context, "calls", **problems), 0)

    def figures(reports: Reports) -> list[Figure]:
        peer, rate = best(reports, wholes, "tokens_a_second")
        own = measuring.median(reports[OURS], "tokens_a_second")
        steps = [report["sampled_tokens"] / report["num_forwards"] for report in reports[OURS]]
        name = f"sampling {context.label}"
        found = [
            Figure(
                name=f"{name}: over an uninterrupted generate",
                ratio=own / rate,
                reach=AGAINST_WHOLE[size],
                details={"best": peer, "runs": reports},
            ),
            Figure(name=f"{name}: tokens sampled in a forward", ratio=max(steps), reach=""),
            Figure(name=f"{name}: tokens a second", ratio=own, reach=""),
        ]
        if reports.get("calls"):
            calls = measuring.median(reports["calls"], "tokens_a_second")
            found.insert(1, Figure(name=f"{name}: over a call a chunk", ratio=own / calls, reach=AGAINST_CALLS[size]))
        return found

    context.take_turns(sides, figures)


def variants(context: Context) -> None:
    """The local engine with each variant's settings, and with one problem at a time."""
    from flow_dpo.engines.settings import LocalSettings

    known = {field.name for field in fields(LocalSettings)}
    sides: dict[str, Callable[[], Report]] = {OURS: partial(playing.play, options(context, OURS), 0)}
    for name, values in VARIANTS.items():
        if values.keys() <= known:
            settings = options(context, OURS)
            settings.engine = LocalSettings(**values)
            sides[name] = partial(_or_refused, settings)
    few = options(context, OURS)
    few.num_problems, few.rounds = 1, 2 if context.rehearse else 4
    sides["one problem at a time"] = partial(playing.play, few, 0)

    def figures(reports: Reports) -> list[Figure]:
        own = measuring.median(reports[OURS], "tokens_a_second")
        found: list[Figure] = []
        for side in sides:
            if side != OURS and reports.get(side) and "tokens_a_second" in reports[side][0]:
                rate = measuring.median(reports[side], "tokens_a_second")
                name = f"sampling {context.label}: {side}, over the default"
                found.append(Figure(name=name, ratio=rate / own, reach="", details={"runs": reports[side]}))
        return found

    context.take_turns(sides, figures, most=2)


def _or_refused(settings: argparse.Namespace) -> Report:
    """Our rate with these settings, or the reason why the engine refuses them for this model."""
    from flow_dpo.core.errors import FlowDpoError

    try:
        return playing.play(settings, 0)
    except FlowDpoError as error:
        return {"refused": str(error)}
