"""How much of its device's memory a run will take: estimated before work starts, printed in a line, and made to fit.

    settings, line = planned(settings)
    line        # Memory: about 51 of the 79 GiB of cuda:0 at most: weights 15, a row of 4,096 tokens 28, ...

A row's memory comes from a dry run (`models.dry_run`), the rest is counted. Settings that are "auto" (tokens of a row,
gradient checkpointing, the budget of keys and values) are adjusted until the sum fits; if the user's own values do not
fit, they are refused, with what to change. Invariant: the plan depends only on the settings, the model's config and the
size of the device's memory, not on what is free at the moment, so that a resumed run has the same rows.
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
"""Memory outside torch's allocator: on a GPU its context; on a CPU Python, torch, and what kernels keep."""
_PROCESS = GIB // 4
"""Memory of a worker process besides its model: what kernels keep, and what Python does not share."""
_KEPT = {"cpu": 1.4}
"""Ratio of a row's memory in the process to what torch's allocator holds: the C allocator keeps freed fragments
(1.4, measured on a CPU with a 0.5B model)."""
_USABLE = {"cuda": 0.92, "cpu": 1.0}
"""Share of the memory that a plan may use: a GPU's allocator leaves gaps."""
_VLLM = 3 * GIB
"""Memory of vLLM on a GPU besides its weights and its cache: activations of a step, captured graphs."""
_KV_SHARE = 0.1
"""Share of a GPU's memory that keys and values need at least; rows are shortened to leave it free."""
_LEAST_KV = GIB // 4
_WAYS = ((4096, False), (2048, False), (4096, True), (2048, True), (1024, True), (512, True))
"""Tokens of a row and gradient checkpointing, in the order in which "auto" tries them: with shorter rows some prefixes
are computed twice; checkpointing costs a third of the time."""
_WAYS_OF_SMALL = ((1024, False), (1024, True), (512, True))
"""The same for a small model on a CPU: shorter rows keep several threads busy. They do not depend on the number of
threads, so rows, and therefore bits, are the same on every machine."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes, in bytes, that follow from a model, its adapters and a row."""

    weights: int
    adapters: int
    """All that learning keeps: parameters, masters, Adam's moments, a gradient, a copy from before an update."""
    row: int
    merged: int
    """Separate weights of the roles that sample with merged adapters."""
    kv_token: int
    context_tokens: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory that a run takes, in bytes, and the settings for which it does."""

    sizes: Sizes
    tokens: int
    checkpointing: bool
    parts: dict[str, int]
    """Bytes by their purpose, in words; keys and values last."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.parts.values())

    @property
    def listed(self) -> str:
        """The parts that matter, in GiB."""
        return ", ".join(f"{name} {_gib(size)}" for name, size in self.parts.items() if size > GIB / 20)


def planned(settings: TrainSettings, *, memory: int | None = None) -> tuple[TrainSettings, str]:
    """The settings with numbers in place of "auto", and the line that says how much memory they take.

    `memory`, in bytes, replaces the device's own. Raises `ConfigError` if what is fixed does not fit.
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
                continue  # layers that cannot be checkpointed leave the other ways
            if plans[-1].total <= usable:
                break
    except (ModelError, *FAULTS) as error:
        # A model that cannot be used is refused when it is loaded; a dry run that fails is no reason to stop.
        line = f"Memory: not known before work starts ({type(error).__name__}: {str(error)[:160]})"
        return _with(settings, rows.most, rows.gradient_checkpointing is True, USUAL_KV_GIB), line
    first, plan = plans[0], plans[-1]
    if plan.total > available and not rows.shard_base:
        raise ConfigError(_refusal(settings, plan, device, available))
    plan = _with_room(settings, plan, device, usable)
    line = f"Memory: about {_gib(plan.total)} of the {_gib(available)} GiB of {device} at most: {plan.listed}"
    if plan.tokens != first.tokens or plan.checkpointing != first.checkpointing:
        checkpointed = " and gradient checkpointing" if plan.checkpointing else ""
        line += f". To fit, rows have {plan.tokens:,} tokens{checkpointed}: about {_gib(first.total)} otherwise"
    return _with(settings, plan.tokens, plan.checkpointing, plan.parts[_KV] / GIB), line


_KV = "keys and values"


def _ways(rows: RowSettings, known: Sequence[tuple[int, bool]]) -> Iterator[tuple[int, bool]]:
    """Tokens of a row and checkpointing that the settings allow, the best first."""
    fixed = rows.gradient_checkpointing
    ways = [(tokens, kept if fixed == "auto" else fixed) for tokens, kept in known if kept or fixed == "auto"]
    yield from dict.fromkeys((tokens if rows.max_tokens == "auto" else rows.max_tokens, kept) for tokens, kept in ways)


def _plan(settings: TrainSettings, tokens: int, checkpointing: bool, device: torch.device, memory: int) -> Plan:
    """What these rows take, with the fewest keys and values that are acceptable."""
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
    """The most bytes of keys and values that a worker process on a CPU holds."""
    if not isinstance(engine, LocalSettings):
        return 0
    budget = of_one_worker(memory) if engine.kv_budget_gib == "auto" else engine.kv_budget_gib
    return int(min(budget * GIB, _most_kv(engine, sizes)))


def _copies(engine: EngineSettings, sizes: Sizes, num_weights: int, num_roles: int) -> int:
    """Bytes of the copies of weights that a CPU's matrix products read. In 8-bit integers that is all weights, and each
    role's own of those that are merged (which are in float32)."""
    if not isinstance(engine, LocalSettings):
        return 0
    if engine.int8:
        return num_weights + sizes.merged // 4 * (num_roles - 1) // num_roles
    return int(min(engine.packed_gib * GIB, max(sizes.weights, sizes.merged)))


def _with_room(settings: TrainSettings, plan: Plan, device: torch.device, usable: int) -> Plan:
    """The plan with as many keys and values as the device has room for, up to what can be used. On a CPU only for the
    local engine, and within a part of the memory."""
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
    """Keys and values of all requests under way at the full length of the window, and as many again in the cache."""
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
    """The error message: what does not fit, and what can be changed, fixed settings first."""
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
        f"expected a run that fits into the {_gib(memory)} GiB of {device}, found one that takes about "
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
    """Sizes of a model with its adapters, from the meta device. Raises `ModelError`, or one of `own_forward.FAULTS`."""
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
        warnings.simplefilter("ignore")  # the same warnings come when the model is loaded
        policy = Policy(blank, roles, lora)
        if checkpointing:
            policy.checkpoint_activations()
        with policy.using(roles[0], training=True):
            row = row_memory(blank, policy.parameters(roles[0]), tokens)
        twins = 0
        if merge == "always" or (merge == "auto" and can_merge(policy)):
            twins = len(roles) * int(policy.targets.share * weights)
    # A float32 parameter is its own master; one in half precision has a separate master.
    [numbers, bytes_] = [sum(of(p) for p in policy.parameters(roles[0])) for of in (_numel, _nbytes)]
    masters = 0 if blank.dtype == torch.float32 else 4 * numbers
    adapters = len(roles) * (2 if snapshots else 1)
    learned = adapters * (bytes_ + masters + 4 * numbers) + len(roles) * (3 + kept) * 4 * numbers
    return Sizes(
        weights=weights, adapters=learned, row=row.peak_bytes, merged=twins, kv_token=row.kv_token_bytes,
        context_tokens=context_tokens(blank.config) or 1 << 12,
    )  # fmt: skip


def _base_bytes(model: torch.nn.Module, quantization: QuantizationSettings) -> int:
    """Bytes of the weights, each counted once, with the number of bits that they will have."""
    total = sum(_nbytes(tensor) for tensor in {*model.parameters(), *model.buffers()})
    if quantization.wanted:
        head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        layers = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        # Blocks of 64 numbers of 4 bits share a scale, in 32 bits or 8.
        small = 1.0 if quantization.load_in_8bit else 0.5 + (1 if quantization.use_bnb_nested_quant else 4) / 64
        total += sum(int(small * weight.numel()) - weight.nbytes for weight in layers)
    return total


def device_memory(device: torch.device) -> int:
    """Total memory of a device, in bytes; for the CPU that of the machine, or of the container of this process."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else host_memory()


def _numel(tensor: torch.Tensor) -> int:
    return tensor.numel()


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.nbytes


def _gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.0f}" if size >= 10 * GIB else f"{size / GIB:.1f}"
