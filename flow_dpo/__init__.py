"""Online DPO for flows: teams of language models that learn to write solutions together (arXiv 2410.22304).

Importing this package imports nothing heavy; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow_dpo.core.answer_stop import AnswerStop
    from flow_dpo.core.credit import OutcomePairs
    from flow_dpo.core.dpo import Dpo, Ipo
    from flow_dpo.core.engine import Engine
    from flow_dpo.core.errors import FlowDpoError
    from flow_dpo.core.explore import Siblings
    from flow_dpo.core.flow import Flow
    from flow_dpo.core.loop import learn
    from flow_dpo.core.recipe import Recipe
    from flow_dpo.core.rollouts import RolloutRunner
    from flow_dpo.core.single import Single
    from flow_dpo.core.tree import Tree
    from flow_dpo.core.types import Completion, Pair, Problem, Request, Turn, Verdict
    from flow_dpo.data.problems import load_problems
    from flow_dpo.engines.local.engine import LocalEngine
    from flow_dpo.engines.scripted import ScriptedEngine, TabularEngine
    from flow_dpo.learner.learner import Learner
    from flow_dpo.learner.policy import Policy
    from flow_dpo.models.render import Renderer
    from flow_dpo.recipes.presets import PRESET_NAMES, RECIPES, load_recipe
    from flow_dpo.verify.verifier import Verifier

_HOMES = {
    "AnswerStop": "core.answer_stop",
    "Completion": "core.types",
    "Dpo": "core.dpo",
    "Engine": "core.engine",
    "Flow": "core.flow",
    "FlowDpoError": "core.errors",
    "Ipo": "core.dpo",
    "Learner": "learner.learner",
    "LocalEngine": "engines.local.engine",
    "OutcomePairs": "core.credit",
    "PRESET_NAMES": "recipes.presets",
    "Pair": "core.types",
    "Policy": "learner.policy",
    "Problem": "core.types",
    "RECIPES": "recipes.presets",
    "Recipe": "core.recipe",
    "Renderer": "models.render",
    "Request": "core.types",
    "ScriptedEngine": "engines.scripted",
    "Siblings": "core.explore",
    "Single": "core.single",
    "RolloutRunner": "core.rollouts",
    "TabularEngine": "engines.scripted",
    "Tree": "core.tree",
    "Turn": "core.types",
    "Verdict": "core.types",
    "Verifier": "verify.verifier",
    "learn": "core.loop",
    "load_problems": "data.problems",
    "load_recipe": "recipes.presets",
}

__all__ = [
    "PRESET_NAMES",
    "RECIPES",
    "AnswerStop",
    "Completion",
    "Dpo",
    "Engine",
    "Flow",
    "FlowDpoError",
    "Ipo",
    "Learner",
    "LocalEngine",
    "OutcomePairs",
    "Pair",
    "Policy",
    "Problem",
    "Recipe",
    "Renderer",
    "Request",
    "RolloutRunner",
    "ScriptedEngine",
    "Siblings",
    "Single",
    "TabularEngine",
    "Tree",
    "Turn",
    "Verdict",
    "Verifier",
    "learn",
    "load_problems",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"flow_dpo has no name {name!r}")
    return getattr(import_module(f"flow_dpo.{_HOMES[name]}"), name)
