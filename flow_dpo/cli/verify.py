"""`flow-dpo verify`: grade a file of answers against their gold, and print the summary.

    flow-dpo verify answers.jsonl --output graded       graded/verdicts.jsonl, graded/summary.json
    flow-dpo verify answers.jsonl --output graded --which last_line --timeout_s 10 --num_workers 8

Other commands load torch, which grading does not need. Invariant: nothing heavy is imported, here or by what this
module imports.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate.grade_file import VerifySettings, verify_file
from flow_dpo.runs.live import Live
from flow_dpo.runs.resolve import resolve
from flow_dpo.verify.verifier import STANDALONE


def verify(argv: Sequence[str]) -> int:
    """`flow-dpo verify FILE --output OUT`."""
    what = "Grade a file of answers against their gold, and print the summary: flow-dpo verify FILE --output OUT"
    sections = {"verify": VerifySettings(), "rule": STANDALONE}
    parsed = resolve("flow-dpo verify", what, argv, sections, others="files", doc=__doc__ or "")
    settings: VerifySettings = parsed["verify"]
    if len(parsed["files"]) != 1 or not settings.output:
        raise ConfigError("expected: flow-dpo verify FILE --output OUT (flow-dpo verify --help lists all settings)")
    file = Path(parsed["files"][0])
    with Live(Console(stderr=True)) as live:  # standard output carries only the summary
        live.doing(f"grading {file}")
        summary = verify_file(
            file,
            Path(settings.output),
            rule=parsed["rule"],
            timeout_s=settings.timeout_s,
            num_workers=settings.num_workers,
            on_batch=lambda done, total: live.doing(f"grading {file}: {done:,} of {total:,} rows"),
        )
    print(json.dumps(summary, indent=2))
    return 0
