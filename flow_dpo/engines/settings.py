"""Settings of every engine, by the word that chooses it.

    default_settings("vllm_server")     # VllmServerSettings(base_url="http://127.0.0.1:8000", ...)
    kind_of(LocalSettings())            # "local"

Invariant: nothing heavy is imported, so that a command line is read before torch is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.http_client import check_base_url


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """How much the local engine does at once."""

    max_batch_size: int = 64
    """Rows of one role that are decoded together."""
    kv_budget_gib: float = 2.0
    """Memory for keys and values: those of the rows under way, and what is kept of earlier ones."""
    prefill_tokens: int = 4096
    """Prompt tokens that one step admits, unless a single prompt is longer."""
    merge_adapters: Literal["auto", "never", "always"] = "auto"
    """Speak with each role's adapter merged into weights of its own: faster, for the memory of the base's linear layers
    once a role. In float32 only; "auto" where that is 1 GiB in all at most."""
    reuse: bool = True
    """Keep keys and values for later prompts that begin alike. Off is slower, and changes no token."""

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "kv_budget_gib", "prefill_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected engine.{name} above 0, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """vLLM in this process."""

    kv_budget_gib: float = 2.0
    """Memory for keys and values. The learner needs the rest."""
    max_batch_size: int = 256
    """Requests that are decoded together."""
    block_tokens: int = 0
    """Tokens in a block of the prefix cache: what two prompts share is reused in whole blocks. 0 is vLLM's own choice,
    16 on most GPUs; on a CPU 128, and 32 serves better."""
    compiled: bool = True
    """Compile the model and capture its steps: minutes at the start, faster from then on. Never on a CPU."""
    top_logprobs: int = 20
    """Likeliest tokens that are told at each position where temperature or top-p are not 1."""
    sync: Literal["adapters", "merged"] = "adapters"
    """What a refresh brings: adapters, or all weights with a role's adapter in them. The latter is for recipes of one
    role: tokens cost no adapter, a refresh costs the whole model (docs/engines.md)."""
    engine_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More of vLLM's `EngineArgs`, such as {"tensor_parallel_size": 2}."""

    def __post_init__(self) -> None:
        if not self.kv_budget_gib > 0 or self.max_batch_size < 1 or self.block_tokens < 0 or self.top_logprobs < 1:
            raise ConfigError(
                "expected kv_budget_gib above 0, max_batch_size and top_logprobs of 1 at least, block_tokens of 0 at "
                f"least, found {self.kv_budget_gib}, {self.max_batch_size}, {self.top_logprobs}, {self.block_tokens}"
            )

    def check_roles(self, num_roles: int) -> None:
        """Raises `ConfigError` where merged weights would have to speak for several roles."""
        if self.sync == "merged" and num_roles != 1:
            raise ConfigError(
                f"expected one role with --engine.sync merged, found {num_roles}: one vLLM holds one set of weights; "
                "leave it at adapters"
            )


@dataclass(frozen=True, kw_only=True)
class VllmServerSettings:
    """A running `vllm serve` that plays. Its API key, where it wants one, is read from OPENAI_API_KEY."""

    base_url: str = "http://127.0.0.1:8000"
    """Where it listens; with or without /v1."""
    served_model: str = ""
    """The base model's name there; may be left out where it serves one only."""
    concurrency: int = 128
    """Requests under way at once."""
    deadline_s: float = 600.0
    """Seconds that one request may take in all before it is given up and asked again."""
    patience_s: float = 900.0
    """Seconds for which a request that fails on the way is asked again: as long as the server takes to start anew."""
    backoff_s: float = 0.25
    """Seconds before the second try; twice as many before each that follows, five at most."""
    top_logprobs: int = 20
    """Likeliest tokens that are told at each position where temperature or top-p are not 1."""

    def __post_init__(self) -> None:
        check_base_url(self.base_url)
        if self.concurrency < 1 or self.top_logprobs < 1:
            raise ConfigError(
                f"expected concurrency and top_logprobs of 1 at least, found {self.concurrency} and {self.top_logprobs}"
            )
        if not 0 < self.deadline_s < 1e6 or not 0 <= self.patience_s < 1e6 or not 0 < self.backoff_s < 1e6:
            raise ConfigError(
                "expected deadline_s and backoff_s above 0 and patience_s of 0 or more, found "
                f"{self.deadline_s}, {self.backoff_s} and {self.patience_s}"
            )


EngineSettings = LocalSettings | VllmSettings | VllmServerSettings
KINDS: dict[str, type[LocalSettings] | type[VllmSettings] | type[VllmServerSettings]] = {
    "local": LocalSettings,
    "vllm": VllmSettings,
    "vllm_server": VllmServerSettings,
}
"""The engines by the word that chooses them: `--engine vllm_server`."""


def kind_of(settings: EngineSettings) -> str:
    """The word that chooses this engine."""
    return next(kind for kind, settings_of in KINDS.items() if type(settings) is settings_of)


def default_settings(kind: str) -> EngineSettings:
    """What an engine does where nothing is said. Raises `ConfigError` for a word that names none."""
    if kind not in KINDS:
        raise ConfigError(f"unknown engine {kind!r}; there are {', '.join(KINDS)}")
    return KINDS[kind]()
