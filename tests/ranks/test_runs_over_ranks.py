"""Is a whole run over several ranks the run of one process, also when it is interrupted or loses a rank?"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.run_equality import assert_same_run

pytestmark = pytest.mark.slow

WORDS = ("--max_problems", "12", "--problems_per_batch", "3", "--examples_per_update", "6", "--num_threads", "1")
"""Four batches on the seed, each with an update."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no")
LIMIT_S = 240.0


def start(folder: Path, *more: str, launch: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`flow-dpo train` by itself, or by a launcher."""
    module = ["-m", "flow_dpo"]
    command = [sys.executable, *launch, *module, "train", *WORDS, "--output_dir", str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed."""
    output, _ = process.communicate(timeout=LIMIT_S)
    return output


def wait_for_batch(folder: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + LIMIT_S
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_bytes():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = start(folder)
    output = ended(process)
    assert process.returncode == 0, output
    return folder


@pytest.mark.parametrize("launch", [(*TORCHRUN, "2"), (*TORCHRUN, "3"), (*ACCELERATE, "--num_processes", "2")])
def test_a_run_over_ranks_is_the_run_of_one_process(launch: Sequence[str], whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "ranks", launch=launch)
    output = ended(process)
    assert process.returncode == 0, output
    assert_same_run(whole, tmp_path / "ranks")
    assert len(re.findall(r"Next:     \S*flow-dpo evaluate", output)) == 1, "one rank speaks"


def test_a_run_that_is_interrupted_goes_on_with_another_number_of_ranks(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    process = start(folder, launch=(*TORCHRUN, "3"))
    wait_for_batch(folder, process)
    process.send_signal(signal.SIGTERM)
    assert re.search(r"Resume with: \S*flow-dpo train --output_dir", ended(process))
    process = start(folder, "--resume", launch=(*TORCHRUN, "2"))
    output = ended(process)
    assert process.returncode == 0, output
    assert_same_run(whole, folder)


def test_a_rank_that_dies_ends_the_run_which_goes_on_without_it(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    process = start(folder, launch=(*TORCHRUN, "2"))
    wait_for_batch(folder, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    [follower] = [c for c in children if "\0RANK=1\0" in Path(f"/proc/{c}/environ").read_text()]
    os.kill(int(follower), signal.SIGKILL)
    output = ended(process)
    assert process.returncode != 0
    assert (
        "flow-dpo: rank 1 does not answer: dead, cut off, or busy with a row. Committed batches are whole: resume"
        in output
    )
    assert re.search(r"Resume with: \S*flow-dpo train --output_dir", output)
    process = start(folder, "--resume")
    output = ended(process)
    assert process.returncode == 0, output
    assert_same_run(whole, folder)


def test_what_ranks_cannot_do_is_refused(tmp_path: Path) -> None:
    shared = start(tmp_path / "shared", "--learner.rows.shard_base", "true", launch=(*TORCHRUN, "2"))
    output = ended(shared)
    assert shared.returncode != 0
    assert "expected an engine outside of this process with --learner.rows.shard_base true" in output
    assert not (tmp_path / "shared").exists()
    command = [sys.executable, *TORCHRUN, "2", "-m", "flow_dpo", "evaluate", "--model_name_or_path", "seed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode != 0
    assert "evaluate does not learn over ranks, but 2 processes of it were launched" in done.stderr
