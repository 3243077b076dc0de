"""`FlowDPOConfig`: the settings of a `FlowDPOTrainer`, under the names that TRL and transformers use.

    FlowDPOConfig(output_dir="runs/a", learning_rate=1e-4, settings={"flow.max_attempts": 2})
    FlowDPOConfig.from_trl(GRPOConfig(learning_rate=1e-4))         # the fields that were set there

A field that is not given (None) has the value of the recipe's preset, not TRL's default. Invariant: a field of TRL that
has no meaning here is refused by name with what to use instead (`fields.FIELDS`), a misspelled one with the nearest.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from flow_dpo.core.errors import ConfigError
from flow_dpo.trainer.fields import FIELDS
from flow_dpo.trainer.habits import FORMER

C = TypeVar("C")


def _knows_trl(config: type[C]) -> type[C]:
    """A class decorator: the constructor also accepts or refuses field names of TRL that the class does not have."""
    make = config.__init__
    own = [each.name for each in fields(config)]  # pyright: ignore[reportArgumentType]

    @functools.wraps(make)
    def checked(self: Any, *folder: Any, **given: Any) -> None:
        if len(folder) > 1 or (folder and "output_dir" in given):
            raise ConfigError("FlowDPOConfig takes output_dir alone by position, as TrainingArguments does")
        given |= {"output_dir": folder[0]} if folder else {}
        make(self, **{name: value for name, value in given.items() if not _is_settled(name, value, own)})

    config.__init__ = checked  # pyright: ignore[reportAttributeAccessIssue]
    return config


def _is_settled(name: str, value: Any, own: Sequence[str]) -> bool:
    """Whether a name can be dropped: it has no effect or asks for nothing. Raises `ConfigError` if it is refused."""
    if name in own:
        return False
    known = FIELDS.get(name)
    if known is None and name in FORMER:
        raise ConfigError(f"FlowDPOConfig has no field {name!r}: {FORMER[name]}")
    if known is None:
        near = difflib.get_close_matches(name, [*own, *FIELDS], n=1)
        hint = f"; did you mean {near[0]}?" if near else '; pass other settings as settings={"learner.name": value}'
        raise ConfigError(f"FlowDPOConfig has no field {name!r}{hint}")
    value = value.value if isinstance(value, Enum) else value  # as transformers turns texts into
    if known.fate == "refused" and not any(type(value) is type(one) and value == one for one in known.harmless):
        raise ConfigError(f"{name}={value!r:.80} has no place here: {known.words}")
    return True


@_knows_trl
@dataclass(frozen=True, kw_only=True)
class FlowDPOConfig:
    """Settings of a `FlowDPOTrainer`. A field that is None has the value of the recipe's preset."""

    output_dir: str | Path | None = None
    """The run folder; default: runs/train."""
    preset: str | None = None
    """"paper", "chat", "small", "seed" or, for flow-dpo, "gpu": all values for a model size. Default: by the model."""
    settings: Mapping[str, Any] | None = None
    """Any other setting by its name on the command line: {"learner.warmup_updates": 4, "evaluation.greedy": False,
    "generate.num_samples": 8}. It takes precedence over a field that sets the same."""
    max_problems: int | None = None
    """Take only this many problems of the data set, after shuffling."""
    seed: int | None = None
    """The seed from which every random number of the run is derived; default: 0."""

    # updates
    learning_rate: float | None = None
    beta: float | Sequence[float] | None = None
    """Strength of the pull towards the reference policy."""
    per_device_train_batch_size: int | None = None
    """Times `gradient_accumulation_steps`: the examples of one update, across all processes."""
    gradient_accumulation_steps: int | None = None
    max_steps: int | None = None
    """Updates after which the run ends; -1 sets no limit. The run ends earlier if the problems run out."""
    num_train_epochs: float | None = None
    """The fraction of the problems to use, at most 1."""
    max_grad_norm: float | None = None
    warmup_steps: int | float | None = None
    lr_scheduler_type: str | None = None
    """"constant", "constant_with_warmup", "inverse_sqrt" or, with max_steps, "linear" or "cosine"."""
    num_iterations: int | None = None
    """Passes over each batch of examples."""
    gradient_checkpointing: bool | None = None
    activation_checkpointing: bool | None = None
    """The same, under transformers' newer name."""
    loss_type: str | Sequence[str] | None = None
    """The loss; it must be one that the recipe's objective has."""
    epsilon: float | None = None
    epsilon_high: float | None = None
    scale_rewards: str | bool | None = None
    sync_ref_model: bool | None = None
    ref_model_sync_steps: int | None = None
    ref_model_mixup_alpha: float | None = None

    # sampling
    temperature: float | None = None
    top_p: float | None = None
    num_generations: int | None = None
    """Completions that are compared with one another."""
    max_completion_length: int | None = None
    """The longest solution, in tokens."""
    max_new_tokens: int | None = None
    """The same, under OnlineDPOConfig's name."""
    mask_truncated_completions: bool | None = None
    use_vllm: bool | None = None
    vllm_mode: str | None = None
    vllm_server_base_url: str | None = None
    vllm_server_host: str | None = None
    vllm_server_port: int | None = None
    vllm_server_timeout: float | None = None
    vllm_tensor_parallel_size: int | None = None

    # model and data
    bf16: bool | None = None
    use_cpu: bool | None = None
    trust_remote_code: bool | None = None
    disable_dropout: bool | None = None
    model_init_kwargs: Mapping[str, Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    data_seed: int | None = None
    shuffle_dataset: bool | None = None

    # rewards
    reward_weights: Sequence[float] | None = None

    # evaluation
    eval_strategy: str | None = None
    """"no", "steps" or "epoch" (the end of the run)."""
    eval_steps: int | float | None = None
    """Updates between two evaluations."""
    eval_on_start: bool = False
    eval_delay: float = 0
    per_device_eval_batch_size: int | None = None
    """Problems that an evaluation works on at once. Changes timing only."""
    num_generations_eval: int | None = None
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None

    # the run
    save_steps: int | float | None = None
    save_strategy: str | None = None
    resume_from_checkpoint: str | bool | None = None
    report_to: str | Sequence[str] | None = None
    run_name: str | None = None
    project: str | None = None
    """The project under which trackers group runs."""
    disable_tqdm: bool | None = None
    """True prints nothing during training."""
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    hub_revision: str | None = None
    hub_token: str | None = None

    def __post_init__(self) -> None:
        for name in ("lr_scheduler_type", "eval_strategy", "save_strategy"):
            value = getattr(self, name)
            if isinstance(value, Enum):
                object.__setattr__(self, name, value.value)
        if self.eval_strategy not in (None, "no", "steps", "epoch"):
            raise ConfigError(f'expected eval_strategy of "no", "steps" or "epoch", found {self.eval_strategy!r}')
        if self.eval_steps is not None and (self.eval_steps < 1 or self.eval_steps != int(self.eval_steps)):
            raise ConfigError(
                f"expected eval_steps to be a number of updates, found {self.eval_steps}: a fraction has no meaning, "
                "because the total number of updates is not known in advance"
            )
        if self.eval_strategy == "steps" and self.eval_steps is None:
            raise ConfigError('expected eval_steps with eval_strategy="steps", found none: updates between evaluations')
        if self.eval_on_start and self.eval_strategy not in ("steps", "epoch"):
            found = self.eval_strategy or "no"
            raise ConfigError(f"expected eval_strategy 'steps' or 'epoch' with eval_on_start, found {found!r}")

    @property
    def run_folder(self) -> Path:
        """The folder that the run is written to."""
        return Path("runs/train" if self.output_dir is None else self.output_dir)

    def given(self) -> dict[str, Any]:
        """The fields that were given, by name."""
        defaults = {each.name: each.default for each in fields(self)}
        return {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}

    def to_dict(self) -> dict[str, Any]:
        """All fields except the token, as trackers record them."""
        return {name: value for name, value in asdict(self).items() if name != "hub_token"}

    @classmethod
    def from_trl(cls, config: Any, **more: Any) -> FlowDPOConfig:
        """The config with what was set in a `GRPOConfig`, `OnlineDPOConfig` or `TrainingArguments`, which is every
        field that differs from its default there. `more` overrides these.

        Raises `ConfigError` for a field that was set and has no meaning here.
        """
        return cls(**{**_set_in(config), **more})


_SHAPES = ("output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations",
           "logging_steps", "eval_strategy", "bf16", "fp16", "use_cpu", "deepspeed")  # fmt: skip
"""Fields of TRL's configs from which their constructors derive others."""


def _set_in(config: Any) -> dict[str, Any]:
    """The fields of one of TRL's configs that differ from what its class makes of its defaults.

    Its constructor derives some fields from others (generation_batch_size from three). The config is compared with one
    whose `_SHAPES` are the same, so a derived field does not count as set.
    """
    every = {each.name: each for each in fields(config) if each.init}
    shapes = {name: getattr(config, name) for name in _SHAPES if name in every}
    with warnings.catch_warnings(action="ignore"):  # about deprecated defaults
        like = type(config)(**{name: value for name, value in shapes.items() if value is not None})
    found = {name: getattr(config, name) for name in every if getattr(config, name) != getattr(like, name)}
    for name, value in shapes.items():
        default = every[name].default
        if default is not MISSING and value != default:
            found[name] = value
    if getattr(config.eval_strategy, "value", config.eval_strategy) == "steps":
        found["eval_steps"] = config.eval_steps  # even if it was derived from logging_steps
    if "bf16" in every and every["bf16"].default is None:  # always derived from fp16
        found.pop("bf16", None)
    return found
