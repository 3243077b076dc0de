"""Online DPO for flows: teams of language models that learn to write solutions together (arXiv 2410.22304).

Importing this package imports nothing heavy; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow_dpo.credit import OutcomePairs
    from flow_dpo.engines.base import Engine
    from flow_dpo.engines.local import LocalEngine
    from flow_dpo.engines.scripted import ScriptedEngine, TabularEngine
    from flow_dpo.errors import FlowDpoError
    from flow_dpo.explore import Siblings
    from flow_dpo.flows.answer_stop import AnswerStop
    from flow_dpo.flows.base import Flow
    from flow_dpo.flows.single import Single
    from flow_dpo.learner import Learner
    from flow_dpo.objectives import Dpo, Ipo
    from flow_dpo.online import learn
    from flow_dpo.policy import Policy
    from flow_dpo.problems import load_problems
    from flow_dpo.recipes import PRESETS, RECIPES, Recipe
    from flow_dpo.render import Renderer
    from flow_dpo.speaker import Speaker
    from flow_dpo.tree import Tree
    from flow_dpo.types import Completion, Pair, Problem, Request, Turn, Verdict
    from flow_dpo.verify import Verifier

_HOMES = {
    "AnswerStop": "flows.answer_stop",
    "Completion": "types",
    "Dpo": "objectives",
    "Engine": "engines.base",
    "Flow": "flows.base",
    "FlowDpoError": "errors",
    "Ipo": "objectives",
    "Learner": "learner",
    "LocalEngine": "engines.local",
    "OutcomePairs": "credit",
    "PRESETS": "recipes",
    "Pair": "types",
    "Policy": "policy",
    "Problem": "types",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Renderer": "render",
    "Request": "types",
    "ScriptedEngine": "engines.scripted",
    "Siblings": "explore",
    "Single": "flows.single",
    "Speaker": "speaker",
    "TabularEngine": "engines.scripted",
    "Tree": "tree",
    "Turn": "types",
    "Verdict": "types",
    "Verifier": "verify",
    "learn": "online",
    "load_problems": "problems",
}

__all__ = [
    "PRESETS",
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
    "ScriptedEngine",
    "Siblings",
    "Single",
    "Speaker",
    "TabularEngine",
    "Tree",
    "Turn",
    "Verdict",
    "Verifier",
    "learn",
    "load_problems",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"flow_dpo has no name {name!r}")
    return getattr(import_module(f"flow_dpo.{_HOMES[name]}"), name)
