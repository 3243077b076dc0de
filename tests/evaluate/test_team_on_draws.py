"""Does the table over kept draws say what a few draws come to by hand?"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.evaluate import write_predictions
from flow_dpo.runs.records import Prediction
from tools.team_on_draws import attempts, main, majority_at

JUDGEMENT = {"bias": 0.0, "stop": 1.0, "likelihood": 0.0}  # P(right) is P(Yes)
# Of each problem: whether each draw is right, and Stop's P(Yes) of it; None where the draw was cut.
DRAWS = {
    "a": [(True, 0.9), (False, 0.2), (False, 0.3)],
    "b": [(True, 0.4), (True, 0.6), (False, None)],
}


def evaluation(folder: Path, draws: dict[str, list[tuple[bool, float | None]]]) -> Path:
    """A folder as `flow-dpo evaluate --draws` leaves it: ten tokens a draw, wrong ones all with different answers."""
    rows = [
        Prediction(
            id=id,
            draw=draw,
            question="?",
            gold="5",
            dataset="made",
            worked_solution="",
            solution="",
            verdict=Verdict(status="correct" if right else "wrong", answer="5" if right else str(9 + draw)),
            tokens=10,
            ended=yes is not None,
            yes=yes,
            token_ids=(1,),
            mean_logprob=None if yes is None else -0.1,
        )
        for id, of_problem in draws.items()
        for draw, (right, yes) in enumerate(of_problem, start=1)
    ]
    played = {"flow": {"judgement": JUDGEMENT}}
    write_predictions(folder, rows, {"accuracy": None, "interval": [0, 1], "played": played})
    return folder


def test_the_chance_of_being_right_is_the_recorded_judgement(tmp_path: Path) -> None:
    drawn = attempts(evaluation(tmp_path, DRAWS))
    assert [one.yes for one in drawn["a"]] == pytest.approx([0.9, 0.2, 0.3])
    assert [one.yes for one in drawn["b"]] == [pytest.approx(0.4), pytest.approx(0.6), None]
    assert [one.yes for one in attempts(tmp_path, likelihood=True)["a"]] == [-0.1] * 3


def test_a_majority_between_two_numbers_of_attempts_is_interpolated(tmp_path: Path) -> None:
    drawn = attempts(evaluation(tmp_path, DRAWS))
    # One attempt: 1/3 and, of the three of b of which one has no vote, 2/3. Of two, equal votes share: (1, 2) and
    # (1, 3) give a half, (2, 3) nothing; of b each pair has a right one, and in none a wrong one votes.
    assert majority_at(drawn, 10.0) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert majority_at(drawn, 20.0) == pytest.approx({"a": 1 / 3, "b": 1.0})
    assert majority_at(drawn, 15.0) == pytest.approx({"a": 1 / 3, "b": 5 / 6})
    assert majority_at(drawn, 99.0) == pytest.approx({"a": 1 / 3, "b": 1.0})  # no more than were drawn


def test_the_table_of_a_rule_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, untrained = evaluation(tmp_path / "ours", DRAWS), evaluation(tmp_path / "base", {"a": DRAWS["a"]})
    monkeypatch.setattr(sys, "argv", ["team_on_draws", str(ours), "--threshold", "0.5", "--untrained", str(untrained)])
    main()
    lines = capsys.readouterr().out.splitlines()
    # Accepting above .5: of both problems the one attempt over it is right, and it is reached after 1, 2 or 3.
    assert lines[0] == "the flow samples 20 tokens and 2.00 attempts"
    found = {line[:34].strip(): line[34:] for line in lines[1:]}
    assert "100.0 %  against  50.0 %" in found["its own Answer, one attempt"]
    assert "100.0 %  against  66.7 %" in found["its Answer's majority, same tokens"]
    assert "100.0 %  against 100.0 %   +0.0 (+0.0 to +0.0)   2 problems" in found["best of all by P(right)"]
    assert "100.0 %  against  33.3 %" in found["untrained, one attempt"]
    assert found["untrained majority, same tokens"].endswith("1 problems")
    assert math.isclose(float(found["oracle of all attempts"].split()[0]), 100.0)
