"""Is every method a value on the same seams, and does it run?"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.objective import accepted_names
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import LearnerSettings, PassSettings, ReferenceSettings
from flow_dpo.recipes import presets, scales
from flow_dpo.recipes.iterative_rpo.presets import RENEWED
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.single import Single
from flow_dpo.runs.files import read_jsonl
from tests.support.once import Once
from tests.support.packed_builders import ROLES
from tests.support.recipe_runs import OTHERS, tried
from tests.support.run_equality import without_seconds
from tests.support.tiny_models import tiny_model
from tests.support.tree_builders import completion, request

PARTS = ("flow", "explore", "credit", "objective")
PACKAGE = Path(presets.__file__).parent.parent

# What a recipe's learner has of its own, at one preset or ("") at the three sizes of model.
OWN_LEARNER: dict[tuple[str, str], dict[str, Any]] = {
    ("flow-dpo", "seed"): {"examples_per_update": 12},
    ("gspo", ""): {"examples_per_update": 0, "passes": PassSettings(minibatches=4)},
    ("vineppo", ""): {"examples_per_update": 0, "passes": PassSettings(minibatches=8)},
    **{
        (name, ""): {"passes": PassSettings(short_batch="learn")}
        for name in ("grpo", "dr-grpo", "rloo", "reinforce-pp")
    },
    **{
        (name, ""): {"passes": PassSettings(short_batch="fill", minibatches=4)}
        for name in ("dapo", "cispo", "reinforce-baseline")
    },
    **{
        (name, ""): {"passes": PassSettings(problems_per_update=4, short_batch="learn")}
        for name in ("spo-chain", "spo-tree", "treerpo", "treerl")
    },
}


# Those whose authors, or whose libraries (TRL, verl, OpenRLHF), divide logits by the temperature of sampling.
SCALED_LOGITS = (
    "grpo", "dapo", "dr-grpo", "gspo", "cispo", "rloo", "reinforce-pp", "reinforce-baseline", "vineppo", "spo-chain",
    "spo-tree",
)  # fmt: skip


@pytest.mark.parametrize("name", presets.RECIPES)
@pytest.mark.parametrize("scale", presets.PRESET_NAMES)
def test_every_recipe_has_every_scale(name: str, scale: str) -> None:
    made = presets.preset(name, scale)
    assert made.recipe.flow.roles
    over: float = made.recipe.explore.temperature if name in SCALED_LOGITS else 1.0  # type: ignore[attr-defined]
    assert made.learner.logit_temperature == over
    # Flow-DPO's paper has another flow than its scales; at every scale it is "flow-dpo-paper".
    of_paper = presets.RECIPES["flow-dpo-paper" if name == "flow-dpo" else name]["paper"]
    # CPL's paper has rounds and a value role besides, which are options at the scales; RFT's keeps all that is right.
    first = presets.RECIPES[name]["chat" if name in ("flow-dpo", "cpl", "rejection-sampling") else "paper"]
    if scale == "paper":
        assert made == of_paper
    else:
        assert made.recipe.objective == first.recipe.objective
        assert made.recipe.credit == first.recipe.credit
        assert type(made.recipe.flow) is type(first.recipe.flow)
        assert type(made.recipe.explore) is type(first.recipe.explore)
        scaled = scales.SCALES[scale]
        own = OWN_LEARNER.get((name, scale)) or OWN_LEARNER.get((name, "")) or {}
        own = {**own, "logit_temperature": over, **({"reference": RENEWED} if name == "iterative-rpo" else {})}
        assert set(made.learner.roles) == ({"stop"} if name == "flow-dpo" else set())
        assert (made.lora, replace(made.learner, roles={}), made.problems_per_batch) == (
            scaled.lora, replace(scaled.learner, **own), scaled.problems_per_batch,
        )  # fmt: skip
    kinds = accepted_names(made.recipe.objective).replace("Pair or ScoredCompletion", "Example")
    assert f"list[{kinds}]" in str(type(made.recipe.credit).__call__.__annotations__["return"])


# What each recipe explores at its paper's, chat, small and seed preset: (rollouts, completions, temperature, top-p).
EXPLORED = {
    "flow-dpo": [(1, 1, 1.0, 1.0), (1, 1, 1.0, 1.0), (1, 1, 0.8, 1.0), (1, 1, 1.0, 0.97)],
    "flow-dpo-paper": [(1, 1, 1.0, 1.0), (1, 1, 1.0, 1.0), (1, 1, 0.8, 1.0), (1, 1, 1.0, 0.97)],
    "online-dpo": [(2, 0, 0.9, 1.0), (2, 0, 0.9, 1.0), (2, 0, 0.9, 1.0), (2, 0, 1.0, 0.97)],
    "grpo": [(64, 0, 1.0, 1.0), (8, 0, 1.0, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "dapo": [(16, 0, 1.0, 1.0), (8, 0, 1.0, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "dr-grpo": [(8, 0, 1.0, 1.0), (8, 0, 1.0, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "gspo": [(16, 0, 1.0, 1.0), (8, 0, 1.0, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "cispo": [(16, 0, 1.0, 1.0), (8, 0, 1.0, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "rloo": [(4, 0, 1.0, 1.0), (8, 0, 1.0, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "reinforce-pp": [(1, 0, 1.0, 1.0), (1, 0, 1.0, 1.0), (1, 0, 0.8, 1.0), (1, 0, 1.0, 0.97)],
    "reinforce-baseline": [(8, 0, 1.0, 1.0), (8, 0, 1.0, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "vineppo": [(8, 9, 0.6, 0.9), (8, 4, 0.6, 0.9), (8, 4, 0.6, 0.9), (8, 4, 1.0, 0.97)],
    "spo-chain": [(8, 9, 0.6, 0.9), (8, 4, 0.6, 0.9), (8, 4, 0.6, 0.9), (8, 4, 1.0, 0.97)],
    "spo-tree": [(1, 0, 0.6, 0.9), (1, 0, 0.6, 0.9), (1, 0, 0.6, 0.9), (1, 0, 1.0, 0.97)],
    "treerpo": [(1, 0, 1.0, 1.0), (1, 0, 1.0, 1.0), (1, 0, 0.8, 1.0), (1, 0, 1.0, 0.97)],
    "treerl": [(6, 2, 1.2, 0.95), (3, 2, 1.0, 0.95), (3, 2, 0.8, 0.95), (3, 2, 1.0, 0.97)],
    "step-dpo": [(2, 20, 0.8, 0.95), (2, 8, 0.8, 0.95), (2, 8, 0.8, 0.95), (2, 8, 1.0, 0.97)],
    "malt": [(1, 0, 0.3, 1.0), (1, 0, 0.3, 1.0), (1, 0, 0.3, 1.0), (1, 0, 1.0, 0.97)],
    "rpo": [(10, 10, 0.5, 1.0), (8, 4, 0.5, 1.0), (8, 4, 0.5, 1.0), (8, 4, 1.0, 0.97)],
    "iterative-rpo": [(30, 0, 0.8, 1.0), (8, 0, 0.8, 1.0), (8, 0, 0.8, 1.0), (8, 0, 1.0, 0.97)],
    "cpl": [(1, 3, 0.7, 1.0), (1, 3, 0.7, 1.0), (1, 3, 0.7, 1.0), (4, 3, 1.0, 0.97)],
    "rejection-sampling": [(100, 0, 0.7, 1.0), (4, 0, 1.0, 1.0), (4, 0, 0.8, 1.0), (4, 0, 1.0, 0.97)],
    "regenesis": [(45, 20, 0.85, 0.9), (8, 8, 0.85, 0.9), (8, 8, 0.85, 0.9), (8, 8, 1.0, 0.97)],
    "dots": [(4, 2, 0.4, 1.0), (4, 2, 0.4, 1.0), (4, 1, 0.4, 1.0), (4, 1, 1.0, 0.97)],
}
# Completions beside the rollouts, by the name that the exploration has for them: hinted paths and rounds are such too.
BESIDE = ("num_completions", "num_alternatives", "num_children", "num_hinted", "num_rounds")
# Longest solution, in tokens, at the same presets.
LENGTHS = {
    "flow-dpo": [960, 960, 160, 128], "flow-dpo-paper": [960, 960, 160, 128],
    "online-dpo": [960, 960, 160, 128], "grpo": [1024, 1024, 160, 128],
    "dapo": [20_480, 1024, 160, 128], "dr-grpo": [3000, 1024, 160, 128], "gspo": [16_384, 1024, 160, 128],
    "cispo": [20_480, 1024, 160, 128], "rloo": [960, 1024, 160, 128], "reinforce-pp": [64_000, 1024, 160, 128],
    "reinforce-baseline": [64_000, 1024, 160, 128],
    "vineppo": [1024, 1024, 160, 128], "rpo": [512, 512, 160, 128], "cpl": [1500, 960, 160, 128],
    "spo-chain": [1024, 1024, 160, 128], "spo-tree": [1024, 1024, 160, 128], "treerpo": [1152, 1152, 160, 128],
    "treerl": [8192, 1024, 160, 128], "step-dpo": [2048, 2048, 160, 128],
    "malt": [1024, 1024, 160, 128],
    "iterative-rpo": [960, 960, 160, 128],
    "rejection-sampling": [256, 960, 160, 128], "regenesis": [2048, 2048, 160, 128], "dots": [960, 960, 160, 128],
}  # fmt: skip


@pytest.mark.parametrize("name", presets.RECIPES)
def test_what_a_preset_explores_is_what_its_table_says(name: str) -> None:
    for scale, expected, length in zip(presets.PRESET_NAMES, EXPLORED[name], LENGTHS[name], strict=True):
        recipe = presets.load_recipe(name, scale)
        explore: Any = recipe.explore
        [beside] = [getattr(explore, field) for field in BESIDE if hasattr(explore, field)] or [0]
        found = (getattr(explore, "num_rollouts", 1), beside, explore.temperature, explore.top_p)
        assert found == expected, scale
        flow: Any = recipe.flow
        assert (flow.chunk_tokens * flow.max_chunks if name.startswith("flow-dpo") else flow.max_tokens) == length, (
            scale
        )


def test_the_papers_learners() -> None:
    found = {
        name: (
            made.learner.learning_rate,
            made.learner.examples_per_update,
            made.problems_per_batch,
            made.lora.lora_alpha,
        )
        for name, made in ((name, presets.preset(name, "paper")) for name in presets.RECIPES)
    }
    assert found == {
        "flow-dpo": (5e-6, 32, 1, 8), "flow-dpo-paper": (5e-6, 32, 1, 8), "online-dpo": (5e-7, 128, 128, 8),
        "grpo": (1e-6, 1024, 16, 8),
        "dapo": (1e-6, 512, 512, 8), "dr-grpo": (1e-6, 128, 128, 8), "gspo": (1e-6, 0, 256, 8),
        "cispo": (1e-6, 512, 512, 8), "rloo": (1e-6, 256, 128, 8), "reinforce-pp": (5e-7, 1024, 1024, 8),
        "reinforce-baseline": (5e-7, 1024, 128, 8),
        "vineppo": (1e-6, 0, 64, 8), "rpo": (5e-5, 32, 8, 16), "cpl": (1e-6, 64, 5000, 8),
        "iterative-rpo": (7e-7, 16, 1024, 8),
        "spo-chain": (1e-6, 0, 64, 8), "spo-tree": (1e-6, 128, 16, 8), "treerpo": (1e-6, 512, 16, 8),
        "treerl": (1.5e-6, 0, 16, 8), "step-dpo": (5e-7, 128, 64, 8),
        "malt": (5e-6, 8, 32, 8),
        "rejection-sampling": (2e-5, 128, 32, 8), "regenesis": (1e-6, 64, 32, 8), "dots": (2e-5, 64, 16, 8),
    }  # fmt: skip
    vine = presets.preset("vineppo", "paper").learner
    assert vine.passes == PassSettings(epochs_per_batch=2, minibatches=8)
    assert (vine.warmup_updates, vine.decay_after, vine.schedule) == (480, 16_000, "linear")
    dapo = presets.preset("dapo", "paper").learner
    assert (dapo.passes, dapo.warmup_updates) == (PassSettings(minibatches=16, short_batch="fill"), 20 * 16)
    cpl: Any = presets.preset("cpl", "paper").recipe
    assert (cpl.explore.num_iterations, cpl.explore.num_root_children, cpl.flow.max_plan_steps) == (200, 5, 5)
    assert (cpl.credit.solution_scale, cpl.credit.max_per_problem, cpl.credit.value_targets) == (0.3, 4, "q")
    assert {
        name: (made.warmup_updates, made.decay_after, made.schedule)
        for name, made in ((name, presets.preset(name, "paper").learner) for name in presets.RECIPES)
        if made.schedule == "cosine"
    } == {"rpo": (100, 2803, "cosine"), "step-dpo": (67, 675, "cosine"), "regenesis": (53, 1752, "cosine")}
    assert presets.preset("rpo", "paper").learner.passes.problems_per_update == 8
    assert presets.preset("flow-dpo", "paper").lora.lora_dropout == 0.05


def test_the_scales_learners() -> None:
    found = [(s.learner.learning_rate, s.learner.examples_per_update, s.learner.warmup_updates,
              s.learner.decay_after, s.problems_per_batch) for s in scales.SCALES.values()]  # fmt: skip
    assert found == [(2e-4, 16, 2, 0, 16), (2e-4, 16, 2, 8, 32), (3e-3, 32, 8, 30, 32)]
    assert scales.SEED.learner.reference == ReferenceSettings(kind="snapshot", every=8)
    assert scales.CHAT.learner.reference == scales.SMALL.learner.reference == ReferenceSettings(kind="base")
    assert tuple(scales.SCALES) == presets.PRESET_NAMES[1:]


def test_one_recipe_does_not_import_another() -> None:
    code = (
        "import sys; from flow_dpo.recipes import presets; assert 'torch' not in sys.modules; "
        "presets.preset('grpo', 'seed'); "
        "rooms = {name.split('.')[2] for name in sys.modules if name.startswith('flow_dpo.recipes.')}; "
        "shared = {'groups', 'group_advantages', 'policy_gradient', 'scored'}; "
        "assert rooms == {'presets', 'scales', 'single', 'grpo', *shared}, rooms"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_flow_of_ones_own_stays_as_it_is() -> None:
    """The values of a scale are the recipe's own flow's; nothing is fitted onto another by the names of its fields."""
    given = Single(max_tokens=7)
    for scale in presets.PRESET_NAMES:
        own = presets.preset("flow-dpo", scale)
        assert presets.preset("flow-dpo", scale, flow=given) == replace(own, recipe=replace(own.recipe, flow=given))


def test_a_scale_is_the_same_in_every_recipe() -> None:
    grpo = presets.preset("grpo", "seed").recipe
    for name in ("flow-dpo", "flow-dpo-paper"):
        flow: Any = presets.preset(name, "seed").recipe.flow
        assert grpo.flow.max_tokens == flow.chunk_tokens * flow.max_chunks  # type: ignore[attr-defined]
        assert asdict(grpo.flow.prompts).items() <= asdict(flow.prompts).items()  # type: ignore[attr-defined]
    assert (grpo.explore.num_rollouts, grpo.explore.top_p) == (8, 0.97)  # type: ignore[attr-defined]
    assert presets.preset("online-dpo", "seed").recipe.explore.num_rollouts == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "small", "seed"),
    [
        ("flow-dpo", 0.8, 1.0),
        ("cpl", 0.7, 1.0),
        ("rpo", 0.5, 1.0),
        ("dots", 0.4, 1.0),
        ("online-dpo", 0.9, 1.0),
        ("vineppo", 0.6, 1.0),
    ],
)
def test_a_papers_own_temperature_is_kept_on_a_small_model(name: str, small: float, seed: float) -> None:
    """The seed's is its own: at another its planted errors would have other rates."""
    found = [presets.preset(name, scale).recipe.explore.temperature for scale in ("small", "seed")]  # type: ignore[attr-defined]
    assert found == [small, seed]


@pytest.mark.parametrize("name", presets.RECIPES)
def test_flags_of_the_run_mean_the_run_in_every_recipe(name: str, tmp_path: Path) -> None:
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
    assert settings.learner.passes.problems_per_update == 0, "of a preset, it would be in the place of what was given"
    both = train.parse_train("flow-dpo train", [*words, "--problems_per_update", "7"], {})
    assert both.learner.passes.problems_per_update == 7
    # Settings of a run hold both; what is typed beside them counts.
    settings_of_run = tmp_path / "config.yaml"
    settings_of_run.write_text("learner: {examples_per_update: 16, passes: {problems_per_update: 4}}")
    for more, size in (([], 4), (["--examples_per_update", "64"], 0), (["--problems_per_update", "9"], 9)):
        found = train.parse_train("flow-dpo train", ["--recipe", name, "--config", str(settings_of_run), *more], {})
        assert found.learner.passes.problems_per_update == size


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'grpoo'; there are flow-dpo"):
        presets.preset("grpoo", "paper")
    with pytest.raises(ConfigError, match=r"dots: did you mean 'grpo'\? A recipe of your own is named by its place"):
        presets.preset("grpoo", "paper")
    with pytest.raises(ConfigError, match="unknown preset 'big'; there are paper"):
        presets.preset("grpo", "big")
    with pytest.raises(ConfigError, match=r"unknown preset 'sede'; .* did you mean 'seed'\?"):
        presets.preset("grpo", "sede")


def test_loop_learner_and_engines_know_no_method_by_name() -> None:
    made = [presets.load_recipe(name, scale) for name in presets.RECIPES for scale in presets.PRESET_NAMES]
    parts = {type(getattr(recipe, part)).__name__ for recipe in made for part in PARTS}
    # "flow-dpo" is also the name of the program, in sentences.
    words = re.compile(rf"\b({'|'.join([*(name for name in presets.RECIPES if name != 'flow-dpo'), *parts])})\b")
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


SETTINGS_OF_OTHERS = ("dr-grpo", "gspo", "cispo", "reinforce-baseline", "treerpo")
"""Entries that are other values of parts that are tried anyway."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SETTINGS_OF_OTHERS else n for n in OTHERS]
)
def test_other_recipes_learn_resume_and_evaluate(name: str, once: Once, tmp_path: Path) -> None:
    recipe, whole = name.split()[0], tried(name, once)
    kinds = presets.load_recipe(recipe, "seed").objective.accepts
    # What accepts both is handed pairs alone, unless it is asked for more.
    more = {"--credit.fine_tune", "--credit.valued_by"} & {*OTHERS[name]}
    scores = kinds == (ScoredCompletion,) or bool(more) or recipe == "malt"
    shutil.copytree(whole, tmp_path / "parts")
    rows = read_jsonl(whole / "metrics.jsonl")
    assert len(rows) > 1, "nothing is sampled again"
    assert rows[0]["learn/updates"] > 0, "what is resumed has learned nothing"
    # The last checkpoint is gone: it goes on from the one before.
    last = max((tmp_path / "parts" / "checkpoints").iterdir())
    (last / "loop.json").write_text("{}")
    assert train.train(["--output_dir", str(tmp_path / "parts"), "--resume"]) == 0
    again = read_jsonl(tmp_path / "parts" / "metrics.jsonl")
    assert without_seconds(rows) == without_seconds(again)
    same_clock = [one["rollout/seconds"] == other["rollout/seconds"] for one, other in zip(rows, again, strict=True)]
    assert same_clock == [True] * (len(rows) - 1) + [False], "the last batch was sampled again"
    for record in ("trees.jsonl", "pairs.jsonl", "scored.jsonl"):
        files = [folder / record for folder in (whole, tmp_path / "parts")]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()
    assert (whole / "scored.jsonl").exists() == scores
    measured = ["--run", str(whole), "--max_problems", "8", "--output_dir", str(tmp_path / "measured")]
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
    objective = ClippedPolicyGradient(clip_low=0.9, clip_high=0.9, kl_coef=0.04)
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
