"""Protocols of the parts that the loop is handed.

Any object with these methods fits: a learner over several processes is a `Learns`, a reward function in an object a
`Grader`, a fleet of machines is a `RolloutWorkers`. Invariant: nothing in this room knows a concrete one.

    workers = InProcessWorkers(Backends(engine=engine, renderer=renderer, grader=grader))
    learn(recipe, problems, workers, learner, callbacks=[lambda row, trees, examples: print(row)])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flow_dpo.core.engine import Engine, RendersTurns
from flow_dpo.core.grader import Grader
from flow_dpo.core.types import Adapter, Example, Problem, Role

if TYPE_CHECKING:
    from flow_dpo.core.explore import Explore
    from flow_dpo.core.flow import Flow
    from flow_dpo.core.objective import Objective
    from flow_dpo.core.tree import Tree

Row = dict[str, Any]
"""One batch's metrics, by their names."""


class Learns(Protocol):
    """Turns examples into the next version of the adapters."""

    @property
    def adapters(self) -> Mapping[Role, Adapter]:
        """The adapters in force, one a role."""
        ...

    @property
    def version(self) -> int:
        """Updates made so far."""
        ...

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Take the examples in, learn from as many as make an update, and return metrics."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one worker, or the learner, did from when to when."""

    lane: str
    """ "worker 0", "learner"."""
    what: str
    """ "sampling", "learning", "starting"."""
    start: float
    """Seconds since the epoch."""
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """A batch of problems that was sampled and graded."""

    trees: list[Tree]
    """One graded tree a problem, in their order."""
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    """Counts and seconds of the work, as a row of metrics names them."""
    spans: Sequence[Span] = ()
    """Who sampled which part of it, and when."""


class RolloutWorkers(Protocol):
    """Sample and grade whole problems: in this process, on several servers, or on a cluster.
    A problem's tree depends on the problem, the seed and the adapters in force, and on nothing beside it.
    """

    def submit(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        """Begin a batch under the adapters in force, whatever is refreshed later. It may be done when this returns."""
        ...

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample batches that are submitted from now on with these adapters."""
        ...


class Callback(Protocol):
    """Receives every batch: the run folder, a progress bar, a tracker, a test's list."""

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """One batch was sampled, graded and learned from. `row` is complete and must not be changed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Backends:
    """What rollouts are sampled and graded with."""

    engine: Engine
    renderer: RendersTurns
    grader: Grader
