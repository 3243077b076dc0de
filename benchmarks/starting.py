"""Processor seconds until a command line has answered: the import, the two helps, and a misspelled setting.

    python -m benchmarks.starting

Each command runs in a process of its own. User and system time are added, as the operating system counts them. The
figure is the median of the repeats, of which there are more than in other benchmarks, as each takes a second at most.
The time of an interpreter that does nothing is in the details and is not subtracted. Targets: `import flow_dpo` 0.15,
`flow-dpo --help` 0.3, `flow-dpo train --help` 1.5.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from benchmarks import measuring
from benchmarks.measuring import Figure

MODULE = "benchmarks.starting"
_CLI = ["-m", "flow_dpo"]
COMMANDS = {
    "import flow_dpo": (["-c", "import flow_dpo"], "<= 0.15", 0),
    "flow-dpo --help": ([*_CLI, "--help"], "<= 0.3", 0),
    "flow-dpo train --help": ([*_CLI, "train", "--help"], "<= 1.5", 0),
    "flow-dpo train --learning_rte 1": ([*_CLI, "train", "--learning_rte", "1"], "<= 1.5", 1),
    "flow-dpo train --learning_rate x": ([*_CLI, "train", "--learning_rate", "x"], "<= 1.5", 1),
}
"""By name: arguments of the interpreter, the target in processor seconds, and the status that it ends with."""


def seconds(words: list[str], status: int) -> float:
    """Processor seconds of one interpreter with these arguments."""
    before = os.times()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=120)
    after = os.times()
    if done.returncode != status:
        raise SystemExit(f"expected status {status} of {words}, found {done.returncode}: {done.stderr[-500:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.set_defaults(repeats=9)
    settings = parser.parse_args()
    repeats = 1 if settings.tiny else settings.repeats
    for words, _, status in COMMANDS.values():  # compiled and in the file cache before any is measured
        seconds(words, status)
    nothing = statistics.median(seconds(["-c", "pass"], 0) for _ in range(repeats))
    figures: list[Figure] = []
    for name, (words, reach, status) in COMMANDS.items():
        found = [seconds(words, status) for _ in range(repeats)]
        median = statistics.median(found)
        print(f"{name}: {median:.3f} processor seconds, of which an interpreter alone takes {nothing:.3f}", flush=True)
        details = {"seconds": found, "interpreter_alone": nothing}
        figures.append(Figure(name=f"starting: {name}", ratio=median, reach=reach, details=details))
    measuring.keep(figures, settings, MODULE)


if __name__ == "__main__":
    main()
