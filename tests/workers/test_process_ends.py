"""What becomes of worker processes and of what they began, where they are not alone in the world?"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError
from flow_dpo.workers import process_workers
from flow_dpo.workers.fork_server import warm_up
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.shard import WorkerLost
from tests.support.processes import alive, wait_until

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 120.0


class _Setup:
    environment = dict
    workers = WorkersSettings(kind="processes")


def variables() -> dict[str, Any]:
    return dict(os.environ)


def sleeps() -> dict[str, Any]:
    time.sleep(60)
    return {}


def forked() -> dict[str, Any]:
    """A child without exec, which holds all that its parent has open."""
    sleeper = os.fork()
    if not sleeper:
        time.sleep(60)
        os._exit(0)
    return {"sleeper": sleeper}


def words(completions: list[str], **_: Any) -> list[float]:
    return [text.count(" ") / 50 for text in completions]


def test_a_worker_that_ends_is_noticed_though_what_it_began_goes_on(tmp_path: Path) -> None:
    """And that is ended with it. Variables are those of now, not of the fork server's start."""
    warm_up()
    os.environ["FLOW_DPO_TEST"] = "now"
    worker: Any = process_workers.ProcessWorker(0, _Setup(), None, tmp_path, None)  # pyright: ignore
    try:
        worker._start()
        del os.environ["FLOW_DPO_TEST"]
        assert worker._get(worker._call("facts", variables), None)["FLOW_DPO_TEST"] == "now"
        sleeper = worker._get(worker._call("facts", forked), None)["sleeper"]
        assert alive(sleeper)
        asked = worker._call("facts", sleeps)
        os.kill(worker._running.process.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost, match="killed by signal 9"):
            worker._get(asked, time.monotonic() + 60)
    finally:
        worker.abort()
    wait_until(lambda: not alive(sleeper), 20)
    with pytest.raises(WorkerLost, match="it was given up"):
        worker._call("facts", variables)
    worker.close()
    worker.close()
    assert not [*tmp_path.iterdir()]
    # GPUs that a script has taken before the worker had its own are found out.
    worker._gpus = "1,2"
    with pytest.raises(ConfigError, match=r"expected 2 GPUs \(1,2\) in worker process 0.*, found 8: a script"):
        worker._open({"pid": 1, "num_gpus": 8})


SCRIPT = """
from tests.workers.test_process_workers import *

if __name__ == "__main__":
    opened = open_runtime(settings(kind="processes"), FLOW)
    print(len(sampled(opened.__enter__()).result().trees))
"""


def test_a_program_that_closes_nothing_ends(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr[-3000:]


def test_what_no_other_process_finds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of a notebook, and programs that are in no file."""
    monkeypatch.setattr(words, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(words=words))
    with pytest.raises(pickle.PicklingError, match="in a notebook or on the command line; put it in a file"):
        process_workers._pickled_elsewhere(words)
    process_workers._pickled_elsewhere('A question about if __name__ == "__main__":')
    process_workers.check_main()
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__="<stdin>"))
    with pytest.raises(ConfigError, match=r"expected a program in a file for --workers processes, found <stdin>"):
        process_workers.check_main()


@pytest.mark.parametrize(
    ("words", "gpu", "processors", "kind"),
    [
        ([], False, 2, "processes"),
        ([], False, 1, "here"),
        ([], True, 8, "here"),
        (["--device", "cpu"], True, 8, "processes"),
        (["--device", "cuda"], False, 8, "here"),
        (["--engine", "plain"], False, 8, "here"),
        (["--workers", "here"], False, 8, "here"),
    ],
)
def test_the_quick_start_samples_in_processes_where_that_is_faster(
    words: list[str], gpu: bool, processors: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shards of one size everywhere, so that bytes are the same."""
    monkeypatch.setattr(train, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(train, "usable_processors", lambda: processors)
    found: list[WorkersSettings] = []
    monkeypatch.setattr(train, "_run", lambda given, _: found.append(given.runtime.workers))
    train.quickstart(words)
    assert (found[0].kind, found[0].problems_of_shard) == (kind, 16)
