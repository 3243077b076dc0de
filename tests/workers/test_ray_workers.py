"""Are actors on a real Ray, some of which are killed, what this process is? `make test-ray` runs these one by one.

A cluster of one's own takes ten seconds to start, on a busy machine a minute, so each test asks it several things.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import ConfigError
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.runtime import open_runtime
from flow_dpo.runs.settings import RuntimeSettings
from flow_dpo.verify.rewards import RewardFunctions
from flow_dpo.workers import ray_cluster
from flow_dpo.workers.settings import WorkersSettings
from tests.support.killed_workers import kill_and_compare, sampled
from tests.support.processes import alive, begun, children, finished, wait_until
from tests.support.run_equality import assert_same_run
from tests.workers.test_actor import FLOW, SETTINGS, stir

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
ROOT = Path(__file__).parent.parent.parent
START_S = 300.0
EXPLORE = SETTINGS.recipe.explore


def settings(**workers: Any) -> RuntimeSettings:
    return replace(
        SETTINGS.runtime,
        model=replace(SETTINGS.runtime.model, num_threads=1),
        data=replace(SETTINGS.runtime.data, max_problems=12),
        workers=WorkersSettings(shard=3, start_s=START_S, **workers),
    )


def test_two_actors_of_which_one_is_killed_at_five_points_are_this_process() -> None:
    with open_runtime(settings(), FLOW, seed=7) as runtime:
        stir(runtime, 1)
        expected = sampled(runtime).result().trees
    with open_runtime(settings(kind="ray", num=2, deadline_s=20.0), FLOW, seed=7) as runtime:
        stir(runtime, 1)
        num_replayed, _ = kill_and_compare(runtime, expected, points=5, apart_s=0.06, limit_s=START_S)
        assert num_replayed >= 3
        pool: Any = runtime.workers
        pids = [lane.worker.pid for lane in pool._lanes]
    wait_until(lambda: not any(map(alive, pids)), 60)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_with_a_flow_from_a_file_goes_on_to_the_bit_after_its_head_was_ended(
    end: signal.Signals, tmp_path: Path
) -> None:
    flow = tmp_path / "critique.py"
    flow.write_bytes((ROOT / "examples" / "custom_flow.py").read_bytes())
    common = (
        "train", "--flow", f"{flow}:Critique", "--max_problems", "18", "--problems_per_batch", "3",
        "--examples_per_update", "2",
        "--num_threads", "1", "--run.lag", "1", "--workers.shard", "2", "--preset", "seed", "--num_alternatives", "2",
    )  # fmt: skip
    ray = ("--workers", "ray", "--workers.num", "2", "--workers.start_s", str(START_S))
    finished(*common, "--output_dir", str(tmp_path / "here"))
    folder = tmp_path / "ray"
    with begun(*common, *ray, "--output_dir", str(folder)) as process:
        rows = folder / "metrics.jsonl"
        wait_until(lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 2)
        below = children(process.pid)
        actors = [pid for pid in below if b"RolloutActor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(actors) == 2
        os.kill(process.pid, end)
        out = process.communicate(timeout=120)[0].decode()
        if end == signal.SIGINT:
            assert process.returncode == 130
            assert re.search(r"Resume with: \S*flow-dpo train", out)
        wait_until(lambda: not any(map(alive, actors)), 60)
    assert len(read_jsonl(rows)) < 6
    finished("train", "--output_dir", str(folder), "--flow", f"{flow}:Critique", "--resume")
    assert_same_run(tmp_path / "here", folder)
    assert {row["rollout/workers"] for row in read_jsonl(rows)} <= {1.0, 2.0}


def test_what_a_cluster_has_not_and_a_worker_that_is_another_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ConfigError, match=r"expected 4000 processors .*found \d+ in the Ray cluster"),
        open_runtime(settings(kind="ray", num=1000, num_threads=4), FLOW),
    ):
        pass

    def odd() -> dict[str, Any]:
        return {**run_folder.environment(), "code": f"of the process {os.getpid()}"}

    monkeypatch.setattr("flow_dpo.runs.runtime.environment", odd)
    with (
        pytest.raises(
            ConfigError, match=r"the versions and the code of this command in Ray worker 0 .*\n  code: of the"
        ),
        open_runtime(settings(kind="ray"), FLOW),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"expected a Ray cluster at 'auto' .*ray start --head"),
        open_runtime(settings(kind="ray", address="auto"), FLOW),
    ):
        pass


def test_nobody_joins_an_own_cluster_without_its_token() -> None:
    """Ray listens on every address of the machine, and who is let in may run code there."""
    join = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('joined')"
    with ray_cluster.cluster(WorkersSettings(kind="ray"), learner_device="cpu") as ray:
        address = ray.get_runtime_context().gcs_address
        token = os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        wrong = without | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        for environment, joins in ((without, False), (wrong, False), (dict(os.environ), True)):
            done = subprocess.run(
                [sys.executable, "-c", join, address],
                env=environment, capture_output=True, text=True, timeout=START_S, check=False,
            )  # fmt: skip
            assert ("joined" in done.stdout) == joins, done.stderr[-2000:]


def test_reward_functions_on_actors_are_those_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by a file in this folder, and handed over as a lambda; one that cannot travel is refused."""
    (tmp_path / "mine.py").write_text(
        "def short(completions, trainer_state, **_):\n"
        "    return [1 / (1 + len(text)) + trainer_state.global_step for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    grading = replace(SETTINGS.runtime.grading, rewards=("mine.py:short", "answer"))
    words = RewardFunctions.of(lambda completions: [text.count(" ") / 50 for text in completions])
    for chosen, given in ((grading, None), (SETTINGS.runtime.grading, words)):
        with open_runtime(replace(settings(), grading=chosen), FLOW, seed=7, grader=given) as runtime:
            expected = sampled(runtime).result().trees
        there = replace(settings(kind="ray", num=2), grading=chosen)
        with open_runtime(there, FLOW, seed=7, grader=given) as runtime:
            assert sampled(runtime).result(timeout=START_S).trees == expected
        verdicts = [rollout.verdict for tree in expected for rollout in tree.rollouts]
        assert all(verdict and verdict.value is not None for verdict in verdicts)
    lock = threading.Lock()
    locked = RewardFunctions.of(lambda completions: [float(lock.locked()) for _ in completions])
    with (
        pytest.raises(ConfigError, match="expected a reward function <lambda> that can be sent to workers on Ray"),
        open_runtime(settings(kind="ray"), FLOW, grader=locked),
    ):
        pass
