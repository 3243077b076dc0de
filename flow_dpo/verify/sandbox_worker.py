"""The sandbox's child process: it runs one small program and returns what it printed.

A child process of `verify.sandbox`, run by path with `python -I -S`: it imports nothing of this package. The
program comes on standard input; one line of JSON goes out. Three barriers, each sufficient for its own purpose:

1. kernel limits: processor time, memory, no new file descriptors, no writing to files, no processes;
2. on Linux (x86-64, arm64) a system call filter: only read, write, memory, time, signals and exit are allowed;
3. a grammar: only listed kinds of syntax, names without underscores, listed attributes and modules, listed built-ins.

    {"cpu_s": 2, "memory_bytes": 268435456, "program": "print(6 * 7)", "test": ""}
        ->  {"output": "42\\n", "reason": "", "holds": null}

A test is evaluated after the program, in its own namespace: the program's names, overridden by the real built-ins and
modules. The grammar has no classes and no assignment to attributes, so no value can define its own `==`.
"""

import ast
import builtins
import ctypes
import errno
import fractions
import itertools
import json
import math
import platform
import resource
import statistics
import sys
from types import SimpleNamespace

MAX_OUTPUT = 4_000
MAX_NODES = 5_000

MODULES = {
    "math": {name: getattr(math, name) for name in dir(math) if not name.startswith("_")},
    "fractions": {"Fraction": fractions.Fraction},
    "itertools": {name: getattr(itertools, name) for name in ("combinations", "permutations", "product", "accumulate")},
    "statistics": {name: getattr(statistics, name) for name in ("mean", "median")},
}
BUILTINS = (
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "int", "len", "list", "map", "max",
    "min", "pow", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
ATTRIBUTES = {
    "append", "extend", "insert", "pop", "remove", "sort", "reverse", "index", "count", "copy", "clear", "add",
    "discard", "union", "intersection", "difference", "update", "items", "keys", "values", "get", "join", "split",
    "strip", "replace", "upper", "lower", "startswith", "endswith", "isdigit", "numerator", "denominator",
    "limit_denominator", *(name for names in MODULES.values() for name in names),
}  # fmt: skip
"""Never `format` or `format_map`: their strings can access attributes that the grammar cannot see."""
SYNTAX = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.Break,
    ast.Continue, ast.Pass, ast.FunctionDef, ast.Return, ast.Lambda, ast.arguments, ast.arg, ast.Call, ast.keyword,
    ast.Starred, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.List,
    ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension,
    ast.Subscript, ast.Slice, ast.Attribute, ast.JoinedStr, ast.FormattedValue, ast.Import, ast.ImportFrom, ast.alias,
    ast.Assert, ast.NamedExpr, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
RAISED = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, RuntimeError,
    StopIteration, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What a program can raise. Anything else ends this process, and its parent reports that it died."""


class Refused(Exception):
    """The program is outside the grammar, or prints too much."""


def check(tree: ast.Module) -> None:
    """Raise `Refused` for anything that is not listed."""
    for number, node in enumerate(ast.walk(tree)):
        if number >= MAX_NODES:
            raise Refused(f"longer than {MAX_NODES} nodes")
        if not isinstance(node, SYNTAX):
            raise Refused(f"{type(node).__name__} is not allowed")
        names = [getattr(node, field, None) for field in ("id", "name", "arg", "asname")]
        for name in names:
            if isinstance(name, str) and name.startswith("_") and name != "_":
                raise Refused(f"the name {name[:40]} is not allowed")
        if isinstance(node, ast.Attribute) and node.attr not in ATTRIBUTES:
            raise Refused(f"the attribute {node.attr[:40]} is not allowed")
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            raise Refused(f"to assign the attribute {node.attr[:40]} is not allowed")
        if isinstance(node, ast.Import) and (bad := [a.name for a in node.names if a.name not in MODULES]):
            raise Refused(f"the module {bad[0][:40]} is not allowed")
        if isinstance(node, ast.ImportFrom):
            known = MODULES.get(node.module or "", {}) if not node.level else {}
            if bad := [a.name for a in node.names if a.name not in known]:
                raise Refused(f"{bad[0][:40]} of {str(node.module)[:40]} is not allowed")
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            raise Refused("decorators are not allowed")


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Set the kernel's limits for this process, irrevocably."""
    values = {
        resource.RLIMIT_CPU: cpu_s, resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NPROC: 0, resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        low = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (low, low))


CALLS = {
    # read write brk mmap munmap mremap mprotect madvise futex sigaction sigprocmask sigreturn exit exit_group
    # clock_gettime gettimeofday getrandom sigaltstack
    "x86_64": (0xC000003E, (0, 1, 12, 9, 11, 25, 10, 28, 202, 13, 14, 15, 60, 231, 228, 96, 318, 131)),
    "aarch64": (0xC00000B7, (63, 64, 214, 222, 215, 216, 226, 233, 98, 134, 135, 139, 93, 94, 113, 169, 278, 132)),
}


def filter_calls() -> bool:
    """Have the kernel refuse every system call that is not listed (seccomp). False if the platform cannot."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return False
    arch, calls = CALLS[platform.machine()]
    load, equal, answer = 0x20, 0x15, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
    # Each instruction: code, jump if true, jump if false, value. Offset 4 holds the architecture, 0 the call.
    lines = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill), (load, 0, 0, 0)]
    lines += [(equal, len(calls) - index, 0, call) for index, call in enumerate(calls)]
    lines += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]

    class Line(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]

    class Lines(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("first", ctypes.POINTER(Line))]

    made = (Line * len(lines))(*(Line(*line) for line in lines))
    prctl = ctypes.CDLL(None).prctl
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    prctl(no_new_privileges, 1, 0, 0, 0)
    return prctl(set_seccomp, by_filter, ctypes.byref(Lines(len(lines), made)), 0, 0) == 0


def run(program: str, test: str = "") -> dict[str, str | bool | None]:
    """What a program prints, why it did not run to its end ("" if it did), and whether a test holds afterwards."""
    printed: list[str] = []

    def write(*values: object, sep: str = " ", end: str = "\n") -> None:
        printed.append(sep.join(map(str, values)) + end)
        if sum(map(len, printed)) > MAX_OUTPUT:
            raise Refused(f"it printed more than {MAX_OUTPUT} characters")

    def bring(name: str, *_: object) -> SimpleNamespace:
        return SimpleNamespace(**MODULES[name])

    allowed = {name: getattr(builtins, name) for name in BUILTINS} | {"print": write, "__import__": bring}
    reason, holds = "", None
    names: dict[str, object] = {"__builtins__": allowed, "__name__": "program"}
    try:
        tree = ast.parse(program)
        check(tree)
        exec(compile(tree, "program", "exec"), names)
        if test:
            asked = ast.parse(test.strip())
            check(asked)
            real = {name: value for name, value in allowed.items() if name != "__import__"}
            real |= {name: bring(name) for name in MODULES}
            holds = bool(eval(compile(ast.unparse(asked), "test", "eval"), {**names, **real}))
    except Refused as error:
        reason = str(error)
    except RAISED as error:
        reason = f"{type(error).__name__}: {error}"[:200]
    return {"output": "".join(printed)[:MAX_OUTPUT], "reason": reason, "holds": holds}


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    limit(job["cpu_s"], job["memory_bytes"])
    filtered = filter_calls()
    found = run(job["program"], job["test"])
    sys.stdout.write(json.dumps({**found, "filtered": filtered}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
