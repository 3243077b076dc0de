"""Is a model probed once where nothing has changed, and again wherever anything has?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from flow_dpo.core.types import Request, Sampling
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.check import choose_way
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models import fused_decoder, probes
from flow_dpo.models.probes import Way, first_right
from tests.models.test_model_check import engine_of
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

    def diverged(policy: Policy) -> None:
        policy.parameters("answer")[0][0, 0] = 1e6

    def hooked(policy: Policy) -> None:
        policy.model.register_forward_hook(lambda *_: None)

    def patched(policy: Policy) -> None:
        layer: Any = policy.model.get_submodule("model.layers.0.mlp")
        layer.forward = layer.forward

    def exchanged(policy: Policy) -> None:
        layer: Any = policy.model.get_submodule("model.layers.0.mlp")
        layer.__class__ = type("Other", (type(layer),), {})

    def config(policy: Policy) -> None:
        policy.model.config.rms_norm_eps *= 2

    way, key = Counted(), ("own settings", 2)
    assert probed(fresh(), way, key=key) == ("way 0", [1])
    for change in (weight, infinite, diverged, config, hooked, patched, exchanged):
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


def test_what_was_right_only_without_the_registered_attention_is_given_up_every_time() -> None:
    """The first way is right after `give_up` alone, so each model must get its family's own attention."""

    def only_eager(model: PreTrainedModel) -> str:
        return "" if model.config._attn_implementation == "eager" else "off"

    def attention_of(model: PreTrainedModel) -> str | None:
        way = Way[PreTrainedModel](complaint=only_eager)
        assert first_right({"plain": way}, model, lambda: model, model, key="own")[0] == "plain"
        return model.config._attn_implementation

    assert [attention_of(fresh()) for _ in range(2)] == ["eager", "eager"]


def test_an_engine_and_a_learner_of_a_model_that_is_known_are_those_of_one_that_was_probed() -> None:
    def opened(seed: int) -> tuple[list[list[float]], tuple[bool, bool], bool, bool]:
        policy = Policy(tiny_model("llama", seed=seed), ("answer", "stop"), LoraSettings(lora_r=4))
        before = len(probes._found_right)
        engine = engine_of(policy)
        assert isinstance(engine, LocalEngine)
        ways = choose_way(policy, packed=True)
        new = len(probes._found_right) - before
        request = Request(role="answer", prompt_ids=(5, 6, 7), max_tokens=6)
        logprobs = [list(each.logprobs) for each in engine.sample([request], Sampling(), seeds=[3])]
        fused = fused_decoder.of(policy.model) is not None
        assert choose_way(policy, packed=False) == (False, False)
        assert fused_decoder.of(policy.model) is None
        return logprobs, ways, fused, new == 2

    first, again = opened(72), opened(72)
    assert first[:3] == again[:3]
    assert (first[3], again[3]) == (True, False), "probed, and then known"
