"""Is it said before a run what a problem will cost, and while nothing is learned why?"""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flow_dpo.cli import train
from flow_dpo.core.types import Problem
from flow_dpo.data.problems import DataSettings, load
from flow_dpo.learner.settings import LearnerSettings, PassSettings, RoleSettings
from flow_dpo.models.load import ModelSettings, load_renderer
from flow_dpo.recipes import presets
from flow_dpo.runs.callbacks.progress import ProgressBar
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.live import Live
from flow_dpo.runs.rehearsal import Spent, rehearse

_, RENDERER = load_renderer(ModelSettings(model_name_or_path="seed"))
PROBLEMS = load(DataSettings(dataset_name="seed", max_problems=3)).problems


@pytest.mark.parametrize("name", presets.RECIPES)
def test_every_recipe_can_be_rehearsed_and_is_the_same_afterwards(name: str) -> None:
    recipe = presets.load_recipe(name, "seed")
    cost = rehearse(recipe, PROBLEMS, RENDERER)
    assert cost is not None
    assert cost == rehearse(recipe, PROBLEMS, RENDERER)
    for spent in (cost.lowest, cost.highest):
        assert 1 <= spent.verdicts <= spent.rollouts
        assert 0 < spent.tokens <= spent.most
    assert cost.lowest.tokens <= cost.highest.tokens


def test_the_cost_of_a_group_by_hand() -> None:
    """Eight answers in one turn: as long as the solution and an end, and at their longest max_tokens."""
    recipe = presets.load_recipe("grpo", "seed")
    length = len(RENDERER.encode(PROBLEMS[0].solution))
    cost = rehearse(recipe, PROBLEMS[:1], RENDERER)
    assert cost is not None
    assert cost.lowest == cost.highest == Spent(
        rollouts=8, verdicts=8, tokens=8 * (length + 1), most=8 * 128, length=length
    )  # fmt: skip
    assert f"about 8 rollouts, 8 verdicts and {8 * (length + 1)} sampled tokens" in cost.sentence(10)
    assert f"10 problems cost {10 * 8 * (length + 1):,}" in cost.sentence(10)


@pytest.mark.parametrize("length", [15, 16, 17, 32, 48, 80, 128])
def test_a_solution_may_end_where_a_chunk_does(length: int) -> None:
    """What was sampled before may not be sampled again, and there nothing but the end is left."""
    text = " 5" * length
    assert len(RENDERER.encode(text)) == length
    problem = replace(PROBLEMS[0], solution=text)
    for recipe in ("flow-dpo", "flow-dpo-paper"):
        cost = rehearse(presets.load_recipe(recipe, "seed"), [problem], RENDERER)
        assert cost is not None
        assert cost.highest.length == length


def test_where_the_data_has_no_solutions_the_questions_are_measured() -> None:
    cost = rehearse(presets.load_recipe("grpo", "seed"), [replace(PROBLEMS[0], solution="")], RENDERER)
    assert cost is not None
    assert cost.highest.length == len(RENDERER.encode(PROBLEMS[0].question))
    assert "completions are as long as the data's solutions, or questions if it has none (" in cost.sentence(1)


def test_what_depends_on_what_is_found_is_told_from_least_to_most() -> None:
    """ReGenesis gives hints where nothing is right: 1 + 8 rollouts, and 8 more. Step-DPO's completions are of wrong
    solutions: of two, from each of their steps, and of none."""
    cost = rehearse(presets.load_recipe("regenesis", "seed"), PROBLEMS[:1], RENDERER)
    assert cost is not None
    assert (cost.lowest.rollouts, cost.highest.rollouts) == (9, 17)
    assert "costs 9 to 17 rollouts, 9 to 17 verdicts and " in cost.sentence(1)
    cost = rehearse(presets.load_recipe("step-dpo", "seed"), PROBLEMS[:1], RENDERER)
    assert cost is not None
    assert cost.lowest.rollouts == 2
    steps = cost.highest.rollouts - 2
    assert steps >= 2 * 8
    assert steps % 8 == 0
    # A completion from amid a solution is as long as what is left of it.
    assert cost.highest.tokens < cost.highest.rollouts * (cost.highest.length + 1) * 0.8


def test_programs_are_not_run() -> None:
    dots: Any = presets.load_recipe("dots", "seed")
    flow = replace(dots.flow, programs=True, labels=(*"123456789", "Anna", "Tom", "Wait"))
    assert rehearse(replace(dots, flow=flow), PROBLEMS, RENDERER) is None
    nobody = replace(dots, explore=replace(dots.explore, explainer_url="http://127.0.0.1:1/v1"))
    assert rehearse(nobody, PROBLEMS, RENDERER) == rehearse(dots, PROBLEMS, RENDERER), "no address is asked"
    assert rehearse(dots, (), RENDERER) is None
    without = Problem(id="p", question=PROBLEMS[0].question, gold="1")
    asked = rehearse(presets.load_recipe("grpo", "seed"), [without], RENDERER)
    assert asked is not None
    assert asked.highest.length == len(RENDERER.encode(without.question))


@pytest.mark.parametrize("recipe", ["rpo", "cpl"])
def test_it_is_printed_before_the_first_batch_and_holds(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.train(["--recipe", recipe, "--max_problems", "8", "--problems_per_batch", "8", "--examples_per_update", "900",
                 "--output_dir", str(tmp_path / "run")])  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert 0 < told.index("A problem costs ") < told.index("8/8 problems")
    assert re.search(r"\d+ examples wait, an update takes 900 ", told)
    found = re.search(r"; 8 problems cost ([\d,]+) to ([\d,]+)", told)
    assert found is not None
    lowest, most = (int(number.replace(",", "")) for number in found.groups())
    [row] = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    # As far as this model's solutions are as long as the data's.
    assert lowest / 1.5 < row["rollout/sampled_tokens"] < most * 1.5


@pytest.mark.parametrize(
    ("row", "learner", "said"),
    [
        ({"learn/updates": 0, "learn/waiting": 12}, LearnerSettings(), "12 examples wait, an update takes 32\n"),
        ({"learn/updates": 1, "learn/waiting": 12}, LearnerSettings(), ""),
        ({"learn/updates": 0, "learn/waiting": 0}, LearnerSettings(), "no problem of this batch gave an example"),
        (
            {"learn/updates": 0, "learn/waiting": 5},
            LearnerSettings(roles={"stop": RoleSettings(examples_per_update=8)}),
            "5 examples wait, an update takes 32 or 8 of stop\n",
        ),
        (
            {"learn/updates": 0, "learn/waiting": 88},
            LearnerSettings(passes=PassSettings(minibatches=4)),
            "88 examples wait, an update takes 4 times 32\n",
        ),
        (
            {"learn/updates": 0, "learn/waiting": 40},
            LearnerSettings(passes=PassSettings(problems_per_update=8)),
            "40 examples wait, an update takes the examples of 8 problems\n",
        ),
    ],
)
def test_while_nothing_is_learned_the_bar_says_why(row: dict[str, Any], learner: LearnerSettings, said: str) -> None:
    console = Console(file=io.StringIO(), width=300)
    with Live(console) as live:
        bar = ProgressBar(live, 8, 0, learner)
        whole = {"problems_seen": 4, "progressive/window_accuracy": 0.5, "progressive/window_problems": 4}
        bar.on_batch(whole | row, [], [])
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert said in told
    assert ("examples wait" in told or "nothing learned" in told) == bool(said)
