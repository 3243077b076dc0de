"""The registry of engines: maps a name to an engine's settings class and to the function that opens it.

    default_settings("vllm_server")     # VllmServerSettings(base_url="http://127.0.0.1:8000", ...)
    kind_of(LocalSettings())            # "local"

Further engines are added with `register_engine`, or by an installed plug-in: an `EngineKind` under an entry point of
the group "flow_dpo.engines", which is loaded when `--engine` names it.

Invariant: nothing heavy is imported, so a command line can be parsed before torch is loaded.
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
"""KV budget in GiB if it cannot be derived from a device: in workers elsewhere, and for vLLM on a CPU."""


def kv_bytes(budget_gib: float | Literal["auto"]) -> int:
    """The budget in bytes; "auto" counts as `USUAL_KV_GIB`."""
    return int((USUAL_KV_GIB if budget_gib == "auto" else budget_gib) * 2**30)


def check_kv_budget(budget_gib: float | Literal["auto"]) -> None:
    """Raise `ConfigError` unless the budget is positive or "auto"."""
    if budget_gib != "auto" and not budget_gib > 0:
        raise ConfigError(f'expected engine.kv_budget_gib above 0, or "auto", found {budget_gib}')


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Settings of the local engine: batch size, memory and speed."""

    max_batch_size: int = 128
    """Maximum number of requests of one role that are decoded together."""
    kv_budget_gib: float | Literal["auto"] = "auto"
    """Memory for the KV cache in GiB: requests under way and prefix cache together. "auto" takes up to a quarter of the
    machine's memory on a CPU, and on a GPU what the rest leaves free (docs/start/one-gpu.md)."""
    prefill_tokens: int = 4096
    """Maximum number of prompt tokens prefilled in one step, unless a single prompt is longer."""
    merge_adapters: Literal["auto", "never", "always"] = "auto"
    """Sample with each role's adapter merged into a copy of the weights: faster, but each role needs memory for a copy
    of the adapted layers. In float32 only; "auto" merges if all copies together take at most 1 GiB."""
    reuse: bool = True
    """Use the prefix cache. Without it sampling is slower; the sampled tokens do not change."""
    lean: bool = True
    """Compute known families of dense models with plain tensor operations instead of transformers' modules, if that
    gives the same logits: faster, above all for small models."""
    packed_gib: float = 2.0
    """Memory in GiB for copies of the weights in the layout that a CPU's matrix products read: faster, and in half
    precision bit-identical. Weights that do not fit are used unpacked. 2 GiB holds half a billion parameters in
    float32. 8-bit integer weights are packed whatever the budget."""
    int8: bool = False
    """Sample with weights and inputs of linear layers in 8-bit integers: with VNNI, a model of half a billion
    parameters samples 1.7 times as fast, from a slightly different distribution than the learner's. The difference is
    measured at the start and at every update (`--max_logprob_drift`). Dense models in the lean forward only."""

    def __post_init__(self) -> None:
        check_kv_budget(self.kv_budget_gib)
        for name in ("max_batch_size", "prefill_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected engine.{name} above 0, found {getattr(self, name)}")
        if not self.packed_gib >= 0:
            raise ConfigError(f"expected engine.packed_gib of 0 or more, found {self.packed_gib}")

    @property
    def kv_bytes(self) -> int:
        """The budget in bytes; "auto" counts as `USUAL_KV_GIB`."""
        return kv_bytes(self.kv_budget_gib)


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """The plain engine has no settings."""


RequestSeeds = Literal["auto", "always", "never"]


def seeds_from_top_p(request_seeds: RequestSeeds, *, on_gpu: bool) -> float:
    """The top-p from which requests to vLLM carry their own seed: 0 means all requests, infinity none.

    On a GPU, vLLM 0.32 samples top-p with FlashInfer, its fastest sampler, only in steps where no request has a seed
    and none is greedy. Without seeds, a resumed run and a shard that another worker samples again get different text.
    """
    return {"always": 0.0, "never": math.inf}.get(request_seeds, 1.0 if on_gpu else 0.0)


def seeds_fact(engine: EngineSettings, *, on_gpu: bool) -> dict[str, str]:
    """Which requests carry seeds, for the record of a run whose engine has that setting."""
    if not isinstance(engine, VllmSettings | VllmServerSettings):
        return {}
    least = seeds_from_top_p(engine.request_seeds, on_gpu=on_gpu and isinstance(engine, VllmSettings))
    return {"request_seeds": {0.0: "always", math.inf: "never"}.get(least, f"from top-p {least:g}")}


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """vLLM in this process."""

    kv_budget_gib: float | Literal["auto"] = "auto"
    """Memory for the KV cache in GiB; the learner needs the rest. "auto" is 2 on a CPU, and on a GPU what the learner
    leaves free (docs/start/one-gpu.md)."""
    max_batch_size: int = 256
    """Maximum number of requests that are decoded together."""
    block_tokens: int = 0
    """Tokens in a block of the prefix cache; what two prompts share is reused in whole blocks. 0 takes vLLM's default,
    which is 16 on most GPUs and 128 on a CPU, where 32 is better."""
    partial_blocks: Literal["auto", "always", "never"] = "auto"
    """Whether to also reuse a block that two prompts share only in part (`engines.vllm.partial_blocks`). "auto" does so
    on a CPU."""
    compiled: bool = True
    """Compile the model and capture CUDA graphs: takes minutes at the start, then faster. Not used on a CPU."""
    top_logprobs: int = 20
    """Number of top log-probabilities requested at each position if temperature or top-p is not 1."""
    request_seeds: RequestSeeds = "auto"
    """Which requests carry their own seed (`seeds_from_top_p`). "auto" omits seeds on a GPU if top-p is below 1."""
    sync: Literal["adapters", "merged"] = "adapters"
    """What a refresh loads: the adapters, or all weights with the adapter merged in. "merged" is for recipes with one
    role: tokens do not pay for the adapter, but every refresh loads the whole model (docs/engines.md)."""
    engine_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further `EngineArgs` of vLLM, such as {"tensor_parallel_size": 2}."""

    def __post_init__(self) -> None:
        check_kv_budget(self.kv_budget_gib)
        if self.max_batch_size < 1 or self.block_tokens < 0 or self.top_logprobs < 1:
            raise ConfigError(
                "expected max_batch_size and top_logprobs of at least 1, block_tokens of at least 0, found "
                f"{self.max_batch_size}, {self.top_logprobs}, {self.block_tokens}"
            )

    def check_roles(self, num_roles: int) -> None:
        """Raise `ConfigError` if merged weights would have to serve several roles."""
        if self.sync == "merged" and num_roles != 1:
            raise ConfigError(
                f"expected one role with --engine.sync merged, found {num_roles}: vLLM holds one set of weights; "
                "use --engine.sync adapters"
            )


@dataclass(frozen=True, kw_only=True)
class VllmServerSettings:
    """A running `vllm serve` that does the sampling. Its API key, if it needs one, is read from OPENAI_API_KEY."""

    base_url: str = "http://127.0.0.1:8000"
    """Address of the server, with or without /v1. With `--workers servers`, several addresses separated by commas."""
    served_model: str = ""
    """Name of the base model on the server. Can be left out if the server has only one."""
    concurrency: int = 128
    """Maximum number of requests under way at once."""
    deadline_s: float = 600.0
    """Seconds that one request can take in all before it is given up and retried."""
    patience_s: float = 900.0
    """Seconds for which a failing request is retried. Allow for a restart of the server."""
    backoff_s: float = 0.25
    """Seconds before the first retry. The wait doubles with each further retry, up to 5 seconds."""
    top_logprobs: int = 20
    """Number of top log-probabilities requested at each position if temperature or top-p is not 1."""
    request_seeds: RequestSeeds = "auto"
    """Which requests carry their own seed (`seeds_from_top_p`). "auto" is "always" here."""

    def __post_init__(self) -> None:
        for url in self.base_urls or [self.base_url]:
            check_base_url(url)
        if len(self.base_urls) > len(set(self.base_urls)):
            raise ConfigError(f"expected each base_url once, found {self.base_url!r}")
        if self.concurrency < 1 or self.top_logprobs < 1:
            raise ConfigError(
                f"expected concurrency and top_logprobs of at least 1, found {self.concurrency} and {self.top_logprobs}"
            )
        if not 0 < self.deadline_s < 1e6 or not 0 <= self.patience_s < 1e6 or not 0 < self.backoff_s < 1e6:
            raise ConfigError(
                "expected deadline_s and backoff_s above 0 and patience_s of 0 or more, found "
                f"{self.deadline_s}, {self.backoff_s} and {self.patience_s}"
            )

    @property
    def base_urls(self) -> list[str]:
        """The addresses as a list."""
        return [url.strip() for url in self.base_url.split(",") if url.strip()]


class EngineSettings(Protocol):
    """The settings of an engine: an instance of a dataclass whose type identifies the engine."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


OpensEngine = Callable[..., AbstractContextManager[Any]]
"""Called as `(settings, loaded, *, num_roles)`; returns a context manager that yields an
`engines.factory.EngineAccess`. Entering it raises `ConfigError` if the engine cannot sample from this model."""


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What `--engine NAME` stands for."""

    settings: type[Any]
    """A frozen dataclass with a default for every field. No two engines share one."""
    open: OpensEngine | str
    """The function, or "package.module:function", which is imported when the engine is opened."""


_FACTORY = "flow_dpo.engines.factory"
KINDS: dict[str, EngineKind] = {
    "local": EngineKind(settings=LocalSettings, open=f"{_FACTORY}:open_local"),
    "plain": EngineKind(settings=PlainSettings, open=f"{_FACTORY}:open_plain"),
    "vllm": EngineKind(settings=VllmSettings, open=f"{_FACTORY}:open_vllm_here"),
    "vllm_server": EngineKind(settings=VllmServerSettings, open=f"{_FACTORY}:open_vllm_server"),
}
"""The engines by name, as in `--engine vllm_server`. Engines of installed plug-ins are added when they are named."""
BUILT_IN = frozenset(KINDS)
"""The engines of this package."""


def register_engine(name: str, settings: type[Any], open: OpensEngine | str) -> None:
    """Make an engine available as `--engine name`. Raises `ConfigError` if another has this name or settings class."""
    kind = EngineKind(settings=settings, open=open)
    for known, other in KINDS.items():
        if other != kind and (known == name or other.settings is settings):
            raise ConfigError(
                f"expected a new name and settings for the engine {name!r}, found those of {known!r}; choose others"
            )
    KINDS[name] = kind


def engine_names() -> list[str]:
    """All names that `--engine` accepts, including those of installed plug-ins."""
    return list(dict.fromkeys([*KINDS, *installed("engine")]))


def kind_of(settings: EngineSettings) -> str:
    """The name of the engine with these settings. Raises `ConfigError` if no engine is registered with them."""
    for name, kind in KINDS.items():
        if type(settings) is kind.settings:
            return name
    raise ConfigError(
        f"expected settings of one of the engines {', '.join(KINDS)}, found {type(settings).__name__}; call "
        f"register_engine first"
    )


def default_settings(name: str) -> EngineSettings:
    """The default settings of an engine. Raises `ConfigError` for an unknown name."""
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
