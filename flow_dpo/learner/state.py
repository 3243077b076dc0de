"""Learner checkpoints: adapters, optimizer states and the pools of examples, from which a run resumes exactly.

A checkpoint is a folder of safetensors and JSON, never a pickle:

    adapters/answer/adapter_model.safetensors, adapter_config.json    in PEFT's layout, as the model samples with it
    learner.safetensors    "answer/weights/<name>", "answer/exp_avg/<name>", "reference_answer/weights/<name>",
                           "kept/<version>/answer/<name>", ...
    learner.json           the version, updates by role and pool, the versions kept by call, and the pools' examples

Invariant: what is read is bit for bit what was written. Half-precision adapters are restored from float32 weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Example, Pair, Role, ScoredCompletion
from flow_dpo.data import strict_json, typed_json
from flow_dpo.data.typed_json import Count
from flow_dpo.learner.kept import Weights
from flow_dpo.learner.policy import Policy

TENSORS, FACTS = "learner.safetensors", "learner.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
SCHEMA = "learner/3"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """learner.json: counts by role and pool, and the examples of all pools."""

    schema: str
    version: Count
    role_updates: dict[Role, Count]
    pool_updates: dict[Role, Count]
    reference_versions: dict[Role, Count | None]
    packed: bool | None
    kept: tuple[Count, ...]
    pool: tuple[Mapping[str, Any], ...]


Optimizers = Mapping[Role, torch.optim.Adam]


class Texts:
    """Examples as JSON texts, each made once while it waits: most of a window was in the last checkpoint already."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Example, str]] = {}

    def __call__(self, pool: Sequence[Example]) -> list[str]:
        known, self._known = self._known, {}
        for each in pool:
            self._known[id(each)] = known.get(id(each)) or (each, json.dumps(typed_json.write(each), allow_nan=False))
        return [self._known[id(each)][1] for each in pool]


def write(
    folder: Path,
    policy: Policy,
    optimizers: Optimizers,
    facts: Mapping[str, Any],
    pool: Sequence[str],
    kept: Mapping[int, Weights],
) -> None:
    """Write a learner's state. `facts`: the learner's counters, as plain JSON. `pool`: examples, as made by `Texts`."""
    folder.mkdir(parents=True, exist_ok=True)
    for role in policy.roles:
        policy.save_adapter(role, folder / "adapters" / role)
    tensors = {name: t.detach().cpu().contiguous() for name, t in live_tensors(policy, optimizers, kept).items()}
    save_file(tensors, folder / TENSORS)
    head = json.dumps({"schema": SCHEMA, **facts}, allow_nan=False).removesuffix("}")
    (folder / FACTS).write_text(f'{head}, "pool": [{", ".join(pool)}]}}', encoding="utf-8")


def read(folder: Path, policy: Policy, optimizers: Optimizers) -> tuple[Facts, list[Example], dict[int, Weights]]:
    """Load a learner's state into policy and optimizers; return facts, pool and kept weights. Raises `DataError`."""
    place = str(folder / FACTS)
    try:
        found = strict_json.parse_object((folder / FACTS).read_bytes(), place)
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: expected a learner's {FACTS} and {TENSORS}, found {error!r}") from error
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{place}: expected the schema {SCHEMA!r}, found {found.get('schema')!r:.80}: another version of "
            "flow-dpo wrote it; start a new run, or use the version that wrote it"
        )
    facts = typed_json.read(Facts, found, place)
    pool: list[Example] = [
        typed_json.read(Pair if "chosen" in row else ScoredCompletion, row, f"{place}, pool {number}")
        for number, row in enumerate(facts.pool)
    ]
    stepped = {role for role in policy.roles if any(name.startswith(f"{role}/exp_avg/") for name in tensors)}
    for role, optimizer in optimizers.items():
        optimizer.state.clear()
        if role in stepped:
            for weight in policy.weights(role):
                optimizer.state[weight] = {
                    m: torch.zeros(()) if m == "step" else torch.zeros_like(weight) for m in MOMENTS
                }
    kept: dict[int, Weights] = {
        version: {role: [torch.zeros_like(w) for w in policy.weights(role)] for role in policy.roles}
        for version in sorted({*facts.kept} - {facts.version})
    }
    expected = live_tensors(policy, optimizers, kept)
    if odd := sorted(set(expected) ^ set(tensors)):
        raise DataError(f"{folder / TENSORS}: made with other settings: {len(odd)} names differ, such as {odd[0]!r}")
    with torch.no_grad():
        for name, tensor in expected.items():
            if tensor.shape != tensors[name].shape:
                raise DataError(
                    f"{folder / TENSORS}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
                )
            tensor.copy_(tensors[name])
    for adapter in policy.adapters:
        policy.publish(adapter)
    return facts, pool, kept


def live_tensors(policy: Policy, optimizers: Optimizers, kept: Mapping[int, Weights]) -> dict[str, torch.Tensor]:
    """The live tensors that an update reads or writes, by name."""
    tensors: dict[str, torch.Tensor] = {
        f"kept/{version}/{role}/{name}": weight
        for version, roles in kept.items()
        for role, weights in roles.items()
        for name, weight in zip(policy.names(role), weights, strict=True)
    }
    for adapter in policy.adapters:
        for name, weight in zip(policy.names(adapter), policy.weights(adapter), strict=True):
            tensors[f"{adapter}/weights/{name}"] = weight
            state = optimizers[adapter].state.get(weight) if adapter in optimizers else None
            if state:
                tensors |= {f"{adapter}/{moment}/{name}": state[moment] for moment in MOMENTS}
    return tensors
