"""Which p stands beside a difference, and what a judge's lean to a place takes to be a doubt?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flow_dpo.report import gaps
from flow_dpo.report.judge_section import judge_doubts
from flow_dpo.report.sources import JudgeSource

GAP = {"mean": 0.04, "low": 0.03, "high": 0.05, "seed_low": 0.01, "seed_high": 0.07, "p": 1e-6, "seed_p": 0.05}


def team(**more: Any) -> dict[str, Any]:
    named = {"one": "flow_itself", "other": "paper_flow", "rule": None, "test": "harder/sampled", "measure": "accuracy"}
    return {**named, **GAP, **more}


def found(*differences: dict[str, Any], holm: float | None = None) -> dict[str, Any]:
    """A comparison whose arm `paper_flow` is compared with the flow, the other way round than the team's difference."""
    declared = {"mean": -GAP["mean"], "p": 1e-6, "seed_p": 0.05, "p_holm": holm}
    contrasts = [{"against": "flow_itself", "differences": {"harder/sampled": declared}}]
    arms = [{"name": "flow_itself"}, {"name": "paper_flow", "contrasts": contrasts}]
    return {"team": {"differences": list(differences)}, "arms": arms}


def test_a_difference_of_the_team_has_the_p_of_the_method_and_that_of_its_family_where_it_is_corrected() -> None:
    [gap] = gaps.contrasts(found(team()))
    assert (gap.one, gap.p, gap.holm, gap.seeds, gap.questions) == (
        "flow_itself", 0.05, False, (0.01, 0.07), (0.03, 0.05),
    )  # fmt: skip
    [gap] = gaps.contrasts(found(team(), holm=0.25))
    assert (gap.p, gap.holm) == (0.25, True)
    # Against votes there is neither, whatever the arms are compared by.
    [votes, arm] = gaps.contrasts(found(team(rule="majority", seed_p=None, p=None), holm=0.25))
    assert (votes.other, votes.p, votes.holm) == ("paper_flow, majority", None, False)
    assert (arm.one, arm.p) == ("paper_flow", 0.25)


def test_a_pair_counts_once_whichever_arm_comes_first() -> None:
    """The baseline against an arm is that arm's difference to it; two arms that name each other are one pair."""
    test, other = "held_out/greedy", "harder/greedy"
    arms = [
        {"name": "self_generated", "contrasts": [{"against": "b", "differences": {test: GAP, other: GAP}}]},
        {"name": "a", "contrasts": [{"against": "b", "differences": {test: GAP}}]},
        {
            "name": "b",
            "difference_to_self": GAP,
            "differences_to_self": {test: GAP, other: None},
            "contrasts": [{"against": "a", "differences": {test: GAP}}],
        },
    ]
    found = {"baseline": "self_generated", "primary": test, "arms": arms}
    declared = [("self_generated", "b", test), ("self_generated", "b", other), ("a", "b", test)]
    assert [(gap.one, gap.other, gap.test) for gap in gaps.contrasts(found)] == declared
    assert [(gap.one, gap.other, gap.test) for gap in gaps.every_pair(found)] == declared
    del arms[0]["contrasts"]
    assert [(gap.one, gap.other) for gap in gaps.every_pair(found)] == [("a", "b"), ("b", "self_generated")]


def test_without_seeds_it_is_that_of_the_models() -> None:
    [gap] = gaps.contrasts(found(team(seed_p=None)))
    assert gap.p == 1e-6


@pytest.mark.parametrize(("p", "told"), [(1e-9, True), (0.2, False), (None, False)])
def test_a_judge_that_leans_to_a_place_is_a_doubt(p: float | None, told: bool) -> None:
    summary = {
        "agreement": {"rate": 0.9},
        "pairs": {},
        "position": {"first_rate": 0.8, "p": p},
        "longer": {"rate": 0.5, "interval": [0.4, 0.6]},
    }
    doubts = judge_doubts(JudgeSource(name="judged", path=Path("judged"), summary=summary, header={}))
    assert ["the judge picks what it is shown first in 80" in doubt for doubt in doubts] == [True] * told
