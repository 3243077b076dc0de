r"""Is the final answer found where it may stand, and only there?"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.verify.extract import AnswerRule, extract_answer, gold_answer, last_box

STRICT = AnswerRule()
LAST = AnswerRule(which="last_line")
ANYWHERE = AnswerRule(which="anywhere")


@pytest.mark.parametrize(
    ("text", "ended", "answer"),
    [
        ("2 + 3 = 5\nAnswer: 15\n", False, "15"),
        ("2 + 3 = 5\nAnswer: 15", True, "15"),
        ("2 + 3 = 5\nAnswer: 1", False, None),  # a chunk's end inside "15"
        ("Answer: 15\nWait, this is wrong", False, None),  # abandoned
        ("Answer: 15\nWait, this is wrong, a different way", True, None),  # abandoned, and no number after it
        ("Answer: 15\n\n  \n", False, "15"),
        ("Answer: 15\r\n", False, "15"),
        ("**Answer: 14**\n", False, "14"),
        ("**Answer:** 14\n", False, "14"),
        ("Answer: $14\n", False, "$14"),
        ("Answer: $14$\n", False, "14"),
        ("Answer: 14 apples.\n", False, "14 apples"),
        ("#### 1,234\n", False, "1,234"),
        ("The final answer is 42. I hope it is correct.\n", False, "42"),
        ("Thus $x = 3$, so the sum is $\\boxed{\\frac{1}{2}}$.", True, "\\frac{1}{2}"),
        ("Hence\n\\[\n x = \\boxed{14}\n\\]\n", False, "14"),
        ("Hence\n$$\nx = 14\n$$\n", True, "x = 14"),
        ("Hence\n\\boxed{\n14\n}\n", False, "14"),
        ("Hence\n\\boxed{\n15\n", False, None),  # the box is still open
        ("Hence\n\\[\n x = 15\n", False, None),  # so is the display
        ("The answer is \\boxed{14", True, None),
        ("\\begin{align*}\nx &= 1 \\\\\n &= \\boxed{7}\n\\end{align*}\n", False, "7"),
        ("Answer: 14\n```\n", False, "14"),
        ("The total is 14.\n", True, "14"),
        ("2 + 12 = 14\n", False, None),  # a step on a closed line: only an ended solution may leave it at a number
        ("\\boxed{3}\nSo there are 3 boys and 4 girls.\n", True, "4 girls"),  # a right number in the wrong place
        ("\\boxed{}\n", False, None),
        ("", True, None),
        ("\n\n", True, None),
        ("<think>Answer: 5</think>\nAnswer: 7\n", False, "7"),
        ("<think>Answer: 5</think>", True, None),
        ("<think>Is it 4? No.\nAnswer: 5\n", False, None),
        ("<think>Answer: 5", True, None),
        ("<think>Answer: 5</think>\nAnswer: 7\n<think>Answer: 9\n", True, None),
    ],
)
def test_the_closed_last_line(text: str, ended: bool, answer: str | None) -> None:
    assert extract_answer(text, ended=ended, rule=STRICT) == answer


def test_the_place_is_a_setting() -> None:
    cut, later = "Sum: 14\nAnswer: 1", "Answer: 15\nThat was easy."
    assert extract_answer(cut, ended=False, rule=LAST) == "1"
    assert extract_answer(later, ended=True, rule=LAST) is None
    assert extract_answer(later, ended=True, rule=ANYWHERE) == "15"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{3}. The answer is 4. Or 5?", "3"),  # box before "answer is" before number
        ("The answer is 4. There were 5 tries.", "4"),
        ("There were 5 tries.", "5 tries"),
        ("\\boxed{3} then \\boxed{4}", "4"),
        ("\\boxed{6} and \\boxed{8}", "6, 8"),  # two boxed numbers are not the second
        ("\\boxed{x = \\boxed{5}}", "5"),
        ("\\fbox{2}", "2"),
        ("\\boxed 2", "2"),
        ("\\boxed{\\{1\\} \\cup [2,3)}", "\\{1\\} \\cup [2,3)"),
        ("the result is 10^4", "10^4"),  # never its last part
        ("the result is 3 + 2", "3 + 2"),
        ("so 5 * 3 = 15 slices", "15 slices"),
        ("it takes 1 1/2 hours", "1 1/2 hours"),
        ("so he has 2x", "2x"),
        ("he pays $1,234.50.", "$1,234.50"),
        ("The chance is 28 percent.", "28%"),
        ("The chance is $28$ percent.", "28%"),
        ("the length is $\\sqrt{2}$.", "\\sqrt{2}"),
        ("how many $? just about 1$", "1"),  # prose between two dollar signs is no formula
        ("(x-2)(x+2)", "(x-2)(x+2)"),
        ("yes", "yes"),
        ("The answer is Evelyn.", "Evelyn"),
        ("The answer is not 5. The answer is 6", "6"),
        ("A: 119.5", "119.5"),
        ("his name was XK2A", None),
        ("no number here at all", None),
    ],
)
def test_the_order_anywhere(text: str, answer: str | None) -> None:
    assert extract_answer(text, ended=True, rule=ANYWHERE) == answer


def test_the_order_is_a_setting() -> None:
    text = "\\boxed{3}. The answer is 4. There were 5."
    for extractors, answer in ((("answer_is", "box"), "4"), (("number",), "5"), (("box",), "3")):
        assert extract_answer(text, ended=True, rule=AnswerRule(which="anywhere", extractors=extractors)) == answer
    assert extract_answer("There were 5.\n", ended=True, rule=AnswerRule(extractors=("box", "answer_is"))) is None


def test_gold_answers_may_be_dressed() -> None:
    assert gold_answer("$\\frac{1}{2}$") == "$\\frac{1}{2}$"
    assert gold_answer("So it is \\boxed{9}.") == "9"
    assert gold_answer("answer is 0.25 + 3") == "0.25 + 3"
    assert gold_answer("\\boxed{}") == ""
    assert last_box("none") is None
    assert gold_answer("So $x = -\\boxed{9}$.") == "-9"  # what touches the box is not dropped
    assert gold_answer("$\\boxed{5} \\times 10^3$") == "5 \\times 10^3"
    assert gold_answer("$\\boxed{5}^2$") == ""


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("He has 72 clips.", "72 clips"),
        ("48/2 = 24\n48+24 = 72", "72"),
        ("She adds 5 and 3.\nSo she has 8 apples.", "8 apples"),
        ("She has seven apples.", "seven apples"),
        ("x = 5\nx = 5", "x = 5"),
        ("She had 3, then got 5, so she has 8 apples.", "8 apples"),
        ("Ann sold 48/2 = 24 clips in May.\nAnn sold 48+24 = 72 clips altogether.", "72 clips"),
        ("5 boxes * 4 = 20 pens\n20 pens + 3 pens = 23 pens", "23 pens"),
        ("x = 3\nx = 5", ""),  # two values: neither is the last of a solution
        *((text, "") for text in (
            "1. 5\n2. 7", "1) 5\n2) 7", "(a) 5\n(b) 7", "- 5\n- 7", "Alice: 5\nBob: 10", "$x = 3$\n$y = 5$", "5\n7",
            "1\n1/2", "Alice\nBob", "Alice\n5", "A\nC", "Alice is 5.\nBob is 10.", "x + y = 5\nx - y = 1",
            "Tom: 5 + 3 = 8\nAnn: 2 + 2 = 4", "3 + 4 = 7\n5 + 6 = 11 and 2 + 2 = 4",
            "The GCD is 2*3 = 6.\nThe LCM is 4*9 = 36.", "It is 5!", "It is 5 times as big",
            "GCD is 6, LCM is 36", "Center is (2, 3) and radius is 5", "Statement 1 is true, Statement 2 is false",
            "It was on March 5, 2020", "It will be May 5", "It is 4 more than 3 times x", "Yes, there are 5 ways",
            "None of the 5 are correct.", "There are 3 boys and 4 girls.", "The ratio is 3 to 2", "We have CO2",
        )),
        ("Roses are red\nViolets are blue", ""),
        *((text, text) for text in (
            "even", "Tuesday", "x = 5", "(0, 1]", "(1, 2)", "5 apples", "June 20", "World War 2", "no solution",
            "1, 2 and 3", "3 hours and 30 minutes", "It is even", "all real numbers except 3",
            "f(x) = 2x if x > 0, 3 otherwise", "90\\text{ square\nunits}", "\\begin{pmatrix}1\\\\\n2\\end{pmatrix}",
            "10 miles per hour", "2:30 pm",
            "(1, 2),\n(3, 4)", "{1, 2,\n3}", "[[1, 2],\n [3, 4]]", "x < 3 or\nx > 5", "x < 3\nor x > 5",
            "x = -1 or\nx = 4", "2x + 3y\n= 5", "x = 3,\ny = 5", "5\napples", "3 hours\n30 minutes", "x^2 + 2x\n+ 1",
            "$$\nx = 5\n$$", "\\frac{7}{5} + \\frac{1}{5} i.", "49x^2 - 42xy + 9y^2 - 222x - 54y + 603 = 0",
            "Sodium chloride (NaCl).", "All real numbers.", "All real numbers except 3.", "The limit does not exist.",
            "What's Love Got to Do with It?", "Ann, Bob, Cy, Dan, Ed, Fay, Gil, Hal, Ian, Jo, Kim, Lee, Moe",
            "1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, and 196",
        )),
    ],
)  # fmt: skip
def test_a_gold_answer_may_be_a_worked_solution(gold: str, answer: str) -> None:
    assert gold_answer(gold) == answer


HOSTILE = [
    "9" * 2_000_000, "{" * 100_000, "}" * 100_000, "\\boxed{" * 50_000, "\\boxed{1}" * 5_000, "\\boxed{1}, " * 5_000,
    "$" * 100_001, "\\(" * 100_000, "\\[" * 100_000, "\\" * 200_001, "answer is " * 50_000, "answer " * 100_000,
    "#" * 200_000, "1 + " * 100_000, "1." * 200_000, "$5 " * 100_000, " " * 500_000 + "x", "\n" * 500_000,
    "a\n" * 200_000, "\\begin{a}" * 50_000 + "\\end{a}", "\x00" * 100_000, "\u202e\u0663" * 50_000, "\ud800" * 50_000,
    "-" * 200_000 + "5", "<think>" * 50_000, "A:" * 100_000, "\nA:" * 100_000, "aaaa " * 100_000, "`*_" * 100_000,
    "**" * 100_000 + "\n**",
]  # fmt: skip
PIECES = (
    "\\boxed { } answer_is Answer: #### 12 _ \n $ \\[ \\] \\( \\) x . , \\frac </think> \\\\ $$ A: = \\end{a} "
    "\\begin{a} ** % 1/2 \ud800"
)


@pytest.mark.parametrize("text", HOSTILE, ids=[f"{text[:8]!r}" for text in HOSTILE])
def test_hostile_text_takes_its_length_in_time(text: str) -> None:
    started = time.process_time()
    for rule in (STRICT, ANYWHERE):
        for ended in (True, False):
            extract_answer(text, ended=ended, rule=rule)
    assert time.process_time() - started < 5


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES.split(" ")), max_size=30), st.booleans())
def test_any_text_gives_an_answer_or_none(pieces: list[str], ended: bool) -> None:
    text = "".join(pieces).replace("_", " ")
    for rule in (STRICT, LAST, ANYWHERE):
        answer = extract_answer(text, ended=ended, rule=rule)
        assert answer is None or answer.strip()
    if not ended and not text.endswith(("\n", " ", "\x85")):
        assert extract_answer(text, ended=False, rule=STRICT) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 9))
def test_a_cut_answer_never_counts(value: int, cut: int) -> None:
    line = f"Answer: {value}\n"
    assert extract_answer(line, ended=False, rule=STRICT) == str(value)
    assert extract_answer(line[: -1 - cut] or " ", ended=False, rule=STRICT) is None
