"""Journal of the batch under way: what an interrupted run had sampled, kept for the resumption.

Completions are held in memory by what was asked, and written only where a run is interrupted (Ctrl-C, SIGTERM, an
error): a file of one header and a row a completion. A resumed run that comes to the same batch is answered from it:

    sampled.jsonl    {"schema": "sampled_batch/1", "problems": ["gsm8k/7", ...], "whole": true, "stats": {...}}
                     {"schema": "sampled/1", "key": "9f0c...", "completion": {"token_ids": [...], ...}}

Invariant: a resumed run stays bit for bit the run that was never interrupted. That holds where the whole batch was
sampled: nothing is computed again. Of a batch that was not, the rest would be computed beside fewer others, which
changes no token but the last digits of log-probabilities (kernels round by the size of what they are given); it is used
only where the user asks for it (`run.reuse_sampled`), and otherwise sampled again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flow_dpo.core.engine import Engine
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import RolloutWorkers
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Completion, Problem, Request, Role, Sampling, TokenIds
from flow_dpo.runs.records import append_rows, iter_rows

FILE = "sampled.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledBatch:
    """The batch that a journal is of: the first row of its file."""

    SCHEMA: ClassVar[str] = "sampled_batch/1"
    problems: tuple[str, ...]
    """Their ids, in order."""
    seed: int
    policy_version: int
    whole: bool
    """All that the batch asks for was sampled."""
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the workers reported of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledCompletion:
    """One completion, under the digest of what was asked."""

    SCHEMA: ClassVar[str] = "sampled/1"
    key: str
    completion: Completion


class JournalEngine(Engine):
    """An engine that remembers what it sampled, and answers what it is given to remember without sampling it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sampled: dict[str, Completion] = {}
        """What this batch has asked so far and got, by the digest of what was asked."""
        self._kept: Mapping[str, Completion] = {}
        self._keys: dict[int, str] = {}
        self._ready: list[tuple[int, Completion]] = []
        self._num_ready = 0

    def begin(self, kept: Mapping[str, Completion]) -> None:
        """Begin a batch, of which this was sampled before."""
        self.sampled, self._kept = {}, kept

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        key = digest(request, sampling, seed, excluded)
        if (completion := self._kept.get(key)) is not None:
            self._num_ready += 1  # the engine's own tickets are not negative
            self._ready.append((-self._num_ready, completion))
            self.sampled[key] = completion
            return -self._num_ready
        ticket = self.engine.submit(request, sampling, seed=seed, excluded=excluded)
        self._keys[ticket] = key
        return ticket

    def poll(self) -> list[tuple[int, Completion]]:
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        found = self.engine.poll()
        for ticket, completion in found:
            self.sampled[self._keys.pop(ticket)] = completion
        return found

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        self.engine.refresh(adapters)

    def take_stats(self) -> dict[str, float]:
        return self.engine.take_stats()

    def close(self) -> None:
        self.engine.close()


class JournalWorkers:
    """Rollout workers over a `JournalEngine` that keep the batch under way (`core.protocols.RolloutWorkers`)."""

    def __init__(self, workers: RolloutWorkers, engine: JournalEngine, path: Path, *, partly: bool = False) -> None:
        """`path` is the file; `partly`: a batch that was not sampled to its end is used, too."""
        self._workers, self._engine, self._path = workers, engine, path
        self._version = 0
        self._batch: SampledBatch | None = None
        self._stats: Mapping[str, float] = {}
        """Of the same batch, before an interruption."""
        self._found = self._read(partly)

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on."""
        self._version = max((adapter.version for adapter in adapters.values()), default=0)
        self._workers.refresh(adapters)

    def rollout(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        """One graded tree a problem, in their order."""
        ids = tuple(problem.id for problem in problems)
        batch = SampledBatch(problems=ids, seed=seed, policy_version=self._version, whole=False)
        known, kept = self._found
        same = known is not None and (known.problems, known.seed, known.policy_version) == (ids, seed, self._version)
        self._batch, self._stats = batch, known.stats if same and known is not None else {}
        self._engine.begin(kept if same else {})
        trees = self._workers.rollout(explore, flow, problems, seed=seed)
        self._found = (None, {})
        self._batch = SampledBatch(problems=ids, seed=seed, policy_version=self._version, whole=True)
        return trees

    def take_stats(self) -> dict[str, float]:
        """What the workers report, with what they had reported of the same batch before an interruption."""
        stats, self._stats = dict(self._workers.take_stats()), dict(self._stats)
        merged = {name: stats.get(name, 0) + self._stats.get(name, 0) for name in [*self._stats, *stats]}
        self._stats = {}
        return merged

    def done(self) -> None:
        """The batch was learned from and committed: nothing of it need be kept."""
        self._batch = None
        self._path.unlink(missing_ok=True)

    def keep(self) -> tuple[int, bool]:
        """Write what the batch under way has sampled; how many completions that are, and whether they are all."""
        batch, rows = self._batch, self._engine.sampled
        if batch is None or not rows:
            return 0, False
        made = SampledBatch(
            problems=batch.problems,
            seed=batch.seed,
            policy_version=batch.policy_version,
            whole=batch.whole,
            stats=self.take_stats(),
        )
        beside = self._path.with_suffix(".tmp")
        beside.unlink(missing_ok=True)
        append_rows(beside, [made, *(SampledCompletion(key=key, completion=value) for key, value in rows.items())])
        beside.replace(self._path)
        return len(rows), batch.whole

    def _read(self, partly: bool) -> tuple[SampledBatch | None, dict[str, Completion]]:
        """The batch of the file and its completions; nothing where there is none that may be used."""
        batch: SampledBatch | None = None
        kept: dict[str, Completion] = {}
        if not self._path.exists():
            return None, {}
        for _, row in iter_rows(self._path, (SampledBatch, SampledCompletion)):
            if isinstance(row, SampledBatch):
                batch = row
            else:
                kept[row.key] = row.completion
        usable = batch is not None and (batch.whole or partly)
        return (batch, kept) if usable else (None, {})


def digest(request: Request, sampling: Sampling, seed: int, excluded: TokenIds) -> str:
    """What a completion depends on besides the adapters, as one short text."""
    asked = (
        request.role, request.prompt_ids, request.max_tokens, request.choices,
        sampling.temperature, sampling.top_p, sampling.greedy, seed, excluded,
    )  # fmt: skip
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:32]
