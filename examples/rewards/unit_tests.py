"""A task of code: the share of a row's unit tests that a written function passes, run in the sandbox.

flow-dpo train --reward examples/rewards/unit_tests.py:passed --dataset_name tasks.jsonl --question_column task ...

where tasks.jsonl has rows such as {"task": "Write double(x).", "tests": ["double(2) == 4", "double(0) == 0"]}. A
model's program has no file, no network, two seconds and a few modules. A test is an expression that calls what the
program defines; the built-ins and modules in it are the real ones, whatever the program calls by their names. So no
task can ask for a function with a built-in's name.
"""

from __future__ import annotations

from flow_dpo.verify.sandbox import code_of, run_program


def passed(completions: list[str], tests: list[list[str]]) -> list[float | None]:
    """The share of a row's tests that hold, 0 where the program does not run; None for a row without tests.

    Raises `ValueError` for a test that calls nothing but built-ins: any program would pass it.
    """
    return [_share(code_of(text), own) if own else None for text, own in zip(completions, tests, strict=True)]


def _share(program: str, tests: list[str]) -> float:
    """Each test has a run of its own, so that none sees what another left behind."""
    return sum(run_program(program, test=test).holds is True for test in tests) / len(tests)
