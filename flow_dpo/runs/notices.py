"""Notices before a run samples: what a problem costs, batches too small for the device, and what a lag does.

    say_cost(settings, runtime, console)     A problem costs 4 rollouts, 4 verdicts and 54 sampled tokens ...

Invariant: no result of the run depends on them.
"""

from __future__ import annotations

import logging

from rich.console import Console

from flow_dpo.core.errors import FlowDpoError
from flow_dpo.runs import rehearsal
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.runtime import Runtime
from flow_dpo.runs.settings import TrainSettings

log = logging.getLogger("flow_dpo")


def say_cost(settings: TrainSettings, runtime: Runtime, console: Console) -> None:
    """Say what a problem costs, as far as that is known before one is sampled, and whether batches are too small."""
    problems = runtime.fitting[: rehearsal.NUM_PROBLEMS]
    try:
        cost = rehearsal.rehearse(settings.recipe, problems, runtime.renderer)
    except FlowDpoError as error:
        log.warning("the cost of a problem is not known before it is sampled: %s", error)
        return
    if cost is not None:
        print_safe(console, cost.sentence(len(runtime.fitting)))
        batch, gpu = settings.run.problems_per_batch, runtime.policy.model.device.type == "cuda"
        if notice := rehearsal.too_few(cost, batch, settings.runtime.engine, on_gpu=gpu):
            log.warning("%s", notice)


def warn_of_lag(settings: TrainSettings) -> None:
    """Warn about what a lag can do to learning, and about a lag that gains nothing."""
    lag = settings.run.lag
    if lag and settings.runtime.workers.kind == "here":
        log.warning("run.lag %d gains nothing: this process samples and learns in turns (see --workers)", lag)
    if lag:
        under_way = (lag + 1) * settings.run.problems_per_batch
        log.warning(
            "run.lag %d: %d problems are under way at once, so rollouts are that much staler when they are learned "
            "from. With the learning rate of a run without a lag, keep that run's number: set problems_per_batch to "
            "1/%d of its value (docs/scaling.md: what happened otherwise)",
            lag, under_way, lag + 1,
        )  # fmt: skip
