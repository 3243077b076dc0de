"""Is the flow compared with votes problem by problem, so that the interval allows for other problems, too?"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate import statistics
from flow_dpo.evaluate.compare import summary, team
from flow_dpo.evaluate.compare.team_results import COMPARED, TeamResult, by_k, voted
from flow_dpo.evaluate.votes import Attempted

TEXTS = {"a": "1101", "b": "0110", "c": "0010", "d": "1111"}
"""By problem, which of its four attempts are right."""


def attempts(turned: int) -> dict[str, list[Attempted]]:
    """The attempts of a seed; wrong ones have an answer each."""
    ids = list(TEXTS)
    return {
        id: [
            Attempted(
                verdict=Verdict(status="correct" if right == "1" else "wrong", answer="5" if right == "1" else f"{n}0"),
                yes=0.1 * (n + 1), tokens=10,
            )
            for n, right in enumerate(TEXTS[ids[(ids.index(id) + turned) % len(ids)]], start=1)
        ]
        for id in ids
    }  # fmt: skip


def result(turned: int, *, kept: bool = True) -> TeamResult:
    drawn = attempts(turned)
    return TeamResult(votes={"held_out": by_k(drawn)}, voted={"held_out": voted(drawn)} if kept else {})


FLOW = [{"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}, {"a": 1.0, "b": None, "c": 1.0, "d": 1.0}]


def differences(kept: bool) -> list[dict[str, Any]]:
    flow = TeamResult(tokens={"held_out/sampled": 25.0})
    made = {"flow_itself": [flow, flow], "answer_votes": [result(0, kept=kept), result(1, kept=kept)]}
    found = team.team(made, {"flow_itself": {"held_out/sampled": FLOW}})
    assert found is not None
    return [gap for gap in found["differences"] if gap["other"] == "answer_votes"]


def test_accuracies_by_problem_have_the_mean_of_all() -> None:
    drawn = attempts(0)
    found, of_all = voted(drawn), by_k(drawn)
    assert set(found) == set(COMPARED)
    for rule, by_id in found.items():
        for at, row in enumerate(of_all):
            assert fmean(values[at] for values in by_id.values()) == pytest.approx(row[rule])
    # Of "0110": pairs 01 and 10 share or choose, and of all four the two right ones are the majority.
    assert found["majority"]["b"] == pytest.approx((0.5, 0.5, 1.0, 1.0))
    assert found["best"]["b"] == (0.5, 0.5, 1.0, 0.0)


def test_the_interval_allows_for_seeds_and_problems() -> None:
    """At 25 tokens half of two attempts and half of three, problem by problem."""
    for gap in differences(kept=True):
        table = []
        for turned, flow in enumerate(FLOW):
            by_id = voted(attempts(turned))[gap["rule"]]
            table.append([(flow[id] or 0.0) - (by_id[id][1] + by_id[id][2]) / 2 for id in TEXTS])
        expected = statistics.two_level(table)
        assert expected is not None
        assert gap["per_seed"] == pytest.approx([fmean(row) for row in table])
        assert (gap["mean"], gap["seed_low"], gap["seed_p"]) == pytest.approx(
            (expected["mean"], expected["low"], expected["p"])
        )


def test_without_results_on_each_problem_it_is_over_seeds() -> None:
    for known, over_seeds in zip(differences(kept=True), differences(kept=False), strict=True):
        assert over_seeds["per_seed"] == pytest.approx(known["per_seed"])
        bounds = statistics.t_interval(over_seeds["per_seed"])
        assert bounds is not None
        assert (over_seeds["seed_low"], over_seeds["seed_high"]) == pytest.approx(bounds)
        assert "seed_p" not in over_seeds


def test_votes_and_interactions_are_in_holms_family() -> None:
    """Three p on one test, of an arm, a vote and an interaction; a pair that has a row is counted once."""
    gaps = [
        {"one": "flow_itself", "other": "answer_votes", "rule": "best", "test": "t", "seed_p": 0.02},
        {"one": "flow_itself", "other": "base", "rule": None, "test": "t", "seed_p": 0.9},
        {"one": "flow_itself", "other": "answer_votes", "rule": "best", "test": "other", "seed_p": None},
    ]
    crossed = [{"name": "both", "differences": {"t": {"seed_p": 0.001}}}]
    flow = [{id: float(at + seed != 3) for at, id in enumerate("abcdef")} for seed in range(3)]
    base = [dict.fromkeys("abcdef", 0.0)] * 3
    rows: list[dict[str, Any]] = [{"name": "flow_itself"}, {"name": "base"}]
    rewards = {"flow_itself": {"t": flow}, "base": {"t": base}}
    summary.add_differences(
        rows, [("flow_itself", "base")], rewards, ["t"], summary.others({"differences": gaps}, crossed)
    )
    row = rows[0]["contrasts"][0]["differences"]["t"]
    expected = statistics.holm({"row": row["seed_p"], "vote": 0.02, "crossed": 0.001})
    assert row["p_holm"] == gaps[1]["p_holm"] == expected["row"]
    assert (gaps[0]["p_holm"], crossed[0]["differences"]["t"]["p_holm"]) == (expected["vote"], expected["crossed"])
    assert "p_holm" not in gaps[2]
