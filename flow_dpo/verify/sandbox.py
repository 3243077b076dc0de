"""The sandbox for programs that a model wrote: a child process without files, network or other processes.

The child has no environment, no packages, no files and no network, two seconds of processor time and a quarter of a
gigabyte of memory (`sandbox_worker` enforces this). Nothing is run here unless the user has enabled it.

    run_program("print(6 * 7)")             Ran(output="42\\n", reason="")
    run_program("import os")                Ran(output="", reason="the module os is not allowed")
    run_program("while True: pass")         Ran(output="", reason="it took more than 2 s")
    run_program("x = 2", test="x == 2")     Ran(output="", reason="", holds=True)

Invariant: whatever the program does, `run_program` returns soon after `wall_s`, and the child is gone.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from flow_dpo.core.errors import ConfigError

WORKER = Path(__file__).with_name("sandbox_worker.py")
_MAX_BYTES = 100_000
_MAX_PROGRAM = 20_000
_FENCE = re.compile(r"```[a-zA-Z]{0,20}[ \t]{0,20}\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The result of a program: its output, and whether a test held."""

    output: str
    reason: str = ""
    """Why the program did not run to its end; "" if it did."""
    holds: bool | None = None
    """Whether the test held; None if there was none, or if it was not reached."""


def check_platform() -> None:
    """Raise `ConfigError` on a platform where programs cannot be run with limits."""
    if sys.platform not in ("linux", "darwin"):
        raise ConfigError(f"programs are run only on Linux and macOS, found {sys.platform}; leave programs off")


def code_of(text: str) -> str:
    """The last fenced block of a text, or the whole text if there is none."""
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks else text


def run_program(
    program: str, *, test: str = "", cpu_s: int = 2, wall_s: float = 6.0, memory_bytes: int = 1 << 28
) -> Ran:
    """Run a program in its own child process, and then a test, which the program cannot change or answer itself.

    `test` is an expression over what the program defines. Built-ins and modules in it are the real ones, even if the
    program rebinds their names. Never raises for what the program does; raises `ValueError` for a test that is no
    expression, or that uses nothing but built-ins.
    """
    check_platform()
    if test:
        _check_test(test)
    if len(program) > _MAX_PROGRAM:
        return Ran(output="", reason=f"longer than {_MAX_PROGRAM:,} characters")
    job = json.dumps({"cpu_s": cpu_s, "memory_bytes": memory_bytes, "program": program, "test": test})
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(WORKER)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={}, cwd="/", close_fds=True, start_new_session=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with child.stdin as pipe:
            pipe.write(job.encode("ascii"))
        output, whole = _read(child.stdout.fileno(), time.monotonic() + wall_s)
    except BrokenPipeError:
        output, whole = b"", True
    finally:
        _end(child)
        child.stdout.close()
    if not whole:
        return Ran(output="", reason=f"it took more than {wall_s:g} s or printed too much")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and not output:
        return Ran(output="", reason=f"it took more than {cpu_s} s")
    try:
        found = json.loads(output)
        return Ran(output=str(found["output"]), reason=str(found["reason"]), holds=found["holds"])
    except (ValueError, KeyError, TypeError):
        return Ran(output="", reason=f"it died (exit status {child.returncode})")


def _check_test(test: str) -> None:
    """Raise `ValueError` for a test that the sandbox cannot evaluate, or that any program would pass."""
    from flow_dpo.verify.sandbox_worker import BUILTINS, MODULES, Refused, check  # needs a platform with limits

    try:
        tree = ast.parse(test.strip(), mode="eval")
        check(ast.Module(body=[ast.Expr(value=tree.body)], type_ignores=[]))
    except (SyntaxError, Refused) as error:
        raise ValueError(
            f"expected a test that is an expression of the sandbox's grammar, such as double(2) == 4, found "
            f"{test!r:.200}: {error}"
        ) from error
    # Names that the test itself binds, as in a comprehension, are not the program's.
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    free = {node.id for node in names} - own - {*BUILTINS, *MODULES, "print"}
    if strange := sorted(free & set(dir(builtins))):
        raise ValueError(f"expected a test with the sandbox's built-ins ({', '.join(BUILTINS)}), found {strange[0]}")
    if not free:
        raise ValueError(
            f"expected a test that uses what the program defines, under no built-in's name, found {test!r:.200}"
        )


def _read(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """The output, and whether its end was reached before the deadline and within the size limit."""
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(output) <= _MAX_BYTES:
            if not selector.select(max(deadline - time.monotonic(), 0)):
                return output, False
            piece = os.read(pipe, 65_536)
            if not piece:
                return output, True
            output += piece
    return output, False


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's session, and collect its exit status."""
    if child.poll() is None:
        try:
            child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
