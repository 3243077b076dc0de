"""Settings of the rollout workers: in this process, in others on this machine, one for each server, or on Ray.

    flow-dpo train --workers processes --workers.num 2
    flow-dpo train --workers ray --workers.num 4 --workers.address auto

Invariant: only `shard` and `num_threads` can change what is sampled, and only through rounding in the last bits. The
number of workers, their speed and their failures change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from flow_dpo.core.errors import expect
from flow_dpo.ranks.environment import usable_processors

_SHARD = 16
"""Problems in a shard if several workers share a batch."""


@dataclass(frozen=True, kw_only=True)
class WorkersSettings:
    """Where rollouts are sampled: in this process, in others on this machine, on each server of `--base_url a,b,c`, or
    by actors on Ray."""

    kind: Literal["here", "processes", "servers", "ray"] = "here"
    """Which workers sample. `--workers ray` is short for `--workers.kind ray`."""
    num: int = 1
    """Number of worker processes, or of workers on Ray. With servers, there is one worker for each address."""
    shard: int = 0
    """Problems that one worker samples together; log-probabilities depend on it in the last bits. 0 means a whole batch
    in this process, and 16 elsewhere. If a batch has fewer shards than there are workers, some workers are idle, unless
    there is a lag (`run.lag`)."""
    address: str = ""
    """Address of a Ray cluster: "auto" joins the one that this machine is part of, "ray://host:10001" one elsewhere.
    Empty starts a cluster on this machine, which ends with this command."""
    num_threads: int = 1
    """CPU threads of each worker process or Ray worker; log-probabilities depend on it in the last bits."""
    num_gpus: float = 0.0
    """GPUs of each worker: a whole number for worker processes; on Ray, a fraction lets workers share a GPU."""
    start_s: float = 600.0
    """Seconds within which a worker process or Ray worker must have started and loaded the model."""
    deadline_s: float = 3600.0
    """Seconds that one shard can take. After that, its worker is given up and the shard is sampled again."""
    patience_s: float = 900.0
    """Seconds without any live worker after which the run ends. What was learned so far is kept."""
    tries: int = 3
    """Number of workers lost over one shard after which the run ends and names the shard's problems."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "num", "num_threads", "tries")
        expect(self, "of 0 or more", lambda value: 0 <= value < math.inf, "shard", "num_gpus")
        expect(self, "above 0", lambda value: 0 < value < math.inf, "start_s", "deadline_s", "patience_s")

    @property
    def of_actors(self) -> bool:
        """Whether each worker has its own model, in a process that this one starts."""
        return self.kind in ("processes", "ray")

    @property
    def fill_machine(self) -> bool:
        """Whether the workers use all processors of the learner's machine."""
        return self.on_processors and self.num * self.num_threads >= usable_processors()

    @property
    def on_processors(self) -> bool:
        """Whether the workers compute on the processors of the learner's machine, in its memory."""
        return self.kind == "processes" and not self.num_gpus

    @property
    def problems_of_shard(self) -> int:
        """Problems that are sampled together; 0 means all of a batch."""
        return self.shard or (0 if self.kind == "here" else _SHARD)


TIMING_ONLY = frozenset(
    f"workers.{each.name}" for each in fields(WorkersSettings) if each.name not in ("shard", "num_threads")
) | {"engine.base_url"}
"""Settings that do not change results, given those that `with_shards_in_force` resolves. An address is among them
because a server is compared with the model at every connection."""


def with_shards_in_force(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with resolved worker settings that affect results: size of a shard, and sampling threads."""
    workers = WorkersSettings(**sections["workers"])
    threads = workers.num_threads if workers.of_actors else sections["model"].get("num_threads")
    in_force = {"shard": workers.problems_of_shard, "num_threads": threads}
    return {**sections, "workers": {**sections["workers"], **in_force}}
