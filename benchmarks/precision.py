"""A bf16 checkpoint on a processor without bf16 instructions: `dtype auto`, which is float32 there, over forced bf16.

    python -m benchmarks.precision --model_name_or_path FOLDER
    python -m benchmarks.precision                                  # random weights of the same shapes

Sampling is Flow-DPO's trees on a few problems (tokens a second); learning is one update on both roles' pairs of a tree
(seconds). On a processor that has bf16 instructions, `ENVIRONMENTS` takes them away: oneDNN, which computes torch's
bf16 products, is limited to an older instruction set; `ATEN_CPU_CAPABILITY` alone changes none of these products. torch
still reports the instructions, so `auto` is given a `prefers` that denies them (`models.precision.choose_dtype`). Each
side times bf16 products against float32 ones in its own process: below 1 shows that the instructions are really gone,
and that the trial would choose as `auto` does. `ONEDNN_VERBOSE=1` prints the kernels.

The result depends on how many sequences are sampled together. A few are bound by memory, of which bf16 reads half, and
bf16 is then faster; with a training batch (`--num_problems`) arithmetic decides.

Target: 3 times as fast in both.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

MODULE = "benchmarks.precision"
ENVIRONMENTS = {
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX-512 without bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
}
"""Processors without bf16 instructions, and what makes one of a processor that has them."""


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", default="0.5b", help="a folder, or the size of a random model")
    parser.add_argument("--num_problems", type=int, default=16, help="problems sampled together")
    parser.add_argument("--max_chunks", type=int, default=1, help="chunks of a sampled trunk, at most")
    parser.add_argument("--shape", type=int, nargs=3, default=[60, 16, 4], help="prompt tokens, chunk tokens, nodes")
    parser.add_argument("--processors", nargs="+", default=list(ENVIRONMENTS), choices=list(ENVIRONMENTS))
    settings = parser.parse_args()
    if settings.tiny:
        settings.model_name_or_path, settings.num_problems, settings.shape, settings.repeats = "tiny", 1, [8, 4, 2], 1
    if settings.side:
        measuring.report(measure(settings))
        return
    flags = ["--model_name_or_path", settings.model_name_or_path, "--num_problems", str(settings.num_problems)]
    flags += ["--max_chunks", str(settings.max_chunks), "--shape", *map(str, settings.shape)]
    for processor in settings.processors:
        compare(processor, flags, settings)


def compare(processor: str, flags: list[str], settings: argparse.Namespace) -> None:
    """Both precisions in turns, in the environment of this processor."""
    os.environ.update(ENVIRONMENTS[processor])
    sides = {"auto": flags, "bfloat16": flags}
    found = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    for name in ENVIRONMENTS[processor]:
        del os.environ[name]
    auto, half = found["auto"], found["bfloat16"]
    if max(r["bf16_products_over_float32"] for r in (*auto, *half)) >= 1:
        raise SystemExit(f"products in bf16 are as fast as in float32: {ENVIRONMENTS[processor]} took nothing away")
    figures = [
        Figure(
            name=f"precision, {processor}: {what}",
            ratio=measuring.median(over, key) / measuring.median(under, key),
            reach=">= 3",
            repeats=measuring.by_turn(over, under, key),
            details={"runs": found, "environment": ENVIRONMENTS[processor]},
        )
        for what, key, over, under in (
            ("sampling", "tokens_a_second", auto, half),
            ("learning", "learning_s", half, auto),
        )
    ]
    measuring.keep(figures, settings, MODULE)


def measure(settings: argparse.Namespace) -> Report:
    """One precision: tokens a second of sampling, seconds of an update."""
    import torch

    from benchmarks.workloads import load
    from flow_dpo.models import precision

    # 1. As "auto" chooses where no instructions are.
    loaded = load(settings.model_name_or_path, num_threads=settings.num_threads)
    declared = torch.bfloat16
    chosen = precision.choose_dtype(settings.side, declared, torch.device("cpu"), prefers=lambda _: False)
    loaded.model.to(chosen)  # pyright: ignore[reportArgumentType]
    trial = precision.products_over_float32(torch.bfloat16)
    # 2. The work.
    memory = measuring.PeakMemory()
    policy, preset = _policy(loaded, settings)
    return {
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "bf16_products_over_float32": trial,
        "tokens_a_second": _sample(loaded, policy, preset, settings),
        "learning_s": _learn(policy, loaded.model.config.vocab_size, settings),
        "peak_mib": memory.mib(),
    }


def _policy(loaded: Any, settings: argparse.Namespace) -> tuple[Any, Any]:
    from flow_dpo.learner.policy import Policy
    from flow_dpo.recipes.presets import preset as stated

    preset = stated("flow-dpo-paper", "seed" if settings.model_name_or_path == "tiny" else "small")
    return Policy(loaded.model, preset.recipe.flow.roles, preset.lora), preset


def _sample(loaded: Any, policy: Any, preset: Any, settings: argparse.Namespace) -> float:
    """Tokens a second of trees on a few problems, after one problem that is not timed."""
    from flow_dpo.core.explore import Siblings
    from flow_dpo.core.rollouts import RolloutRunner
    from flow_dpo.data.problems import load_problems
    from flow_dpo.engines.factory import role_model_of
    from flow_dpo.engines.local.engine import LocalEngine
    from flow_dpo.engines.settings import LocalSettings

    engine = LocalEngine(
        policy.model,
        role_model=role_model_of(policy, LocalSettings()),
        end_ids=loaded.end_ids,
        context_tokens=loaded.context_tokens,
    )
    runner, flow = RolloutRunner(engine, loaded.renderer), replace(preset.recipe.flow, max_chunks=settings.max_chunks)
    problems = load_problems("seed", max_problems=1 + settings.num_problems).problems
    Siblings()(flow, runner, problems[:1], seed=1)
    engine.take_stats()
    started = time.perf_counter()
    Siblings()(flow, runner, problems[1:], seed=0)
    return engine.take_stats()["sampled_tokens"] / (time.perf_counter() - started)


def _learn(policy: Any, vocabulary: int, settings: argparse.Namespace) -> float:
    """Seconds of an update on a tree's pairs, after one on a small tree."""
    import random

    from benchmarks.workloads import Shape, tree_pairs
    from flow_dpo.core.dpo import Dpo
    from flow_dpo.learner.learner import Learner, LearnerSettings

    shape, rng, seconds = Shape(*settings.shape), random.Random(0), 0.0
    learner = Learner(policy, LearnerSettings(learning_rate=1e-4, examples_per_update=0))
    for each in (Shape(8, 4, shape.num_nodes), shape):
        pairs = tree_pairs(rng, "p", each, vocabulary=min(vocabulary, 32_000))
        started = time.perf_counter()
        learner.update(Dpo(beta=0.1), pairs)
        seconds = time.perf_counter() - started
    return seconds


if __name__ == "__main__":
    main()
