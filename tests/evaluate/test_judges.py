"""Does the study of judges fit each judge to what it knows, judge by it, and pack runs without losing anything?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.evaluate import write_predictions
from flow_dpo.recipes.flow_dpo.judgement import Evidence, calibrate
from flow_dpo.runs.records import Prediction
from tools import judges
from tools.judges import Draw, Pack, by_problem, figures, fitted, kept, read_pack, write_pack

# The likelihood knows what is right; Stop knows little.
EVIDENCE = [
    Evidence(log_odds=(i % 7) / 8 + (i % 2) / 8, mean_logprob=-0.125 if i % 2 else -0.875 - i / 64, right=i % 2 == 1)
    for i in range(40)
]


def draw(log_odds: float | None, mean_logprob: float, right: bool | None, answer: int | None = 0) -> Draw:
    return Draw(log_odds=log_odds, mean_logprob=mean_logprob, right=right, answer=answer, tokens=10)


DRAWS = {
    # Stop prefers the wrong attempt, the likelihood the right one.
    "a": [
        draw(0.6, -0.9, False, 0),
        draw(0.0, -0.1, True, 1),
        draw(0.1, -1.2, False, 2),
        draw(None, -0.1, False, None),
    ],
    # All agree; the third was not graded and counts as not right.
    "b": [draw(0.5, -0.1, True), draw(0.4, -0.1, True), draw(0.1, -0.9, None, 1), draw(0.2, -0.8, False, 2)],
}


def pack(seed: int = 0) -> Pack:
    return Pack(
        seed=seed, max_attempts=2, least_gain=0.02, answers="best", evidence=EVIDENCE, tests={"held_out": DRAWS}
    )


def test_a_judge_is_fitted_without_what_it_does_not_know() -> None:
    found = fitted(pack())
    assert found["both"] == calibrate(EVIDENCE, least_gain=0.02, recall=True)
    assert found["stop"][0].likelihood == 0
    assert found["likelihood"][0].stop == 0
    # What a judge does not know cannot change it.
    other = [replace(one, log_odds=-one.log_odds + 3) for one in EVIDENCE]
    assert fitted(replace(pack(), evidence=other))["likelihood"] == found["likelihood"]
    assert fitted(replace(pack(), evidence=other))["stop"] != found["stop"]


def test_too_little_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match="8 right and 8 wrong"):
        fitted(replace(pack(), evidence=EVIDENCE[:12]))


def test_rules_judge_by_what_the_judge_knows() -> None:
    found = by_problem(pack(), "held_out")
    assert found["one"] == {"a": 0.25, "b": 0.5}
    assert found["oracle"] == {"a": 1.0, "b": 1.0}
    assert found["best/likelihood"] == {"a": 1.0, "b": 1.0}
    assert found["best/stop"]["a"] == 0.0
    # Of two attempts at "a", the right one answers if it is among them: 3 of 6 pairs.
    assert found["flow/likelihood"]["a"] == pytest.approx(0.5)
    assert found["tokens/one"]["a"] == 10
    assert 10 <= found["tokens/likelihood"]["a"] <= 20


def test_figures_are_means_and_differences_over_seeds() -> None:
    found = figures([pack(0), pack(1)])
    held_out = found["tests"]["held_out"]
    assert (found["seeds"], found["max_attempts"], held_out["num_problems"], held_out["num_draws"]) == ([0, 1], 2, 2, 4)
    assert held_out["accuracies"]["one"]["mean"] == 0.375
    better = next(d for d in held_out["differences"] if (d["one"], d["other"]) == ("best/likelihood", "best/stop"))
    stop = held_out["accuracies"]["best/stop"]["mean"]
    assert better["mean"] == pytest.approx(1 - stop)
    assert better["seed_low"] <= better["mean"] <= better["seed_high"]


def test_a_pack_is_read_as_it_was_written(tmp_path: Path) -> None:
    first, second = tmp_path / "x" / "seed3.json.gz", tmp_path / "y" / "seed3.json.gz"
    for path in (first, second):
        write_pack(path, pack(3))
    assert first.read_bytes() == second.read_bytes()
    again = read_pack(first)
    assert again.tests == {"held_out": DRAWS}
    assert [one.right for one in again.evidence] == [one.right for one in EVIDENCE]
    assert figures([again]) == figures([pack(3)])


def test_a_run_is_packed_with_its_own_evidence_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "seed7"
    for number, evidence in ((8, EVIDENCE[:20]), (16, EVIDENCE)):
        where = folder / "flow" / "checkpoints" / f"{number:08}"
        where.mkdir(parents=True)
        state = {"progressive": {"evidence": [asdict(one) for one in evidence]}}
        (where / "loop.json").write_text(json.dumps(state))
    rows = [
        Prediction(
            id=id, draw=number, question="?", gold="5", dataset="made", worked_solution="", solution="", tokens=10,
            verdict=Verdict(status="correct" if each.right else "wrong", answer=answer), token_ids=(1,),
            yes=None if each.log_odds is None else 1 / (1 + math.exp(-each.log_odds)),
            ended=each.log_odds is not None, mean_logprob=each.mean_logprob,
        )
        for id, draws in DRAWS.items()
        for number, each in enumerate(draws, start=1)
        for answer in [None if each.answer is None else str(each.answer)]
    ]  # fmt: skip
    write_predictions(
        folder / "evaluations" / "answer_votes" / "held_out-draws", rows, {"accuracy": None, "interval": [0, 1]}
    )
    flow = {"max_attempts": 2, "least_gain": 0.02, "answers": "best"}
    monkeypatch.setattr(judges, "run_settings", lambda run: {"flow": flow} if run == folder / "flow" else {})
    monkeypatch.setattr(judges, "FOLDER", tmp_path / "studies")
    assert judges.main(["keep", str(tmp_path / "runs"), "--name", "made"]) == 0
    found = read_pack(tmp_path / "studies" / "made" / "seed7.json.gz")
    assert found.evidence == kept(folder).evidence == EVIDENCE
    assert [d.log_odds for d in found.tests["held_out"]["a"]] == [0.6, 0.0, 0.1, None]
    assert [d.answer for d in found.tests["held_out"]["a"]] == [0, 1, 2, None]


def test_answers_that_a_vote_counts_as_equal_have_one_number() -> None:
    known: list[str] = []
    assert [judges._number(answer, known) for answer in ("5", "6", "5.0", " 6 ", "2.5", "5/2")] == [0, 1, 0, 1, 2, 2]  # pyright: ignore[reportPrivateUsage]


def test_published_figures_are_those_of_the_packs() -> None:
    assert judges.main(["figures", "--check"]) == 0
