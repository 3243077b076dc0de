"""Live status of a command: what it is doing, how far it has got and how long it may still take.

    with Live(console) as live:
        live.doing("loading the model")
        live.begin(512, "problems")         32/512 problems  2 min 10 s, about 30 min left
        live.advance(32)                      sampling: 812 of about 1,400 turns, 31,022 tokens

On a terminal the lines are redrawn four times a second, and removed at the end; elsewhere a plain line is written after
ten seconds without one. Loading a large model, one of its forward passes or a long batch can take minutes without a
callback, so a separate thread reads the counts (`Meter`), which the work only writes.

Invariant: nothing is printed to a quiet console, and no result depends on what is shown.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from typing import Any, ClassVar

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveRegion
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import visible
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.objective import Objective, check_examples
from flow_dpo.core.protocols import Learns, Rollouts, RolloutWorkers, Row
from flow_dpo.core.types import Adapter, Completion, Example, Problem, Request, Role, Sampling, TokenIds
from flow_dpo.workers.pool import PooledWorkers, Progress

QUIET_S = 10.0
"""Seconds without a line after which one is written, if there is no terminal."""
_SAMPLED_SHARE = 0.9
"""Share of a batch that counts as done when it is sampled but not yet learned from."""


class Meter:
    """Counts of the work under way: written by the code that works, read by the code that shows them."""

    def __init__(self) -> None:
        self.doing = ""
        self.since = time.monotonic()
        """When the batch began, or the work outside of a batch."""
        self.num_problems = 0
        """Problems of the batch; 0 outside of a batch."""
        self.learns = False
        """Whether the batch is learned from."""
        self.num_asked = self.num_done = self.num_tokens = 0
        """Turns of the batch that were requested and that are done, and the tokens of the latter."""
        self.num_examples = self.num_learned = 0
        self.engine: Engine | None = None
        self.pool: PooledWorkers | None = None
        """The workers, if they are elsewhere: their shards are counted instead of turns."""
        self._tokens_before = self._shards_before = 0
        self._turns_before = self._problems_before = 0

    def say(self, doing: str) -> None:
        """Begin something that has no counts."""
        self.doing, self.since, self.num_problems = doing, time.monotonic(), 0

    def begin_batch(self, num_problems: int, *, learns: bool) -> None:
        """Begin to sample a batch."""
        self.num_asked = self.num_done = self.num_tokens = self.num_examples = self.num_learned = 0
        self._shards_before = 0 if self.pool is None else self.pool.progress.shards_done
        self._tokens_before = getattr(self.engine, "num_sampled", 0)
        self.doing, self.since, self.num_problems, self.learns = "sampling", time.monotonic(), num_problems, learns

    def end_batch(self) -> None:
        """The batch is done: later ones are expected to be like it."""
        self._turns_before += self.num_done
        self._problems_before += self.num_problems
        self.num_asked = self.num_done = self.num_problems = 0

    @property
    def tokens(self) -> int:
        """Tokens of the batch, including those of turns under way if the engine counts them."""
        return max(self.num_tokens, getattr(self.engine, "num_sampled", 0) - self._tokens_before)

    @property
    def num_expected(self) -> int:
        """Expected number of turns of the batch: as many per problem as before, and no fewer than were requested."""
        known = self._turns_before / self._problems_before if self._problems_before else 0.0
        return max(self.num_asked, round(known * self.num_problems))

    @property
    def share(self) -> float:
        """Share of the batch that is done, from 0 to 1."""
        most = _SAMPLED_SHARE if self.learns else 1.0
        if self.doing == "sampling" and self.pool is not None:
            done, num = self._shards(self.pool.progress)
            return most * done / max(num, 1)
        if self.doing == "sampling":
            return most * self.num_done / max(self.num_expected, 1)
        if self.doing == "learning":
            return most + (1 - most) * self.num_learned / max(self.num_examples, 1)
        return 0.0

    def text(self) -> str:
        """What is being done, in words."""
        if self.pool is None or self.doing not in ("sampling", "learning"):
            return self._here()
        found = self.pool.progress
        done, num = self._shards(found)
        shards = f"{done:,} of {num:,} shards sampled, {found.num_alive:,} of {found.num_workers:,} workers alive"
        if found.lost:
            shards += f" ({visible(found.lost[0])[:80]})"
        return shards if self.doing == "sampling" else f"{self._here()}; {shards}"

    def _shards(self, found: Progress) -> tuple[int, int]:
        """Shards done since the last batch began to be sampled, and their number together with those in flight."""
        done = found.shards_done - self._shards_before
        return done, done + found.shards_under_way + found.shards_queued

    def _here(self) -> str:
        """What this process is doing, in words."""
        if self.doing == "sampling" and self.num_asked and self.num_done == self.num_asked:
            return f"grading {self.num_problems} problems after {self.tokens:,} tokens"
        if self.doing == "sampling":
            about = "about " if self._problems_before else "at least "
            return f"sampling: {self.num_done:,} of {about}{self.num_expected:,} turns, {self.tokens:,} tokens"
        if self.doing == "learning":
            return f"learning: {self.num_learned:,} of {max(self.num_learned, self.num_examples):,} examples"
        return self.doing


class Live:
    """Shows on a console what a command is doing. A context manager: what it draws is removed at the end."""

    def __init__(self, console: Console, *, quiet_s: float = QUIET_S) -> None:
        self.meter = Meter()
        self.note = ""
        """What is known so far, such as an accuracy."""
        self.limit = ""
        """What limits the run."""
        self._console, self._quiet_s = console, quiet_s
        self._started = self._began = self._printed = time.monotonic()
        self._total, self._unit = 0, ""
        self._before = self.done = 0
        self._spinner = Spinner("dots")
        self._region: LiveRegion | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> Live:
        if self._console.quiet:
            return self
        if self._console.is_terminal:
            self._region = LiveRegion(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=4,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # messages appear above; those to a file still go there
            )
            self._region.start()
        else:
            self._thread = threading.Thread(target=self._watch, name="sign of life", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._region is not None:
            self._region.stop()
        if self._thread is not None:
            self._thread.join()

    def doing(self, what: str) -> None:
        """Begin something that takes a while and cannot be counted."""
        self.meter.say(what)

    def begin(self, total: int, unit: str, done: int = 0) -> None:
        """Begin work on `total` units, of which `done` are done already."""
        self._total, self._unit, self._before, self.done = total, unit, done, done
        self._began = time.monotonic()

    def advance(self, to: int) -> None:
        """A batch is done, which brings the units done to `to`."""
        self.meter.end_batch()
        self.done = to

    def print(self, text: str) -> None:
        """Print a line of its own if there is no terminal."""
        if not self._console.is_terminal:
            self._printed = time.monotonic()
            self._console.print(Text(text), soft_wrap=True)

    def left_s(self) -> tuple[float, bool] | None:
        """Seconds left, and whether that is only a lower bound; None if nothing is known yet.

        The estimate is based on finished batches. In the first batch it is based on the share of turns done among those
        requested so far: a lower bound, since more will be requested.
        """
        now, num_new = time.monotonic(), self.done - self._before
        in_batch = now - self.meter.since if self.meter.num_problems else 0.0
        if num_new > 0:
            pace = (now - self._began - in_batch) / num_new
            return max(pace * (self._total - self.done) - in_batch, 0.0), False
        if not self._total or self.meter.share < 0.01:
            return None
        batch_s = in_batch / self.meter.share
        num_after = max(self._total - self.done - self.meter.num_problems, 0)
        return batch_s - in_batch + num_after * batch_s / max(self.meter.num_problems, 1), True

    def pace(self) -> str:
        """How far the work has got and how long it may still take, in words."""
        count = f"{self.done:,}/{self._total:,} {self._unit}  " if self._total else ""
        left = self.left_s()
        told = left is not None and left[0] >= 1  # "over 0 s left" tells nothing
        time_left = f", {'over' if left[1] else 'about'} {duration(left[0])} left" if left and told else ""
        return f"{count}{duration(time.monotonic() - self._started)}{time_left}"

    def _render(self) -> RenderableType:
        now = f"  {self.meter.text()}" + (f"   {self.note}" if self.note else "")
        shown = [now, f"  {self.limit}"] if self.limit else [now]
        lines = [Text(line, no_wrap=True, overflow="ellipsis", style="dim") for line in shown]
        top = Table.grid(padding=(0, 1))
        done = min(self.done + self.meter.share * self.meter.num_problems, self._total)
        bar = [ProgressBar(total=self._total, completed=done, width=30)] if self._total else []
        top.add_row(self._spinner, *bar, Text(self.pace(), no_wrap=True, overflow="ellipsis"))
        return Group(top, *lines)

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._quiet_s)):
            if self.meter.doing and time.monotonic() - self._printed >= self._quiet_s:
                self.print(f"{self.pace()}  {self.meter.text()}")


def duration(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# ---- the code that works, and writes the counts ----------------------------------------------------------------------


class MeteredEngine(Engine):
    """An engine whose turns and tokens are counted."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self.engine, self.meter = engine, meter

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        ticket = self.engine.submit(request, sampling, seed=seed, excluded=excluded)
        self.meter.num_asked += 1
        return ticket

    def poll(self) -> list[tuple[int, Completion]]:
        found = self.engine.poll()
        self.meter.num_done += len(found)
        self.meter.num_tokens += sum(len(completion.token_ids) for _, completion in found)
        return found

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        self.engine.refresh(adapters)

    def take_stats(self) -> dict[str, float]:
        return self.engine.take_stats()

    def close(self) -> None:
        self.engine.close()


class MeteredWorkers:
    """Rollout workers whose progress is shown (`core.protocols.RolloutWorkers`)."""

    def __init__(self, workers: RolloutWorkers, live: Live, *, learns: bool = False, counts: bool = True) -> None:
        """`learns`: batches are learned from afterwards, and only then done. Otherwise a batch is done as soon as it is
        sampled or, without `counts`, when the caller says so."""
        self._workers, self._live, self._learns, self._counts = workers, live, learns, counts
        self._lock, self._num_open = threading.Lock(), 0
        """`_num_open`: batches that are still being sampled and will not be learned from."""
        live.meter.pool = workers if isinstance(workers, PooledWorkers) else None

    def submit(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        """Begin a batch under the adapters in force."""
        with self._lock:
            if not self._num_open:
                self._live.meter.begin_batch(len(problems), learns=self._learns)
            else:
                self._live.meter.num_problems += len(problems)
            self._num_open += not self._learns
        rollouts = self._workers.submit(explore, flow, problems, seed=seed)
        if not self._learns:
            rollouts.add_done_callback(lambda _: self._sampled(len(problems)))
        return rollouts

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on."""
        self._workers.refresh(adapters)

    def _sampled(self, num_problems: int) -> None:
        with self._lock:
            self._num_open -= 1
            done = self._live.done + (num_problems if self._counts else 0)
            if self._num_open:
                self._live.done = done
            else:
                self._live.advance(done)
                self._live.meter.doing = "reading what was sampled"


class MeteredLearner:
    """A learner whose examples are counted (`core.protocols.Learns`)."""

    def __init__(self, learner: Learns, meter: Meter) -> None:
        self._learner, self._meter = learner, meter

    @property
    def adapters(self) -> Mapping[Role, Adapter]:
        """The adapters in force, one per role."""
        return self._learner.adapters

    @property
    def version(self) -> int:
        """Updates made so far."""
        return self._learner.version

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Take in the examples, make the updates for which there are enough, and return metrics."""
        check_examples(objective, examples)
        meter = self._meter
        meter.num_examples, meter.num_learned, meter.doing = len(examples), 0, "learning"
        return self._learner.update(_Counted(objective, meter), examples)


class _Counted:
    """An objective that counts the examples whose loss is computed: the learner calls it row by row."""

    accepts: ClassVar[tuple[type, ...]] = (object,)  # the examples were checked before

    def __init__(self, objective: Objective, meter: Meter) -> None:
        self._objective, self._meter = objective, meter

    @property
    def needs_reference(self) -> bool | tuple[type, ...]:
        return self._objective.needs_reference

    def for_update(self, examples: Sequence[Any]) -> _Counted:
        """Let the objective itself settle what depends on all examples of an update."""
        settle = getattr(self._objective, "for_update", lambda _: self._objective)
        return _Counted(settle(examples), self._meter)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the objective itself: in another process there is no meter."""
        return copy, (self._objective,)

    def __call__(self, examples: Sequence[Any], policy: Any, reference: Any) -> Any:
        loss = self._objective(examples, policy, reference)
        self._meter.num_learned += len(examples)
        return loss
