"""What does `flow-dpo verify` do?

It grades a file and prints the summary. It stands by itself because the other commands load torch, which grading does
not need:

    flow-dpo verify answers.jsonl --output graded       graded/verdicts.jsonl, graded/summary.json

Invariant: nothing heavy is imported, here or below.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate.grade_file import verify_file


def verify(argv: Sequence[str]) -> int:
    """`flow-dpo verify FILE --output OUT`."""
    words = list(argv)
    if len(words) != 3 or words[1] != "--output":
        raise ConfigError("expected: flow-dpo verify FILE --output OUT")
    print(json.dumps(verify_file(Path(words[0]), Path(words[2])), indent=2))
    return 0
