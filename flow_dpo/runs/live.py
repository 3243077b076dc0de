"""Sign of life of a command: what it is doing now, how far it is and how long it may take.

    with Live(console) as live:
        live.doing("loading the model")
        live.begin(512, "problems")         32/512 problems  2 min 10 s, about 30 min left
        live.advance(32)                      sampling: 812 of about 1,400 turns, 31,022 tokens

On a terminal two lines are drawn again four times a second, and are gone at the end; elsewhere a plain line is written
where nothing else was for ten seconds. A single forward of a large model, its loading or a long batch call nothing back
for minutes: so a thread of its own looks at the counts (`Meter`), which the work only writes.

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
"""Seconds without a line, where there is no terminal, after which one is written."""
_SAMPLED_SHARE = 0.9
"""Share of a batch that is done when it was sampled and is still to be learned from."""


class Meter:
    """Counts of the work under way: written by what works, read by what shows it."""

    def __init__(self) -> None:
        self.doing = ""
        self.since = time.monotonic()
        """When the batch, or what is done outside of one, began."""
        self.num_problems = 0
        """Of the batch; 0 outside of one."""
        self.learns = False
        """Whether the batch is learned from."""
        self.num_asked = self.num_done = self.num_tokens = 0
        """Turns of the batch, and the tokens of those that are done."""
        self.num_examples = self.num_learned = 0
        self.engine: Engine | None = None
        self.pool: PooledWorkers | None = None
        """The workers, where they are elsewhere: their shards are counted and not their turns."""
        self._tokens_before = self._shards_before = 0
        self._turns_before = self._problems_before = 0

    def say(self, doing: str) -> None:
        """Something begins that has no counts."""
        self.doing, self.since, self.num_problems = doing, time.monotonic(), 0

    def begin_batch(self, num_problems: int, *, learns: bool) -> None:
        """A batch begins to be sampled."""
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
        """Tokens of the batch, those of turns under way included where the engine counts them."""
        return max(self.num_tokens, getattr(self.engine, "num_sampled", 0) - self._tokens_before)

    @property
    def num_expected(self) -> int:
        """Turns of the batch in all: as many as earlier ones had, and no fewer than were asked for."""
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
        """Shards that were done since the last batch began to be sampled, and these with those that are in flight."""
        done = found.shards_done - self._shards_before
        return done, done + found.shards_under_way + found.shards_queued

    def _here(self) -> str:
        """What this process does."""
        if self.doing == "sampling" and self.num_asked and self.num_done == self.num_asked:
            return f"grading {self.num_problems} problems after {self.tokens:,} tokens"
        if self.doing == "sampling":
            about = "about " if self._problems_before else "at least "
            return f"sampling: {self.num_done:,} of {about}{self.num_expected:,} turns, {self.tokens:,} tokens"
        if self.doing == "learning":
            return f"learning: {self.num_learned:,} of {max(self.num_learned, self.num_examples):,} examples"
        return self.doing


class Live:
    """What a command is doing, on a console. A context manager: what it draws is gone at the end."""

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
                redirect_stderr=sys.stderr.isatty(),  # messages go above; in a file they stay there
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
        """Something begins that takes a while and cannot be counted."""
        self.meter.say(what)

    def begin(self, total: int, unit: str, done: int = 0) -> None:
        """So many are to be done, of which some are already."""
        self._total, self._unit, self._before, self.done = total, unit, done, done
        self._began = time.monotonic()

    def advance(self, to: int) -> None:
        """A batch is done, and so many in all are."""
        self.meter.end_batch()
        self.done = to

    def print(self, text: str) -> None:
        """A line of its own, where there is no terminal."""
        if not self._console.is_terminal:
            self._printed = time.monotonic()
            self._console.print(Text(text), soft_wrap=True)

    def left_s(self) -> tuple[float, bool] | None:
        """Seconds that are left, and whether that is the least it may be; None where nothing is known yet.

        Finished batches tell how long a problem takes. In the first one, the turns that are done among those that were
        asked for so far do, and more will be asked for.
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
        """How far it is and how long it may take, in words."""
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
    """A time for people: "45 s", "12 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# ---- what works, and writes the counts -------------------------------------------------------------------------------


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
    """Rollout workers whose batches are shown (`core.protocols.RolloutWorkers`)."""

    def __init__(self, workers: RolloutWorkers, live: Live, *, learns: bool = False, counts: bool = True) -> None:
        """`learns`: what they sample is learned from afterwards, and only then is a batch done. `counts`: otherwise it
        is done once it was sampled; without, when the caller says so."""
        self._workers, self._live, self._learns, self._counts = workers, live, learns, counts
        self._lock, self._num_open = threading.Lock(), 0
        """Batches that are not sampled yet, of those that are not learned from."""
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
        """The adapters in force, one a role."""
        return self._learner.adapters

    @property
    def version(self) -> int:
        """Updates made so far."""
        return self._learner.version

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Take the examples in, learn from as many as make an update, and return metrics."""
        check_examples(objective, examples)
        meter = self._meter
        meter.num_examples, meter.num_learned, meter.doing = len(examples), 0, "learning"
        return self._learner.update(_Counted(objective, meter), examples)


class _Counted:
    """An objective that counts the examples whose loss it is asked for: the learner asks row by row."""

    accepts: ClassVar[tuple[type, ...]] = (object,)  # its examples are checked before

    def __init__(self, objective: Objective, meter: Meter) -> None:
        self._objective, self._meter = objective, meter

    @property
    def needs_reference(self) -> bool | tuple[type, ...]:
        return self._objective.needs_reference

    def for_update(self, examples: Sequence[Any]) -> _Counted:
        """What depends on all examples of an update is settled by the objective itself."""
        settle = getattr(self._objective, "for_update", lambda _: self._objective)
        return _Counted(settle(examples), self._meter)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process there is no meter: there it is the objective itself."""
        return copy, (self._objective,)

    def __call__(self, examples: Sequence[Any], policy: Any, reference: Any) -> Any:
        loss = self._objective(examples, policy, reference)
        self._meter.num_learned += len(examples)
        return loss
