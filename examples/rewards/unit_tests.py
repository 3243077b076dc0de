"""A coding task: the reward is the share of a row's unit tests that the program passes in the sandbox.

flow-dpo train --reward examples/rewards/unit_tests.py:passed --dataset_name tasks.jsonl --question_column task ...

where tasks.jsonl has rows such as {"task": "Write double(x).", "tests": ["double(2) == 4", "double(0) == 0"]}. A
model's program has no files, no network, two seconds and a few modules. A test is an expression that calls what the
program defines. Built-ins and modules in a test are the real ones, even if the program redefines their names. So a task
cannot ask for a function with a built-in's name.
"""

from __future__ import annotations

from flow_dpo.verify.sandbox import code_of, run_program


def passed(completions: list[str], tests: list[list[str]]) -> list[float | None]:
    """The share of a row's tests that hold; 0 if the program does not run; None for a row without tests.

    Raises `ValueError` for a test that calls only built-ins, because any program would pass it.
    """
    return [_share(code_of(text), own) if own else None for text, own in zip(completions, tests, strict=True)]


def _share(program: str, tests: list[str]) -> float:
    """Each test runs separately, so that none sees what another left behind."""
    return sum(run_program(program, test=test).holds is True for test in tests) / len(tests)
