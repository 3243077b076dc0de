"""Are libraries imported without collections of cycles, and is nothing changed in a process that has them?"""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import gc, sys
from flow_dpo.cli.loading import loading
gc.disable()
with loading():
    pass
assert not gc.isenabled() and not gc.get_freeze_count(), "the caller's choice"
gc.enable()
try:
    with loading():
        assert not gc.isenabled()
        import json
        raise KeyError
except KeyError:
    pass
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen
sys.modules["torch"] = json
made = [[] for _ in range(1000)]
with loading():
    assert gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count() == frozen, "a second command in one process"
"""


def test_imports_are_not_collected_and_left_out_of_later_collections() -> None:
    found = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
