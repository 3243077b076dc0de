"""Can the core be read in an afternoon, and imported without what it does not need?

Counted in lines as they stand, docstrings and all: what a reader has before them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import flow_dpo

PACKAGE = Path(flow_dpo.__file__).parent
MAX_MODULES = 25
"""Of ours that the loop may load."""
MAX_CORE_LINES = 2_300
MAX_METHOD_LINES = 4_000
"""Of the core and the learner together."""


def num_lines(*rooms: str) -> int:
    paths = [path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]
    assert len(paths) >= 5 * len(rooms)
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_the_loop_loads_few_modules_and_no_tensors() -> None:
    code = "import json, sys, flow_dpo.core.loop; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    ours = [name for name in loaded if name.partition(".")[0] == "flow_dpo"]
    assert "flow_dpo.core.loop" in ours
    assert len(ours) <= MAX_MODULES, ours
    assert {name for name in ours if not f"{name}.".startswith("flow_dpo.core.")} == {"flow_dpo"}
    assert not {"torch", "transformers", "peft", "numpy"} & set(loaded)


def test_the_core_is_small() -> None:
    assert num_lines("core") <= MAX_CORE_LINES


def test_the_core_and_the_learner_are_an_afternoon() -> None:
    assert num_lines("core", "learner") <= MAX_METHOD_LINES
