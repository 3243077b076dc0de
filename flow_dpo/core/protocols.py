"""Protocols of the parts that the loop works with.

Any object with these methods fits: a learner over several processes is a `Learns`, an object around a reward function
is a `Grader`, a fleet of machines is a `RolloutWorkers`. Invariant: nothing in this room knows an implementation.

    workers = InProcessWorkers(Backends(engine=engine, renderer=renderer, grader=grader))
    learn(recipe, problems, workers, learner, callbacks=[progress_bar])     # any object with `on_batch`
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
"""The metrics of one batch, by name."""


class Learns(Protocol):
    """Turns examples into the next version of the adapters."""

    @property
    def adapters(self) -> Mapping[Role, Adapter]:
        """The adapters in force, one per role."""
        ...

    @property
    def version(self) -> int:
        """Updates made so far."""
        ...

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Add the examples to those that wait, make every update that is due, and return metrics."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time in which one worker, or the learner, did one kind of work."""

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
    """One graded tree per problem, in the problems' order."""
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    """Counts and seconds of the work, by metric name."""
    spans: Sequence[Span] = ()
    """Which worker was busy when."""


class RolloutWorkers(Protocol):
    """Sample and grade whole problems: in this process, on several servers, or on a cluster.
    A problem's tree depends only on the problem, the seed and the adapters in force, not on other problems.
    """

    def submit(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        """Start a batch with the adapters in force, whatever `refresh` does later. It can be complete on return."""
        ...

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Use these adapters for all batches submitted from now on."""
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
