"""Which GPUs the workers on the learner's machine get: those that the learner does not use.

visible_devices("cuda:1", "4,5,6", 3)                        "4,6"
devices_of_each(WorkersSettings(num=2, num_gpus=1), "cuda:0")   ["1", "2"], one per worker
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from flow_dpo.core.errors import ConfigError
from flow_dpo.ranks import environment
from flow_dpo.workers.settings import WorkersSettings


def visible_devices(learner_device: str, visible: str | None, num_devices: int, num_ranks: int = 1) -> str:
    """CUDA_VISIBLE_DEVICES for a private cluster's workers: all devices that this process sees but the learner's.

    `visible` is the variable in this process, `num_devices` is torch's device count, and `num_ranks` is the number of
    the learner's ranks on this machine, which use the first devices, one each. "cuda:1" of "4,5,6" leaves "4,6".
    """
    names = [str(index) for index in range(num_devices)] if visible is None else [*filter(None, visible.split(","))]
    kind, _, index = learner_device.partition(":")
    taken = {int(index or 0), *range(num_ranks if num_ranks > 1 else 0)} if kind == "cuda" else set[int]()
    return ",".join(name for place, name in enumerate(names) if place not in taken)


def devices_of_each(settings: WorkersSettings, learner_device: str) -> Sequence[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker process: `num_gpus` devices that the learner does not use; None if the
    workers have no GPUs.

    Raises `ConfigError` for too few GPUs, for a fraction of one, and for any GPUs if the learner has none.
    """
    num, each = settings.num, int(settings.num_gpus)
    if not settings.num_gpus:
        return [None] * num
    if each != settings.num_gpus:
        raise ConfigError(
            f"expected a whole number of GPUs for each worker process, found --workers.num_gpus {settings.num_gpus:g}: "
            "workers that share a GPU would compete for its memory; give each a GPU, or use fewer workers"
        )
    if not learner_device.startswith("cuda"):
        raise ConfigError(
            f"expected worker processes without GPUs, as the learner is on {learner_device}, found --workers.num_gpus "
            f"{each}: both must be on the same kind of device; leave it out, or add --device cuda"
        )
    visible, place, found = os.environ.get("CUDA_VISIBLE_DEVICES"), environment.place(), torch.cuda.device_count()
    if visible is not None:  # CUDA ignores a name without a device, and all names after it
        visible = ",".join([*filter(None, visible.split(","))][:found])
    others = visible_devices(learner_device, visible, found, place.local_num)
    there = others.split(",") if others else []
    if num * each > len(there):
        raise ConfigError(
            f"expected {num * each} GPUs for {num} workers with {each} each (--workers.num_gpus), found {len(there)} "
            "besides the learner's; use fewer workers (--workers.num), or fewer GPUs for each"
        )
    return [",".join(there[index * each : (index + 1) * each]) for index in range(num)]
