"""Are libraries prepared and imported as they run best, and is nothing of the user's changed?"""

from __future__ import annotations

import json
import os
import subprocess
import sys

_PREPARED = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "THP_MEM_ALLOC_ENABLE": "1",
}
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


def test_libraries_are_prepared_as_far_as_the_user_has_not() -> None:
    code = (
        "import contextlib, json, os\nfrom flow_dpo.cli.main import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['verify', '--help'])\nprint(json.dumps(dict(os.environ)))"
    )
    given = {name: value for name, value in os.environ.items() if name not in _PREPARED}
    for own in ({}, {"THP_MEM_ALLOC_ENABLE": "0", "OMP_WAIT_POLICY": "active"}):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given | own, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        assert {name: found[name] for name in _PREPARED} == _PREPARED | own
