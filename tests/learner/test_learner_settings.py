"""Are values that no run could use refused where they are given?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from flow_dpo.core.errors import ConfigError
from flow_dpo.learner.settings import LearnerSettings, LoraSettings, PassSettings, RoleSettings, Schedule


@pytest.mark.parametrize(
    "values",
    [
        *({"learning_rate": value} for value in (-1.0, 0.0, math.nan, math.inf)),
        {"logit_temperature": 0.0},
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


def test_rates_fall_in_a_straight_line_to_a_known_end() -> None:
    """Warm-up of 2, then from 1 at update 3 in equal steps to 1/4 at update 6, where it stays: never 0."""
    settings = LearnerSettings(warmup_updates=2, decay_after=6, schedule="linear")
    shares = [settings.rate_share(update) for update in range(1, 9)]
    assert shares == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0.25, 0.25])
    constant = replace(settings, roles={"stop": RoleSettings(constant_rate=True)}, learning_rate=1.0)
    assert [constant.rate("stop", 6), constant.rate("answer", 6)] == pytest.approx([1, 0.25])


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_rates_fall_as_those_of_transformers(schedule: Schedule, theirs: Callable[..., LambdaLR], warmup: int) -> None:
    """Step by step. Their warm-up begins at 0, with an update that would move nothing; here it is a step ahead."""
    settings = LearnerSettings(learning_rate=1e-3, warmup_updates=warmup, decay_after=40, schedule=schedule)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler, rates = theirs(optimizer, warmup, 40), list[float]()
    for _ in range(41):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    assert [settings.rate("answer", update) for update in range(1, 41)] == pytest.approx(
        rates[1 : warmup + 1] + rates[warmup:40]
    )
    assert settings.rate("answer", 60) == pytest.approx(rates[39])
    assert rates[40] == pytest.approx(0)


@pytest.mark.parametrize("name", ["minibatches", "epochs_per_batch"])
def test_a_batch_has_one_update_at_least(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} of 1 or more, found 0"):
        PassSettings(**{name: 0})
