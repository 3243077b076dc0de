"""Workers that show their progress and keep what they sampled, for training runs and for commands that only sample.

    with kept_workers(folder, facts, runtime, adapters, live, console) as (workers, journal):
        rollouts = workers.submit(...)          interrupted, the same command continues from `folder`/sampled.jsonl

Invariant: what was kept is used only with the same model, adapters, flow and sampling. With any other, a command that
does not learn refuses the file by name, and a training run samples again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import StorageError
from flow_dpo.core.protocols import RolloutWorkers
from flow_dpo.core.types import Adapter, Role
from flow_dpo.learner.policy import Policy
from flow_dpo.runs import run_folder
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.journal import FILE, JournalEngine, JournalWorkers
from flow_dpo.runs.live import Live, MeteredEngine, MeteredWorkers
from flow_dpo.runs.runtime import Runtime
from flow_dpo.runs.settings import TrainSettings
from flow_dpo.workers.in_process import InProcessWorkers
from flow_dpo.workers.pool import PooledWorkers


def run_workers(runtime: Runtime, live: Live, settings: TrainSettings) -> tuple[RolloutWorkers, JournalWorkers | None]:
    """The workers of a training run, and the journal that keeps in its folder what the batch under way has sampled.
    Workers elsewhere have no journal: what is under way there is dropped, and a resumed run samples it again."""
    if isinstance(runtime.workers, PooledWorkers):
        return MeteredWorkers(runtime.workers, live, learns=True), None
    engine = JournalEngine(runtime.backends.engine)
    live.meter.engine = runtime.backends.engine
    metered = replace(runtime.backends, engine=MeteredEngine(engine, live.meter))
    # What completions depend on besides requests and adapters; `--allow` lets a resumed run have other values.
    as_loaded = replace(settings.runtime.model, dtype="auto", device="auto", template_date="")
    facts = {
        "model": run_folder.plain(as_loaded),
        "dtype": str(runtime.policy.model.dtype),
        "device": str(runtime.policy.model.device),
        "engine": type(runtime.backends.engine).__name__,
        "int8": getattr(settings.runtime.engine, "int8", False),
    }
    journal = JournalWorkers(
        InProcessWorkers(metered, shard=runtime.shard),
        engine,
        Path(settings.run.output_dir) / FILE,
        partly=settings.run.reuse_sampled,
        context=_context(facts, {}),
        weights=partial(weights_digest, runtime.policy),
    )
    return MeteredWorkers(journal, live, learns=True), journal


@contextmanager
def kept_workers(
    folder: Path | None,
    facts: Mapping[str, Any],
    runtime: Runtime,
    adapters: Mapping[Role, Adapter],
    live: Live,
    console: Console,
    *,
    counts: bool = True,
) -> Iterator[tuple[RolloutWorkers, JournalWorkers | None]]:
    """The workers, and their journal in `folder`, which is removed once everything is written elsewhere. There is no
    journal without a folder, or for workers elsewhere.

    `facts`: what completions depend on besides the requests and the adapters, as JSON values. `counts`: problems count
    as done as soon as they are sampled; otherwise only when the caller says so.
    """
    if isinstance(runtime.workers, PooledWorkers):
        yield MeteredWorkers(runtime.workers, live, counts=counts), None
        if folder is not None:
            (folder / FILE).unlink(missing_ok=True)  # of an earlier call with workers in this process
        return
    engine = JournalEngine(runtime.backends.engine)
    live.meter.engine = runtime.backends.engine
    metered = replace(runtime.backends, engine=MeteredEngine(engine, live.meter))
    workers = InProcessWorkers(metered, shard=runtime.shard)
    if folder is None:
        yield MeteredWorkers(workers, live, counts=counts), None
        return
    file, context = folder / FILE, _context(facts, adapters)
    journal = JournalWorkers(workers, engine, file, partly=True, context=context, each_batch=True)
    if journal.num_kept:
        print_safe(console, f"continuing from {journal.num_kept:,} turns that were sampled before ({file})")
    try:
        yield MeteredWorkers(journal, live, counts=counts), journal
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, StorageError):
            journal.keep()
        if any(path.name != ".lock" for path in folder.iterdir()):
            print_safe(console, f"What was sampled is kept in {folder}; the same command continues from it")
        raise
    journal.done()


def weights_digest(policy: Policy) -> str:
    """SHA-256 of all roles' current float32 weights, in hexadecimal digits. It takes one pass over the adapters, a
    fraction of the cost of a checkpoint."""
    digest = hashlib.sha256()
    for role in policy.roles:
        for name, weight in zip(policy.names(role), policy.weights(role), strict=True):
            digest.update(f"{role} {name} ".encode())
            digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _context(facts: Mapping[str, Any], adapters: Mapping[Role, Adapter]) -> str:
    """Digest of the facts and of the adapters' files."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for role, adapter in sorted(adapters.items()):
        digest.update(role.encode())
        for file in sorted(Path(adapter.path).glob("adapter_*")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
