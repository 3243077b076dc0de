"""The registry of recipes: from a name, or a place outside the package, to a recipe with all its values.

    preset("grpo", "seed")                        GRPO for the embedded seed model, as recipes/grpo/presets.py states it
    preset("mine.py:ShortestRight", "seed")       the same for a recipe in the user's own file
    load_recipe("flow-dpo", "paper")              the recipe alone, for `core.loop.learn`

Invariant: nothing is fitted or guessed. A recipe states its presets, and an unknown name is refused with the nearest
known one. A recipe is imported only when it is requested, so no recipe costs the imports of another.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.flow import Flow
from flow_dpo.core.objective import Objective
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.types import Pair
from flow_dpo.plugins.load import installed, is_source, load_object

if TYPE_CHECKING:
    from flow_dpo.recipes.scales import Preset

PRESET_NAMES = ("paper", "chat", "small", "seed")
"""The presets that every recipe of the package has: its paper's, and one for each of three sizes (`recipes.scales`)."""
GPU = "gpu"
"""The preset of Flow-DPO's two recipes that keeps a GPU busy."""

PRESET_LINES: Mapping[str, str] = {
    "paper": "the values that the recipe's paper states",
    "chat": "chat models, runs of hundreds of problems; the default for all models but the seed",
    "small": "models of half a billion parameters, two worked examples in the prompt",
    "seed": "the embedded seed model, and its default",
    GPU: "batches of 512 problems, to keep a GPU busy (flow-dpo, flow-dpo-paper)",
}
"""What each preset is for, in a line."""
_LINES = {
    "flow-dpo": "Answer writes whole attempts, Stop judges each; Stop learns from every verdict (default)",
    "flow-dpo-paper": "Flow-DPO as published: Stop after every chunk, DPO pairs at every node (2410.22304)",
    "online-dpo": "two whole answers per question, the better one preferred (OAIF, 2402.04792)",
    "grpo": "advantages within a problem's group of answers (2402.03300)",
    "dapo": "GRPO with clip-higher, dynamic sampling and means over tokens (2503.14476)",
    "dr-grpo": "GRPO without the divisions by standard deviation and by length (2503.20783)",
    "gspo": "GRPO with probability ratios of whole answers (2507.18071)",
    "cispo": "clipped ratios as weights: every token keeps its gradient (2506.13585)",
    "rloo": "REINFORCE with the mean of the other answers as baseline (2402.14740)",
    "reinforce-pp": "REINFORCE++: one answer per question, advantages whitened over the batch (2501.03262)",
    "reinforce-baseline": "REINFORCE++ with the group's mean subtracted first (2501.03262)",
    "vineppo": "advantages of steps, estimated by rollouts from the states between them (2410.01679)",
    "spo-chain": "advantages of segments cut at unsure tokens, estimated by rollouts (2505.23564)",
    "spo-tree": "a full tree of segments, each compared with its siblings, whitened (2505.23564)",
    "treerpo": "a full tree of steps, GRPO among the siblings at every node (2506.05183)",
    "treerl": "chains that fork at their least sure tokens, values from all leaves (2506.11902)",
    "rpo": "branches off a correct path, contrasted by an odds ratio (2410.10858)",
    "iterative-rpo": "DPO and likelihood on right and wrong answers, the reference renewed (2404.19733)",
    "step-dpo": "the first wrong step of a solution against right steps from the same state (2406.18629)",
    "cpl": "MCTS over plans, preferences from the values of plan steps (2409.08642)",
    "malt": "generate, verify, refine: three roles, values backed up from a full tree (2412.01928)",
    "rejection-sampling": "fine-tuning on correct answers (RFT, 2308.01825)",
    "regenesis": "reasoning paths from general guidelines, fine-tuning on the right ones (2410.02108)",
    "dots": "a planner learns which way of solving suits a problem (2410.03864)",
}

_MODULES = {
    "flow-dpo": "flow_dpo.presets:PRESETS",
    "flow-dpo-paper": "flow_dpo.presets:PAPER",
    "online-dpo": "online_dpo",
    "grpo": "grpo.presets",
    "dapo": "dapo",
    "dr-grpo": "dr_grpo",
    "gspo": "gspo",
    "cispo": "cispo",
    "rloo": "rloo",
    "reinforce-pp": "reinforce_pp",
    "reinforce-baseline": "reinforce_pp:BASELINE",
    "vineppo": "vineppo.presets",
    "spo-chain": "tree_advantages.presets:SPO_CHAIN",
    "spo-tree": "tree_advantages.presets:SPO_TREE",
    "treerpo": "tree_advantages.presets:TREERPO",
    "treerl": "tree_advantages.presets:TREERL",
    "rpo": "rpo.presets",
    "iterative-rpo": "iterative_rpo.presets",
    "step-dpo": "step_dpo.presets",
    "cpl": "cpl.presets",
    "malt": "malt.presets",
    "rejection-sampling": "rejection_sampling.presets",
    "regenesis": "regenesis.presets",
    "dots": "dots.presets",
}


class _Recipes(Mapping[str, "Mapping[str, Preset]"]):
    """The package's recipes by name, each imported when it is first requested."""

    def __getitem__(self, name: str) -> Mapping[str, Preset]:
        module, _, presets = _MODULES[name].partition(":")
        return getattr(import_module(f"flow_dpo.recipes.{module}"), presets or "PRESETS")

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


OBJECTIVE_LINES: Mapping[str, str] = {
    "dpo": "DPO (2305.18290), beta 0.1",
    "cdpo": "DPO with smoothed labels (Mitchell's cDPO)",
    "robust": "DPO corrected for flipped labels (2403.00409)",
    "hinge": "hinge loss on DPO's margin (SLiC, 2305.10425)",
    "ipo": "a target distance between mean log-ratios (2310.12036)",
    "simpo": "mean log-probabilities and a target margin, no reference (2405.14734)",
    "orpo": "likelihood and an odds ratio, no reference (2403.07691)",
    "kto": "desirable and undesirable completions, relative to a reference point (2402.01306)",
}
"""The pair objectives that `--objective` can put in place of a recipe's own, each described in a line."""

RECIPES: Mapping[str, Mapping[str, Preset]] = _Recipes()
"""The presets of every recipe of the package, by the recipe's name."""


def preset(recipe: str, name: str, *, flow: Flow[Any] | None = None) -> Preset:
    """A recipe's preset. If `flow` is given, it replaces the recipe's own as it is, without any values of the scale.

    `recipe` is a name in `RECIPES` or of an installed plug-in, or a place, "path/to/file.py:Name" or
    "package.module:Name", whose code is then run. Raises `ConfigError` for an unknown recipe or preset.
    """
    presets = _presets_of(recipe)
    if name not in presets:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(presets)}{_nearest(name, presets)}")
    found = presets[name]
    return found if flow is None else replace(found, recipe=replace(found.recipe, flow=flow))


def load_recipe(recipe: str, preset_name: str = "chat", *, flow: Flow[Any] | None = None) -> Recipe:
    """The recipe of a preset, without its adapter and update settings."""
    return preset(recipe, preset_name, flow=flow).recipe


def pair_objective(name: str, replaced: Objective | None, *, recipe: str) -> Any:
    """The built-in pair objective of this name, with its own defaults, to replace a recipe's objective.

    Raises `ConfigError` if the recipe's objective, `replaced`, takes no pairs; it is None if another credit is given.
    """
    if replaced is not None and Pair not in replaced.accepts:
        pairs = [each for each in RECIPES if Pair in load_recipe(each).objective.accepts]
        raise ConfigError(
            f"--objective {name} learns pairs, and {recipe} makes none; choose one of {', '.join(pairs)}, or give a "
            f"--credit that makes pairs"
        )
    return import_module("flow_dpo.recipes.pair_objectives").OBJECTIVES[name]


def recipe_names() -> list[str]:
    """The names of the package's recipes and of those from installed plug-ins."""
    return list(dict.fromkeys([*RECIPES, *installed("recipe")]))


def recipe_lines() -> dict[str, str]:
    """A one-line description of every recipe, by name. Imports none of them."""
    return {name: _LINES.get(name, "from an installed plug-in") for name in recipe_names()}


def preset_names(recipe: str) -> list[str]:
    """The names of the presets that a recipe states. Runs the recipe's code if `recipe` names a file or a module."""
    return [*_presets_of(recipe)]


def default_preset(model_name_or_path: str) -> str:
    """The preset used if none is named: "seed" for the embedded model, "chat" for any other."""
    return "seed" if model_name_or_path == "seed" else "chat"


def default_recipe(*, own_flow: bool) -> str:
    """The recipe used if none is named: Flow-DPO, whose exploration and credit are for its own flow of attempts; for a
    flow of the user's own the paper's version, which takes any flow."""
    return "flow-dpo-paper" if own_flow else "flow-dpo"


def _presets_of(recipe: str) -> Mapping[str, Preset]:
    if recipe in RECIPES:
        return RECIPES[recipe]
    plugins = installed("recipe")
    if is_source(recipe) or recipe in plugins:
        return _checked(load_object(recipe, kind="recipe"), recipe)
    known = recipe_names()
    raise ConfigError(
        f"unknown recipe {recipe!r}; there are {', '.join(known)}{_nearest(recipe, known)} A recipe of your own is "
        f"named by its place, path/to/file.py:Name"
    )


def _checked(found: object, source: str) -> Mapping[str, Preset]:
    """The presets that an object from outside stands for: a mapping of presets by name; one preset, used under every
    name; or a bare recipe, which takes adapter and update settings from the scales."""
    from flow_dpo.recipes.scales import SCALES, Preset

    if isinstance(found, Recipe):
        found = {name: scale.preset(found) for name, scale in SCALES.items()}
    elif isinstance(found, Preset):
        found = dict.fromkeys(PRESET_NAMES, found)
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(
            f"expected a Recipe, a Preset or presets by name from {source}, found {found!r:.200}; see docs/recipes.md"
        )
    for name, one in found.items():
        if not isinstance(name, str) or not isinstance(one, Preset):
            raise ConfigError(f"expected a Preset under each name of {source}, found {name!r}: {one!r:.200}")
        _check_parts(one.recipe, f"{source}, preset {name}")
    return found


def _check_parts(recipe: Recipe, where: str) -> None:
    """Raise `ConfigError` for a part that lacks what the loop needs of it."""
    wanted = {"explore": ("__call__", "alone"), "credit": ("__call__",),
              "objective": ("__call__", "accepts", "needs_reference")}  # fmt: skip
    if not isinstance(recipe.flow, Flow):
        raise ConfigError(f"expected a Flow as the flow of {where}, found {recipe.flow!r:.200}")
    for part in ("flow", *wanted):
        found = getattr(recipe, part)
        lacking = [name for name in wanted.get(part, ()) if not hasattr(found, name)]
        if isinstance(found, type) or not is_dataclass(found) or lacking:
            raise ConfigError(
                f"expected a frozen dataclass instance{' with ' + ', '.join(lacking) if lacking else ''} as the {part} "
                f"of {where}, found {found!r:.200}; its fields are what flags set"
            )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]!r}?" if near else "."
