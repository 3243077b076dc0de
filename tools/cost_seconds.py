"""Seconds of a comparison's trainings on an idle core, for studies whose own runs shared their cores with other work.

    python -m tools.cost_seconds runs/cost/* --output studies/cost/seconds.json

Every training of one seed is repeated with its recorded command, one after another on one thread. As in a comparison's
costs, its seconds are those of its work, without loading. If another commit made the study, `--code` names a checkout
of it. Trainings that the file already has are not repeated, so an interrupted command continues; `--again` measures
them again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import measuring
from flow_dpo.evaluate.compare.jobs import DONE, work_seconds
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.records import DoneJob, read_metrics, read_rows

ROOT = Path(__file__).parent.parent


def words_at(words: Sequence[str], folder: Path) -> list[str]:
    """A command's words, with `folder` as its output_dir."""
    found = list(words)
    found[found.index("--output_dir") + 1] = str(folder)
    return found


def commit_of(code: Path) -> str | None:
    """The commit of a checkout; None if the folder is no checkout."""
    words = ["git", "-C", str(code), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def timed(words: Sequence[str], code: Path) -> float:
    """Repeat a training with the code in a folder, and return its seconds. Exits if it fails."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        command = [sys.executable, "-m", "flow_dpo", *words_at(words, folder)]
        environment = measuring.environment(1) | {"PYTHONPATH": str(code)}
        done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{command} failed with status {done.returncode}:\n{done.stderr[-3000:]}")
        return work_seconds(read_metrics(folder / "metrics.jsonl"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, help="the folder of each budget's comparison")
    parser.add_argument("--seed", type=int, default=0, help="the seed whose trainings are repeated")
    parser.add_argument("--code", type=Path, default=ROOT, help="folder of the code that made them")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="also measure those that the file already has")
    parsed = parser.parse_args(argv)
    found: dict[str, Any] = json.loads(parsed.output.read_text()) if parsed.output.exists() else {"seconds": {}}
    if found.get("seed", parsed.seed) != parsed.seed:
        raise SystemExit(f"{parsed.output} has seed {found['seed']}; name another file for seed {parsed.seed}")
    facts = {"commit": commit_of(parsed.code), "machine": measuring.machine(1)}
    facts |= {"date": datetime.now(UTC).date().isoformat()}
    found |= {"seed": parsed.seed}
    for folder in parsed.comparisons:
        own = found["seconds"].setdefault(folder.name, {})
        for job in read_rows(folder / f"seed{parsed.seed}" / DONE, DoneJob):
            if job.words[0] == "train" and (parsed.again or job.name not in own):
                own[job.name] = round(timed(job.words, parsed.code), 1)
                found.setdefault("made", {}).setdefault(folder.name, {})[job.name] = facts
                print(f"{folder.name} {job.name}: {own[job.name]:.1f} s", flush=True)
                write_whole(parsed.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
