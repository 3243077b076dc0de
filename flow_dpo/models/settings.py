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
    """The base's weights in few bits, by bitsandbytes (docs/models.md); adapters stay in full precision."""

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    use_bnb_nested_quant: bool = False
    """Quantise the scales of 4-bit weights too: some 0.4 bits a weight less."""

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
    """"auto" is the checkpoint's own, and float32 where the processor would have to imitate it (a CPU without bf16
    instructions), and for the embedded seed. What it was is a fact of the run (run.json)."""
    device: str = "auto"
    """"auto" takes a CUDA device where there is one."""
    chat_template: str | None = None
    """Replaces the tokenizer's template: a Jinja text, or "plain" for a base model that has none."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Variables of the chat template, such as {"enable_thinking": true}: where a template has a switch for thoughts, it
    is off unless it is set here."""
    template_date: str = ""
    """The moment that a chat template gets which asks for the date, in ISO 8601: "2026-11-28"; now where it is not
    given. A run keeps the one at which it began."""
    end_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, besides those that tokenizer, generation config and chat template name. Needed where
    the template writes no token of its own after an answer."""
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    trust_remote_code: bool = False
    num_threads: int = 0
    """CPU threads; 0 means one for tiny models and torch's own choice for others. Rows of a tiny model's update are
    computed in as many threads as there are cores unless it is 1, with the same results to the bit."""

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
    """Probability; new masks at every update. At 0 the loss too starts with policy and reference policy equal. Experts
    that are one stacked parameter have no dropout in PEFT, and are left out where this is above 0."""
    lora_target_modules: str | tuple[str, ...] = ALL_LINEAR
    """"all-linear": every linear layer, and experts' stacked weights, but the vocabulary's head and embeddings. Or the
    last parts of names of modules and stacked weights: ("q_proj", "v_proj"), ("lm_head", "experts.down_proj")."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Learn a magnitude of each row of a weight beside its direction (DoRA, arXiv 2402.09353): slower. PEFT has it for
    layers; experts that are one stacked parameter are left out. Not with vLLM's adapters."""
    modules_to_save: tuple[str, ...] = ()
    """Last parts of names of modules that learn whole, each role with a copy of its own: ("embed_tokens", "lm_head").
    Not with vLLM's adapters nor merged weights."""
    init_from: str = ""
    """Begin with trained adapters: a run folder or pushed run (each role with its newest), or one adapter in PEFT's
    layout (the Answer role with it). Their shape is the default of the settings above, and `reference.kind` is then
    "snapshot": what training begins with."""
    init_roles: Mapping[str, str] = field(default_factory=dict[str, str])
    """The same by role, before `init_from`: {"answer": "runs/sft", "stop": "runs/a/adapters/stop/12"}. A role that
    neither names begins with a fresh adapter."""

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
        """Whether some role begins with an adapter that is there already."""
        return bool(self.init_from or self.init_roles)
