"""What limits a run whose rollouts are sampled elsewhere or ahead: workers, learner, or how the work is split.

    bottleneck(rows)     "learner waits 62 % of the time for rollouts: more workers (--workers.num, or more servers)"

Computed from the last rows of metrics: the seconds for which workers sampled (summed over workers), and for which the
learner waited for rollouts and learned. Invariant: no limit is named if one process samples and learns in turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NUM_BATCHES = 8
"""Number of recent batches that are considered."""
_MUCH = 0.25
"""Share of the time from which on a remedy is suggested."""
_IDLE = 0.6
"""If workers are busy for less than this share of the time in which they can work, they have too few shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How some batches spent their time, in seconds."""

    sampled: float
    """Sampling and grading, summed over all workers."""
    waited: float
    """The learner's wait for rollouts."""
    learned: float
    workers: float
    """Mean number of workers."""
    lag: int
    rows_a_rank: float | None = None
    """Mean number of rows of an update per learner rank; None with a single rank."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Balance:
        """From one or more rows of metrics."""

        def total(*names: str) -> float:
            return sum(float(row.get(name) or 0.0) for row in rows for name in names)

        learned = [name for name in rows[-1] if name.startswith("learn/") and name.endswith("/rows")]
        ranks, updates = float(rows[-1].get("ranks/num") or 1.0), total("learn/updates")
        return cls(
            sampled=total("rollout/seconds", "grade/seconds"),
            waited=total("rollout/wait_seconds"),
            learned=total("learn/seconds"),
            workers=sum(float(row.get("rollout/workers") or 1.0) for row in rows) / len(rows),
            lag=int(rows[-1].get("run/lag") or 0),
            rows_a_rank=total(*learned) / updates / ranks if ranks > 1 and updates else None,
        )

    @property
    def wait_share(self) -> float:
        """Share of its time that the learner waits for rollouts."""
        return self.waited / max(self.waited + self.learned, 1e-9)

    @property
    def busy_share(self) -> float:
        """Share of their time that workers sample, from 0 to 1."""
        return min(1.0, self.sampled / max(self.workers * (self.waited + self.learned), 1e-9))


def bottleneck(rows: Sequence[Mapping[str, Any]]) -> str:
    """What limited the last batches of these rows, in a few words with a remedy; "" if there is nothing to say."""
    last = rows[-NUM_BATCHES:]
    if not last or "rollout/workers" not in last[-1]:
        return ""
    found = Balance.of(last)
    if found.waited + found.learned <= 0:
        return ""
    if found.wait_share >= _MUCH:
        return f"learner waits {100 * found.wait_share:.0f} % of the time for rollouts: {_more_rollouts(found)}"
    if found.busy_share < 1 - _MUCH:
        return f"workers wait {100 - 100 * found.busy_share:.0f} % of the time for the learner: {_more_learning(found)}"
    return "workers and learner are both busy"


def _more_rollouts(found: Balance) -> str:
    """The remedy if the learner waits."""
    # Without a lag, workers are idle while the learner learns: they do all of their sampling during its wait.
    able = found.workers * (found.waited if found.lag == 0 else found.waited + found.learned)
    if found.workers > 1.5 and found.sampled < _IDLE * able:
        return "workers have too little to do: smaller shards (--workers.shard) or larger batches"
    if found.lag == 0 and found.learned >= _MUCH * (found.waited + found.learned):
        return "let them sample ahead (--run.lag 1)"
    return "more workers (--workers.num, or more servers)"


def _more_learning(found: Balance) -> str:
    """The remedy if workers wait."""
    if found.lag == 0 and found.waited > 0.1 * found.learned:
        return "let them sample ahead (--run.lag 1), or more learner ranks"
    if found.rows_a_rank is not None and found.rows_a_rank <= 1:
        return "ranks have no more rows to share: larger updates, or fewer workers"
    return "more learner ranks, or fewer workers"
