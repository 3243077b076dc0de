"""Do the starts in examples/cluster/ run what they say, with flags that their programs know? There is no cluster here.

Each script is run with stand-ins for the programs that it calls, which write down how they were called; what they were
called with is then read by the real parsers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flow_dpo.cli.train import parse_train
from flow_dpo.runs.settings import TrainSettings, default_settings

CLUSTER = Path(__file__).parent.parent / "examples" / "cluster"
PROGRAMS = ("flow-dpo", "ray", "vllm", "torchrun", "accelerate")
_NOTE = f"""#!{sys.executable}
import json, os, sys
seen = {{name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED",
                                                "OMP_NUM_THREADS", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")}}
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], seen]) + "\\n")
"""
_IS_THERE = """#!/usr/bin/env bash
# The server of this address has started.
port=${!#}; port=${port##*:}
exec grep -q "vllm.*\\"${port%%/*}\\"" "$NOTES"
"""
_RUN_HERE = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
SLURM_NODEID=0 exec "$@"
"""

Call = tuple[str, list[str], dict[str, str | None]]


def run(script: str, tmp_path: Path, *words: str, **environment: str) -> list[Call]:
    """The programs that a script calls, with their words and what they see of the environment."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (programs / name).write_text(_NOTE)
    (programs / "srun").write_text(_RUN_HERE)
    (programs / "curl").write_text(_IS_THERE)
    (programs / "scontrol").write_text('#!/usr/bin/env bash\nprintf "node7\\nnode8\\n"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    notes.write_text("")
    path = f"{programs}{os.pathsep}{os.defpath}"
    given = {"PATH": path, "NOTES": str(notes), "HOME": str(tmp_path), **environment}
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, str(CLUSTER / script), *words], cwd=tmp_path, env=given, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(name, found, seen) for name, found, seen in map(json.loads, notes.read_text().splitlines())]


def only(calls: list[Call], name: str, first: str = "") -> Call:
    [found] = [call for call in calls if call[0] == name and (not first or call[1][0] == first)]
    return found


def settings(words: list[str]) -> TrainSettings:
    assert words[0] == "train"
    return parse_train("flow-dpo train", words[1:], {})


def check_ray(words: list[str]) -> None:
    """Words of the `ray` command are flags that it knows, where it is installed."""
    scripts = pytest.importorskip("ray.scripts.scripts")
    if words[0] == "symmetric-run":  # takes those of `ray start`
        words = ["start", *words[words.index("--min-nodes") + 2 : words.index("--")], "--head"]
    command: Any = scripts.cli.commands[words[0]]
    command.make_context(words[0], list(words[1:]))


def test_every_file_is_looked_at() -> None:
    assert {path.name for path in CLUSTER.iterdir()} == {
        "slurm.sh", "two_nodes.sh", "servers.sh", "ranks.sh", "kuberay.yaml",
    }  # fmt: skip


def test_slurm_runs_on_the_first_node_and_keeps_the_learners_gpu_from_ray(tmp_path: Path) -> None:
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "4711"}
    calls = run("slurm.sh", tmp_path, SLURM_GPUS_ON_NODE="4", MORE="--resume", **job)
    assert only(calls, "ray", "get-auth-token")[1] == ["get-auth-token", "--generate"]
    _, words, seen = only(calls, "ray", "symmetric-run")
    assert words[1:5] == ["--address", "node7:24711", "--min-nodes", "2"]
    assert seen["CUDA_VISIBLE_DEVICES"] == "1,2,3"
    assert (seen["RAY_AUTH_MODE"], seen["RAY_USAGE_STATS_ENABLED"], seen["OMP_NUM_THREADS"]) == ("token", "0", "1")
    entry = words[words.index("--") + 1 :]
    assert entry[:3] == ["env", "CUDA_VISIBLE_DEVICES=0", "flow-dpo"]
    found = settings([word for word in entry[3:] if word != "--resume"])
    assert entry[-1] == "--resume"
    workers = found.runtime.workers
    assert (workers.kind, workers.num, workers.num_gpus, workers.address) == ("ray", 7, 1, "auto")
    assert found.run.lag == 1
    check_ray(words)


def test_two_nodes_by_hand(tmp_path: Path) -> None:
    calls = run("two_nodes.sh", tmp_path, "head")
    _, head, seen = only(calls, "ray", "start")
    assert "--head" in head
    assert seen["CUDA_VISIBLE_DEVICES"] == "1,2,3,4,5,6,7"
    _, worker, _ = only(run("two_nodes.sh", tmp_path, "worker", "10.0.0.1"), "ray")
    assert worker[:3] == ["start", "--address", "10.0.0.1:6379"]
    name, words, seen = run("two_nodes.sh", tmp_path, "train", "--run.seed", "3")[0]
    assert (name, seen["CUDA_VISIBLE_DEVICES"], seen["RAY_AUTH_MODE"]) == ("flow-dpo", "0", "token")
    found = settings(words)
    assert (found.run.seed, found.runtime.workers.num) == (3, 15)
    for started in (head, worker):
        check_ray(started)


def test_servers_without_ray(tmp_path: Path) -> None:
    calls = run("servers.sh", tmp_path, PATIENCE_S="20")
    served = [call for call in calls if call[0] == "vllm"]
    assert {seen["CUDA_VISIBLE_DEVICES"] for _, _, seen in served} == {"1", "2"}
    assert {seen["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] for _, _, seen in served} == {"1"}
    ports = {words[words.index("--port") + 1] for _, words, _ in served}
    found = settings(only(calls, "flow-dpo")[1])
    assert found.runtime.workers.kind == "servers"
    urls = getattr(found.runtime.engine, "base_url", "").split(",")
    assert {url.rpartition(":")[2] for url in urls} == ports == {"8001", "8002"}
    rank = [words[words.index("--max-lora-rank") + 1] for _, words, _ in served]
    assert {int(each) for each in rank} == {found.runtime.lora.lora_r}


@pytest.mark.parametrize("launch", ["torchrun", "accelerate"])
def test_ranks(launch: str, tmp_path: Path) -> None:
    more = ("--run.seed", "3", "--learner.rows.shard_base", "true")
    [(name, words, _)] = run("ranks.sh", tmp_path, *more, LAUNCH=launch, RANKS="4")
    assert name == launch
    if launch == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(words)
        assert (parsed.nproc_per_node, parsed.module) == ("4", True)
    else:
        from accelerate.commands.launch import launch_command_parser

        parsed = launch_command_parser().parse_args(words[1:])
        assert (words[0], parsed.num_processes, parsed.module, parsed.multi_gpu) == ("launch", 4, True, True)
    assert parsed.training_script == "flow_dpo"
    found = settings(parsed.training_script_args)
    assert (found.run.seed, found.runtime.workers.kind, found.learner.rows.shard_base) == (3, "servers", True)


def test_kuberay_runs_the_command_on_a_cluster_that_fits_it() -> None:
    job, claim = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["kind"], claim["kind"]) == ("RayJob", "PersistentVolumeClaim")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "flow-dpo"
    found = settings(words[1:])
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    [group] = cluster["workerGroupSpecs"]
    pods = [cluster["headGroupSpec"], group]
    head, worker = (pod["template"]["spec"]["containers"][0] for pod in pods)
    workers = found.runtime.workers
    assert group["replicas"] * worker["resources"]["limits"]["nvidia.com/gpu"] == workers.num * workers.num_gpus == 8
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    assert head["image"] == worker["image"]
    assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in head["env"]
    [volume] = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    [mount] = head["volumeMounts"]
    assert found.run.output_dir.startswith(mount["mountPath"])


def test_the_page_names_files_and_settings_that_exist() -> None:
    page = CLUSTER.parent.parent / "docs" / "scaling.md"
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    known = default_settings("flow-dpo", "seed").sections()
    flags = re.findall(r"--((?:workers|run|learner)\.\w+)", text)
    assert len(flags) > 8
    for section, name in (flag.split(".") for flag in flags):
        assert hasattr(known[section], name), f"{section}.{name}"
