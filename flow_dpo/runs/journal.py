"""Journal of what is being sampled: the completions of an interrupted command, kept until it continues.

Completions are held in memory by request, and written when a run is interrupted (Ctrl-C, SIGTERM, an error). An
evaluation, which has no other record before its end, writes them batch by batch. When the same batch is sampled again,
the file answers:

    sampled.jsonl    {"schema": "sampled/1", "key": "9f0c...", "completion": {"token_ids": [...], ...}}
                     {"schema": "sampled_batch/1", "problems": ["gsm8k/7", ...], "whole": true, ...}

Invariant: a resumed run equals an uninterrupted one bit for bit. A run's batch is identified by the weights that
sampled it, not by their version alone: with another learning rate (`--allow`), version 1 has other weights. Of a batch
that was sampled completely nothing is computed again. The rest of an incomplete batch would be computed beside fewer
requests, which changes no token, but the last digits of log-probabilities (kernels round by the shape of their input).
A run, which learns from them, therefore uses an incomplete batch only if the user asks for it (`run.reuse_sampled`); an
evaluation always does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError, StorageError
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import Rollouts, RolloutWorkers
from flow_dpo.core.types import Adapter, Completion, Problem, Request, Role, Sampling, TokenIds
from flow_dpo.runs.files import cut_torn
from flow_dpo.runs.records import append_rows, iter_rows

FILE = "sampled.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledBatch:
    """A batch of problems: its row follows those of its completions, so a file that ends too early does not have it."""

    SCHEMA: ClassVar[str] = "sampled_batch/1"
    problems: tuple[str, ...]
    """The ids of its problems, in order."""
    seed: int
    policy_version: int
    context: str
    """Digest of everything else that it depends on: the command's settings, and in a run the weights in force."""
    num_completions: int = 0
    """Number of rows before this one that are its completions."""
    whole: bool = False
    """Whether everything that the batch asks for was sampled."""
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the workers reported about it."""

    def same(self, other: SampledBatch) -> bool:
        """Whether both are the same batch, sampled under the same conditions."""
        names = ("problems", "seed", "policy_version", "context")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledCompletion:
    """One completion, under the digest of its request."""

    SCHEMA: ClassVar[str] = "sampled/1"
    key: str
    completion: Completion


class JournalEngine(Engine):
    """An engine that remembers what it sampled, and does not sample again what it was given as kept."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sampled: dict[str, Completion] = {}
        """The completions of this batch so far, by the digest of their request."""
        self._kept: Mapping[str, Completion] = {}
        self._keys: dict[int, str] = {}
        self._ready: list[tuple[int, Completion]] = []
        self._num_ready = 0

    def begin(self, kept: Mapping[str, Completion]) -> None:
        """Begin a batch; `kept` are the completions that were sampled for it before."""
        self.sampled, self._kept = {}, kept

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        key = digest(request, sampling, seed, excluded)
        if (completion := self._kept.get(key)) is not None:
            self._num_ready += 1  # negative tickets: the engine's own never are
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
    """Rollout workers over a `JournalEngine` that keep the batches under way (`core.protocols.RolloutWorkers`)."""

    def __init__(
        self,
        workers: RolloutWorkers,
        engine: JournalEngine,
        path: Path,
        *,
        partly: bool = False,
        context: str = "",
        weights: Callable[[], str] | None = None,
        each_batch: bool = False,
    ) -> None:
        """`path` is the file. With `partly`, a batch that was not sampled to its end is used, too. `weights` returns a
        digest of the adapters in force, if these change: batches that other adapters sampled are ignored. With
        `each_batch`, every batch is written as soon as it is sampled.

        Raises `ConfigError` if the file has another context and there is no `weights`.
        """
        self._workers, self._engine, self._path = workers, engine, path
        self._partly, self._context, self._each_batch = partly, context, each_batch
        self._weights, self._in_force, self._version = weights, context, 0
        self._batches: list[tuple[SampledBatch, Mapping[str, Completion]]] = []
        """Batches that are recorded nowhere else yet, the one under way last."""
        self._found = _read(path)
        if weights is None and any(batch.context != context for batch, _ in self._found):
            raise ConfigError(
                f"{path.parent} holds what the same command sampled with other settings ({path.name}); name "
                "another folder with --output_dir, or remove the file"
            )

    @property
    def num_kept(self) -> int:
        """Completions that an interruption left behind."""
        return sum(len(completions) for _, completions in self._found)

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on."""
        self._version = max((adapter.version for adapter in adapters.values()), default=0)
        if self._weights is not None:
            self._in_force = hashlib.sha256(f"{self._context}\n{self._weights()}".encode()).hexdigest()
        self._workers.refresh(adapters)

    def submit(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        """Sample and grade the batch now, using what an interruption left of it."""
        ids = tuple(problem.id for problem in problems)
        batch = SampledBatch(problems=ids, seed=seed, policy_version=self._version, context=self._in_force)
        found = [(known, kept) for known, kept in self._found if known.same(batch) and (known.whole or self._partly)]
        # After two interruptions it can be there twice, and the second attempt may have got less far.
        known, kept = max(found, key=lambda each: (each[0].whole, len(each[1])), default=(batch, {}))
        self._engine.begin(kept)
        self._batches.append((replace(batch, stats=known.stats), self._engine.sampled))
        found = self._workers.submit(explore, flow, problems, seed=seed).result()
        # Including what the workers reported about the same batch before an interruption.
        names = dict.fromkeys([*known.stats, *found.stats])
        stats = {name: found.stats.get(name, 0) + known.stats.get(name, 0) for name in names}
        self._batches[-1] = replace(batch, whole=True, stats=stats), self._engine.sampled
        if self._each_batch:
            self._batches = self._batches if not known.whole else []  # in the file already
            self.keep()
        done = Future[Rollouts]()
        done.set_result(Rollouts(trees=found.trees, stats=stats, spans=found.spans))
        return done

    def done(self, num_in_flight: int = 0) -> None:
        """Forget all batches but the last `num_in_flight`: they are recorded elsewhere by now."""
        self._batches, self._found = self._batches[len(self._batches) - num_in_flight :], []
        self._path.unlink(missing_ok=True)

    def keep(self) -> tuple[int, bool]:
        """Write what the batches under way have sampled; return the number of completions, and whether they are all.

        Raises `StorageError`.
        """
        batches, self._batches = [(batch, rows) for batch, rows in self._batches if rows], []
        found: list[SampledCompletion | SampledBatch] = []
        for batch, rows in batches:
            stats = batch.stats if batch.whole else _sum(batch.stats, self._engine.take_stats())
            found += [SampledCompletion(key=key, completion=one) for key, one in rows.items()]
            found.append(replace(batch, stats={} if self._each_batch else stats, num_completions=len(rows)))
        try:
            if found and self._path.exists():
                cut_torn(self._path)
            if found:
                append_rows(self._path, found)
        except OSError as error:
            raise StorageError(
                f"could not write what was sampled to {self._path}: {error}; make room, and continue"
            ) from error
        return sum(len(rows) for _, rows in batches), bool(batches) and all(batch.whole for batch, _ in batches)


def _sum(before: Mapping[str, float], engine: Mapping[str, float]) -> dict[str, float]:
    """Stats of a batch plus what its engine has counted since, under the workers' names."""
    now = {f"rollout/{name}": value for name, value in engine.items()}
    return {name: before.get(name, 0) + now.get(name, 0) for name in dict.fromkeys([*before, *now])}


def _read(path: Path) -> list[tuple[SampledBatch, dict[str, Completion]]]:
    """The batches of a file, each with its completions; a batch without its row is left out."""
    found: list[tuple[SampledBatch, dict[str, Completion]]] = []
    rows: list[SampledCompletion] = []
    for _, row in iter_rows(path, (SampledBatch, SampledCompletion)) if path.exists() else ():
        if isinstance(row, SampledCompletion):
            rows.append(row)
        else:
            own = rows[len(rows) - row.num_completions :]
            found.append((row, {one.key: one.completion for one in own}))
            rows = []
    return found


def digest(request: Request, sampling: Sampling, seed: int, excluded: TokenIds) -> str:
    """Digest of everything that a completion depends on besides the adapters."""
    # Without `dataclasses.astuple`, which would copy every token: the values are plain already.
    asked = (*(tuple(getattr(x, each.name) for each in fields(x)) for x in (request, sampling)), seed, excluded)
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:32]
