"""Is every method a value on the same seams, and does it run?"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flow_dpo.cli import train
from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.objective import accepted_names
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.recipes import presets
from flow_dpo.recipes.grpo.policy_gradient import ClippedPolicyGradient
from flow_dpo.runs import run_folder
from tests.support.packed_builders import ROLES
from tests.support.run_equality import without_seconds
from tests.support.tiny_models import tiny_model
from tests.support.tree_builders import completion, request

PARTS = ("flow", "explore", "credit", "objective")
PACKAGE = Path(presets.__file__).parent.parent
OTHERS = [name for name in presets.RECIPES if name != "flow-dpo"]


@pytest.mark.parametrize("name", presets.RECIPES)
@pytest.mark.parametrize("scale", presets.PRESETS)
def test_every_recipe_has_every_scale(name: str, scale: str) -> None:
    made = presets.preset(name, scale)
    assert made.recipe.flow.roles
    if scale == "paper":
        assert made.recipe == presets.RECIPES[name]
    else:
        assert type(made.recipe.objective) is type(presets.RECIPES[name].objective)
    kinds = accepted_names(made.recipe.objective).replace("Pair or ScoredCompletion", "Example")
    assert f"list[{kinds}]" in str(type(made.recipe.credit).__call__.__annotations__["return"])


def test_a_scale_fits_whatever_part_has_the_setting() -> None:
    grpo = presets.preset("grpo", "seed").recipe
    flow = presets.preset("flow-dpo", "seed").recipe.flow
    assert grpo.flow.max_tokens == flow.chunk_tokens * flow.max_chunks  # type: ignore[attr-defined]
    assert grpo.flow.prompts == flow.prompts  # type: ignore[attr-defined]
    assert (grpo.explore.num_rollouts, grpo.explore.top_p) == (8, 0.97)  # type: ignore[attr-defined]
    assert presets.preset("online-dpo", "seed").recipe.explore.num_rollouts == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "small", "seed"),
    [("flow-dpo", 0.8, 1.0), ("cpl", 0.8, 1.0), ("dots", 0.4, 1.0), ("online-dpo", 0.9, 1.0), ("vineppo", 0.6, 1.0)],
)
def test_a_papers_own_temperature_is_kept_on_a_small_model(name: str, small: float, seed: float) -> None:
    """The seed's is its own: at another its planted errors would have other rates."""
    found = [presets.preset(name, scale).recipe.explore.temperature for scale in ("small", "seed")]  # type: ignore[attr-defined]
    assert found == [small, seed]


@pytest.mark.parametrize("name", presets.RECIPES)
def test_flags_of_the_run_mean_the_run_in_every_recipe(name: str) -> None:
    """No part of a recipe has a setting of the same name, so that a short flag is not refused."""
    words = [
        "--recipe",
        name,
        "--seed",
        "3",
        "--max_problems",
        "5",
        "--problems_per_batch",
        "2",
        "--examples_per_update",
        "4",
    ]
    settings = train.parse_train("flow-dpo train", words, {})
    assert (settings.run.seed, settings.run.problems_per_batch, settings.learner.examples_per_update) == (3, 2, 4)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'gpro'; there are flow-dpo"):
        presets.preset("gpro", "paper")
    with pytest.raises(ConfigError, match="unknown preset 'big'; there are paper"):
        presets.preset("grpo", "big")


def test_loop_learner_and_engines_know_no_method_by_name() -> None:
    made = presets.RECIPES.values()
    parts = {type(getattr(recipe, part)).__name__ for recipe in made for part in PARTS}
    words = re.compile(rf"\b({'|'.join([*presets.RECIPES, *parts])})\b")
    names = ("loop", "rollouts", "metrics", "tree", "engine")
    files = [*(PACKAGE / "core" / f"{name}.py" for name in names), PACKAGE / "verify" / "grader.py"]
    rooms = ("learner", "models", "engines", "workers", "runs/callbacks")
    for path in [*files, *(path for room in rooms for path in (PACKAGE / room).rglob("*.py"))]:
        tree = ast.parse(path.read_text())
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names += [node.name for node in ast.walk(tree) if isinstance(node, ast.alias)]
        texts = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        code = " ".join([*names, *(text for text in texts if "\n" not in text)])
        assert not words.search(code), f"{path.name} names {words.search(code)}"


@pytest.mark.parametrize("name", OTHERS)
def test_other_recipes_learn_resume_and_evaluate(name: str, tmp_path: Path) -> None:
    scores = "ScoredCompletion" in accepted_names(presets.RECIPES[name].objective)
    # By how many examples a batch has, so that the first has an update, and none has many.
    size = {"grpo": "16", "vineppo": "16", "online-dpo": "1"}.get(name, "2")
    words = ["--recipe", name, "--max_problems", "8", "--problems_per_batch", "4", "--examples_per_update", size]
    for folder in ("whole", "parts"):
        train.train([*words, "--output_dir", str(tmp_path / folder)])
    rows = run_folder.read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert without_seconds(rows) == without_seconds(run_folder.read_jsonl(tmp_path / "parts" / "metrics.jsonl"))
    assert rows[0]["learn/updates"] > 0, "what is resumed has learned nothing"
    # The last checkpoint is gone: it goes on from the one before.
    last = max((tmp_path / "parts" / "checkpoints").iterdir())
    (last / "loop.json").write_text("{}")
    assert train.train(["--output_dir", str(tmp_path / "parts"), "--resume"]) == 0
    assert without_seconds(rows) == without_seconds(run_folder.read_jsonl(tmp_path / "parts" / "metrics.jsonl"))
    for record in ("trees.jsonl", "pairs.jsonl", "scored.jsonl"):
        files = [tmp_path / folder / record for folder in ("whole", "parts")]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()
    assert (tmp_path / "whole" / "scored.jsonl").exists() == scores
    measured = ["--run", str(tmp_path / "whole"), "--max_problems", "8", "--output_dir", str(tmp_path / "measured")]
    assert cli_evaluate(measured) == 0


def test_what_did_better_than_expected_becomes_likelier() -> None:
    learner = Learner(
        Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5), LearnerSettings(learning_rate=1e-2)
    )
    asked = request("answer", 5, 6, 7)
    examples = [
        ScoredCompletion(request=asked, completion=completion(*ids, version=-1), advantage=advantage, problem_id="p")
        for ids, advantage in (((8, 9), 1.0), ((8, 11), -1.0))
    ]
    objective = ClippedPolicyGradient(clip_range=0.9, kl_coef=0.04)
    rows = [learner.update(objective, examples * 16) for _ in range(2)]
    assert rows[0]["learn/answer/kl"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["learn/answer/kl"] > 0
    assert rows[1]["learn/answer/loss"] < rows[0]["learn/answer/loss"]


def test_scored_examples_wait_in_the_pool_and_are_saved(tmp_path: Path) -> None:
    def fresh() -> Learner:
        policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)
        return Learner(policy, LearnerSettings(learning_rate=1e-3))

    example = ScoredCompletion(
        request=request("stop", 5, 6), completion=completion(90, choice=0), advantage=-0.5, tags=("finished",)
    )
    learner = fresh()
    learner.update(ClippedPolicyGradient(), [example])
    learner.save(tmp_path)
    other = fresh()
    other.load(tmp_path)
    assert other.pool == [example]
