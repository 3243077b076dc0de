"""Are a solution's steps checked exactly, and is nothing judged that is no equation?"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.types import Problem
from flow_dpo.data.seed import seed_problems
from flow_dpo.evaluate.step_validity import checked_steps, equations, has_invalid_step, invalid_rate, value_of


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("12 + 7 = 19", [True]),
        ("She buys 7: 12 + 7 = 18", [False]),
        ("First 2 * 3 = 6, then 6 - 4 = 3.", [True, False]),
        ("2 * 3 + 1 = 6 + 1 = 7", [True, True]),
        ("2 * 3 = 7 = 7", [False]),  # "7 = 7" states no step
        ("$3 \u00d7 1.5 = $4.50", [True]),
        ("0.1 + 0.2 = 0.3", [True]),
        ("1/3 + 1/6 = 1/2", [True]),
        ("1,200 - 200 = 1,000", [True]),
        ("(2 + 3) * 4 = 20", [True]),
        ("2 + 3 * 4 = 20", [False]),
        ("-3 + 5 = 2", [True]),
        ("10 / 3 = 3.33", [True]),
        ("10 / 3 = 3.34", [False]),
        ("10 / 3 = 3", [False]),
        ("10 / 4 = 2.50", [True]),
        ("x = 5", []),
        ("5 = 5", []),
        ("2x + 3 = 7", []),
        ("2x - 3 + 1 = 7", []),
        ("n = 3 + 4 = 8", [False]),
        ("1 / 0 = 7", []),
        ("2 + = 3", []),
        ("3 * --2 = 6", [True]),
        ("+3 + 4 = 7", []),
        ("2(3) + 1 = 7", []),
        (".5 + 1 = 1.5", []),
        ("2^3 = 9", []),
        ("50% * 3 = 9", []),
        # A first number that belongs to the words or the letter before it, and a last one that goes on.
        ("25% of 4 = 0.25 * 4 = 1", [True]),
        ("Half of 8 = 8 / 2 = 5", [False]),
        ("twice 5 = 2 * 5 = 10", [True]),
        ("30% of 10 + 2 = 5", []),
        ("3/4 of 8 * 2 = 12", []),
        ("a total of 10 + 2 = 13", [False]),
        ("twice 5 + 1 = 11", []),
        (r"2 \times 5 + 1 = 11", []),
        ("2 x 5 + 1 = 11", []),
        (r"\text{x} - 25 = 35 - 25", []),
        (r"\sqrt{4} + 1 = 3", []),
        ("3! + 1 = 7", []),
        ("x_1 = 5 - 2 = 3", []),
        ("10:30 + 1 = 11", []),
        ("8 - 2 = 3x", []),
        (r"2 * 6 = 4 \times 3", []),
        (r"1 / 4 = 25\%", []),
        ("and 10 - 4.5 = 6 are left", [False]),
        ("5 * 2 = 10 apples", [True]),
        ("5 * 2 = 11 cm", [False]),
        (r"\boxed{3 + 4 = 8}", [False]),
        # A list's dash, or a sign.
        ("- 5 * 2 = 10", [True]),
        ("- 5 * 2 = -10", [True]),
        ("- 5 * 2 = 11", [False]),
        ("* 5 * 2 = 10", [True]),
        ("  - 3 + 5 = 2", [True]),
        ("-3 + 5 = 8", [False]),
        ("no numbers here", []),
        ("Answer: 7", []),
    ],
)
def test_equations(text: str, holds: list[bool]) -> None:
    assert [equation.holds for equation in equations(text)] == holds
    assert checked_steps(Problem(id="p", question="Q", gold="1"), text).sound == (all(holds) if holds else None)


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from("+-*"), st.integers(-2, 2))
def test_integers_agree_with_python(left: int, right: int, sign: str, off: int) -> None:
    exact = {"+": left + right, "-": left - right, "*": left * right}[sign]
    [found] = equations(f"so {left} {sign} {right} = {exact + off}.")
    assert found.holds == (off == 0)
    assert value_of(f"({left} {sign} {right}) / 7") == Fraction(exact, 7)


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/=(). ,x$\n", max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    equations(text)


def test_long_lines_are_quick() -> None:
    equations("1 + " * 50_000 + "1 = 2")
    equations("(" * 150 + "1 + 1 = 2")
    equations("1 = " * 50_000)


def test_the_seed_is_judged_by_its_own_solution() -> None:
    """True on its own, false of the problem: only the problem's solution can tell."""
    [problem] = seed_problems("train", 1)
    assert has_invalid_step(problem, problem.solution) is False
    wrong = f"1 + 1 = 2\nAnswer: {problem.gold}"
    assert has_invalid_step(problem, wrong) is True
    other = Problem(id="x", question="?", gold="2", source="gsm8k/train")
    assert has_invalid_step(other, wrong) is False
    found = invalid_rate([(problem, wrong), (problem, problem.solution), (other, "Answer: 2"), (other, "1 + 1 = 3")])
    assert found == {"num_solutions": 4, "num_checked": 3, "num_invalid": 2, "invalid_rate": 2 / 3}
