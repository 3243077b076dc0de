"""Is an actor, in a process of its own or in this one, what this process is, and is one that is another refused?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_dpo.core.errors import ConfigError, LearningError
from flow_dpo.core.loop import learn
from flow_dpo.core.types import Adapter, Completion
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.models.load import load_model
from flow_dpo.models.settings import QuantizationSettings
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.runs.runtime import Runtime, open_runtime
from flow_dpo.runs.settings import RuntimeSettings, default_settings
from flow_dpo.workers.actor import Expected, RolloutActor, files_of
from flow_dpo.workers.adapters import AdapterFolders
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.setup import WorkerSetup, as_loaded
from flow_dpo.workers.shard import Shard, ShardResult

SETTINGS = default_settings("flow-dpo", "seed")
FLOW = SETTINGS.recipe.flow


def setup_of(settings: RuntimeSettings, **changes: Any) -> WorkerSetup:
    found = WorkerSetup(
        workers=WorkersSettings(kind="ray", shard=3), model=settings.model, lora=settings.lora, engine=settings.engine,
        grading=settings.grading, roles=FLOW.roles, seed=7,
    )  # fmt: skip
    return replace(found, **changes)


class Inside:
    """An actor in this process, as a worker."""

    name = "an actor"

    def __init__(self, setup: WorkerSetup, *, swaps: bool = False) -> None:
        self.actor, self.swaps = RolloutActor(), swaps
        loaded = load_model(setup.model)
        self.actor.open(setup, Expected.of(loaded, num_roles=2))

    def sample(self, shard: Shard) -> ShardResult:
        weights = files_of(shard.adapters)
        if self.swaps and shard.version:
            weights = dict(zip(weights, reversed(list(weights.values())), strict=True))
        return self.actor.sample(shard, weights)

    def restart(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        """It ends soon."""

    def close(self) -> None:
        self.actor.close()


def stir(runtime: Runtime, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for role in runtime.policy.roles:
            for weight in runtime.policy.weights(role):
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
            runtime.policy.publish(role)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    settings = replace(
        SETTINGS.runtime,
        data=replace(SETTINGS.runtime.data, max_problems=7),
        workers=WorkersSettings(shard=3),
    )
    with open_runtime(settings, FLOW, seed=7) as opened:
        yield opened


def test_an_actor_samples_what_this_process_does(runtime: Runtime, tmp_path: Path) -> None:
    """Trees and counts, under the version that each batch was submitted with; one actor samples all of them."""
    explore = SETTINGS.recipe.explore
    folders = AdapterFolders(runtime.policy.save_adapter, tmp_path / "served", roles=FLOW.roles)
    pool = PooledWorkers([Inside(setup_of(SETTINGS.runtime))], folders, WorkersSettings(kind="ray", shard=3))
    with closing(pool):
        for version in (0, 4, 4, 5):
            adapters = {role: Adapter(role=role, version=version) for role in FLOW.roles} if version else {}
            if version:
                stir(runtime, version)
            expected, found = [], []
            for workers in (runtime.workers, pool):
                workers.refresh(adapters)
                found.append(workers.submit(explore, FLOW, runtime.fitting, seed=3).result(timeout=120))
            expected, got = found
            assert got.trees == expected.trees
            names = [name for name in expected.stats if not name.endswith(("seconds", "_s"))]
            assert {name: got.stats[name] for name in names} == {name: expected.stats[name] for name in names}


class Broken(Attempts):
    """A flow of somebody who divides by zero, while other problems are under way."""

    def advance(self, state: Any, completion: Completion) -> Any:
        raise ZeroDivisionError(f"in {state.problem.id}")


def test_a_shard_that_fails_leaves_nothing_in_the_way_of_the_next(runtime: Runtime, tmp_path: Path) -> None:
    """In an engine and in what waits for a verdict."""
    folders = AdapterFolders(runtime.policy.save_adapter, tmp_path / "served", roles=FLOW.roles)
    adapters = folders.publish({})
    worker = Inside(setup_of(SETTINGS.runtime))
    with closing(worker):
        shard = Shard(
            batch=0, number=0, explore=SETTINGS.recipe.explore, flow=FLOW, problems=tuple(runtime.fitting[:3]), seed=3,
            adapters=adapters,
        )  # fmt: skip
        expected = worker.sample(shard).trees
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="in seed/train/"):
                worker.sample(replace(shard, flow=Broken()))
        assert worker.sample(shard).trees == expected


@pytest.mark.parametrize("swaps", [False, True])
def test_adapters_that_were_swapped_stop_the_run(swaps: bool, tmp_path: Path) -> None:
    """Two batches ahead, and still noticed: what was sampled is compared under the version that sampled."""
    settings = replace(SETTINGS.runtime, data=replace(SETTINGS.runtime.data, max_problems=16))
    with open_runtime(settings, FLOW, seed=7) as runtime:
        stir(runtime, 1)
        chosen = LearnerSettings(learning_rate=1e-3, examples_per_update=2, max_logprob_drift=0.01)
        learner = Learner(runtime.policy, chosen, kept_versions=1)
        folders = AdapterFolders(runtime.policy.save_adapter, tmp_path / "served", roles=FLOW.roles)
        worker = Inside(setup_of(SETTINGS.runtime), swaps=swaps)
        with closing(PooledWorkers([worker], folders, WorkersSettings(kind="ray", shard=4))) as pool:
            with pytest.raises(LearningError, match="differ by") if swaps else nullcontext():
                learn(SETTINGS.recipe, runtime.fitting, pool, learner, seed=3, problems_per_batch=4, lag=1)
            assert learner.version > 0, "at first no adapter has another's place"


def test_a_model_that_is_not_there_or_another_is_refused(tmp_path: Path) -> None:
    loaded = load_model(SETTINGS.runtime.model)
    expected = Expected.of(loaded, num_roles=2)
    assert expected.differences(Expected.of(loaded, num_roles=2)) == []
    elsewhere = replace(SETTINGS.runtime.model, model_name_or_path=str(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"model folder .*shared folder"):
        RolloutActor().open(setup_of(SETTINGS.runtime, model=elsewhere), expected)
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(3)
    other = Expected.of(loaded, num_roles=2)
    [line] = expected.differences(other)
    assert line.startswith("weights: the next-token distribution differs")
    with pytest.raises(ConfigError, match="next-token distribution differs"):
        RolloutActor().open(setup_of(SETTINGS.runtime), other)
    moved = replace(expected, device="cuda", tokenizer="0" * 64)
    assert [line.partition(":")[0] for line in expected.differences(moved)] == ["device", "tokenizer"]


def test_a_worker_elsewhere_loads_in_the_precision_that_auto_has_here() -> None:
    loaded = load_model("seed")
    half = replace(loaded, model=load_model("seed").model.bfloat16())
    auto = SETTINGS.runtime.model
    assert [as_loaded(auto, each).dtype for each in (loaded, half)] == ["float32", "bfloat16"]
    assert as_loaded(replace(auto, dtype="float16"), loaded).dtype == "float16"
    quantised = replace(auto, quantization=QuantizationSettings(load_in_4bit=True))
    assert as_loaded(quantised, half) == quantised
