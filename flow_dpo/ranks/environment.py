"""This process's place among the ranks of a learner, as torchrun and `accelerate launch` state it.

    torchrun --nproc-per-node 2 -m flow_dpo train ...     one has RANK=0 WORLD_SIZE=2 LOCAL_RANK=0, the other RANK=1 ...

Rank 0 samples, grades and records as a single process does; the others follow it. As in a single process, bits depend
on the number of threads. torchrun sets OMP_NUM_THREADS=1 if it is not set, so runs that are to be equal must set it, or
--num_threads, alike. Invariant: nothing heavy is imported, so a command that does not learn is refused at once.
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
    """Number of processes, on all machines."""
    local_rank: int = 0
    """The process's number on this machine."""
    local_num: int = 1
    """Number of processes on this machine."""

    @property
    def follows(self) -> bool:
        """Whether this process only computes rows for rank 0."""
        return self.rank > 0


def place() -> Place:
    """This process's place; that of a single process if no launcher started it. Raises `ConfigError` for incomplete
    variables, as on a cluster that sets only WORLD_SIZE."""
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
                f"expected a launch that does not wrap the model, found {name} set by accelerate's config: launch with "
                f"`accelerate launch --multi_gpu` or torchrun, and give {value} instead"
            )
    return found


def usable_processors() -> int:
    """Number of processors that this process is allowed to use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_ranks(command: str) -> None:
    """Raise `ConfigError` if several processes were launched for a command that does not share its work over ranks."""
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
            f"{'nothing' if text is None else repr(text)} with WORLD_SIZE={stated}: start ranks with one of these, "
            "or unset WORLD_SIZE if the cluster has set it and this is the only process"
        )
    return int(text)
