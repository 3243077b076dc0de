"""Learner parts: an update against TRL's DPOTrainer, and whole-answer online DPO against TRL's OnlineDPOTrainer.

    learner_vs_trl.ours, learner_vs_trl.trl and the like, one after the other in this process

TRL gets the settings that are fastest on a GPU: large batches, autocast on or off, reference log-probabilities computed
on the way or precomputed. What does not fit is left out. Losses are compared as in the benchmarks themselves.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import learner_vs_trl, measuring, online_dpo
from benchmarks.gpu.measure import OURS, Context, Reports, best, free
from benchmarks.gpu.parts import LEARNS_8B_GIB
from benchmarks.measuring import Figure, Report

TRL = {
    "0.5b": (
        ("--batch_size", "6", "--no_autocast"),
        ("--batch_size", "6"),
        ("--batch_size", "2", "--no_autocast"),
        ("--batch_size", "6", "--no_autocast", "--precompute"),
    ),
    "8b": (("--batch_size", "2", "--no_autocast"), ("--batch_size", "6", "--no_autocast")),
    "tiny": (("--batch_size", "6"), ("--batch_size", "6", "--autocast")),
}
ROWS = {"0.5b": (4096,), "8b": (4096, 2048)}
"""Tokens in one forward of our learner."""
SHAPE = "long"


def learner(context: Context) -> None:
    """Our learner by row size, then TRL by its settings. The best of each side is compared."""
    size = context.name.rpartition("-")[2]
    sides: dict[str, Callable[[], Report]] = {}
    rows = ROWS[size] if not context.rehearse else (4096,)
    for tokens in rows:
        # The last size must fit. A larger one that does not fit is left out.
        side = OURS if tokens == rows[-1] else f"rows of {tokens}"
        sides[side] = partial(learner_vs_trl.ours, _options(context, "--row_tokens", str(tokens)))
    for flags in TRL["tiny" if context.rehearse else size]:
        sides[" ".join(flags)] = partial(_trl, context, flags)
    own = [side for side in sides if not side.startswith("--")]
    theirs = [side for side in sides if side.startswith("--")]

    def figures(reports: Reports) -> list[Figure]:
        (mine, seconds), (peer, their_s) = (best(reports, group, "seconds", least=True) for group in (own, theirs))
        gap = learner_vs_trl.check_losses(reports[mine][0], reports[peer][0])
        shape = learner_vs_trl.shape_name(*learner_vs_trl.sizes(_options(context))[SHAPE])
        name = f"learner {context.label}, {shape}"
        peaks = [measuring.median(reports[side], "peak_mib") for side in (mine, peer)]
        details = {"ours": mine, "trl": peer, "largest_difference_of_losses": gap, "runs": reports}
        found = [Figure(name=f"{name}: time", ratio=their_s / seconds, reach=">= 4", details=details)]
        found.append(Figure(name=f"{name}: memory", ratio=peaks[0] / max(peaks[1], 1.0), reach="<= 0.4"))
        tokens = measuring.median(reports[mine], "unshared_tokens")
        found.append(Figure(name=f"{name}: tokens a second, shared prefixes counted", ratio=tokens / seconds, reach=""))
        return found

    context.take_turns(sides, figures, most=2)


def memory(context: Context) -> None:
    """The memory peak of an update in one row of known size, over the estimate of a dry run before any work."""
    import torch

    roomy = torch.cuda.is_available() and torch.cuda.mem_get_info()[1] >= LEARNS_8B_GIB * 2**30
    for case in ["tiny"] if context.rehearse else [context.model or "0.5b", *(["8b"] if roomy else [])]:
        tokens, measured, estimated = _row_memory(case)
        name = (
            f"learner {learner_vs_trl.model_name(case)}, a row of {tokens:,} tokens: peak of memory over the estimate"
        )
        details = {"measured_mib": measured, "estimated_mib": estimated}
        context.keep([Figure(name=name, ratio=measured / estimated, reach="<= 1", details=details)])
        free()


def _row_memory(case: str) -> tuple[int, float, float]:
    """Tokens of a row, and the MiB of its update besides weights, adapters and Adam: first measured, then estimated."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.workloads import Shape, random_model, tree_pairs
    from flow_dpo.core.dpo import Dpo
    from flow_dpo.learner.learner import Learner, LearnerSettings
    from flow_dpo.learner.policy import Policy
    from flow_dpo.models.dry_run import row_memory

    model = random_model(case)
    learner = Learner(Policy(model, ("answer",)), LearnerSettings(examples_per_update=0))
    row: dict[str, float] = {}
    peak = measuring.PeakMemory()
    for shape in (Shape(8, 4, 2), Shape(150, 160, 6)):  # the first creates Adam's moments, and all that is made once
        pairs = tree_pairs(random.Random(0), "p", shape, vocabulary=min(model.config.vocab_size, 32_000))
        free()
        peak = measuring.PeakMemory()
        row = learner.update(Dpo(), [pair for pair in pairs if pair.request.role == "answer"])
    measured = peak.mib()
    if row["learn/answer/rows"] != 1:
        raise SystemExit(f"expected one row, found {row['learn/answer/rows']:g}")
    tokens = int(row["learn/answer/tokens"])
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype).eval()
        policy = Policy(blank, ("answer",))
        with policy.using("answer", training=True):
            estimated = row_memory(blank, policy.parameters("answer"), tokens).peak_bytes / 2**20
    return tokens, measured, estimated


def online(context: Context) -> None:
    """Our loop with the recipe online-dpo against TRL with its KV cache on."""
    settings = online_dpo.options().parse_args(["--tiny"] if context.rehearse else ["--updates", "2"])
    settings.case = context.case
    if context.rehearse:
        settings.prompts_per_update, settings.max_tokens, settings.updates = 4, 6, 1
    sizes = [2] if context.rehearse else [32]
    sides: dict[str, Callable[[], Report]] = {OURS: partial(online_dpo.ours, settings)}
    sides |= {f"cached-{size}": partial(_online_trl, settings, size) for size in sizes}

    def figures(reports: Reports) -> list[Figure]:
        peer, rate = best(reports, [side for side in sides if side != OURS], "prompts_a_second")
        ratio = measuring.median(reports[OURS], "prompts_a_second") / rate
        details = {"best": peer, "runs": reports}
        name = f"online DPO {context.label}: over TRL with its cache"
        return [Figure(name=name, ratio=ratio, reach=">= 2", details=details)]

    context.take_turns(sides, figures)


def _options(context: Context, *flags: str) -> argparse.Namespace:
    tiny = ["--tiny"] if context.rehearse else []
    return learner_vs_trl.options().parse_args([*flags, *tiny, "--case", context.case, SHAPE, "--updates", "2"])


def _trl(context: Context, flags: Sequence[str]) -> Report:
    _forget_accelerate()
    return learner_vs_trl.trl(_options(context, *flags))


def _online_trl(settings: argparse.Namespace, size: int) -> Report:
    _forget_accelerate()
    return online_dpo.trl(settings, size, "cached")


def _forget_accelerate() -> None:
    """Reset Accelerate, which keeps the precision of a process's first trainer for all later ones."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
