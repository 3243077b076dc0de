"""What is asked of Ray before it is started, and what its words become."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli.main import main
from flow_dpo.core.errors import ConfigError
from flow_dpo.runs.settings import default_settings
from flow_dpo.workers import ray_cluster
from flow_dpo.workers.actor_worker import check_travels, differences
from flow_dpo.workers.devices import visible_devices
from flow_dpo.workers.ray_cluster import check_resources
from flow_dpo.workers.ray_workers import RayWorker
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.setup import WorkerSetup
from flow_dpo.workers.shard import Shard, WorkerLost


@pytest.mark.parametrize(
    ("learner", "visible", "num", "left"),
    [
        ("cuda:0", None, 4, "1,2,3"),
        ("cuda:2", None, 4, "0,1,3"),
        ("cuda", None, 2, "1"),
        ("cuda:1", "4,5,6", 3, "4,6"),
        ("cuda:0", "GPU-a,GPU-b", 2, "GPU-b"),
        ("cuda:0", "7", 1, ""),
        ("cpu", None, 2, "0,1"),
        ("cpu", "", 0, ""),
    ],
)
def test_workers_get_the_devices_that_the_learner_has_not(
    learner: str, visible: str | None, num: int, left: str
) -> None:
    assert visible_devices(learner, visible, num) == left


def test_workers_get_no_device_of_another_rank() -> None:
    assert visible_devices("cuda:0", None, 4, num_ranks=2) == "2,3"
    assert visible_devices("cuda:0", "4,5,6", 3, num_ranks=3) == ""
    assert visible_devices("cpu", None, 2, num_ranks=2) == "0,1"


def test_more_than_the_cluster_has_is_refused_with_the_numbers() -> None:
    has = {"CPU": 8.0, "GPU": 2.0}
    check_resources(WorkersSettings(kind="ray", num=2, num_threads=4, num_gpus=1), has, "cpu")
    with pytest.raises(ConfigError, match=r"expected 12 processors for 3 workers with 4 each .*found 8"):
        check_resources(WorkersSettings(kind="ray", num=3, num_threads=4), has, "cpu")
    with pytest.raises(ConfigError, match=r"expected 3 GPUs for 3 workers with 1 each .*found 2 .*besides the learner"):
        check_resources(WorkersSettings(kind="ray", num=3, num_gpus=1), has, "cuda:0")
    with pytest.raises(ConfigError, match=r"expected 0.5 GPUs .*found 0 in the Ray cluster;"):
        check_resources(WorkersSettings(kind="ray", num_gpus=0.5, address="auto"), {"CPU": 1.0}, "cuda:0")


def test_without_ray_the_command_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    monkeypatch.setattr("flow_dpo.runs.runtime.load_model", lambda _: pytest.fail("loaded"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["train", "--workers", "ray", "--output_dir", str(tmp_path / "run")]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "pip install -e '.[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_raylet_has_the_last_word(tmp_path: Path) -> None:
    logs = tmp_path / "session_2026-01-01_00-00-00_000000_1" / "logs"
    logs.mkdir(parents=True)
    assert ray_cluster._last_line(tmp_path) == ""
    (logs / "raylet.out").write_text("one\nThe agent did not start in time\n\n")
    (logs / "raylet.err").write_text("")
    assert ray_cluster._last_line(tmp_path) == "raylet.out: The agent did not start in time"


class Flaky:
    """Ray on a busy machine: its first starts fail, as they do, with a plain `Exception`."""

    def __init__(self, num_failures: int, error: BaseException) -> None:
        self.left, self.error = num_failures, error
        self.calls: list[dict[str, Any]] = []
        self.visible: list[str | None] = []

    def init(self, **words: Any) -> None:
        self.calls.append(words)
        self.visible.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if len(self.calls) <= self.left:
            logs = Path(words["_temp_dir"]) / "session_2026-01-01_1" / "logs"
            logs.mkdir(parents=True)
            (logs / "raylet.err").write_text("the agent did not come up")
            raise self.error

    def shutdown(self) -> None:
        self.calls[-1]["ended"] = True


def test_an_own_cluster_is_started_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    late = Flaky(2, Exception("The current node timed out during startup."))
    ray_cluster._start(late, tmp_path / "a", "cuda:1")
    assert [call.get("ended") for call in late.calls] == [True, True, None]
    assert late.visible == ["4,6"] * 3
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6"
    assert {call["address"] for call in late.calls} == {"local"}, "no cluster that happens to be there is joined"
    never = Flaky(3, Exception("The current node timed out during startup."))
    with pytest.raises(ConfigError, match=r"3 times: raylet.err: the agent did not come up; .*ray start --head"):
        ray_cluster._start(never, tmp_path / "b", "cpu")
    stopped = Flaky(1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ray_cluster._start(stopped, tmp_path / "c", "cpu")
    assert len(stopped.calls) == 1


class Interrupted(Flaky):
    """Ctrl-C comes in the middle of its start, or twice."""

    num_signals, whole = 1, False

    def init(self, **words: Any) -> None:
        for _ in range(self.num_signals):
            signal.raise_signal(signal.SIGINT)
        self.whole = True


@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_start_is_not_broken_off_but_by_a_second_signal(num_signals: int, tmp_path: Path) -> None:
    """What it had begun until then would be left behind."""
    ray = Interrupted(0, Exception())
    ray.num_signals = num_signals
    with pytest.raises(KeyboardInterrupt):
        ray_cluster._start(ray, tmp_path, "cpu")
    assert ray.whole == (num_signals == 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_versions_and_other_code_are_named() -> None:
    here: dict[str, Any] = {"versions": {"torch": "2.8", "peft": "0.21"}, "python": "3.11.7", "code": "a" * 64}
    assert differences(here, {**here, "commit": "other"}) == []
    there = {**here, "versions": {"torch": "2.9", "peft": "0.21"}, "code": "b" * 64}
    assert differences(here, there) == [
        "\n  torch: 2.9 there, 2.8 here",
        f"\n  code: {'b' * 12} there, {'a' * 12} here",
    ]


class GoneRay:
    """Ray whose cluster is gone."""

    class exceptions:
        RayError = ConnectionError

    cloudpickle = pickle

    def remote(self, **_: Any) -> Any:
        return lambda kind: kind

    def is_initialized(self) -> bool:
        return True

    def kill(self, actor: object, no_restart: bool) -> None:
        raise ConnectionError(f"{actor} {no_restart}")


def test_an_actor_that_was_given_up_between_two_shards_is_lost() -> None:
    settings = default_settings("flow-dpo", "seed")
    setup = WorkerSetup(
        workers=WorkersSettings(kind="ray"), model=settings.runtime.model, lora=settings.runtime.lora,
        engine=settings.runtime.engine, grading=settings.runtime.grading, roles=("answer",),
    )  # fmt: skip
    worker = RayWorker(GoneRay(), 0, setup, None, lambda _: None)  # pyright: ignore[reportArgumentType]
    worker._actor = "an actor"
    worker.abort()
    shard = Shard(
        batch=0, number=0, explore=settings.recipe.explore, flow=settings.recipe.flow, problems=(), seed=0, adapters={}
    )
    with pytest.raises(WorkerLost, match="given up"):
        worker.sample(shard)
    check_travels(setup, GoneRay.cloudpickle.dumps, to="workers on Ray")
    held = threading.Lock()
    with pytest.raises(ConfigError, match=r"expected a grader that can be sent to workers on Ray.*cannot pickle.*lock"):
        check_travels(replace(setup, grader=held), pickle.dumps, to="workers on Ray")  # pyright: ignore


def test_nothing_else_imports_ray() -> None:
    package = Path(ray_cluster.__file__).parent.parent
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^ *(import|from) ray\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert found == ["workers/ray_cluster.py"]
