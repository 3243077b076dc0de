"""Server workers: a running `vllm serve` for each lane of a pool, with its own renderer and grader.

    flow-dpo train --workers servers --base_url http://gpu1:8000,http://gpu2:8000 ...

All servers are checked before anything is sampled, like a single one. A server that goes away later is a lost worker:
its shard goes to another one, and it is tried again with growing waits until it is back. Then it is checked as at
first, and loads the adapters of its next shard. Invariant: a shard is sampled by one server with one adapter version.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.grader import Grader
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.engines import factory
from flow_dpo.engines.settings import VllmServerSettings
from flow_dpo.engines.vllm.checks import ExpectedModel, check_base, connect
from flow_dpo.engines.vllm.client import ServedModel, Unreachable, VllmClient
from flow_dpo.engines.vllm.requests import ModelFacts
from flow_dpo.engines.vllm.server import VllmServerEngine
from flow_dpo.learner.policy import Policy
from flow_dpo.models.http_client import Passing
from flow_dpo.models.load import LoadedModel, load_renderer
from flow_dpo.models.render import Renderer
from flow_dpo.workers.adapters import AdapterFolders
from flow_dpo.workers.grading import open_grader
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.setup import WorkersAccess, WorkerSetup, dated
from flow_dpo.workers.shard import Shard, ShardResult, WorkerLost, sample_and_continue

_PATIENCE_S = 30.0
"""Seconds without an answer after which a server is lost, unless `engine.patience_s` is shorter."""
_NOT_YET = (429, 500, 502, 503, 504)
"""Statuses of a server that is starting, or of a proxy in front of it."""


class ServerWorker:
    """One server (`workers.shard.Worker`)."""

    def __init__(
        self,
        settings: VllmServerSettings,
        facts: ModelFacts,
        expected: ExpectedModel,
        *,
        renderer: Renderer,
        grader: Grader,
        context_tokens: int,
    ) -> None:
        """Connect to the server. Raises `ConfigError` if it is unreachable, or serves another model."""
        self._settings = replace(settings, patience_s=min(settings.patience_s, _PATIENCE_S))
        self._facts, self._expected, self._renderer, self._grader = facts, expected, renderer, grader
        self._context_tokens = context_tokens
        self._client = self._new_client()
        self._base = connect(self._client, expected)
        self._runner: RolloutRunner | None = None

    @property
    def name(self) -> str:
        """Address of the server."""
        return self._settings.base_url

    @property
    def context_tokens(self) -> int:
        """Size of its context window, or of the model's if that is smaller."""
        return min(self._context_tokens, self._base.max_model_len)

    def open(self, context_tokens: int) -> None:
        """Create the engine, for requests of at most so many tokens."""
        self._context_tokens = context_tokens
        self._runner = RolloutRunner(self._engine(), self._renderer, self._grader)

    def sample(self, shard: Shard) -> ShardResult:
        """Sample and grade a shard with its adapters."""
        assert self._runner is not None
        try:
            self._runner.refresh(shard.adapters)
            result = sample_and_continue(self._runner, self._grader, shard)
        except Unreachable as error:
            raise WorkerLost(str(error)) from error
        return replace(result, stats=self._runner.engine.take_stats())

    def restart(self) -> None:
        """Connect again. Raises `WorkerLost` if it is unreachable, `ConfigError` if it serves another model."""
        assert self._runner is not None
        self._runner.engine.close()
        self._client = self._new_client()
        try:
            if (status := self._client.answers().status) in _NOT_YET:
                raise WorkerLost(f"{self.name} answers with the status {status}")
            base: ServedModel = connect(self._client, self._expected)
        except Unreachable as error:
            raise WorkerLost(str(error)) from error
        except ConfigError as error:
            if isinstance(error.__cause__, Unreachable | Passing):
                raise WorkerLost(str(error)) from error
            raise
        if base != self._base:
            raise ConfigError(
                f"expected {self.name} to serve {self._base.id} from {self._base.root} with "
                f"{self._base.max_model_len} tokens as before, found {base.id} from {base.root} with "
                f"{base.max_model_len}; start it as it was"
            )
        self.open(self._context_tokens)

    def abort(self) -> None:
        """Give up all requests."""
        self._client.stop()

    def close(self) -> None:
        """Give up all requests, and unload the adapters."""
        if self._runner is not None:
            self._runner.engine.close()
        self._client.stop()

    def _new_client(self) -> VllmClient:
        return VllmClient(self._settings, api_key=os.environ.get("OPENAI_API_KEY", ""))

    def _engine(self) -> VllmServerEngine:
        client, base, expected = self._client, self._base, self._expected

        def check() -> None:
            check_base(lambda request: client.complete(base.id, request).reply, expected, where=client.url)

        return VllmServerEngine(
            client, self._facts, base=base, context_tokens=self._context_tokens,
            folder_of=lambda adapter: Path(adapter.path), check=check,
        )  # fmt: skip


@contextmanager
def open_servers(setup: WorkerSetup, loaded: LoadedModel) -> Iterator[WorkersAccess]:
    """Connect to all servers in the settings, and check them."""
    engine = setup.engine
    assert isinstance(engine, VllmServerSettings)
    facts = factory.model_facts(loaded, engine)
    expected = factory.expected_model(loaded, num_roles=len(setup.roles))
    model = dated(setup.model, loaded.renderer)
    with ExitStack() as stack:
        workers: list[ServerWorker] = []
        for url in engine.base_urls:
            _, renderer = load_renderer(model)
            worker = ServerWorker(
                replace(engine, base_url=url), facts, expected, renderer=renderer,
                grader=stack.enter_context(open_grader(setup.grading, setup.grader, renderer)),
                context_tokens=loaded.context_tokens,
            )  # fmt: skip
            stack.callback(worker.abort)
            workers.append(worker)
        room = min(worker.context_tokens for worker in workers)

        def begin(policy: Policy, folder: Path) -> PooledWorkers:
            return _begin(setup, workers, room, policy, folder)

        yield WorkersAccess(context_tokens=room, connect=begin)


def _begin(
    setup: WorkerSetup, workers: Sequence[ServerWorker], context_tokens: int, policy: Policy, folder: Path
) -> PooledWorkers:
    """Raises `ConfigError` for adapters that vLLM cannot read from files."""
    factory.check_readable(policy)
    for worker in workers:
        worker.open(context_tokens)
    return PooledWorkers(workers, AdapterFolders(policy.save_adapter, folder), setup.workers)
