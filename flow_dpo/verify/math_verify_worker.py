r"""Worker process that compares two answers by computer algebra; it can hang, crash or be killed.

A child process of `verify.worker_pool`, run by path as a separate script: it imports math-verify and nothing of this
package, so it starts in under half a second and loads no model. One JSON line in, one JSON line out:

    {"gold": "x+1", "answer": "1+x", "cpu_s": 5}  ->  {"found": "equal", "reason": ""}

`found` is "equal", "different", "gold" (the gold answer cannot be parsed) or "error". math-verify's grammar reads both
answers; they are compared here, because its own comparison mistakes 1/20! for 1/21! (six decimals) and x^2+1=0 for
x^2+7=0 (no real root), and depends on which of the two is gold. Two expressions are equal if they agree to 40 digits or
more at several points; two equations or inequalities, if the differences of their sides are multiples of each other.

Invariant: symmetric, and independent of earlier pairs (sympy's caches are emptied). The process ends itself once a pair
has taken `cpu_s` seconds of processor time, which the load of the machine does not affect. It lives as long as its
standard input is open, so it ends with its parent, however that ends. Its memory is limited, it writes no files, and no
text is evaluated: only the LaTeX grammar is used, never plain expressions, which go through `eval`.
"""
# sympy has few type annotations
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false

import json
import logging
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from string import ascii_letters
from typing import Any

MEMORY_BYTES = 1 << 30
RECURSION = 3_000
DIGITS = 60
"""Values are computed to this many digits, plus the digits of the integers in them (at most `MAX_DIGITS`)."""
MAX_DIGITS = 5_000
POINTS = 4
"""Points of comparison. At the second a variable is a whole number; at the last two it can be negative."""

# What sympy and the parser raise on formulas they cannot work with. Anything else ends this process, also a lack of
# memory, which an earlier pair can have caused: the parent tries once more on a new one, then reports it as ungraded.
UNWORKABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_PROSE = re.compile(
    r"(?<![\\A-Za-z])(?<!\\begin\{)(?<!\\end\{)(?:[A-Za-z]{4,}|[A-Za-z]{2,3} [A-Za-z]{2,3}(?![A-Za-z]))"
)


def limit(cpu_s: float) -> None:
    """End this process once it has computed for `cpu_s` more seconds of processor time."""
    with suppress(AttributeError, OSError, ValueError):  # no such timer on this platform: the parent's deadline applies
        signal.setitimer(signal.ITIMER_PROF, cpu_s)


def limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


# ---- reading ---------------------------------------------------------------------------------------------------------


def load() -> Callable[[str], Any]:
    """The parser with this process's settings: A differs from a, gamma is a letter, units are not dropped."""
    from functools import partial

    from latex2sympy2_extended import NormalizationConfig, symbols
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import LatexExtractionConfig, parser

    parser.latex2sympy = partial(parser.latex2sympy, conversion_config=ConversionConfig(lowercase_symbols=False))
    for name in ("gamma", "Gamma"):
        symbols.sympy_singleton_map.pop(name, None)
    # The parser's units include single letters, which would turn "4t" into 4. This package has removed units already.
    plain = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    rules = [LatexExtractionConfig(normalization_config=plain)]
    # The parser's timeouts are off: they use SIGALRM, and this process ends itself.
    return partial(parser.parse, extraction_config=rules, parsing_timeout=None, raise_on_error=True)


def read(parse: Callable[[str], Any], text: str) -> Any:
    """A text as a sympy object with exact numbers; None if the parser cannot read it."""
    from sympy import And, Basic, MatrixBase, Or, nan, zoo

    for word, joint in (("\\lor", Or), ("\\land", And)):
        parts = [read(parse, part) for part in text.split(word)] if word in text else []
        if parts:
            return joint(*parts, evaluate=False) if all(map(is_condition, parts)) else None
    found = None if _PROSE.search(text) else next(iter(parse(f"${text}$")), None)
    return exact(found) if isinstance(found, (Basic, MatrixBase)) and not found.has(nan, zoo) else None


def exact(found: Any) -> Any:
    """The object with decimals as rational numbers and i as the imaginary unit. Odd roots of negative numbers are real.
    Equations stay as written."""
    from sympy import And, Derivative, FiniteSet, Float, I, Pow, Rational, Symbol, root
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational

    if isinstance(found, (And, Relational)):
        return found.func(*(exact(each) for each in getattr(found, "_unsorted_args", found.args)), evaluate=False)
    if isinstance(found, FiniteSet):
        # Keep the order in which it was written: it could be a tuple without brackets.
        written = [exact(each) for each in getattr(found, "_unsorted_args", found.args)]
        rebuilt = FiniteSet(*written, evaluate=False)
        rebuilt.written = written
        return rebuilt
    numbers = {number: Rational(str(number)) for number in found.atoms(Float)}
    names = {each: I if each.name == "i" else Symbol(each.name, real=True) for each in found.atoms(Symbol)}
    rates = {each for each in found.atoms(Derivative) if isinstance(each.expr, (Symbol, AppliedUndef))}
    calls = {each: Symbol(str(each), real=True) for each in found.atoms(AppliedUndef) | rates}  # "f(2)", "dy/dx": names
    powers = [each for each in found.atoms(Pow) if each.base.is_Rational and each.exp.is_Rational]
    roots = {
        each: (-root(-each.base, each.exp.q)) ** each.exp.p
        for each in powers
        if each.base < 0 and each.exp.q > 1 and each.exp.q % 2
    }
    return found.xreplace({**numbers, **names, **calls, **roots})


# ---- comparing -------------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Whether two sympy objects are equal. Symmetric."""
    from sympy import Eq, Expr, FiniteSet, Interval, MatrixBase, MatrixExpr, Set, Tuple, Union
    from sympy.core.relational import Relational

    if isinstance(a, Relational) and isinstance(b, Relational):
        return same_relation(a, b)
    if not (isinstance(a, FiniteSet) and isinstance(b, FiniteSet)):
        a, b = joined(a), joined(b)
    if is_condition(a) and is_condition(b):
        return same_conditions(a, b)
    if isinstance(a, Eq) or isinstance(b, Eq):
        a, b = unnamed(a), unnamed(b)
        return a is not None and b is not None and same(a, b)
    a, b = as_set(a, b), as_set(b, a)
    if isinstance(a, (MatrixBase, MatrixExpr)) and isinstance(b, (MatrixBase, MatrixExpr)):
        a, b = a.doit(), b.doit()
        rows, columns = a.shape
        return a.shape == b.shape and all(same(a[r, c], b[r, c]) for r in range(rows) for c in range(columns))
    if getattr(a, "is_Matrix", False) or getattr(b, "is_Matrix", False):
        return False
    if isinstance(a, Expr) and isinstance(b, Expr):
        return same_value(a, b)
    ordered = [in_order(each) for each in (a, b)]
    if isinstance(a, Interval) and isinstance(b, Interval):
        ends = (a.left_open, a.right_open) == (b.left_open, b.right_open)
        return ends and same(a.start, b.start) and same(a.end, b.end)
    if isinstance(a, Tuple) or isinstance(b, Tuple):
        known = None not in ordered and len(ordered[0]) == len(ordered[1])
        return known and all(same(x, y) for x, y in zip(*ordered, strict=True))
    if isinstance(a, FiniteSet) or isinstance(b, FiniteSet):
        a, b = (each if isinstance(each, FiniteSet) else [each] for each in (a, b))
        return each_in(a, b) and each_in(b, a)
    if isinstance(a, Union) and isinstance(b, Union):
        one, other = parts_of(a), parts_of(b)
        return each_in(one, other) and each_in(other, one)
    return a == b or (isinstance(a, Set) and isinstance(b, Set) and a.symmetric_difference(b).is_empty is True)


def each_in(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(any(same(one, other) for other in others) for one in some)


def in_order(a: Any) -> list[Any] | None:
    """The elements, in order, of a tuple, of an open interval (which could be a pair), or of a list as written."""
    from sympy import Interval, Tuple

    if isinstance(a, Interval):
        return [a.start, a.end] if a.is_open else None
    return list(a) if isinstance(a, Tuple) else getattr(a, "written", None)


def is_condition(a: Any) -> bool:
    """Whether an object is an equation or inequality, or several joined by "and" or "or"; not "x \\in (1, 2)"."""
    from sympy import And, Or, Set
    from sympy.core.relational import Relational

    return isinstance(a, (And, Or, Relational)) and not any(isinstance(each, Set) for each in a.args)


def joined(a: Any) -> Any:
    """A list of conditions, not all of them equations, as one: "x > 3, x < 5" means both, "x < 3, x > 5" either."""
    from sympy import And, Eq, FiniteSet, Or

    parts = list(a) if isinstance(a, FiniteSet) else []
    if not all(map(is_condition, parts)) or all(isinstance(each, Eq) for each in parts):
        return a
    both = And(*parts, evaluate=False)
    one = len(both.free_symbols) == 1
    return Or(*parts, evaluate=False) if one and numbers_of(both).is_empty else both


def numbers_of(a: Any) -> Any:
    """The set of the numbers for which a condition on one variable holds."""
    from sympy import And, Intersection, Or, Union

    parts = [numbers_of(each) for each in a.args] if isinstance(a, (And, Or)) else []
    return (Intersection if isinstance(a, And) else Union)(*parts) if parts else a.as_set()


def same_conditions(a: Any, b: Any) -> bool:
    """Whether two conditions are equal: in their parts or, if each part is solved ("x < 3"), in what they leave."""
    if type(a) is type(b) and each_in(a.args, b.args) and each_in(b.args, a.args):
        return True
    symbols = a.free_symbols | b.free_symbols
    solved = len(symbols) == 1 and all(
        symbols & {*each.args} and any(side.is_number for side in each.args) for each in parts_of(a) + parts_of(b)
    )
    return solved and same(numbers_of(a), numbers_of(b))


def parts_of(a: Any) -> list[Any]:
    """The equations and inequalities of a condition, or the sets of a union."""
    from sympy import And, Or, Union

    return [part for each in a.args for part in parts_of(each)] if isinstance(a, (And, Or, Union)) else [a]


def as_set(a: Any, other: Any) -> Any:
    """`a`, or, if it is a condition on one variable and `other` is a set of numbers, the set of its solutions."""
    from sympy import FiniteSet, Set

    numbers = isinstance(other, Set) and not isinstance(other, FiniteSet) and len(a.free_symbols) == 1
    return numbers_of(a) if numbers and is_condition(a) else a


def unnamed(a: Any) -> Any:
    """The value that an equation names or computes, "x = 3" or "1 + 2 = 3"; None if it does neither."""
    from sympy import Eq, Symbol, Tuple

    if not isinstance(a, Eq):
        return a
    for side, value in (a.args, a.args[::-1]):
        if not side.atoms() - side.atoms(Symbol):  # only letters
            return None if isinstance(side, Tuple) and misordered([str(each) for each in side]) else value
    return None if a.free_symbols else a.rhs


def misordered(names: list[str]) -> bool:
    """Whether names stand in another order than that of coordinates: (y, x), (x_2, x_1), (theta, r), but not (m, b)."""
    expected = sorted(names)
    indexed = len({name.partition("_")[0] for name in names}) == 1
    usual = "".join(expected) in ascii_letters or indexed
    return names == ["theta", "r"] or (usual and names != expected)


def same_relation(a: Any, b: Any) -> bool:
    """Whether two equations, or two inequalities, are equivalent: one is a multiple of the other."""
    from sympy import Expr, GreaterThan, StrictGreaterThan

    a, b = (each.reversed if isinstance(each, (GreaterThan, StrictGreaterThan)) else each for each in (a, b))
    if a.rel_op != b.rel_op:
        return False
    sides = (same(a.lhs, b.lhs) and same(a.rhs, b.rhs)) or (
        a.rel_op in ("==", "!=") and same(a.lhs, b.rhs) and same(a.rhs, b.lhs)
    )
    if sides or not all(isinstance(side, Expr) and not side.is_Matrix for each in (a, b) for side in each.args):
        return sides
    one, other = (each.lhs - each.rhs for each in (a, b))
    values = [(x, y) for x, y, _ in at_points(one, other)]
    if len(values) < POINTS or any(x == 0 or y == 0 for x, y in values):
        return False
    ratios = [x / y for x, y in values]
    constant = all(abs(ratio - ratios[0]) * 10**40 <= abs(ratio) for ratio in ratios)
    return constant and (a.rel_op in ("==", "!=") or ratios[0].is_positive is True)


def same_value(a: Any, b: Any) -> bool:
    """Whether two expressions agree at all points of comparison."""
    from sympy import simplify

    a, b = a.doit(), b.doit()
    if a == b:
        return True
    if a.is_Rational and b.is_Rational:
        return False
    values = at_points(a, b)
    if not values:
        return simplify(a - b) == 0
    for x, y, digits in values:
        if x == 0 or y == 0:
            if x != y and (a.free_symbols or b.free_symbols or simplify(a - b) != 0):
                return False
        elif abs(x - y) * 10 ** (digits - 20) > max(abs(x), abs(y)):
            return False
    return True


def at_points(a: Any, b: Any) -> list[tuple[Any, Any, int]]:
    """The values of two expressions at the same points, each with the number of digits computed."""
    from sympy import Integer, Rational

    a, b = a.doit(), b.doit()
    digits = DIGITS + min(
        MAX_DIGITS, sum(len(str(number)) for each in (a, b) for number in each.atoms(Integer) if abs(number) < 10**4000)
    )
    symbols = sorted((a.free_symbols | b.free_symbols), key=str)
    values = []
    for point in range(POINTS if symbols else 1):
        numbers = {}
        for each in symbols:
            size = zlib.crc32(f"{each} {point}".encode())
            sign = -1 if point == 2 or (point > 2 and size & 1) else 1
            bottom = 1 if point == 1 else 103 + size // 997 % 97  # also a whole number, for floors and ceilings
            numbers[each] = sign * Rational(2 + size % (10 if point == 1 else 997), bottom)
        x, y = (each.xreplace(numbers).evalf(digits) for each in (a, b))
        if not (x.is_number and y.is_number and x.is_finite is not False and y.is_finite is not False) or not all(
            part.is_Float or part.is_Rational for each in (x, y) for part in each.as_real_imag()
        ):
            continue
        if point > 1 and not (x.is_real and y.is_real):
            continue  # outside the domain of a logarithm or root
        values.append((x, y, digits))
    return values


def rounds(gold: str, answer: str, a: Any, b: Any) -> bool:
    """Whether one is a decimal with at least six places, and the other, not a decimal, agrees in all of them."""
    decimals = [re.fullmatch(r"[-+]?\d*\.(\d{6,})", text) for text in (gold, answer)]
    if (decimals[0] is None) == (decimals[1] is None) or not (a.is_number and b.is_number):
        return False
    places = len(next(found[1] for found in decimals if found))
    decimal, value = (abs(each).evalf(DIGITS) for each in ((a, b) if decimals[0] else (b, a)))
    difference = (value - decimal) * 10**places
    close = 2 * abs(difference) <= 1 or 0 <= difference < 1  # rounded, or cut off
    return bool(close and (a > 0) == (b > 0) and abs(value - decimal) * 10**5 <= value)


def compare(parse: Callable[[str], Any], gold: str, answer: str) -> dict[str, str]:
    """The reply for one pair."""
    from sympy import Expr
    from sympy.core.cache import clear_cache

    clear_cache()
    try:
        ours = read(parse, gold)
    except UNWORKABLE as error:
        return {"found": "gold", "reason": type(error).__name__}
    if ours is None:
        return {"found": "gold", "reason": "no formula that the parser knows"}
    try:
        theirs = read(parse, answer)
        if theirs is None:
            return {"found": "different", "reason": "the answer is not a formula that the parser knows"}
        equal = same(ours, theirs)
        if not equal and isinstance(ours, Expr) and isinstance(theirs, Expr):
            equal = rounds(gold, answer, ours, theirs)
    except UNWORKABLE as error:
        return {"found": "error", "reason": type(error).__name__}
    return {"found": "equal" if equal else "different", "reason": ""}


def main() -> None:
    """Answer request lines until standard input closes."""
    requests, replies = sys.stdin, os.fdopen(os.dup(1), "w", encoding="ascii")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # a library's output must not be mistaken for a reply
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(RECURSION)
    parse = load()
    compare(parse, "x+1", "1+x")  # imports, and fills the parser's tables
    limit_memory()
    print(json.dumps({"found": "ready", "reason": ""}), file=replies, flush=True)
    os.dup2(nowhere, 2)  # up to here, standard error tells the parent why a start failed
    for line in requests:
        request = json.loads(line)
        limit(request["cpu_s"])
        found = compare(parse, request["gold"], request["answer"])
        limit(0)
        print(json.dumps(found), file=replies, flush=True)


if __name__ == "__main__":
    main()
