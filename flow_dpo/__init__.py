"""Online DPO for flows: teams of language models that learn to write solutions together (arXiv 2410.22304).

    import flow_dpo
    run = flow_dpo.train("seed", max_problems=64, output_dir="runs/seed")
    flow_dpo.evaluate_flow(run.path, max_problems=100)["accuracy"]

The names below are the public interface. Importing the package is cheap: each name is loaded from its module on first
use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    # training, evaluation, inference
    "train": "trainer.python_api",
    "TrainResult": "runs.training",
    "FlowDPOTrainer": "trainer.trainer",
    "FlowDPOConfig": "trainer.config",
    "evaluate_flow": "evaluate.run",
    "ask": "evaluate.ask",
    "generate_traces": "traces.run",
    "push_to_hub": "hub.push",
    "open_runtime": "runs.runtime",
    "Runtime": "runs.runtime",
    "learn": "core.loop",
    # a method: flow, exploration, credit, objective
    "Recipe": "core.recipe",
    "load_recipe": "recipes.presets",
    "RECIPES": "recipes.presets",
    "PRESET_NAMES": "recipes.presets",
    "preset": "recipes.presets",
    "Flow": "core.flow",
    "AnswerStop": "core.answer_stop",
    "Single": "recipes.single",
    "Explore": "core.explore",
    "TurnSampling": "core.explore",
    "Siblings": "core.explore",
    "Group": "core.explore",
    "Credit": "core.credit",
    "OutcomePairs": "core.credit",
    "Objective": "core.objective",
    "Dpo": "core.dpo",
    "Ipo": "recipes.pair_objectives",
    # the values that the parts exchange
    "Problem": "core.types",
    "Message": "core.types",
    "Turn": "core.types",
    "Request": "core.types",
    "Sampling": "core.types",
    "Completion": "core.types",
    "Solution": "core.types",
    "Verdict": "core.types",
    "Pair": "core.types",
    "ScoredCompletion": "core.types",
    "Tree": "core.tree",
    # sampling
    "Engine": "core.engine",
    "PlainEngine": "engines.plain",
    "LocalEngine": "engines.local.engine",
    "VllmEngine": "engines.vllm.in_process",
    "VllmServerEngine": "engines.vllm.server",
    "ScriptedEngine": "engines.scripted",
    "TabularEngine": "engines.scripted",
    "RolloutRunner": "core.rollouts",
    "InProcessWorkers": "workers.in_process",
    "Backends": "core.protocols",
    # learning
    "Policy": "learner.policy",
    "LoraSettings": "learner.settings",
    "Learner": "learner.learner",
    "LearnerSettings": "learner.settings",
    # models, data, grading
    "load_model": "models.load",
    "Renderer": "models.render",
    "load_problems": "data.problems",
    "Verifier": "verify.verifier",
    "Grader": "core.grader",
    "AnswerGrader": "verify.grader",
    "RewardFunctions": "verify.rewards",
    "answer_reward": "verify.rewards",
    # callbacks, metrics, errors
    "Callback": "core.protocols",
    "ProgressiveValidation": "core.metrics",
    "FlowDpoError": "core.errors",
}
"""The module that defines each public name. Type checkers read `__init__.pyi`; a test checks that both agree."""

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"flow_dpo has no name {name!r}; its public names are {', '.join(_HOMES)}")
    return getattr(import_module(f"flow_dpo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
