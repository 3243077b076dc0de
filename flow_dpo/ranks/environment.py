"""This process's place among the ranks of a learner, as torchrun and `accelerate launch` state it.

    torchrun --nproc-per-node 2 -m flow_dpo train ...     RANK=0 WORLD_SIZE=2 LOCAL_RANK=0, and RANK=1 ... beside it

Rank 0 samples, grades and records as one process does; the others follow it. Bits depend on the number of threads, as
they do in one process, and torchrun sets OMP_NUM_THREADS=1 where it is not set: runs that are to be equal set it, or
--num_threads, alike. Invariant: nothing heavy is imported, so that a command that does not learn is refused at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from flow_dpo.core.errors import ConfigError

LEARNS = frozenset({"train", "quickstart"})
"""Commands that ranks can share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One process among those that were launched together."""

    rank: int = 0
    num: int = 1
    """Of all processes, on all machines."""
    local_rank: int = 0
    """On this machine."""
    local_num: int = 1
    """Of processes on this machine."""

    @property
    def follows(self) -> bool:
        """Whether it computes rows for rank 0 and does nothing else."""
        return self.rank > 0


def place() -> Place:
    """This process's place; alone where nothing launched it. Raises `ConfigError` for half a statement, which a cluster
    makes that sets WORLD_SIZE by itself."""
    num = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if num <= 1:
        return Place()
    rank = _number("RANK")
    found = Place(rank=rank, num=num, local_rank=_number("LOCAL_RANK"), local_num=_number("LOCAL_WORLD_SIZE"))
    if rank >= num:
        raise ConfigError(f"expected RANK from 0 to {num - 1}, found {rank}: start ranks with torchrun")
    for name, value in (
        ("ACCELERATE_USE_FSDP", "--learner.rows.shard_base true"),
        ("ACCELERATE_USE_DEEPSPEED", "no flag"),
    ):
        if os.environ.get(name, "").lower() == "true":
            raise ConfigError(
                f"expected ranks without a wrapper of the model, found {name} set by accelerate's config: launch with "
                f"`accelerate launch --multi_gpu` or torchrun, and give {value} instead"
            )
    return found


def usable_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_ranks(command: str) -> None:
    """Raise `ConfigError` where several processes were launched for a command that does not share its work so."""
    if place().num > 1 and command not in LEARNS:
        raise ConfigError(
            f"{command} does not learn over ranks, but {place().num} processes of it were launched (WORLD_SIZE): start "
            "it once, without torchrun and with WORLD_SIZE unset, and sample on several machines with --workers"
        )


def _number(name: str) -> int:
    text = os.environ.get(name)
    if text is None or not text.isdecimal():
        stated = os.environ.get("WORLD_SIZE", "")
        raise ConfigError(
            f"expected {name} to be a number, as torchrun and accelerate launch set it, found "
            f"{'nothing' if text is None else repr(text)} beside WORLD_SIZE={stated}: start ranks with one of these, "
            "or unset WORLD_SIZE where the cluster has set it and this is the only process"
        )
    return int(text)
