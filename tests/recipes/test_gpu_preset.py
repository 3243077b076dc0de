"""Does the preset for a GPU keep it full? Sequences under way, by an engine with a clock.

The world: solutions of 500 tokens in the mean, of any length, as chat models write on competition problems, and a Stop
that refuses every second one.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.types import Request, TokenIds, Verdict
from flow_dpo.engines.scripted import ScriptedReply
from flow_dpo.engines.settings import LocalSettings, VllmServerSettings, VllmSettings
from flow_dpo.recipes.presets import GPU, RECIPES, preset
from flow_dpo.runs import rehearsal
from flow_dpo.runs.rehearsal import Cost, Spent
from tests.support.attempt_worlds import END, PROBLEMS, BareIds
from tests.support.clock_engine import ClockEngine
from tests.support.graders import FunctionGrader

MEAN_TOKENS = 500


def script(request: Request, seed: int, excluded: TokenIds) -> ScriptedReply | TokenIds:
    rng = random.Random(seed)
    if request.choices:
        left = [at for at, id in enumerate(request.choices) if id not in excluded]
        return ScriptedReply(choice=rng.choice(left))
    num = min(1 + int(rng.expovariate(1 / MEAN_TOKENS)), request.max_tokens)
    first = next(word for word in iter(lambda: rng.randrange(1, 50), None) if word not in excluded)
    words = (first, *(rng.randrange(1, 50) for _ in range(num - 1)))
    return words if num == request.max_tokens else (*words, END)


def under_way(recipe: str, name: str, *, max_rows: int = 1 << 20) -> float:
    made = preset(recipe, name)
    explore: Any = made.recipe.explore
    engine = ClockEngine(script, end_ids={END}, max_rows=max_rows)
    grader = FunctionGrader(lambda items: [Verdict(status="correct", answer="1") for _ in items])
    explore(made.recipe.flow, RolloutRunner(engine, BareIds(), grader), PROBLEMS[: made.problems_per_batch], seed=0)
    return engine.mean_rows


@pytest.mark.parametrize("recipe", ["flow-dpo", "flow-dpo-paper"])
def test_some_hundred_sequences_are_under_way_in_the_mean(recipe: str) -> None:
    assert under_way(recipe, GPU) >= 256


def test_the_papers_own_preset_keeps_fewer_than_two() -> None:
    assert under_way("flow-dpo-paper", "paper") < 2


def test_it_is_the_papers_preset_but_for_its_batches() -> None:
    paper, full = (preset("flow-dpo-paper", name) for name in ("paper", GPU))
    assert (full.recipe, full.lora, full.learner) == (paper.recipe, paper.lora, paper.learner)
    assert (full.learner.examples_per_update, full.problems_per_batch) == (32, 512)
    chat, full = (preset("flow-dpo", name) for name in ("chat", GPU))
    assert full.recipe == chat.recipe
    assert full.learner.examples_per_update == 32
    [usual], [stop] = ([*made.learner.roles.values()] for made in (chat, full))
    assert stop.updates_per_batch / full.problems_per_batch == usual.updates_per_batch / chat.problems_per_batch
    assert [name for name, presets in RECIPES.items() if GPU in presets] == ["flow-dpo", "flow-dpo-paper"]


def test_a_gpu_that_would_stand_idle_is_told() -> None:
    spent = Spent(rollouts=13, verdicts=13, tokens=1800, most=6240, length=250)
    cost = Cost(lowest=spent, highest=spent)
    told = rehearsal.too_few(cost, 1, VllmSettings(), on_gpu=True)
    assert "at most 13 sequences are sampled at once (1 problems per batch)" in told
    assert "room for 256" in told
    assert rehearsal.too_few(cost, 1, VllmSettings(), on_gpu=False) == ""
    assert rehearsal.too_few(cost, 512, VllmSettings(), on_gpu=True) == ""
    assert rehearsal.too_few(cost, 1, LocalSettings(max_batch_size=8), on_gpu=True) == ""
    assert "room for 128" in rehearsal.too_few(cost, 1, VllmServerSettings(), on_gpu=False)
