"""Measure the package on this machine's GPU in ten minutes: `make gpu`.

    python -m benchmarks.gpu                          # all parts that are not done yet
    python -m benchmarks.gpu --only attention vllm    # only these
    python -m benchmarks.gpu --again                  # also parts that are done
    python -m benchmarks.gpu --rehearse               # on a CPU, with tiny sizes: the figures mean nothing

Results go to runs/gpu/DEVICE: results.json, page.md, page.html, and a folder per part with its log. If the command is
killed or its ten minutes are over, run it again: it resumes where it stopped. Exit status: 0 all parts are done, 1 some
parts failed, were killed or are still to do, 3 there is no GPU to measure, 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from benchmarks.gpu import environment, page, runner
from benchmarks.gpu.estimates import CARDS
from benchmarks.gpu.parts import PARTS, Part, chosen, missing, served_python
from benchmarks.measuring import ROOT

NO_GPU = 3
TOTAL_S = 600.0
_LEAST_S = 10.0
"""In a rehearsal no part starts with fewer seconds of the total left."""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="also run parts that are done")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--model_name_or_path", default="", help="a real model instead of the random 0.5B one")
    parser.add_argument("--output_dir", type=Path, help="default: runs/gpu/DEVICE")
    parser.add_argument("--total_s", type=float, default=TOTAL_S, help="time limit of the whole command in seconds")
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    settings = options().parse_args(words)
    started = time.monotonic()
    where = settings.output_dir or ROOT / "runs" / "gpu"
    facts = environment.ask(sys.executable, where, on_cpu=settings.rehearse)
    why = facts.get("error") if settings.rehearse else environment.refusal(facts)
    if why:
        print(f"nothing can be measured here: {why}\n\n{_found(facts)}", file=sys.stderr)
        return NO_GPU
    device = "rehearsal" if settings.rehearse else str(facts["torch"]["name"])
    folder = settings.output_dir or where / re.sub(r"\W+", "-", device.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            signal.signal(signal.SIGTERM, _interrupt)
            return measure(settings, folder, device, facts, end=started + settings.total_s)
    except Timeout:
        print(f"another command is measuring into {folder}; wait for it, or give another --output_dir", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes where it was", file=sys.stderr)
        return 130


def measure(settings: argparse.Namespace, folder: Path, device: str, facts: Mapping[str, Any], *, end: float) -> int:
    """Run the parts that are not done, and write results and page after each."""
    other = served_python()
    served = environment.ask(str(other), folder, on_cpu=settings.rehearse) if other else facts
    results = runner.load(folder)
    known: dict[str, Any] = results["parts"]
    results |= {"device": device, "rehearsal": settings.rehearse, "environment": facts, "parts": known}
    results["vllm_environment"] = served if other else None
    results["warnings"] = environment.warnings(facts)
    flags = ["--rehearse"] if settings.rehearse else []
    flags += ["--model_name_or_path", settings.model_name_or_path] if settings.model_name_or_path else []
    print("\n".join([_found(facts), *results["warnings"]]), flush=True)
    wanted = chosen(settings.only)
    for part in wanted:
        stamp = _stamp(served if part.served else facts, device, settings)
        if not settings.again and _is_done(known.get(part.name), stamp):
            print(f"{part.name}: done before", flush=True)
            continue
        outcome = _outcome(part, folder, missing(part, facts, served), flags, end - time.monotonic())
        known[part.name] = outcome | {"what": part.what, "stamp": stamp, "commit": commit()}
        fitting = [card for card in CARDS if card.gib >= part.min_gib]
        known[part.name]["estimates_s"] = {card.name: round(part.estimate(card)) for card in fitting}
        runner.save(folder, results)
        page.write(folder, results)
        print(page.line(known[part.name]), flush=True)
    runner.save(folder, results)
    page.write(folder, results)
    print(f"\n{page.summary(results)}\n{folder / 'page.html'}", flush=True)
    finished = (runner.DONE, runner.MISSING)
    return 0 if all(known[part.name]["status"] in finished for part in wanted) else 1


def _outcome(part: Part, folder: Path, why: str | None, flags: list[str], left_s: float) -> dict[str, Any]:
    if why:
        return {"name": part.name, "status": runner.MISSING, "why": why, "figures": []}
    if left_s < (_LEAST_S if "--rehearse" in flags else min(part.soft_s, part.limit_s)):
        why = "the seconds of this command are over; the same command resumes here"
        return {"name": part.name, "status": runner.WAITING, "why": why, "figures": []}
    print(f"{part.name}: {part.what}; {_estimates(part)}", flush=True)
    return runner.run_part(part, folder, limit_s=min(part.limit_s, left_s), flags=flags)


def _estimates(part: Part) -> str:
    guesses = [f"{card.name} {part.estimate(card):.0f} s" for card in CARDS if card.gib >= part.min_gib]
    return "estimate " + ", ".join(guesses)


def _stamp(facts: Mapping[str, Any], device: str, settings: argparse.Namespace) -> dict[str, Any]:
    """What an outcome is valid for: with another device, driver, model or package version the part runs again."""
    driver = facts.get("driver", {}).get("version", "")
    model = settings.model_name_or_path
    return {"device": device, "driver": driver, "model": model, "packages": facts.get("packages", {})}


def _is_done(outcome: Mapping[str, Any] | None, stamp: Mapping[str, Any]) -> bool:
    return outcome is not None and outcome["status"] == runner.DONE and outcome["stamp"] == stamp


def commit() -> str:
    """The commit of the code, followed by "+" if files differ from it; "" outside a repository."""
    found = ["", ""]
    for i, words in enumerate((["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])):
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        found[i] = done.stdout.strip()
    return found[0] + ("+" if found[1] else "")


def _found(facts: Mapping[str, Any]) -> str:
    """The environment in a few lines."""
    if "error" in facts:
        return ""
    torch, card = facts["torch"], facts["driver"]
    gpu = f"{torch['name']}, {torch['free_gib']:.1f} of {torch['gib']:.1f} GiB free" if "name" in torch else "no GPU"
    names = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    driver = f"driver {card['version']} (CUDA {card['cuda']})" if "version" in card else f"no driver ({card['error']})"
    return f"{gpu}; {driver}; torch for CUDA {torch.get('cuda')}\n{facts['machine']}\n{names}"


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
