"""Is a script that trains by the trainer, launched on several processes, the script in one process?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.run_equality import assert_same_run

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
import flow_dpo

folder = sys.argv[1]
settings = {"run.problems_per_batch": 3, "learner.examples_per_update": 6, "model.num_threads": 1}
args = flow_dpo.FlowDPOConfig(
    output_dir=folder, max_problems=9, eval_strategy="steps", eval_steps=1, settings=settings
)
held_out = flow_dpo.load_problems("seed", split="test", max_problems=3)
trainer = flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset="seed", eval_dataset=list(held_out))
trainer.train()
print("accuracy", trainer.evaluate()["eval_accuracy"])
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no")


def run(tmp_path: Path, name: str, launch: Sequence[str]) -> str:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, *launch, str(script), str(tmp_path / name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("launch", [TORCHRUN, (*ACCELERATE, "--num_processes", "2")])
def test_a_launched_script_trains_the_same_run_and_evaluates_it_once(launch: Sequence[str], tmp_path: Path) -> None:
    alone = run(tmp_path, "alone", ())
    launched = run(tmp_path, "launched", launch)
    assert_same_run(tmp_path / "alone", tmp_path / "launched")
    found = [(tmp_path / name / "evaluations.jsonl").read_text() for name in ("alone", "launched")]
    assert found[0] == found[1]
    lines = [[line for line in output.splitlines() if line.startswith("accuracy")] for output in (alone, launched)]
    assert len(lines[0]) == 1
    assert lines[0] == lines[1]
