"""Are problems left out by the window of the engine that samples, where it is smaller than the model's?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from flow_dpo.core.types import Problem
from flow_dpo.evaluate.during import measure
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.evaluate.run import evaluate_flow
from flow_dpo.models.context_window import longest_requests
from flow_dpo.runs.runtime import open_runtime

PROBLEMS = [
    Problem(id=str(n), question="Tom has 3 stamps. " * n + "How many stamps does Tom have?", gold="3") for n in (1, 8)
]


def test_an_evaluation_leaves_out_what_the_engine_has_no_room_for(caplog: pytest.LogCaptureFixture) -> None:
    with open_runtime("seed") as runtime:
        recipe = runtime.recipe
        assert recipe is not None
        assert runtime.context_tokens == runtime.loaded.context_tokens
        requests = longest_requests(recipe.flow, runtime.renderer, PROBLEMS[0])
        short = max(len(one.prompt_ids) + one.max_tokens for one in requests) + 8
        smaller = replace(runtime, context_tokens=short)
        found = evaluate_flow(smaller, PROBLEMS)
        during = measure(smaller, recipe.flow, recipe.explore, PROBLEMS, {}, EvaluationSettings())
    assert found["num_problems"] == during["flow"]["num_problems"] == 1
    assert caplog.text.count(f"exceeds the context window of {short} tokens: 8") >= 2
