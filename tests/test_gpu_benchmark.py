"""Does the GPU benchmark refuse, limit, resume and escape as it says, and does all of it run without a GPU?

The parts of most tests are small scripts in place of measurements: what is tested is how they are run.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import environment, estimates, page, runner
from benchmarks.gpu import parts as parts_module
from benchmarks.gpu.parts import PARTS, Part, missing

ROOT = Path(__file__).parent.parent
GOOD: dict[str, Any] = {
    "python": "3.11.7",
    "machine": "a processor",
    "packages": {"torch": "2.13.0", "trl": "1.16.0"},
    "driver": {"version": "580.65.06", "cuda": "13.0", "gpus": [{"name": "NVIDIA H100"}]},
    "torch": {
        "version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "name": "NVIDIA H100", "count": 1, "wrong": 1e-6,
        "capability": [9, 0], "archs": ["sm_80", "sm_90", "compute_120"], "gib": 79.6, "free_gib": 79.0,
    },
    "visible": None,
    "compiler": "cc",
    "headers": True,
    "disk_gib": 60.0,
    "memory_gib": 120.0,
}  # fmt: skip
KEPT = 'import json, pathlib, sys; folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])\n'
FIGURE = {"name": "a ratio", "ratio": 2.0, "reach": ">= 1", "met": True, "details": {}}


def with_facts(**changes: Any) -> dict[str, Any]:
    """The facts of a machine that is fit, but for these: "torch.gib" is the "gib" of "torch"."""
    facts = copy.deepcopy(GOOD)
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            facts[outer][inner] = value
        else:
            facts[outer] = value
    return facts


def script(name: str, code: str, **more: Any) -> Part:
    """A part that runs this code."""
    return Part(
        name=name, what="a test", soft_s=1, estimate=estimates.fixed(1), command=("-c", KEPT + code), **more
    )  # fmt: skip


KEEPS = f"(folder / 'figures.json').write_text(json.dumps([{FIGURE!r}]))\n"


# ---- refusing -------------------------------------------------------------------------------------------------------

NO_DRIVER = {"error": "nvidia-smi is not installed"}
CPU_ONLY = {"version": "2.13.0+cpu", "cuda": None, "hip": None, "why": "Torch not compiled with CUDA enabled"}
BLIND = {"version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "why": "No CUDA GPUs are available"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"torch": CPU_ONLY}, "found 2.13.0+cpu, which is for CPUs only, though the driver 580.65.06 is there"),
        ({"torch": CPU_ONLY, "driver": NO_DRIVER}, "for CPUs only; besides, no driver of an NVIDIA GPU answers"),
        ({"torch": BLIND, "driver": NO_DRIVER}, "no driver of an NVIDIA GPU answers (nvidia-smi is not installed)"),
        ({"torch": BLIND, "driver__cuda": "12.4"}, "is for CUDA 12.4 at most and torch 2.13.0+cu130 is built for CUDA"),
        ({"torch": BLIND, "visible": ""}, "CUDA_VISIBLE_DEVICES is '', which hides every GPU"),
        ({"torch__hip": "7.0"}, "expected a torch for NVIDIA GPUs"),
        ({"torch": BLIND}, "finds no GPU though the driver 580.65.06 is there: No CUDA GPUs are available"),
        ({"torch": {"error": "torch cannot be imported: x"}}, "torch cannot be imported: x; make setup"),
        ({"torch__capability": [6, 1]}, "compute capability 6.1, for which torch 2.13.0+cu130 has no code"),
        ({"torch__wrong": 3.0}, "differs from the CPU's by 3"),
        ({"torch__free_gib": 2.0}, "expected 6 GiB of free memory on NVIDIA H100, found 2.0 of 79.6"),
        ({"disk_gib": 1.0}, "expected 3 GiB of free disk, found 1.0"),
        ({"error": "it hangs"}, "it hangs"),
    ],
)
def test_each_lack_is_told_apart(changes: dict[str, Any], expected: str) -> None:
    assert expected in (environment.refusal(with_facts(**changes)) or "")


def test_a_fit_machine_is_not_refused_and_later_gpus_are_compiled_for() -> None:
    assert environment.refusal(GOOD) is None
    assert environment.warnings(GOOD) == []
    # 12.1 has no binary, but what is built for 12.0 can be compiled for it; 8.9 runs what is built for 8.0.
    assert environment.refusal(with_facts(torch__capability=[12, 1])) is None
    assert environment.refusal(with_facts(torch__capability=[8, 9])) is None


def test_what_explains_figures_is_warned_of() -> None:
    [busy] = environment.warnings(with_facts(torch__free_gib=40.0))
    assert "other programs hold 39.6 GiB" in busy
    [compiler] = environment.warnings(with_facts(compiler=None))
    assert "a C compiler is missing" in compiler
    [old] = environment.warnings(with_facts(torch__capability=[7, 5]))
    assert "no bf16" in old


def test_the_command_refuses_with_the_reason_and_its_own_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "ask", lambda *_, **__: with_facts(torch=CPU_ONLY))
    assert command.main(["--output_dir", str(tmp_path / "out")]) == command.NO_GPU == 3
    assert "which is for CPUs only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_environment_that_hangs_or_breaks_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nsleep 60\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(environment, "ASKED_WITHIN_S", 0.3)
    assert "found that it hangs" in environment.ask(str(hangs), tmp_path)["error"]
    hangs.write_text("#!/bin/sh\necho broken driver >&2; exit 7\n")
    monkeypatch.setattr(environment, "ASKED_WITHIN_S", 10.0)
    assert "ended with status 7: broken driver" in environment.ask(str(hangs), tmp_path)["error"]


def test_a_part_that_this_machine_cannot_run_is_left_out_with_the_reason() -> None:
    small = with_facts(torch__gib=23.5)
    assert missing(PARTS["learner-8b"], small, {}) == "needs a GPU of 44 GiB, this one has 23.5"
    assert missing(PARTS["sampling-8b"], small, {}) is None
    assert "trl is not installed" in str(missing(PARTS["learner-0.5b"], with_facts(packages={}), {}))
    served = with_facts(packages={"vllm": "0.32.0"})
    assert missing(PARTS["vllm"], GOOD, served) is None
    assert "make setup-vllm" in str(missing(PARTS["vllm"], GOOD, GOOD))
    assert "its CPU build" in str(
        missing(PARTS["vllm"], GOOD, with_facts(packages={"vllm": "0.32.0+cpu"}, torch=CPU_ONLY))
    )
    assert "finds no GPU" in str(missing(PARTS["vllm"], GOOD, with_facts(packages={"vllm": "0.32.0"}, torch=BLIND)))


# ---- limits, failures ------------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")


def test_a_part_over_its_limit_is_killed_with_its_children_and_keeps_what_it_had(tmp_path: Path) -> None:
    code = KEEPS + (
        "import subprocess, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "(folder / 'pids').write_text(str(child.pid))\n"
        "print('half way', flush=True); time.sleep(60)\n"
    )
    started = time.monotonic()
    outcome = runner.run_part(script("slow", code), tmp_path, limit_s=1.5)
    assert time.monotonic() - started < 10
    assert outcome["status"] == runner.OVER_TIME
    assert outcome["why"].startswith("killed after 2 s: half way")
    assert outcome["figures"] == [FIGURE]
    assert not is_alive(int((tmp_path / "parts" / "slow" / "pids").read_text()))


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    outcome = runner.run_part(script("bad", "raise SystemExit('no such kernel')"), tmp_path, limit_s=20)
    assert (outcome["status"], outcome["figures"]) == (runner.FAILED, [])
    assert "ended with status 1: no such kernel" in outcome["why"]


def test_a_part_without_a_figure_is_not_done(tmp_path: Path) -> None:
    outcome = runner.run_part(script("idle", "print('nothing to do')"), tmp_path, limit_s=20)
    assert outcome["status"] == runner.FAILED
    assert outcome["why"] == "ended well and kept no figure: nothing to do"


def test_a_part_ends_when_its_runner_dies(tmp_path: Path) -> None:
    """The runner is a process that is killed at once; what it started would sleep for a minute."""
    part = (
        "import sys, threading, time; from benchmarks.gpu import measure\n"
        "threading.Thread(target=measure._end_with, args=(int(sys.argv[1]),), daemon=True).start(); time.sleep(60)"
    )
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {part!r}, str(os.getpid())], start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert is_alive(child)
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_alive(child)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU, and three parts that note each time that they run."""
    note = f"open({str(tmp_path / 'ran')!r}, 'a').write(folder.name + ' ')\n"
    three = [script(name, KEEPS + note) for name in ("a", "b", "c")]
    use(monkeypatch, three)
    monkeypatch.setattr(environment, "ask", lambda *_, **__: copy.deepcopy(GOOD))
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, some: list[Part]) -> None:
    for module in (command, page, parts_module):
        monkeypatch.setattr(module, "PARTS", {part.name: part for part in some})


def run(folder: Path, *words: str) -> tuple[int, list[str], dict[str, Any]]:
    """The status, the parts that ran, and the results."""
    (folder / "ran").write_text("")
    status = command.main(["--output_dir", str(folder), *words])
    return status, (folder / "ran").read_text().split(), json.loads((folder / runner.RESULTS).read_text())


def test_what_is_done_is_not_run_again_unless_asked_for_or_changed(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, ran, results = run(measured)
    assert (status, ran) == (0, ["a", "b", "c"])
    assert {one["status"] for one in results["parts"].values()} == {runner.DONE}
    assert results["parts"]["a"]["estimates_s"] == {card.name: 1 for card in estimates.CARDS}
    assert results["parts"]["a"]["figures"] == [FIGURE]
    assert run(measured)[:2] == (0, [])
    assert run(measured, "--only", "b", "--again")[:2] == (0, ["b"])
    assert run(measured, "--model_name_or_path", "x", "--only", "a")[:2] == (0, ["a"])
    newer = with_facts(packages={"torch": "2.14.0"})
    monkeypatch.setattr(environment, "ask", lambda *_, **__: newer)
    assert run(measured)[:2] == (0, ["a", "b", "c"])


def test_one_that_fails_stops_no_other_and_runs_again(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parts_module.PARTS
    use(monkeypatch, [whole["a"], script("b", "raise SystemExit('broken')"), whole["c"]])
    status, ran, results = run(measured)
    assert (status, ran) == (1, ["a", "c"])
    assert results["parts"]["b"]["status"] == runner.FAILED
    use(monkeypatch, list(whole.values()))
    status, ran, results = run(measured)
    assert (status, ran) == (0, ["b"])
    assert "why" not in results["parts"]["b"]


def test_a_part_that_would_not_end_in_time_waits_for_the_next_command(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = parts_module.PARTS
    use(monkeypatch, [whole["a"], dataclasses.replace(whole["b"], soft_s=80), whole["c"]])
    status, ran, results = run(measured, "--total_s", "60")
    assert (status, ran) == (1, ["a", "c"])
    assert results["parts"]["b"]["status"] == runner.WAITING
    assert run(measured, "--total_s", "100")[:2] == (0, ["b"])


def test_two_commands_do_not_measure_at_once(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command.FileLock(measured / ".lock"):
        assert command.main(["--output_dir", str(measured)]) == 1
    assert "another command is measuring" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_goes_on_where_it_was(measured: Path, how: signal.Signals) -> None:
    """The command, in a process of its own with three parts, the second of which sleeps when it first runs."""
    seen, program = measured / "seen", measured / "program.py"
    note = f"open({str(measured / 'ran')!r}, 'a').write(folder.name + ' ')\n"
    wait = (
        f"import os, time\nseen = pathlib.Path({str(seen)!r})\n"
        "if not seen.exists():\n    seen.write_text(str(os.getpid()))\n    time.sleep(60)\n"
    )
    codes = {"a": KEEPS + note, "b": wait + KEEPS + note, "c": KEEPS + note}
    program.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\n"
        "from benchmarks.gpu import __main__ as command, environment, page, parts\n"
        "from tests.test_gpu_benchmark import GOOD, script\n"
        f"codes = {codes!r}\n"
        "for module in (command, page, parts):\n"
        "    module.PARTS = {name: script(name, code) for name, code in codes.items()}\n"
        "environment.ask = lambda *_, **__: GOOD\n"
        f"sys.exit(command.main(['--output_dir', {str(measured)!r}]))\n"
    )
    first = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not seen.exists() or not seen.read_text():
        assert first.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(how)
    status = first.wait(30)
    sleeping = int(seen.read_text())
    if how == signal.SIGTERM:
        assert status == 130
        assert not is_alive(sleeping)
    else:
        os.killpg(sleeping, signal.SIGKILL)  # a script does not watch its runner, as parts that measure do
    second = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 0, second.stderr
    assert (measured / "ran").read_text().split() == ["a", "b", "c"]
