"""Can a program that a model wrote do anything but calculate? Hostile ones try."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flow_dpo.verify import sandbox_worker
from flow_dpo.verify.sandbox import WORKER, Ran, code_of, run_program


def test_a_program_calculates() -> None:
    program = (
        "import math\nfrom fractions import Fraction\n\ndef area(r):\n    return r * r\n\n"
        "total = sum(area(n) for n in range(4))\nprint(f'{total}', math.sqrt(16), Fraction(1, 3))\nprint(6 * 7)"
    )
    assert run_program(program) == Ran(output="14 4.0 1/3\n42\n")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("open('/etc/passwd')", "NameError"),
        ("import os", "the module os is not allowed"),
        ("import socket", "the module socket is not allowed"),
        ("import subprocess as math", "the module subprocess is not allowed"),
        ("from fractions import sys", "sys of fractions is not allowed"),
        ("from math import *", "* of math is not allowed"),
        ("from . import math", "math of None is not allowed"),
        ("import fractions\nfractions.sys", "the attribute sys is not allowed"),
        ("().__class__.__base__.__subclasses__()", "is not allowed"),
        ("print.__globals__", "the attribute __globals__ is not allowed"),
        ("'{0.__class__}'.format(1)", "the attribute format is not allowed"),
        ("f'{().__class__}'", "the attribute __class__ is not allowed"),
        ("__builtins__['__import__']('os')", "the name __builtins__ is not allowed"),
        ("__import__('os')", "the name __import__ is not allowed"),
        ("def f(__x): pass", "the name __x is not allowed"),
        ("eval('1')", "NameError"),
        ("getattr(1, 'real')", "NameError"),
        ("exec('import os')", "NameError"),
        ("type(1)", "NameError"),
        ("globals()", "NameError"),
        ("class A: pass", "ClassDef is not allowed"),
        ("try:\n    1\nexcept: pass", "Try is not allowed"),
        ("@print\ndef f(): pass", "decorators are not allowed"),
        ("with x: pass", "With is not allowed"),
        ("(x for x in [1]).gi_frame", "the attribute gi_frame is not allowed"),
        ("def f():\n    yield 1", "Yield is not allowed"),
        ("import", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("x = 'a' * (1 << 40)", "MemoryError"),
        ("x = [0]\nwhile True: x = x + x", "MemoryError"),
        ("print('a' * 100000)", "it printed more than"),
        ("while True: print('a')", "it printed more than"),
        ("x = " + "(" * 3000 + ")" * 3000, ""),
        ("x = 1 << 10 ** 12", "Error"),
        ("print(f'{1:>100000000000}')", "Error"),
        ("print('%099999999999d' % 1)", "Error"),
        ("import math\nmath.sqrt = print", "to assign the attribute sqrt is not allowed"),
        ("from fractions import Fraction\nfor Fraction.numerator in [1]: 2", "to assign the attribute numerator"),
        ("import math as __builtins__", "the name __builtins__ is not allowed"),
        ("match 1:\n    case int(real=x): print(x)", "Match is not allowed"),
        ("x = [" + "1," * 6000 + "]", "longer than 5000 nodes"),
    ],
)
def test_hostile_programs_are_stopped(program: str, reason: str) -> None:
    ran = run_program(program)
    assert ran.reason
    assert reason in ran.reason


@pytest.mark.parametrize("program", ["while True: pass", "x = 10 ** 10 ** 10", "print(sum(range(10 ** 15)))"])
def test_endless_programs_end(program: str) -> None:
    started = time.monotonic()
    assert "more than" in run_program(program, cpu_s=1, wall_s=5).reason
    assert time.monotonic() - started < 15
    sleeping = run_program("while True: pass", cpu_s=60, wall_s=0.5)
    assert "more than 0.5 s" in sleeping.reason


def test_a_test_is_evaluated_behind_the_program() -> None:
    program = "def f(x): return 2 * x\nabs = print = bool = lambda *x: True\nmath = []"
    tests = {"abs(f(2)) == 4": True, "math.sqrt(f(2)) == 2": True, "f(2) == 5": False}
    assert {test: run_program(program, test=test).holds for test in tests} == tests
    assert run_program(program).holds is None
    assert run_program(program, test="g(2) == 4").reason.startswith("NameError")
    assert run_program("import os", test="f(2) == 4") == Ran(output="", reason="the module os is not allowed")


def test_the_kernel_is_a_wall_of_its_own() -> None:
    """Behind the grammar: code that is already past it can open, start and connect nothing."""
    walls = f"""
import json, sys, os, socket, threading
sys.path.insert(0, {str(WORKER.parent)!r})
import sandbox_worker
sandbox_worker.limit(5, 1 << 29)
filtered = sandbox_worker.filter_calls()
found = []
def attempt(name, doing):
    try:
        doing()
        found.append(name)
    except (OSError, RuntimeError):
        pass
attempt("open", lambda: open("/etc/passwd"))
attempt("write", lambda: open("/tmp/never", "w"))
attempt("socket", lambda: socket.socket())
attempt("pipe", os.pipe)
if filtered:
    attempt("fork", lambda: os.fork())
    attempt("kill", lambda: os.kill(os.getppid(), 0))
    attempt("exec", lambda: os.execv("/bin/true", ["true"]))
    attempt("remove", lambda: os.unlink("/tmp/never-there-either"))
    attempt("thread", lambda: threading.Thread(target=print).start())
sys.stdout.write(json.dumps([filtered, found])); sys.stdout.flush()
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", walls], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    filtered, found = json.loads(done.stdout)
    assert found == []
    assert filtered or sys.platform != "linux"


def test_the_child_has_no_secrets_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "topsecret")
    monkeypatch.chdir(tmp_path)
    assert run_program("print(1)").output == "1\n"
    assert list(tmp_path.iterdir()) == []


def test_everything_listed_is_harmless() -> None:
    assert not {"eval", "exec", "open", "getattr", "type", "vars", "input", "compile"} & set(sandbox_worker.BUILTINS)
    assert not any(name.startswith("_") or "format" in name for name in sandbox_worker.ATTRIBUTES)
    sandbox_worker.check(ast.parse("x = [n for n in range(3)]\nprint(x)"))


def test_code_is_found_in_its_fence() -> None:
    assert code_of("Sure:\n```python\nprint(1)\n```\nor\n```\nprint(2)\n```\nDone") == "print(2)\n"
    assert code_of("```python\nprint(3)") == "print(3)"
    assert code_of("print(4)") == "print(4)"
