"""Is a person told, once, when learning goes a wrong way?"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.types import Pair
from flow_dpo.recipes.flow_dpo.credit import AttemptCredit, OutcomePairsAndVerdicts
from flow_dpo.recipes.presets import preset
from flow_dpo.runs.callbacks.collapse_warnings import ChosenLikelihoodWarning, StopCollapseWarning
from tests.support.packed_builders import pairs_of_tree

PAPER = preset("flow-dpo-paper", "seed").recipe


def stop_pairs(prefer_yes: int, prefer_no: int) -> list[Pair]:
    rng = random.Random(0)
    pair = next(p for p in pairs_of_tree(rng, "p", num_nodes=3) if p.request.role == "stop")
    yes, no = (replace(pair.chosen, token_ids=(token,), choice=choice) for choice, token in enumerate((3, 4)))
    request = replace(pair.request, choices=(3, 4))
    made = replace(pair, request=request, chosen=yes, rejected=no)
    turned = replace(made, chosen=no, rejected=yes)
    return [made] * prefer_yes + [turned] * prefer_no


@pytest.mark.parametrize(("prefer_yes", "prefer_no", "warned"), [(0, 50, True), (50, 1, True), (10, 40, False)])
def test_a_stop_that_collapses(prefer_yes: int, prefer_no: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    watcher = StopCollapseWarning(PAPER)
    for _ in range(2):
        watcher.on_batch({}, [], stop_pairs(prefer_yes, prefer_no))
    assert len(caplog.records) == warned
    assert ("--credit.balance, --credit.tag_weights, --flow.on_refused_end" in caplog.text) == warned


@pytest.mark.parametrize(
    ("credit", "advice"),
    [
        (AttemptCredit(), ""),
        (OutcomePairs(), " see --credit.balance, --credit.tag_weights"),
        (OutcomePairsAndVerdicts(), " see --credit.pairs.balance, --credit.pairs.tag_weights, --credit.pairs.roles"),
    ],
)
def test_what_helps_is_what_the_recipe_has(credit: Any, advice: str, caplog: pytest.LogCaptureFixture) -> None:
    """The flow Attempts has no `on_refused_end`."""
    recipe = replace(preset("flow-dpo", "seed").recipe, credit=credit)
    StopCollapseWarning(recipe).on_batch({}, [], stop_pairs(0, 50))
    [record] = caplog.records
    assert record.getMessage().endswith(advice or "of its turns.")
    assert "on_refused_end" not in caplog.text


@pytest.mark.parametrize(("ratio", "margin", "warned"), [(-2.0, 1.5, True), (-2.0, 0.1, False), (0.5, 3.0, False)])
def test_chosen_completions_that_become_unlikely(
    ratio: float, margin: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = ChosenLikelihoodWarning(PAPER)
    row = {"learn/answer/chosen_ratio": ratio, "learn/answer/margin": margin, "learn/updates": 1}
    for count in range(1, 9):
        watcher.on_batch(row, [], [])
        assert len(caplog.records) == (warned and count >= 4)
    assert ("--objective.sft_weight" in caplog.text) == warned
    assert ("--learner.reference.kind" in caplog.text) == warned


def test_roles_are_watched_apart(caplog: pytest.LogCaptureFixture) -> None:
    watcher = ChosenLikelihoodWarning(PAPER, num_rows=2)
    for _ in range(2):
        watcher.on_batch({"learn/answer/chosen_ratio": 1.0, "learn/answer/margin": 1.0}, [], [])
        watcher.on_batch({"learn/stop/chosen_ratio": -3.0, "learn/stop/margin": 1.0}, [], [])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["stop"]
