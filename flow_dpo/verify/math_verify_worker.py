r"""Worker process that compares two answers by computer algebra; it may hang, crash or be killed.

A child process of `verify.worker_pool`, run by path as a script of its own: it imports math-verify and nothing of
this package, so it starts in under half a second and holds no model. One JSON line in, one JSON line out:

    {"gold": "x+1", "answer": "1+x", "cpu_s": 12}  ->  {"found": "equal", "reason": ""}

`found` is "equal", "different", "gold" (the gold cannot be parsed) or "error". It lives as long as its standard input
is open, so it ends with its parent however that ends; a computation that would outlive it is ended by the CPU limit
that each line renews. Its memory is limited, it writes no files, and no text is evaluated: only math-verify's LaTeX
grammar is used, never its plain expressions, which go through `eval`.
"""

import json
import logging
import math
import os
import sys
import time
from contextlib import suppress

MEMORY_BYTES = 1 << 30
RECURSION = 3_000

# What sympy and the parser raise on formulas they cannot work with. Anything else ends this process, and its parent
# reports that as ungraded.
UNWORKABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


def limit(cpu_s: float) -> None:
    """End this process once it has computed for `cpu_s` more seconds: its parent may be gone by then."""
    with suppress(ImportError, OSError, ValueError):  # no such limits on this platform
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + cpu_s), hard))


def limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def compare(gold: str, answer: str) -> dict[str, str]:
    """Ask math-verify, with its own timeouts off: they are SIGALRM, and this process is killed instead."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # Its units are single letters too, and would make 4 of "4t". Ours are gone by now.
    plain = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    rules = [LatexExtractionConfig(normalization_config=plain)]
    try:
        ours = parse(f"${gold}$", rules, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
    except UNWORKABLE as error:
        return {"found": "gold", "reason": type(error).__name__}
    if not ours or isinstance(ours[0], str):
        return {"found": "gold", "reason": "no formula that the parser knows"}
    try:
        theirs = parse(f"${answer}$", rules, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
        if not theirs or isinstance(theirs[0], str):
            return {"found": "different", "reason": "the answer is not a formula that the parser knows"}
        equal = verify(ours, theirs, timeout_seconds=None, raise_on_error=True)
    except UNWORKABLE as error:
        return {"found": "error", "reason": type(error).__name__}
    return {"found": "equal" if equal else "different", "reason": ""}


def main() -> None:
    """Answer lines until there are none."""
    requests, replies = sys.stdin, os.fdopen(os.dup(1), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # whatever a library prints must not be taken for a reply
    limit(120)
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(RECURSION)
    compare("x+1", "1+x")  # imports, and fills the parser's tables
    limit_memory()
    print(json.dumps({"found": "ready", "reason": ""}), file=replies, flush=True)
    os.dup2(nowhere, 2)  # until here, the parent reads why a start failed
    for line in requests:
        request = json.loads(line)
        limit(request["cpu_s"])
        print(json.dumps(compare(request["gold"], request["answer"])), file=replies, flush=True)


if __name__ == "__main__":
    main()
