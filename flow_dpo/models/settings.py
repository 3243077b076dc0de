"""Settings of a model: which one, how it is loaded, and the shape of its adapters.

ModelSettings(model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flow_dpo.core.errors import ConfigError

ALL_LINEAR = "all-linear"
"""Adapters on every linear layer and stack of experts; see `adapter_targets`."""
_MOST_THREADS = 4096


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings:
    """Quantisation of the base by bitsandbytes (docs/models.md); adapters stay in full precision."""

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    use_bnb_nested_quant: bool = False
    """Also quantise the scales of 4-bit weights, which saves about 0.4 bits per weight."""

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError("expected load_in_4bit or load_in_8bit, found both; leave one out")

    @property
    def wanted(self) -> bool:
        """Whether the base is quantised at all."""
        return self.load_in_4bit or self.load_in_8bit


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and how it is loaded."""

    model_name_or_path: str = "seed"
    """A folder, a hub id, or "seed" for the embedded model."""
    model_revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """"auto" is the checkpoint's own precision, but float32 for the embedded seed and on a CPU that is faster in it
    (such as one without bf16 instructions). The run records the precision that was used (run.json)."""
    device: str = "auto"
    """"auto" uses a CUDA device if there is one."""
    chat_template: str | None = None
    """Replaces the tokenizer's template: a Jinja text, or "plain" for a base model that has none."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Variables of the chat template, such as {"enable_thinking": true}. If a template has a switch for thinking, it is
    off unless set here."""
    template_date: str = ""
    """Date and time for chat templates that ask for it, in ISO 8601: "2026-11-28"; the present if not given. A run
    keeps the date at which it began."""
    end_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, in addition to those named by tokenizer, generation config and chat template. Needed
    if the template writes no end token after an answer."""
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    trust_remote_code: bool = False
    num_threads: int = 0
    """CPU threads; 0 means one for tiny models and torch's default for others. Unless it is 1, the rows of a tiny
    model's update are computed in one thread per core, with results identical to the bit."""

    def __post_init__(self) -> None:
        if not self.model_name_or_path.strip():
            raise ConfigError("expected model_name_or_path to be a folder, a hub id or seed, found none")
        if not 0 <= self.num_threads <= _MOST_THREADS:
            raise ConfigError(f"expected num_threads from 0 to {_MOST_THREADS}, found {self.num_threads}")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The shape of every role's adapter. The paper: r 8, alpha 8, dropout 0.05, all linear layers."""

    lora_r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    """Dropout probability, with new masks at every update. At 0, policy and reference policy also start equal in the
    loss. PEFT has no dropout for experts that are one stacked parameter: above 0 they get no adapter."""
    lora_target_modules: str | tuple[str, ...] = ALL_LINEAR
    """"all-linear": every linear layer and the stacked weights of experts, except output head and embeddings. Or the
    last parts of names of modules and stacked weights: ("q_proj", "v_proj"), ("lm_head", "experts.down_proj")."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Also learn the magnitude of each row of a weight, apart from its direction (DoRA, arXiv 2402.09353); slower. PEFT
    has it for layers only: experts that are one stacked parameter get no adapter. Not with vLLM's adapters."""
    modules_to_save: tuple[str, ...] = ()
    """Last parts of names of modules that are trained in full, with a copy for each role: ("embed_tokens", "lm_head").
    Not with vLLM's adapters or merged weights."""
    init_from: str = ""
    """Start from trained adapters: a run folder or a pushed run (each role from its newest), or one adapter in PEFT's
    layout (for the Answer role). Their shape becomes the default of the settings above, and `reference.kind` becomes
    "snapshot": the adapters that training starts from."""
    init_roles: Mapping[str, str] = field(default_factory=dict[str, str])
    """The same per role, taking precedence over `init_from`: {"answer": "runs/sft", "stop": "runs/a/adapters/stop/12"}.
    A role that neither names starts with a new adapter."""

    def __post_init__(self) -> None:
        if self.lora_r < 1:
            raise ConfigError(f"lora_r must be 1 or more, found {self.lora_r}")
        if self.lora_alpha < 1:
            raise ConfigError(f"lora_alpha must be 1 or more (at 0 no adapter does anything), found {self.lora_alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout is a probability of 0 or more and below 1, found {self.lora_dropout}")
        if not self.lora_target_modules or not all(self.lora_target_modules):
            raise ConfigError(
                f"lora_target_modules must be {ALL_LINEAR!r} or names of modules, found {self.lora_target_modules!r}"
            )
        if not all(self.modules_to_save):
            raise ConfigError(f"modules_to_save must be names of modules, found {self.modules_to_save!r}")

    @property
    def starts_trained(self) -> bool:
        """Whether any role starts from an existing adapter."""
        return bool(self.init_from or self.init_roles)
