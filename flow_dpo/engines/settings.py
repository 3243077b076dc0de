"""The registry of engines: a name to the settings that choose an engine, and to how it is opened.

    default_settings("vllm_server")     # VllmServerSettings(base_url="http://127.0.0.1:8000", ...)
    kind_of(LocalSettings())            # "local"

Another engine joins by `register_engine`, or as an installed plug-in: an `EngineKind` under an entry point of the group
"flow_dpo.engines", found when `--engine` names it.

Invariant: nothing heavy is imported, so that a command line is read before torch is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from flow_dpo.core.errors import ConfigError
from flow_dpo.models.http_client import check_base_url
from flow_dpo.plugins.load import installed, load_object

USUAL_KV_GIB = 2.0
"""Keys and values where there is no device to choose by, in workers elsewhere, and of vLLM on a CPU."""


def kv_bytes(budget_gib: float | Literal["auto"]) -> int:
    """A budget in bytes."""
    return int((USUAL_KV_GIB if budget_gib == "auto" else budget_gib) * 2**30)


def check_kv_budget(budget_gib: float | Literal["auto"]) -> None:
    """Raise `ConfigError` for a budget that could hold nothing."""
    if budget_gib != "auto" and not budget_gib > 0:
        raise ConfigError(f'expected engine.kv_budget_gib above 0, or "auto", found {budget_gib}')


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Batch size and memory of the local engine."""

    max_batch_size: int = 128
    """Rows of one role that are decoded together."""
    kv_budget_gib: float | Literal["auto"] = "auto"
    """Memory for keys and values in GiB: rows under way and prefix cache together. "auto" is up to a quarter of the
    machine's memory on a CPU, and on a GPU what its memory leaves (docs/start/one-gpu.md)."""
    prefill_tokens: int = 4096
    """Prompt tokens that one step prefills at most, unless a single prompt is longer."""
    merge_adapters: Literal["auto", "never", "always"] = "auto"
    """Sample with each role's adapter merged into weights of its own: faster, for the memory of the base's linear
    layers once a role. In float32 only; "auto" does it where that is 1 GiB in all at most."""
    reuse: bool = True
    """Use the prefix cache. Without it sampling is slower, and no token changes."""
    lean: bool = True
    """Compute known families of dense models in plain tensor operations instead of by transformers' modules, where that
    gives the same logits: faster, above all with small models."""
    packed_gib: float = 2.0
    """Memory for copies of weights in the order in which a CPU's products read them, in GiB: faster, and no bit of a
    product in half precision changes. Weights beyond it are used as they are. 2 is half a billion in float32. 8-bit
    integers are beside it."""
    int8: bool = False
    """Sample with weights and inputs of linear layers in 8-bit integers: on a processor with VNNI a model of half a
    billion parameters is sampled 1.7 times as fast, of a slightly other distribution than is learned. The difference
    is measured at the start and at every update (`--max_logprob_drift`). Dense models in the lean forward only."""

    def __post_init__(self) -> None:
        check_kv_budget(self.kv_budget_gib)
        for name in ("max_batch_size", "prefill_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected engine.{name} above 0, found {getattr(self, name)}")
        if not self.packed_gib >= 0:
            raise ConfigError(f"expected engine.packed_gib of 0 or more, found {self.packed_gib}")

    @property
    def kv_bytes(self) -> int:
        """The budget in bytes, where it is not left to a device."""
        return kv_bytes(self.kv_budget_gib)


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """The plain engine has nothing to set."""


RequestSeeds = Literal["auto", "always", "never"]


def seeds_from_top_p(request_seeds: RequestSeeds, *, on_gpu: bool) -> float:
    """Requests to vLLM have a seed of their own from this top-p on: 0 is all of them, infinity none.

    vLLM 0.32 samples top-p on a GPU by FlashInfer, its fastest way, in steps where no request has a seed and none is
    greedy. Without seeds a run that is resumed, and a shard that another worker samples again, get other text.
    """
    return {"always": 0.0, "never": math.inf}.get(request_seeds, 1.0 if on_gpu else 0.0)


def seeds_fact(engine: EngineSettings, *, on_gpu: bool) -> dict[str, str]:
    """Which requests have seeds, for the record of a run whose engine leaves that to a setting."""
    if not isinstance(engine, VllmSettings | VllmServerSettings):
        return {}
    least = seeds_from_top_p(engine.request_seeds, on_gpu=on_gpu and isinstance(engine, VllmSettings))
    return {"request_seeds": {0.0: "always", math.inf: "never"}.get(least, f"from top-p {least:g}")}


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """vLLM in this process."""

    kv_budget_gib: float | Literal["auto"] = "auto"
    """Memory for the KV cache in GiB. The learner needs the rest. "auto" is 2 on a CPU, and on a GPU what its memory
    leaves beside the learner (docs/start/one-gpu.md)."""
    max_batch_size: int = 256
    """Requests that are decoded together."""
    block_tokens: int = 0
    """Tokens in a block of the prefix cache: what two prompts share is reused in whole blocks. 0 is vLLM's own choice,
    16 on most GPUs; on a CPU 128, where 32 is better."""
    partial_blocks: Literal["auto", "always", "never"] = "auto"
    """Whether the part of a block that two prompts share is reused, too (`engines.vllm.partial_blocks`): "auto" does
    it on a CPU."""
    compiled: bool = True
    """Compile the model and capture its steps: minutes at the start, faster from then on. Never on a CPU."""
    top_logprobs: int = 20
    """Top log-probabilities reported at each position where temperature or top-p are not 1."""
    request_seeds: RequestSeeds = "auto"
    """As `seeds_from_top_p` has it: "auto" leaves seeds out on a GPU where top-p is below 1."""
    sync: Literal["adapters", "merged"] = "adapters"
    """What a refresh loads: adapters, or all weights with a role's adapter merged in. The latter is for recipes of one
    role: tokens cost no adapter, a refresh costs the whole model (docs/engines.md)."""
    engine_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More of vLLM's `EngineArgs`, such as {"tensor_parallel_size": 2}."""

    def __post_init__(self) -> None:
        check_kv_budget(self.kv_budget_gib)
        if self.max_batch_size < 1 or self.block_tokens < 0 or self.top_logprobs < 1:
            raise ConfigError(
                "expected max_batch_size and top_logprobs of 1 at least, block_tokens of 0 at least, found "
                f"{self.max_batch_size}, {self.top_logprobs}, {self.block_tokens}"
            )

    def check_roles(self, num_roles: int) -> None:
        """Raise `ConfigError` where merged weights would have to serve several roles."""
        if self.sync == "merged" and num_roles != 1:
            raise ConfigError(
                f"expected one role with --engine.sync merged, found {num_roles}: one vLLM holds one set of weights; "
                "leave it at adapters"
            )


@dataclass(frozen=True, kw_only=True)
class VllmServerSettings:
    """A running `vllm serve` that samples. Its API key, where it needs one, is read from OPENAI_API_KEY."""

    base_url: str = "http://127.0.0.1:8000"
    """Where it listens; with or without /v1. Several, separated by commas, with `--workers servers`."""
    served_model: str = ""
    """The base model's name there; may be left out where it serves one only."""
    concurrency: int = 128
    """Requests under way at once."""
    deadline_s: float = 600.0
    """Seconds that one request may take in all before it is given up and retried."""
    patience_s: float = 900.0
    """Seconds for which a request that fails on the way is retried: as long as the server takes to restart."""
    backoff_s: float = 0.25
    """Seconds before the second try; twice as many before each that follows, five at most."""
    top_logprobs: int = 20
    """Top log-probabilities reported at each position where temperature or top-p are not 1."""
    request_seeds: RequestSeeds = "auto"
    """As `seeds_from_top_p` has it: "auto" is "always" here."""

    def __post_init__(self) -> None:
        for url in self.base_urls or [self.base_url]:
            check_base_url(url)
        if len(self.base_urls) > len(set(self.base_urls)):
            raise ConfigError(f"expected each base_url once, found {self.base_url!r}")
        if self.concurrency < 1 or self.top_logprobs < 1:
            raise ConfigError(
                f"expected concurrency and top_logprobs of 1 at least, found {self.concurrency} and {self.top_logprobs}"
            )
        if not 0 < self.deadline_s < 1e6 or not 0 <= self.patience_s < 1e6 or not 0 < self.backoff_s < 1e6:
            raise ConfigError(
                "expected deadline_s and backoff_s above 0 and patience_s of 0 or more, found "
                f"{self.deadline_s}, {self.backoff_s} and {self.patience_s}"
            )

    @property
    def base_urls(self) -> list[str]:
        """The addresses one by one."""
        return [url.strip() for url in self.base_url.split(",") if url.strip()]


class EngineSettings(Protocol):
    """The settings of an engine: an instance of a dataclass, whose type tells which engine is meant."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


OpensEngine = Callable[..., AbstractContextManager[Any]]
"""`(settings, loaded, *, num_roles)` to a context with an `engines.factory.EngineAccess`. What cannot sample from this
model is refused with `ConfigError` on entering."""


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What `--engine NAME` stands for."""

    settings: type[Any]
    """A frozen dataclass; every field has a default. No other engine has the same."""
    open: OpensEngine | str
    """Or "package.module:function", imported when the engine is opened."""


_FACTORY = "flow_dpo.engines.factory"
KINDS: dict[str, EngineKind] = {
    "local": EngineKind(settings=LocalSettings, open=f"{_FACTORY}:open_local"),
    "plain": EngineKind(settings=PlainSettings, open=f"{_FACTORY}:open_plain"),
    "vllm": EngineKind(settings=VllmSettings, open=f"{_FACTORY}:open_vllm_here"),
    "vllm_server": EngineKind(settings=VllmServerSettings, open=f"{_FACTORY}:open_vllm_server"),
}
"""The engines by name: `--engine vllm_server`. Installed plug-ins join when they are named."""
BUILT_IN = frozenset(KINDS)
"""Those of this package."""


def register_engine(name: str, settings: type[Any], open: OpensEngine | str) -> None:
    """Let `--engine name` choose an engine. Raises `ConfigError` where the name or the settings are another's."""
    kind = EngineKind(settings=settings, open=open)
    for known, other in KINDS.items():
        if other != kind and (known == name or other.settings is settings):
            raise ConfigError(
                f"expected a new name and settings for the engine {name!r}, found those of {known!r}; choose others"
            )
    KINDS[name] = kind


def engine_names() -> list[str]:
    """All names that `--engine` may have, those of installed plug-ins included."""
    return list(dict.fromkeys([*KINDS, *installed("engine")]))


def kind_of(settings: EngineSettings) -> str:
    """The name of this engine. Raises `ConfigError` for settings of no registered engine."""
    for name, kind in KINDS.items():
        if type(settings) is kind.settings:
            return name
    raise ConfigError(
        f"expected settings of one of the engines {', '.join(KINDS)}, found {type(settings).__name__}; call "
        f"register_engine first"
    )


def default_settings(name: str) -> EngineSettings:
    """An engine's default settings. Raises `ConfigError` for an unknown name."""
    if name not in KINDS:
        if name not in installed("engine"):
            near = difflib.get_close_matches(name, engine_names(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown engine {name!r}; there are {', '.join(engine_names())}{hint}")
        found = load_object(name, kind="engine")
        if not isinstance(found, EngineKind):
            raise ConfigError(f"expected an EngineKind from the plug-in of engine {name!r}, found {found!r:.200}")
        register_engine(name, found.settings, found.open)
    return KINDS[name].settings()
