"""Are answers read as people and models end their solutions, and is nothing else rewarded?"""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flow_dpo.verify.extract import MAX_ANSWER, AnswerRule, extract_answer, last_box
from flow_dpo.verify.verifier import STANDALONE, Verifier

ENDINGS = Path(__file__).parent / "endings"
"""Each line: the gold answer, "+" where the text gives it and "-" where it does not, the text ("⏎" is a newline)."""
DATA = Path(os.environ.get("FLOW_DPO_SAMPLE_DATA", Path(__file__).parent.parent.parent.parent / "shared" / "data"))
ANYWHERE = AnswerRule(which="anywhere")


def endings(name: str) -> list[tuple[str, bool, str]]:
    found = [re.fullmatch(r"(.*?) ([+-]) (.*)", line) for line in (ENDINGS / name).read_text("utf-8").splitlines()]
    return [(row[1], row[2] == "+", row[3].replace("⏎", "\n")) for row in found if row]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(rule=STANDALONE) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("name", "at_most"),
    [("tuned.txt", 0.02), ("kept_back.txt", 0.02), ("third.txt", 0.02), ("fourth.txt", 0.02), ("fifth.txt", 0.0)],
)
def test_endings_in_many_voices(verifier: Verifier, name: str, at_most: float) -> None:
    """`at_most`: the share of right answers that may be refused."""
    rows = endings(name)
    verdicts = verifier.grade_many([(gold, text, True) for gold, _, text in rows])
    found = [(gold, text, right, verdict.status) for (gold, right, text), verdict in zip(rows, verdicts, strict=True)]
    refused = [row for row in found if row[2] and row[3] != "correct"]
    assert [row for row in found if not row[2] and row[3] == "correct"] == []
    assert len(refused) <= at_most * sum(row[2] for row in found), refused


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("The answer is minus 5 degrees.", "minus 5 degrees"),
        ("The answer is half of 42.", "half of 42"),
        ("It is 5 million.", "5 million"),
        ("He runs 10 miles per hour, so he wins.", "10 miles per hour"),
        ("It took 5 hours and 30 minutes.", "5 hours and 30 minutes"),
        ("The answer is $42$ (or $41$).", "42, 41"),
        ("The answer is 1/2 or 0.5.", "1/2"),  # one value
        ("So $180 + $300 = $480 in all.", "$480"),
        ("So x = 1,200.", "x = 1,200"),
        ("\\boxed{2x = 4}", "2x = 4"),
        ("\\boxed{5} hours", "5 hours"),
        ("I put it in \\boxed{}. The answer is 7.", "7"),
        ("The answer is \\boxed{}", None),
        ("\\boxed{42}, or maybe 41", "42, 41"),
        ("\\boxed{42} ... wait, that is wrong", None),
        ("\\boxed{42}. Wait, that is wrong, it is 41", "41"),
        ("The answer is not 42.", None),
        ("The answer is 41, not 42.", "41"),
        ("The answer is between 41 and 42.", None),
        ("Answer:\n- x = 3\n- x = 5\n", "x = 3, x = 5"),
    ],
)
def test_the_words_that_change_a_value_stay(text: str, claim: str | None) -> None:
    assert extract_answer(text, ended=True, rule=ANYWHERE) == claim


def test_courtesies_are_skipped_only_where_the_text_has_ended() -> None:
    text, rule = "Answer: 15\n\nLet me know if you need anything else!\n", AnswerRule()
    assert extract_answer(text, ended=True, rule=rule) == "15"
    assert extract_answer(text, ended=False, rule=rule) is None
    assert extract_answer("Final Answer:\n15\n", ended=False, rule=rule) == "15"
    assert extract_answer("Final Answer:\n1", ended=False, rule=rule) is None  # cut


@pytest.mark.parametrize("text", ["\\boxed{" + "9" * 15_000 + "}", "Answer: " + "9" * 10**6, "9" * 10**6])
def test_an_answer_is_bounded(text: str) -> None:
    answer = extract_answer(text, ended=True, rule=ANYWHERE)
    assert answer is None or len(answer) <= MAX_ANSWER


# ---- the golds of a public data set ----------------------------------------------------------------------------------

SEVERAL = {
    "train/algebra/152.json", "train/algebra/1771.json", "train/intermediate_algebra/1113.json",
    "train/intermediate_algebra/1486.json", "train/intermediate_algebra/1964.json", "train/precalculus/1040.json",
    "train/precalculus/1089.json", "train/precalculus/1149.json", "train/precalculus/860.json",
    "test/algebra/1878.json", "test/intermediate_algebra/1855.json", "test/intermediate_algebra/225.json",
    "test/precalculus/1227.json", "test/precalculus/679.json",
}  # fmt: skip
"""Problems that ask for several values, whose solutions box each; the answer column keeps the last alone."""


@pytest.mark.skipif(not DATA.is_dir(), reason="no sample data: set FLOW_DPO_SAMPLE_DATA to a folder that holds it")
def test_boxes_of_worked_solutions() -> None:
    others = {}
    for split in ("train", "test"):
        for line in gzip.decompress((DATA / "math" / f"{split}.jsonl.gz").read_bytes()).splitlines():
            row = json.loads(line)
            assert last_box(row["solution"], joined=False) == row["answer"]
            if last_box(row["solution"]) != row["answer"]:
                others[row["unique_id"]] = last_box(row["solution"])
    assert set(others) == SEVERAL
    assert others["test/algebra/1878.json"] == "-2, 1"


# ---- time ------------------------------------------------------------------------------------------------------------

UNITS = [
    "9", "{", "}", "\\boxed{", "\\boxed{1}", "\\boxed{1}, ", "\\boxed{1} or ", "in \\boxed{} ", "\\boxed ", "$", "$5 ",
    "\\(", "\\[", "\\", "answer is ", 'answer "', "Answer: 7\n", "#", "#### 7 ", "A:", "1 + ", " ", "\n", "a\n",
    "\\end{a}", "-", "42 or ", "not 42 ", "wait, no ", "1,000,", "((1)", "five ", "- 7\n", "~~1", "<<1",
    "\u202e\u0663", "答案", "the answer is not 7. ", "{$", "A:\\[", "$x is {1 or ",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=[f"{unit!r}" for unit in UNITS])
def test_four_times_the_text_takes_no_more_than_four_times_the_work(unit: str) -> None:
    """Quadratic work would be sixteen times; the margin is for the clock."""

    def seconds(num_chars: int) -> float:
        text = (unit * (num_chars // len(unit) + 1))[:num_chars]
        started = time.process_time()
        for rule in (AnswerRule(), ANYWHERE):
            for tail in ("", "\nAnswer: 7", " }"):
                extract_answer(text + tail, ended=True, rule=rule)
        return time.process_time() - started

    seconds(1_000)
    assert seconds(400_000) < 9 * seconds(100_000) + 0.1
