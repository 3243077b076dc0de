"""A task of code: the share of a row's unit tests that a written function passes, run in the sandbox.

flow-dpo train --reward examples/rewards/unit_tests.py:passed --dataset_name tasks.jsonl --question_column task ...

where tasks.jsonl has rows such as {"task": "Write double(x).", "tests": ["double(2) == 4", "double(0) == 0"]}. A
model's program has no file, no network, two seconds and a few modules.
"""

from __future__ import annotations

import secrets

from flow_dpo.verify.sandbox import code_of, run_program


def passed(completions: list[str], tests: list[list[str]]) -> list[float | None]:
    """The share of a row's tests that hold, 0 where the program does not run; None for a row without tests."""
    return [_share(code_of(text), own) if own else None for text, own in zip(completions, tests, strict=True)]


def _share(program: str, tests: list[str]) -> float:
    """A program cannot know the word that is printed before a test's result, and so not print the result itself."""
    right = 0
    for test in tests:
        word = secrets.token_hex(8)
        ran = run_program(f"{program}\nprint('{word}', bool({test}))")
        right += not ran.reason and ran.output.strip().endswith(f"{word} True")
    return right / len(tests)
