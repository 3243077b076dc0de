"""What a run will take of its device's memory: estimated before work starts, told in a line, and made to fit.

    settings, line = planned(settings)
    line        # Memory: about 51 of the 79 GiB of cuda:0 at most: weights 15, a row of 4,096 tokens 28, ...

A row's memory is that of a dry run (`models.dry_run`), the rest is counted. What is left to the device ("auto": tokens
of a row, gradient checkpointing, the budget of keys and values) is lowered until the sum fits; what the user fixed and
does not fit is refused, with what to change. Invariant: it depends on the settings, the model's config and the size of
the device's memory alone, not on what is free at the moment, so that a resumed run has the same rows.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from flow_dpo.core.errors import ConfigError, ModelError
from flow_dpo.core.types import Role
from flow_dpo.engines.kv_budget import HOST_SHARE, host_memory, of_one_worker
from flow_dpo.engines.merged_lora import can_merge, merging
from flow_dpo.engines.settings import USUAL_KV_GIB, EngineSettings, LocalSettings, VllmSettings
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LoraSettings, RowSettings
from flow_dpo.models.dry_run import row_memory
from flow_dpo.models.facts import context_tokens
from flow_dpo.models.fused_decoder import MOST_WEIGHTS
from flow_dpo.models.load import blank_model, device_of
from flow_dpo.models.own_forward import FAULTS
from flow_dpo.models.settings import ModelSettings, QuantizationSettings
from flow_dpo.ranks.threads import rows_at_once
from flow_dpo.runs.settings import TrainSettings

GIB = 2**30
_LIBRARIES = {"cuda": GIB, "cpu": 3 * GIB // 2}
"""Beside what torch's allocator holds: on a GPU its context; on a CPU Python and torch, and what kernels keep."""
_PROCESS = GIB // 4
"""What a worker process has of its own beside its model: what kernels keep, and what Python does not share."""
_KEPT = {"cpu": 1.4}
"""A row's memory in a process, over what torch's allocator holds of it: C's allocator keeps what is freed in pieces
(measured on a CPU: 1.4 on a model of 0.5B)."""
_USABLE = {"cuda": 0.92, "cpu": 1.0}
"""Share of the memory that a plan may use: a GPU's allocator leaves gaps."""
_VLLM = 3 * GIB
"""vLLM on a GPU beside its weights and its cache: activations of a step, captured graphs."""
_KV_SHARE = 0.1
"""Of a GPU's memory, for keys and values at least before rows are shortened for them."""
_LEAST_KV = GIB // 4
_WAYS = ((4096, False), (2048, False), (4096, True), (2048, True), (1024, True), (512, True))
"""Tokens of a row and gradient checkpointing, in the order in which they are tried where they are left to the device:
shorter rows cost a prefix that is computed twice, checkpointing a third of the time."""
_WAYS_OF_SMALL = ((1024, False), (1024, True), (512, True))
"""The same for a small model on a CPU, whose updates have rows for several threads then. However many there are: rows
are the same on every machine, and so are bits."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes that follow from a model, its adapters and a row."""

    weights: int
    adapters: int
    """All that learning keeps of them: parameters, masters, Adam's moments, a gradient, a copy of before an update."""
    row: int
    merged: int
    """Weights of their own of roles that sample with merged adapters."""
    kv_token: int
    context_tokens: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run takes, in bytes, and by which settings."""

    sizes: Sizes
    tokens: int
    checkpointing: bool
    parts: dict[str, int]
    """By what it is for, in words; keys and values last."""

    @property
    def total(self) -> int:
        """Of all together."""
        return sum(self.parts.values())

    @property
    def listed(self) -> str:
        """The parts that count, in GiB."""
        return ", ".join(f"{name} {_gib(size)}" for name, size in self.parts.items() if size > GIB / 20)


def planned(settings: TrainSettings, *, memory: int | None = None) -> tuple[TrainSettings, str]:
    """The settings with numbers for all that is "auto", and the line that tells what they take.

    `memory` in bytes stands for the device's own. Raises `ConfigError` where what is fixed does not fit.
    """
    rows = settings.learner.rows
    plans: list[Plan] = []
    try:
        device = device_of(settings.runtime.model)
        available = device_memory(device) if memory is None else memory
        usable = int(_USABLE.get(device.type, 1.0) * available)
        small = device.type == "cpu" and _num_weights(pickle.dumps(settings.runtime.model)) <= MOST_WEIGHTS
        for way in _ways(rows, _WAYS_OF_SMALL if small else _WAYS):
            try:
                plans.append(_plan(settings, *way, device, available))
            except ModelError:
                if not plans:
                    raise
                continue  # a model whose layers cannot be checkpointed has the other ways
            if plans[-1].total <= usable:
                break
    except (ModelError, *FAULTS) as error:
        # The model itself refuses it where it is loaded; a dry run that its code does not allow is no reason to stop.
        line = f"Memory: not known before work starts ({type(error).__name__}: {str(error)[:160]})"
        return _with(settings, rows.most, rows.gradient_checkpointing is True, USUAL_KV_GIB), line
    first, plan = plans[0], plans[-1]
    if plan.total > available and not rows.shard_base:
        raise ConfigError(_refusal(settings, plan, device, available))
    plan = _with_room(settings, plan, device, usable)
    line = f"Memory: about {_gib(plan.total)} of the {_gib(available)} GiB of {device} at most: {plan.listed}"
    if plan.tokens != first.tokens or plan.checkpointing != first.checkpointing:
        checkpointed = " and gradient checkpointing" if plan.checkpointing else ""
        line += f". For that rows have {plan.tokens:,} tokens{checkpointed}: about {_gib(first.total)} otherwise"
    return _with(settings, plan.tokens, plan.checkpointing, plan.parts[_KV] / GIB), line


_KV = "keys and values"


def _ways(rows: RowSettings, known: Sequence[tuple[int, bool]]) -> Iterator[tuple[int, bool]]:
    """Tokens of a row and checkpointing that the settings allow, the best first."""
    fixed = rows.gradient_checkpointing
    ways = [(tokens, kept if fixed == "auto" else fixed) for tokens, kept in known if kept or fixed == "auto"]
    yield from dict.fromkeys((tokens if rows.max_tokens == "auto" else rows.max_tokens, kept) for tokens, kept in ways)


def _plan(settings: TrainSettings, tokens: int, checkpointing: bool, device: torch.device, memory: int) -> Plan:
    """What these rows take, with as few keys and values as are wanted at least."""
    runtime, learner = settings.runtime, settings.learner
    here, engine = runtime.workers.kind == "here", runtime.engine
    beside = runtime.workers.num if runtime.workers.on_processors and device.type == "cpu" else 0
    sizes = sizes_of(
        runtime.model, runtime.lora, tuple(settings.recipe.flow.roles), tokens, checkpointing,
        snapshots=learner.reference.kind == "snapshot", kept=settings.run.lag,
        merge=merging(engine, runtime.lora) if (here or beside) and isinstance(engine, LocalSettings) else "never",
    )  # fmt: skip
    vllm, copies, rows = here and isinstance(engine, VllmSettings), 0, 1
    if device.type == "cpu":
        num_weights = _num_weights(pickle.dumps(runtime.model))
        copies = _copies(engine, sizes, num_weights, len(settings.recipe.flow.roles))
        if num_weights <= MOST_WEIGHTS:
            rows = rows_at_once(runtime.model.num_threads, runtime.lora.lora_dropout)
    worker = _PROCESS + sizes.weights + sizes.merged + copies + _kv_of_worker(engine, sizes, memory)
    kv = 0
    if here and isinstance(engine, LocalSettings | VllmSettings):
        wanted = min(USUAL_KV_GIB * GIB, memory / 8)
        if device.type == "cuda":
            wanted = min(max(wanted, _KV_SHARE * memory), _most_kv(engine, sizes))
        kv = int(wanted if engine.kv_budget_gib == "auto" else engine.kv_budget_gib * GIB)
    return Plan(
        sizes=sizes,
        tokens=tokens,
        checkpointing=checkpointing,
        parts={
            "libraries": _LIBRARIES.get(device.type, 0),
            "weights": sizes.weights,
            "adapters with Adam": sizes.adapters,
            f"{'a row' if rows == 1 else f'{rows} rows'} of {tokens:,} tokens": int(
                rows * _KEPT.get(device.type, 1.0) * sizes.row
            ),
            "merged weights": sizes.merged if here else 0,
            "copies of weights": copies if here else 0,
            **({f"{beside} worker{'s' if beside > 1 else ''}": beside * worker} if beside else {}),
            "vLLM's weights and steps": (sizes.weights + (_VLLM if device.type == "cuda" else 0)) if vllm else 0,
            _KV: kv,
        },
    )


def _kv_of_worker(engine: EngineSettings, sizes: Sizes, memory: int) -> int:
    """Keys and values of a worker process on a CPU, at most."""
    if not isinstance(engine, LocalSettings):
        return 0
    budget = of_one_worker(memory) if engine.kv_budget_gib == "auto" else engine.kv_budget_gib
    return int(min(budget * GIB, _most_kv(engine, sizes)))


def _copies(engine: EngineSettings, sizes: Sizes, num_weights: int, num_roles: int) -> int:
    """The weights once more as a CPU's products read them; in 8-bit integers all of them, and of merged ones (in
    float32) each role's own."""
    if not isinstance(engine, LocalSettings):
        return 0
    if engine.int8:
        return num_weights + sizes.merged // 4 * (num_roles - 1) // num_roles
    return int(min(engine.packed_gib * GIB, max(sizes.weights, sizes.merged)))


def _with_room(settings: TrainSettings, plan: Plan, device: torch.device, usable: int) -> Plan:
    """The plan with the keys and values that the device has room for, as many as can be used at most; on a CPU the
    local engine's, of a part of the memory."""
    engine = settings.runtime.engine
    known = LocalSettings | VllmSettings if device.type == "cuda" else LocalSettings
    if not isinstance(engine, known) or not plan.parts[_KV] or engine.kv_budget_gib != "auto":
        return plan
    room = usable - plan.total + plan.parts[_KV]
    kv = max(_LEAST_KV, min(room, _most_kv(engine, plan.sizes)))
    if device.type != "cuda":
        kv = max(plan.parts[_KV], min(kv, usable // HOST_SHARE))
    kv = kv // _LEAST_KV * _LEAST_KV
    return replace(plan, parts={**plan.parts, _KV: kv})


def _most_kv(engine: LocalSettings | VllmSettings, sizes: Sizes) -> int:
    """Keys and values of all requests under way at the window's full length, and as many that are cached beside."""
    return max(_LEAST_KV, 2 * engine.max_batch_size * sizes.context_tokens * sizes.kv_token)


def _with(settings: TrainSettings, tokens: int, checkpointing: bool, kv_budget_gib: float) -> TrainSettings:
    """The settings with these numbers in place of "auto"."""
    rows, engine = settings.learner.rows, settings.runtime.engine
    if rows.max_tokens == "auto":
        rows = replace(rows, max_tokens=tokens)
    if rows.gradient_checkpointing == "auto":
        rows = replace(rows, gradient_checkpointing=checkpointing)
    here = settings.runtime.workers.kind == "here"
    if here and isinstance(engine, LocalSettings | VllmSettings) and engine.kv_budget_gib == "auto":
        engine = replace(engine, kv_budget_gib=kv_budget_gib)
    learner = replace(settings.learner, rows=rows)
    return replace(settings, learner=learner, runtime=replace(settings.runtime, engine=engine))


def _refusal(settings: TrainSettings, plan: Plan, device: torch.device, memory: int) -> str:
    """What does not fit, and what may be changed: first what was fixed."""
    rows, engine = settings.learner.rows, settings.runtime.engine
    changes: list[str] = []
    if rows.max_tokens != "auto":
        changes.append("--learner.rows.max_tokens auto")
    if rows.gradient_checkpointing is False:
        changes.append("--learner.rows.gradient_checkpointing auto")
    samples_here = plan.parts[_KV] or settings.runtime.workers.on_processors
    if samples_here and getattr(engine, "kv_budget_gib", "auto") != "auto":
        changes.append("--engine.kv_budget_gib auto")
    if not settings.runtime.model.quantization.wanted:
        changes.append("a base in 4 bits (--load_in_4bit)")
    if settings.runtime.workers.on_processors and settings.runtime.workers.num > 1:
        changes.append("fewer workers (--workers.num)")
    changes += ["a smaller model", "sampling elsewhere (--workers, docs/scaling.md)"]
    return (
        f"expected a run that fits into the {_gib(memory)} GiB of {device}, found that it takes about "
        f"{_gib(plan.total)}: {plan.listed}; use {', or '.join(changes)}"
    )


def sizes_of(
    model: ModelSettings,
    lora: LoraSettings,
    roles: tuple[Role, ...],
    tokens: int,
    checkpointing: bool,
    *,
    snapshots: bool = False,
    kept: int = 0,
    merge: str = "never",
) -> Sizes:
    """Bytes by a model on the meta device, its adapters on it. Raises `ModelError`, or one of `own_forward.FAULTS`."""
    return _sizes(pickle.dumps((model, lora, roles, tokens, checkpointing, snapshots, kept, merge)))


@lru_cache(maxsize=64)
def _num_weights(key: bytes) -> int:
    return blank_model(pickle.loads(key)).num_parameters()


@lru_cache(maxsize=64)
def _sizes(key: bytes) -> Sizes:
    model, lora, roles, tokens, checkpointing, snapshots, kept, merge = pickle.loads(key)
    blank = blank_model(model)
    weights = _base_bytes(blank, model.quantization)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # what there is to say is said when the model is loaded
        policy = Policy(blank, roles, lora)
        if checkpointing:
            policy.checkpoint_activations()
        with policy.using(roles[0], training=True):
            row = row_memory(blank, policy.parameters(roles[0]), tokens)
        twins = 0
        if merge == "always" or (merge == "auto" and can_merge(policy)):
            twins = len(roles) * int(policy.targets.share * weights)
    # A float32 parameter is its own master; one in half precision has a master beside it.
    [numbers, bytes_] = [sum(of(p) for p in policy.parameters(roles[0])) for of in (_numel, _nbytes)]
    masters = 0 if blank.dtype == torch.float32 else 4 * numbers
    adapters = len(roles) * (2 if snapshots else 1)
    learned = adapters * (bytes_ + masters + 4 * numbers) + len(roles) * (3 + kept) * 4 * numbers
    return Sizes(
        weights=weights, adapters=learned, row=row.peak_bytes, merged=twins, kv_token=row.kv_token_bytes,
        context_tokens=context_tokens(blank.config) or 1 << 12,
    )  # fmt: skip


def _base_bytes(model: torch.nn.Module, quantization: QuantizationSettings) -> int:
    """The weights, each once, in as many bits as they will have."""
    total = sum(_nbytes(tensor) for tensor in {*model.parameters(), *model.buffers()})
    if quantization.wanted:
        head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        layers = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        # Blocks of 64 numbers of 4 bits share a scale, in 32 bits or 8.
        small = 1.0 if quantization.load_in_8bit else 0.5 + (1 if quantization.use_bnb_nested_quant else 4) / 64
        total += sum(int(small * weight.numel()) - weight.nbytes for weight in layers)
    return total


def device_memory(device: torch.device) -> int:
    """All memory of a device, in bytes; of the machine for the CPU, or of the container that this process is in."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else host_memory()


def _numel(tensor: torch.Tensor) -> int:
    return tensor.numel()


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.nbytes


def _gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.0f}" if size >= 10 * GIB else f"{size / GIB:.1f}"
