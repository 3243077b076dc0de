"""Do tasks in processes of their own keep their order, stop at a failure, and end together on an interruption?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flow_dpo.cli.side_by_side import side_by_side
from flow_dpo.core.errors import WorkerError

PROGRAM = """
import signal, sys
from pathlib import Path
from flow_dpo.cli.side_by_side import side_by_side
from tests.cli.test_side_by_side import kept

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    side_by_side(2, kept, [(Path(sys.argv[1]), number) for number in range(6)])
"""


def kept(folder: Path, number: int) -> None:
    """A task of two minutes, which takes a moment to keep its work when it is interrupted."""
    (folder / f"{number} begun").touch()
    try:
        time.sleep(120)
    except KeyboardInterrupt:
        time.sleep(0.3)
        (folder / f"{number} kept").touch()
        raise


def double(folder: Path, number: int) -> int:
    (folder / str(number)).touch()
    if number == 1:
        raise ValueError("one")
    time.sleep(0.5 if number else 0.0)
    return 2 * number


def test_results_are_in_the_order_of_the_tasks(tmp_path: Path) -> None:
    tasks = [(tmp_path, number) for number in (3, 0, 2)]
    assert side_by_side(1, double, tasks) == side_by_side(2, double, tasks) == [6, 0, 4]


def test_no_task_begins_after_one_has_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one"):
        side_by_side(2, double, [(tmp_path, number) for number in (1, 2, 3, 4, 5)])
    assert {path.name for path in tmp_path.iterdir()} <= {"1", "2"}


def ends_badly(folder: Path, way: str) -> object:
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return lambda: folder


@pytest.mark.parametrize(("way", "code"), [("killed", -9), ("not to be pickled", 1)])
def test_a_process_without_a_result_is_an_error(tmp_path: Path, way: str, code: int) -> None:
    with pytest.raises(WorkerError, match=f"found that a task's process ended with code {code}"):
        side_by_side(2, ends_badly, [(tmp_path, way)])


def test_an_error_comes_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one") as caught:
        side_by_side(2, double, [(tmp_path, 1)])
    assert 'raise ValueError("one")' in caught.value.__notes__[0]


@pytest.mark.parametrize("way", ["to the process", "from the terminal", "both"])
def test_an_interruption_ends_all_and_lets_them_keep_their_work(tmp_path: Path, way: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        if way != "to the process":
            os.killpg(program.pid, signal.SIGINT)
        for _ in range(1 if way == "to the process" else 0 if way == "from the terminal" else 20):
            program.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        assert program.wait(30) != 0
    finally:
        program.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 begun", "0 kept", "1 begun", "1 kept"]
