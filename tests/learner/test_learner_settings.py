"""Are values that no run could use refused where they are given?"""

from __future__ import annotations

import math
from typing import Any

import pytest

from flow_dpo.core.errors import ConfigError
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, RoleSettings


@pytest.mark.parametrize(
    "values",
    [
        *({"learning_rate": value} for value in (-1.0, 0.0, math.nan, math.inf)),
        {"max_grad_norm": -1.0},
        {"examples_per_update": -1},
        {"max_logprob_drift": -0.2},
        {"max_logprob_drift": math.nan},
    ],
    ids=str,
)
def test_values_that_no_update_could_use(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(values))}|{next(iter(values.values()))}"):
        LearnerSettings(**values)
    with pytest.raises(ConfigError, match=r"above 0, found -0\.001"):
        RoleSettings(learning_rate=-1e-3)


@pytest.mark.parametrize(
    "values",
    [
        {"lora_r": 0},
        {"lora_r": -8},
        {"lora_alpha": 0},
        {"lora_dropout": 1.5},
        {"lora_dropout": 1.0},
        {"lora_dropout": -0.1},
        {"lora_dropout": math.nan},
        {"lora_target_modules": ()},
        {"lora_target_modules": ""},
        {"lora_target_modules": ("q_proj", "")},
    ],
    ids=str,
)
def test_shapes_that_no_adapter_has(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        LoraSettings(**values)
