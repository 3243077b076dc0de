"""`flow-dpo verify`: grade a file of answers against their gold, and print the summary.

    flow-dpo verify answers.jsonl --output graded       graded/verdicts.jsonl, graded/summary.json

It stands by itself because the other commands load torch, which grading does not need. Invariant: nothing heavy is
imported, here or below.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate.grade_file import verify_file
from flow_dpo.runs.live import Live
from flow_dpo.runs.resolve import resolve


def verify(argv: Sequence[str]) -> int:
    """`flow-dpo verify FILE --output OUT`."""
    what = "Grade a file of answers against their gold, and print the summary: flow-dpo verify FILE --output OUT"
    parsed = resolve("flow-dpo verify", what, argv, {"output": ""}, others="files")
    if len(parsed["files"]) != 1 or not parsed["output"]:
        raise ConfigError("expected: flow-dpo verify FILE --output OUT")
    file = Path(parsed["files"][0])
    with Live(Console(stderr=True)) as live:  # the summary alone goes to the standard output
        live.doing(f"grading {file}")
        summary = verify_file(file, Path(parsed["output"]))
    print(json.dumps(summary, indent=2))
    return 0
