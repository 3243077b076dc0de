"""Is a model probed once where nothing has changed, and again wherever anything has?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models.probes import Way, first_right
from tests.support.tiny_models import tiny_model


class Counted:
    """A way with a complaint, and how often it was asked."""

    def __init__(self, complaint: str = "") -> None:
        self.num, self._complaint = 0, complaint

    def __call__(self, subject: PreTrainedModel) -> str:
        del subject
        self.num += 1
        return self._complaint


def probed(model: PreTrainedModel, *ways: Counted, key: object = ("own settings", 1)) -> tuple[str, list[int]]:
    """Which way was found right, and how often each was asked."""
    before = [way.num for way in ways]
    named = {f"way {index}": Way[PreTrainedModel](complaint=way) for index, way in enumerate(ways)}
    name, _ = first_right(named, model, lambda: model, model, key=key)
    return name, [way.num - num for way, num in zip(ways, before, strict=True)]


def fresh(change: Callable[[Policy], None] = lambda _: None, rank: int = 3, seed: int = 0) -> PreTrainedModel:
    """A model that is loaded anew, with an adapter."""
    policy = Policy(tiny_model("llama", seed=71), ("answer",), LoraSettings(lora_r=rank), seed=seed)
    with torch.no_grad():
        change(policy)
    return policy.model


def test_the_same_model_is_probed_once_and_another_adapters_numbers_change_nothing() -> None:
    way, other = Counted(), Counted()
    assert probed(fresh(), way, other) == ("way 0", [1, 0])
    assert probed(fresh(), way, other) == ("way 0", [0, 0])
    assert probed(fresh(seed=5), way, other) == ("way 0", [0, 0])
    assert probed(fresh(), way, other, key=("own settings", 1)) == ("way 0", [0, 0])


def test_whatever_else_has_changed_it_is_probed_again() -> None:
    def weight(policy: Policy) -> None:
        next(policy.model.parameters())[5, 3] += 1e-6

    def infinite(policy: Policy) -> None:
        policy.parameters("answer")[0][0, 0] = torch.inf

    def config(policy: Policy) -> None:
        policy.model.config.rms_norm_eps *= 2

    way, key = Counted(), ("own settings", 2)
    assert probed(fresh(), way, key=key) == ("way 0", [1])
    for change in (weight, infinite, config):
        assert probed(fresh(change), way, key=key) == ("way 0", [1]), change.__name__
    assert probed(fresh(rank=4), way, key=key) == ("way 0", [1]), "adapters of another size"
    assert probed(fresh().to(torch.bfloat16), way, key=key)[1] != [0], "another precision"  # pyright: ignore[reportArgumentType]
    assert probed(fresh(), way, key=LocalSettings(packed_gib=2)) == ("way 0", [1])
    assert probed(fresh(), way, key=LocalSettings(packed_gib=3)) == ("way 0", [1])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert probed(fresh(), way, key=key) == ("way 0", [1])
    finally:
        torch.set_num_threads(threads)
    assert probed(fresh(), way, key=key) == ("way 0", [0]), "what was found right stays so"


def test_what_is_not_right_is_probed_every_time() -> None:
    wrong, right = Counted("off"), Counted()
    for _ in range(2):
        assert probed(fresh(), wrong, right, key=("own settings", 3)) == ("way 1", [1, 1])


def test_without_a_key_nothing_is_remembered() -> None:
    way = Counted()
    for _ in range(2):
        assert probed(fresh(), way, key=None) == ("way 0", [1])
