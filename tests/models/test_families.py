"""Is every family of causal models right or refused? Against transformers and PEFT alone, for engine and learner.

The oracle is an untouched copy of the model with the adapter put on by PEFT, whole forwards, no cache. The
slow test tries every family that transformers can build tiny, in float32 and bfloat16.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import get_peft_model

from flow_dpo.core.types import Completion, Request, Sampling
from flow_dpo.learner.policy import Policy
from flow_dpo.models.facts import steady_tokens
from tests.support.model_families import names
from tools.model_table import BEGIN, DOCS, END, ROLES, Family, examine

SAMPLE = {
    "llama": ("exact", "packed"),
    "qwen2": ("exact", "packed"),
    "qwen3": ("exact", "packed"),
    "mistral": ("exact", "packed"),
    "phi3": ("exact", "packed"),
    "gemma3_text": ("exact", "packed"),
    "diffllama": ("exact", "packed"),
    "hrm_text": ("exact", "packed"),
    "gpt2": ("exact", "packed"),
    "opt": ("exact", "packed"),
    "mixtral": ("exact", "packed"),
    "gemma2": ("plain path", "separate"),
    "gpt_oss": ("plain path", "separate"),
    "llama4_text": ("plain path", "separate"),
    "bloom": ("plain path", "separate"),
    "falcon_h1": ("plain path", "separate"),
    "rwkv": ("plain path", "separate"),
    "deepseek_v3": ("exact", "packed"),
    "xlnet": ("refused", "refused"),
}
"""Families of every kind that there is, and what becomes of them."""


def stir(policy: Policy) -> None:
    """Move all adapters off their first values, each otherwise."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for role in policy.roles:
            for weight in policy.weights(role):
                weight.add_(torch.randn(weight.shape, generator=generator).to(weight.device) * 0.1)
            policy.publish(role)


def sampled(family: Family, room: int) -> list[tuple[Request, Completion]]:
    """Two prompts past every window of the tiny models for each role, then on from what was sampled."""
    engine: Any = family.sampler
    generator = torch.Generator().manual_seed(5)
    prompt = tuple((torch.randint(5, 100, (min(110, room - 24),), generator=generator)).tolist())
    first = [Request(role=role, prompt_ids=ids, max_tokens=9) for role in ROLES for ids in (prompt, prompt[3:])]
    first.append(Request(role="stop", prompt_ids=prompt, choices=(7, 90)))
    completions = engine.sample(first, Sampling(), seeds=list(range(len(first))))
    pairs = list(zip(first, completions, strict=True))
    later = [Request(role=r.role, prompt_ids=r.prompt_ids + c.token_ids, max_tokens=5) for r, c in pairs[:-1]]
    return pairs + list(zip(later, engine.sample(later, Sampling(), seeds=[20, 21, 22, 23]), strict=True))


def expected(model: Any, request: Request, completion: Completion) -> torch.Tensor:
    """Log-probabilities of a completion by one whole forward."""
    ids = torch.tensor([request.prompt_ids + completion.token_ids[:-1]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt_ids) - 1 :].float()
    if request.choices:
        return logits[:, list(request.choices)].log_softmax(-1)[[0], [request.choices.index(completion.token_ids[0])]]
    return logits.log_softmax(-1)[range(len(completion.token_ids)), list(completion.token_ids)]


def adapted(family: Family, role: str, dtype: torch.dtype) -> Any:
    """The untouched copy in this precision, with the role's adapter put on by PEFT alone."""
    policy: Any = family.policy
    config = policy.targets.config(replace(policy.settings, lora_r=4, lora_dropout=0.0))
    model = get_peft_model(copy.deepcopy(family.base), config, autocast_adapter_dtype=False).to(dtype).eval()
    tensors = {name.replace(".default.", "."): tensor for name, tensor in model.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name, tensor in zip(policy.names(role), policy.parameters(role), strict=True):
            tensors.pop(name).copy_(tensor)
    assert not tensors
    return model


def differences(family: Family, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """How far engine and learner, and beside each the model's own forward in this precision, are from the oracle."""
    policy, student = family.policy, family.student
    assert policy is not None
    stir(policy)
    room = min(512, steady_tokens(policy.model) or 512)
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"engine": [], "learner": []}
    pairs = sampled(family, room) if family.sampler is not None else []
    for role in ROLES:
        fresh, exact = (adapted(family, role, to) for to in (dtype, torch.float32))
        for model in (fresh, exact):
            # BigBird chooses its attention by the first sequence that it reads, for good; a run's first is short.
            model(input_ids=torch.arange(3, 23)[None], use_cache=False)
        own = [(r, c) for r, c in pairs if r.role == role]
        truth = [expected(exact, r, c) for r, c in own]
        rounded = torch.cat([(expected(fresh, r, c) - t).abs() for (r, c), t in zip(own, truth, strict=True)])
        engine = [torch.tensor(c.logprobs) for _, c in own]
        ways = {"engine": engine}
        if student is not None and family.learner != "refused":
            with torch.no_grad(), policy.using(role):
                ways["learner"] = student._gradients.logprobs(own)()
        for name, values in ways.items():
            found[name].append((torch.cat([(v - t).abs() for v, t in zip(values, truth, strict=True)]), rounded))
    return {name: (torch.cat([a for a, _ in f]), torch.cat([b for _, b in f])) for name, f in found.items() if f}


def check(name: str, dtype: torch.dtype) -> Family:
    """Nothing that is accepted is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        family = examine(name, dtype)
        if family.sampler is None:
            return family
        for what, (off, rounding) in differences(family, dtype).items():
            if dtype == torch.float32:
                assert off.max() < 1e-3, f"{name}: {what} is silently wrong by {off.max():.2g} nats"
            else:
                allowed = 3 * rounding.mean() + 0.1
                assert off.mean() < allowed, f"{name}: {what} is off by {off.mean():.2g}, rounding is {rounding.mean()}"
    return family


@pytest.mark.parametrize("name", SAMPLE)
def test_the_page_has_what_becomes_of_a_family(name: str) -> None:
    """To write it, in minutes: python -m tools.model_table."""
    table = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    [cells] = [line.split(" | ") for line in table.splitlines() if line.startswith(f"| {name} | ")]
    assert tuple(cell.partition(" (")[0] for cell in cells[2:4]) == SAMPLE[name]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_is_right_or_refused(name: str) -> None:
    family = check(name, torch.float32)
    assert (family.engine, family.learner) == SAMPLE[name], family.seen


@pytest.mark.parametrize("name", ["falcon_h1", "gemma3_text", "mixtral", "gemma2"])
def test_half_precision_hides_nothing(name: str) -> None:
    family = check(name, torch.bfloat16)
    assert (family.engine, family.learner) == SAMPLE[name], family.seen


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_family_is_right_or_refused(dtype: torch.dtype) -> None:
    built = 0
    wrong: list[str] = []
    for name in names():
        try:
            built += bool(check(name, dtype).engine)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong
    assert built >= 160
