"""Do scores of several draws count what they say, and is training on the test noticed?"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.stats import wilson
from flow_dpo.core.types import Problem, Verdict
from flow_dpo.evaluate.contamination import check, normalised, questions_of
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.evaluate.pass_at_k import Drawn, majority_at_k, pass_at_k, summary, vote
from flow_dpo.evaluate.statistics import interval, ungraded_words
from flow_dpo.runs.files import read_jsonl
from tests.support.record_examples import TRACE, TREE


def verdict(answer: str | None, gold: str = "5") -> Verdict:
    if answer == "?":
        return Verdict(status="ungraded", answer="?")
    return Verdict(status="correct" if answer == gold else "wrong", answer=answer)


def drawn(answers: str, *, level: str = "", name: str = "p") -> Drawn:
    """One problem with the gold 5; a dash is a draw without an answer, a question mark one that could not be graded."""
    problem = Problem(id=name, question="?", gold="5", level=level)
    return Drawn(problem=problem, verdicts=tuple(verdict(None if a == "-" else a) for a in answers))


@pytest.mark.parametrize("rewards", [(1.0, 0.0, 1.0, 1.0), (0.0,) * 5, (1.0,) * 3, (0.0, 1.0, 0.0, 0.0, 0.0)])
def test_pass_at_k_is_the_share_of_all_draws_of_k(rewards: tuple[float, ...]) -> None:
    for k in range(1, len(rewards) + 1):
        groups = list(itertools.combinations(rewards, k))
        assert pass_at_k(rewards, k) == pytest.approx(sum(any(group) for group in groups) / len(groups))
    assert pass_at_k(rewards, len(rewards) + 1) is None


@pytest.mark.parametrize(
    ("answers", "k", "expected"),
    [
        ("553", 3, 1.0),
        ("533", 3, 0.0),
        ("53", 2, 0.5),  # a tie is shared
        ("5--", 3, 1.0),  # no answer is no vote
        ("---", 3, 0.0),
        ("5533", 2, 0.5),  # two groups
        ("5353", 1, 0.5),
        ("55?", 3, 1.0),
        ("??5", 3, 0.0),  # the answer that won could not be graded: it was not shown to be right
        ("?5", 2, 0.5),
        ("55", 3, None),
    ],
)
def test_majority(answers: str, k: int, expected: float | None) -> None:
    assert majority_at_k(drawn(answers).verdicts, k) == expected


def test_equal_numbers_vote_together() -> None:
    verdicts = [verdict("3"), verdict("3"), verdict("5"), Verdict(status="correct", answer="5.0"), verdict("5")]
    assert majority_at_k(verdicts, 5) == 1.0


def test_votes_for_one_answer_that_were_graded_otherwise_count_each() -> None:
    late = Verdict(status="ungraded", answer="12")
    right = Verdict(status="correct", answer="12")
    for order in ([late, right, right], [right, late, right], [right, right, late]):
        assert vote(order) == pytest.approx(2 / 3)


def test_an_ungraded_draw_is_not_shown_to_be_right() -> None:
    found = summary([drawn("5?5", name="a"), drawn("33?", name="b"), drawn("???", name="c")])
    assert found["accuracy"] == pytest.approx(2 / 9)
    assert found["accuracy_graded"] == 0.5
    assert (found["num_problems"], found["num_draws"], found["num_correct"], found["num_ungraded"]) == (3, 9, 2, 5)
    # Two right of three: any one is right in two of three, and each two hold one.
    assert found["pass_at_k"] == pytest.approx({"1": 2 / 9, "2": 1 / 3, "3": 1 / 3})
    nothing = summary([drawn("?")])
    assert (nothing["accuracy"], nothing["accuracy_graded"]) == (0.0, None)


def test_one_right_answer_and_three_without_a_verdict_are_a_quarter() -> None:
    late = Verdict(status="ungraded", answer="9", reason="timeout: longer than 5 s")
    unread = Verdict(status="ungraded", answer="9", reason="the gold answer cannot be parsed: x")
    one = Drawn(problem=Problem(id="p", question="?", gold="5"), verdicts=(verdict("5"), late, late, unread))
    found = summary([one])
    assert (found["accuracy"], found["accuracy_graded"], found["num_ungraded"]) == (0.25, 1.0, 3)
    assert found["interval"][1] < 1
    assert found["ungraded_reasons"] == {"timeout": 2, "the gold answer cannot be parsed": 1}
    assert ungraded_words(found) == (
        "3 could not be graded (2 timeout, 1 the gold answer cannot be parsed) and count as not right; "
        "100.0% of the graded ones are right"
    )
    whole = summary([drawn("53")])
    assert (whole["accuracy"], whole["accuracy_graded"], ungraded_words(whole)) == (0.5, 0.5, "")
    assert "ungraded_reasons" not in whole


def test_by_level() -> None:
    problems = [drawn("5", level="1", name="a"), drawn("3", level="1", name="b"), drawn("5", level="2", name="c")]
    found = summary(problems)
    assert {name: part["accuracy"] for name, part in found["by_level"].items()} == {"1": 0.5, "2": 1.0}
    assert found["by_level"]["1"]["interval"] == pytest.approx(list(wilson(1, 2)))
    assert "by_subject" not in found
    assert "pass_at_k" not in found


def test_the_interval_counts_problems_where_draws_agree() -> None:
    one = interval([1.0] * 30 + [0.0] * 10, 40)
    assert one == pytest.approx(wilson(30, 40))
    # Eight draws that always agree say no more than one.
    assert interval([1.0] * 30 + [0.0] * 10, 320) == pytest.approx(one)
    # Draws that differ as coins do say as much as so many problems.
    assert interval([0.75] * 40, 320) == pytest.approx(wilson(240, 320))
    assert interval([1.0] * 40, 320) == pytest.approx(wilson(40, 40))


def test_normalised_questions() -> None:
    assert normalised("Anna has 12 apples.\n How many?") == normalised("ANNA has 12  apples how many")
    assert normalised("\uff26ull width 1\u00b2") == normalised("full width 12")
    assert normalised("She has 12 apples") != normalised("She has 13 apples")
    assert normalised("1.5 and 2") != normalised("1 5 and 2")


def test_overlap_is_counted_or_excluded(tmp_path: Path) -> None:
    problems = [Problem(id=f"p{i}", question=f"What is {i} + 1?", gold="x") for i in range(4)]
    run = tmp_path / "run"
    run.mkdir()
    (run / "trees.jsonl").write_text(
        json.dumps(TREE | {"problem": {**TREE["problem"], "question": "what is 2 + 1"}}) + "\n"
    )
    traces = tmp_path / "traces.jsonl"
    traces.write_text(
        "".join(json.dumps(TRACE | {"question": question}) + "\n" for question in ("What is 3 + 1?", "other"))
    )
    both = f"{run}, {traces}"
    kept, found = check(problems, both, exclude=False)
    assert kept == problems
    assert found is not None
    assert (found["num_training_problems"], found["num_overlapping"], found["overlap_rate"]) == (3, 2, 0.5)
    assert found["examples"] == ["p2", "p3"]
    kept, _ = check(problems, both, exclude=True)
    assert [problem.id for problem in kept] == ["p0", "p1"]
    assert check(problems, "", exclude=False) == (problems, None)
    with pytest.raises(DataError, match="all 1 were"):
        check(problems[2:3], both, exclude=True)
    with pytest.raises(DataError, match="neither trees"):
        questions_of(tmp_path / "nowhere")
    traces.write_text('{"pairs": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        questions_of(traces)
    traces.write_text("")
    with pytest.raises(DataError, match="found none"):
        questions_of(traces)


def test_several_draws_need_sampling() -> None:
    with pytest.raises(ConfigError, match="--greedy false"):
        EvaluationSettings(num_samples=2)
    with pytest.raises(ConfigError, match="1 at least"):
        cli_evaluate(["--num_samples", "0"])


def test_a_sampled_evaluation_of_the_seed(tmp_path: Path) -> None:
    words = ["--max_problems", "10", "--mode", "single", "--greedy", "false"]
    assert cli_evaluate([*words, "--num_samples", "3", "--output_dir", str(tmp_path / "three")]) == 0
    assert cli_evaluate([*words, "--output_dir", str(tmp_path / "one")]) == 0
    summary = json.loads((tmp_path / "three" / "summary.json").read_text())
    rows = read_jsonl(tmp_path / "three" / "predictions.jsonl")
    assert [row["draw"] for row in rows] == [1] * 10 + [2] * 10 + [3] * 10
    assert summary["num_draws"] == 30
    assert summary["accuracy"] == pytest.approx(sum(row["verdict"]["status"] == "correct" for row in rows) / 30)
    assert summary["pass_at_k"]["1"] == pytest.approx(summary["accuracy"])
    assert summary["pass_at_k"]["1"] < summary["pass_at_k"]["2"] < summary["pass_at_k"]["3"]
    assert summary["decoding"] == {
        "greedy": False, "num_samples": 3, "seed": 0, "temperature": 1.0, "top_p": 0.97, "choice_temperature": 1.0,
    }  # fmt: skip
    # The first draw is that of an evaluation with one, and the others are others.
    assert read_jsonl(tmp_path / "one" / "predictions.jsonl") == rows[:10]
    assert [row["solution"] for row in rows[:10]] != [row["solution"] for row in rows[10:20]]
