"""Which GPUs workers on the learner's machine have: those that are not its own.

visible_devices("cuda:1", "4,5,6", 3)                        "4,6"
devices_of_each(WorkersSettings(num=2, num_gpus=1), "cuda:0")   ["1", "2"], a worker each
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

from flow_dpo.core.errors import ConfigError
from flow_dpo.ranks import environment
from flow_dpo.workers.settings import WorkersSettings


def visible_devices(learner_device: str, visible: str | None, num_devices: int, num_ranks: int = 1) -> str:
    """CUDA_VISIBLE_DEVICES of an own cluster's workers: all devices that this process sees but the learner's.

    `visible` is the variable as this process has it, `num_devices` how many torch counts, `num_ranks` how many ranks
    of the learner are on this machine: they have the first ones, one each. "cuda:1" of "4,5,6" leaves "4,6".
    """
    names = [str(index) for index in range(num_devices)] if visible is None else [*filter(None, visible.split(","))]
    kind, _, index = learner_device.partition(":")
    taken = {int(index or 0), *range(num_ranks if num_ranks > 1 else 0)} if kind == "cuda" else set[int]()
    return ",".join(name for place, name in enumerate(names) if place not in taken)


def devices_of_each(settings: WorkersSettings, learner_device: str) -> Sequence[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker: `num_gpus` each of those that are not the learner's; None where no worker
    has any. Several share one where `num_gpus` is below 1.

    Raises `ConfigError` where there are too few.
    """
    if not settings.num_gpus:
        return [None] * settings.num
    whole = settings.num_gpus >= 1
    if whole and settings.num_gpus != int(settings.num_gpus):
        raise ConfigError(
            "expected a whole number of GPUs for each worker, or a part of one, found --workers.num_gpus "
            f"{settings.num_gpus:g}"
        )
    of_one = 1 if whole else int(1 / settings.num_gpus + 1e-9)
    visible, place = os.environ.get("CUDA_VISIBLE_DEVICES"), environment.place()
    there = visible_devices(learner_device, visible, torch.cuda.device_count(), place.local_num).split(",")
    there = [name for name in there if name]
    each = int(settings.num_gpus) if whole else 1
    wanted = math.ceil(settings.num / of_one) * each
    if wanted > len(there):
        of_others = " besides the learner's" if learner_device.startswith("cuda") else ""
        raise ConfigError(
            f"expected {wanted} GPUs for {settings.num} workers with {settings.num_gpus:g} each (--workers.num_gpus), "
            f"found {len(there)}{of_others}; ask for fewer workers with --workers.num, or for less each"
        )
    return [",".join(there[(index // of_one) * each : (index // of_one + 1) * each]) for index in range(settings.num)]
