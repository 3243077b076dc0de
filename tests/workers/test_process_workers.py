"""Are workers in processes of this machine what this process is, whatever happens to them, and do they end with it?"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError, FlowError, WorkerError
from flow_dpo.plugins.load import RanFile, load_object, ran_files, run_again
from flow_dpo.ranks.environment import usable_processors
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.runtime import open_runtime
from flow_dpo.runs.settings import RuntimeSettings
from flow_dpo.verify.rewards import RewardFunctions
from flow_dpo.workers import process_actor, process_workers
from flow_dpo.workers.devices import devices_of_each
from flow_dpo.workers.settings import WorkersSettings
from tests.support.killed_workers import kill_and_compare, sampled
from tests.support.once import Once
from tests.support.processes import alive, begun, children, wait_until
from tests.support.run_equality import assert_same_run
from tests.workers.test_actor import FLOW, SETTINGS, stir

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 120.0


def settings(**workers: Any) -> RuntimeSettings:
    return replace(
        SETTINGS.runtime,
        model=replace(SETTINGS.runtime.model, num_threads=1),
        data=replace(SETTINGS.runtime.data, max_problems=6),
        workers=WorkersSettings(shard=2, **workers),
    )


@pytest.fixture(autouse=True)
def _two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has."""
    monkeypatch.setattr(process_workers, "usable_processors", lambda: 2)


class Odd(Exception):
    """Cannot be made again from what it was pickled as."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Stubborn(Exception):
    """Cannot be pickled at all."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


def test_two_processes_of_which_one_is_killed_are_this_process() -> None:
    with open_runtime(settings(), FLOW, seed=7) as runtime:
        stir(runtime, 1)
        expected = sampled(runtime).result().trees
    with open_runtime(settings(kind="processes", num=2, deadline_s=3.0), FLOW, seed=7) as runtime:
        stir(runtime, 1)
        num_replayed, error = kill_and_compare(runtime, expected, points=4, apart_s=0.03, limit_s=LIMIT_S)
        assert num_replayed >= 2
        assert any("in a worker process" in note and "in advance" in note for note in error.__notes__)
        pool: Any = runtime.workers
        pids = [lane.worker.pid for lane in pool._lanes]
        folder: Path = pool._lanes[0].worker._folder
        assert [*folder.glob("*/flow-dpo-*")], "adapters of the present version"
    wait_until(lambda: not any(map(alive, pids)))
    assert not folder.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_with_a_flow_from_a_file_goes_on_to_the_bit_after_it_was_ended(
    end: signal.Signals, tmp_path: Path, run_here: tuple[Path, tuple[str, ...]]
) -> None:
    """And no worker outlives it, nor what it wrote."""
    expected, common = run_here
    scratch = Path(tempfile.mkdtemp(dir="/tmp", prefix="fd"))  # a short name, so that sockets lie in it, too
    folder = tmp_path / "processes"
    num = str(min(2, usable_processors()))
    words = (*common, "--workers", "processes", "--workers.num", num, "--output_dir", str(folder))
    with begun(*words, environment={"TMPDIR": str(scratch)}) as process:
        rows = folder / "metrics.jsonl"
        wait_until(lambda: process.poll() is not None or (rows.exists() and rows.read_bytes().count(b"\n") >= 2))
        assert process.poll() is None, process.communicate()[0].decode()[-3000:]
        below = children(process.pid)
        assert len(below) >= 2
        if end == signal.SIGINT:
            os.killpg(process.pid, end)  # as a terminal sends it
        else:
            os.kill(process.pid, end)
        out = process.communicate(timeout=LIMIT_S)[0].decode()
        if end == signal.SIGINT:
            assert process.returncode == 130, out
            assert re.search(r"Resume with: \S*flow-dpo train", out)
        wait_until(lambda: not any(map(alive, below)))
    # But for the command's own folder, which is empty.
    wait_until(lambda: not [file for file in scratch.rglob("*") if not file.name.startswith("tmp")], LIMIT_S)
    shutil.rmtree(scratch)
    assert len(read_jsonl(rows)) < 6
    assert train.train(["--output_dir", str(folder), *common[1:3], "--resume"]) == 0
    assert_same_run(expected, folder)


@pytest.fixture(scope="module")
def run_here(once: Once) -> tuple[Path, tuple[str, ...]]:
    """A run whose rollouts its own process samples, and its words."""

    def words(folder: Path) -> tuple[str, ...]:
        return (
            "train", "--flow", f"{folder / 'critique.py'}:Critique", "--max_problems", "18", "--problems_per_batch",
            "3", "--preset", "seed", "--examples_per_update", "2", "--run.lag", "1", "--workers.shard", "2",
            "--num_alternatives", "2", "--num_threads", "1",
        )  # fmt: skip

    def make(folder: Path) -> None:
        (folder / "critique.py").write_bytes((ROOT / "examples" / "custom_flow.py").read_bytes())
        assert train.train([*words(folder)[1:], "--output_dir", str(folder / "here")]) == 0

    folder = once("critique", make)
    return folder / "here", words(folder)


def test_what_a_machine_has_not_and_a_worker_that_is_another_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ConfigError, match=r"expected 12 processors for 3 workers with 4 each .*found 2; use fewer"),
        open_runtime(settings(kind="processes", num=3, num_threads=4), FLOW),
    ):
        pass

    with monkeypatch.context() as patched:
        patched.setattr("flow_dpo.runs.runtime.environment", odd)
        another = r"code of this command in worker process 0 \(pid \d+\), .*\n  code: of the"
        with pytest.raises(ConfigError, match=another), open_runtime(settings(kind="processes"), FLOW):
            pass
    # One that ends before it is there names what it printed last.
    monkeypatch.setattr(process_workers, "answer_calls", ends)
    gone = r"expected 1 worker process, found one that did not start: exit status 3: no memory for it"
    with pytest.raises(ConfigError, match=gone), open_runtime(settings(kind="processes"), FLOW):
        pass


def odd() -> dict[str, Any]:
    return {**run_folder.environment(), "code": f"of the process {os.getpid()}"}


def ends(_: Any, surroundings: process_actor.Surroundings) -> None:
    (Path(surroundings.folder) / process_actor.LOG).write_text("much\nno memory for it\n\n")
    os._exit(3)


def test_reward_functions_in_processes_are_those_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by a file in this folder, and handed over; one that cannot be sent is refused."""
    (tmp_path / "mine.py").write_text(
        "def short(completions, trainer_state, **_):\n"
        "    return [1 / (1 + len(text)) + trainer_state.global_step for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    grading = replace(SETTINGS.runtime.grading, rewards=("mine.py:short", "answer"))
    for chosen, given in ((grading, None), (SETTINGS.runtime.grading, RewardFunctions.of(words))):
        with open_runtime(replace(settings(), grading=chosen), FLOW, seed=7, grader=given) as runtime:
            expected = sampled(runtime).result().trees
        with open_runtime(replace(settings(kind="processes"), grading=chosen), FLOW, seed=7, grader=given) as runtime:
            assert sampled(runtime).result(timeout=LIMIT_S).trees == expected
        verdicts = [rollout.verdict for tree in expected for rollout in tree.rollouts]
        assert all(verdict and verdict.value is not None for verdict in verdicts)
    with (
        pytest.raises(ConfigError, match="expected a reward function <lambda> that can be sent to worker processes"),
        open_runtime(settings(kind="processes"), FLOW, grader=RewardFunctions.of(lambda completions: [0.0])),
    ):
        pass


def words(completions: list[str], **_: Any) -> list[float]:
    return [text.count(" ") / 50 for text in completions]


@pytest.mark.parametrize(
    ("num", "num_gpus", "learner", "visible", "expected"),
    [
        (2, 0, "cpu", None, [None, None]),
        (3, 1, "cuda:0", None, ["1", "2", "3"]),
        (2, 1, "cuda:1", "4,5,6", ["4", "6"]),
        (1, 2, "cuda:0", None, ["1,2"]),
        (4, 1, "cuda:0", None, "expected 4 GPUs for 4 workers with 1 each .*, found 3 besides the learner's"),
        (2, 1, "cuda:0", "0,1,2,7,8", ["1", "2"]),
        (
            2,
            0.5,
            "cuda:0",
            None,
            "expected a whole number of GPUs for each worker process, found --workers.num_gpus 0.5",
        ),
        (4, 1, "cpu", None, "expected worker processes without GPUs, as the learner is on cpu"),
    ],
)
def test_gpus_of_workers_are_not_the_learners(
    num: int, num_gpus: float, learner: str, visible: str | None, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4 if visible is None else 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen = WorkersSettings(kind="processes", num=num, num_gpus=num_gpus)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            devices_of_each(chosen, learner)
    else:
        assert devices_of_each(chosen, learner) == expected


def test_files_are_run_again_as_they_were_and_only_those_that_are_named(tmp_path: Path) -> None:
    """Whatever becomes of them; two of one name are two modules."""
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"VALUE = {value}\nclass Part: value = VALUE\n")
    one, other = (load_object(f"{tmp_path / name / 'mine.py'}:Part", kind="reward") for name in ("a", "b"))
    assert (one.value, other.value) == (1, 2)
    [file], sent = ran_files([other.__module__]), pickle.dumps(other)
    assert file.path == str(tmp_path / "b" / "mine.py")
    module = sys.modules.pop(other.__module__)
    (tmp_path / "b" / "mine.py").write_text("1 / 0")
    run_again([file])
    assert sys.modules[other.__module__] is not module
    assert pickle.loads(sent).value == 2, "of the module that was made again"
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        run_again([RanFile(path=str(tmp_path / "b" / "mine.py"), source=b"1 / 0")])


def test_answers_travel_with_their_errors() -> None:
    """As they are where they can be pickled; otherwise what they say."""
    for error, kind, text in (
        (FlowError("no role"), FlowError, "no role"),
        (Odd(1, 2), WorkerError, "Odd: 1 and 2"),
        (Stubborn("as it is"), WorkerError, "Stubborn: as it is"),
    ):
        result, found = pickle.loads(process_actor._dumped(None, error))
        assert result is None
        assert type(found) is kind
        assert str(found) == text
    result, found = pickle.loads(process_actor._dumped(lambda: 1, None))
    assert result is None
    assert "cannot be pickled" in str(found)
    assert pickle.loads(process_actor._dumped(3, None)) == (3, None)
