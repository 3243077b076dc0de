"""Settings of the rollout workers: in this process, in others of this machine, one a running server, or on Ray.

    flow-dpo train --workers processes --workers.num 2
    flow-dpo train --workers ray --workers.num 4 --workers.address auto

Invariant: which tokens are sampled depends on `shard` and `num_threads` alone, and on these in the last bits only;
nothing depends on how many workers there are, on their speed or on those that fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from flow_dpo.core.errors import expect
from flow_dpo.ranks.environment import usable_processors

_SHARD = 16
"""Problems of a shard where several workers share a batch."""


@dataclass(frozen=True, kw_only=True)
class WorkersSettings:
    """Who samples: this process, others of this machine, one thread for each server of `--base_url a,b,c`, or actors
    on Ray."""

    kind: Literal["here", "processes", "servers", "ray"] = "here"
    """`--workers ray` is short for it."""
    num: int = 1
    """Processes, or workers on Ray. Of servers there are as many as addresses."""
    shard: int = 0
    """Problems that one worker samples beside one another; log-probabilities depend on it in the last bits. 0: all of a
    batch in this process, 16 elsewhere. A batch smaller than a shard for each worker leaves some of them idle, but for
    a lag (`run.lag`)."""
    address: str = ""
    """Of a Ray cluster: "auto" is the one that this machine is part of, "ray://host:10001" one elsewhere. Empty: a
    cluster of this command's own on this machine, gone at its end."""
    num_threads: int = 1
    """Processor threads of a process or a worker on Ray; log-probabilities depend on it in the last bits."""
    num_gpus: float = 0.0
    """GPUs of a process, a whole number, or of a worker on Ray, of whom several share one below 1."""
    start_s: float = 600.0
    """Seconds in which a process or a worker on Ray has to be there with its model loaded."""
    deadline_s: float = 3600.0
    """Seconds that one shard may take, after which its worker is given up and the shard is sampled again."""
    patience_s: float = 900.0
    """Seconds without a single worker after which the run ends, with all that was learned."""
    tries: int = 3
    """Times that a shard may lose its worker before the run ends and names its problems."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "num", "num_threads", "tries")
        expect(self, "of 0 or more", lambda value: 0 <= value < math.inf, "shard", "num_gpus")
        expect(self, "above 0", lambda value: 0 < value < math.inf, "start_s", "deadline_s", "patience_s")

    @property
    def of_actors(self) -> bool:
        """Whether each worker has a model of its own, in a process that this one starts."""
        return self.kind in ("processes", "ray")

    @property
    def fill_machine(self) -> bool:
        """Whether they compute on all processors of the learner's machine."""
        return self.on_processors and self.num * self.num_threads >= usable_processors()

    @property
    def on_processors(self) -> bool:
        """Whether they compute on processors of the learner's machine, in its memory."""
        return self.kind == "processes" and not self.num_gpus

    @property
    def problems_of_shard(self) -> int:
        """Problems that are sampled beside one another; 0: all of a batch."""
        return self.shard or (0 if self.kind == "here" else _SHARD)


TIMING_ONLY = frozenset(
    f"workers.{each.name}" for each in fields(WorkersSettings) if each.name not in ("shard", "num_threads")
) | {"engine.base_url"}
"""Settings that change no result, given what `with_shards_in_force` says of the others. What is served at an address is
compared with the model whenever it is connected to."""


def with_shards_in_force(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with what of the workers a result depends on: how batches are cut, and the threads that sample."""
    workers = WorkersSettings(**sections["workers"])
    threads = workers.num_threads if workers.of_actors else sections["model"].get("num_threads")
    in_force = {"shard": workers.problems_of_shard, "num_threads": threads}
    return {**sections, "workers": {**sections["workers"], **in_force}}
