"""Converts the fields of a `FlowDPOConfig` into named settings, which override a recipe's preset.

    settings_of(FlowDPOConfig(learning_rate=1e-4, max_steps=50), load_recipe("flow-dpo", "seed"))
    -> {"learner.learning_rate": 1e-4, "run.budget.budget_updates": 50}

Invariant: only fields that were given become settings, so an empty config is the recipe's preset and gives the run of
`flow-dpo train`. A value that has no meaning here is a `ConfigError` that names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.recipe import Recipe
from flow_dpo.trainer.config import FlowDPOConfig
from flow_dpo.trainer.fields import FIELDS

Settings = dict[str, Any]
_PER_DEVICE = 8
"""transformers' default of per_device_train_batch_size, used if only gradient_accumulation_steps is given."""


def settings_of(config: FlowDPOConfig, recipe: Recipe) -> Settings:
    """The settings that a config's fields become. Those in its `settings` take precedence.

    `recipe` is the one in force: its flow, exploration and objective decide what a field means.
    """
    given = config.given()
    found: Settings = {}
    for name, value in given.items():
        if name in FIELDS and FIELDS[name].fate == "setting":
            found[FIELDS[name].setting] = value
    asked = _Asked(config=config, recipe=recipe)
    for name, compute in _COMPUTED.items():
        if name in given:
            found |= compute(given[name], asked)
    return found | dict(config.settings or {})


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a field's meaning can depend on."""

    config: FlowDPOConfig
    recipe: Recipe

    def has(self, setting: str) -> bool:
        """Whether the recipe has this setting."""
        section, _, name = setting.partition(".")
        return hasattr(getattr(self.recipe, section), name)

    def first(self, field: str, *settings: str) -> str:
        """The first of these settings that the recipe has. Raises `ConfigError` if it has none."""
        for setting in settings:
            if self.has(setting):
                return setting
        parts = {each.partition(".")[0] for each in settings}
        kinds = ", ".join(type(getattr(self.recipe, part)).__name__ for part in sorted(parts))
        raise ConfigError(f"{field} has no meaning for this recipe ({kinds}), which has no {' or '.join(settings)}")


def _refuse(field: str, value: Any, words: str) -> ConfigError:
    return ConfigError(f"{field}={value!r:.80} has no meaning here: {words}")


# ---- updates ---------------------------------------------------------------------------------------------------------


def _examples(value: int, asked: _Asked) -> Settings:
    config = asked.config
    if value < 1:
        raise ConfigError(f"expected per_device_train_batch_size and accumulation of at least 1, found {value}")
    per_device = _PER_DEVICE if config.per_device_train_batch_size is None else config.per_device_train_batch_size
    return {"learner.examples_per_update": per_device * (config.gradient_accumulation_steps or 1)}


def _dropout(value: bool, asked: _Asked) -> Settings:
    return {"lora.lora_dropout": 0.0} if value else {}


def _max_steps(value: int, asked: _Asked) -> Settings:
    return {"run.budget.budget_updates": max(value, 0)}


def _warmup(value: float, asked: _Asked) -> Settings:
    if value != int(value):
        raise _refuse("warmup_steps", value, "the total number of updates is not known in advance; give a number")
    return {"learner.warmup_updates": int(value)}


def _schedule(value: str, asked: _Asked) -> Settings:
    if value in ("constant", "constant_with_warmup"):
        return {"learner.decay_after": 0, "learner.schedule": "inverse"}
    if value == "inverse_sqrt":
        return {"learner.decay_after": max(int(asked.config.warmup_steps or 0), 1), "learner.schedule": value}
    if value in ("linear", "cosine") and (asked.config.max_steps or 0) > 0:
        return {"learner.decay_after": asked.config.max_steps, "learner.schedule": value}
    raise _refuse("lr_scheduler_type", value, FIELDS["lr_scheduler_type"].words)


def _beta(value: Any, asked: _Asked) -> Settings:
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise _refuse("beta", value, "a stream of problems has no epochs to give a beta each; give one value")
        value = value[0]
    return {asked.first("beta", "objective.beta", "objective.kl_coef"): value}


def _epsilon(value: float, asked: _Asked) -> Settings:
    asked.first("epsilon", "objective.clip_high")
    if _is_cispo(asked):
        return {}  # TRL's cispo has only an upper limit
    return {"objective.clip_low": value, "objective.clip_high": value} | _epsilon_high(asked.config.epsilon_high, asked)


def _epsilon_high(value: float | None, asked: _Asked) -> Settings:
    name = asked.first("epsilon_high", "objective.clip_high")
    return {} if value is None else {name: value - 1 if _is_cispo(asked) else value}


def _is_cispo(asked: _Asked) -> bool:
    loss = asked.config.loss_type
    return getattr(asked.recipe.objective, "surrogate", "") == "weight" if loss is None else loss == "cispo"


def _scale(value: Any, asked: _Asked) -> Settings:
    known = {"group": True, "True": True, "none": False, "False": False}
    if str(value) not in known:
        raise _refuse("scale_rewards", value, FIELDS["scale_rewards"].words)
    return {asked.first("scale_rewards", "credit.scale"): known[str(value)]}


_REDUCTIONS = {"grpo": "answer", "bnpo": "tokens", "dapo": "tokens", "dr_grpo": "constant", "cispo": "tokens"}
"""`objective.reduction` for each of TRL's losses that is a clipped policy gradient."""
_LOSSES = {"sigmoid": ("Dpo", "DpoAndVerdicts"), "ipo": ("Ipo",)} | dict.fromkeys(
    _REDUCTIONS, ("ClippedPolicyGradient",)
)


def _loss(value: Any, asked: _Asked) -> Settings:
    own, names = type(asked.recipe.objective).__name__, [value] if isinstance(value, str) else list(value)
    if len(names) != 1 or own not in _LOSSES.get(names[0], ()):
        there = ", ".join(name for name, kinds in _LOSSES.items() if own in kinds) or "none by a name of TRL's"
        raise _refuse("loss_type", value, f"the recipe's objective is {own} ({there}); choose another recipe")
    if names[0] != "cispo" and getattr(asked.recipe.objective, "surrogate", "") == "weight":
        raise _refuse("loss_type", value, f'the recipe weights tokens like CISPO; choose recipe="{names[0]}" or "grpo"')
    if names[0] not in _REDUCTIONS:
        return {}
    cut = {"objective.surrogate": "weight", "objective.clip_low": 1.0} if names[0] == "cispo" else {}
    return {"objective.reduction": _REDUCTIONS[names[0]]} | cut


def _temperature(value: float, asked: _Asked) -> Settings:
    """TRL's GRPO and RLOO divide logits by the temperature in training too; its trainers on pairs do not."""
    learned = {"learner.logit_temperature": value} if asked.has("objective.clip_high") else {}
    return {"explore.temperature": value, **learned}


def _reference(value: Any, asked: _Asked) -> Settings:
    config = asked.config
    if not config.sync_ref_model:
        return (
            {"learner.reference.kind": "base", "learner.reference.every": 0} if config.sync_ref_model is False else {}
        )
    every = 512 if config.ref_model_sync_steps is None else config.ref_model_sync_steps
    lerp = 0.6 if config.ref_model_mixup_alpha is None else config.ref_model_mixup_alpha  # GRPOConfig's two
    names = {"kind": "snapshot", "every": every, "lerp": lerp}
    return {f"learner.reference.{name}": each for name, each in names.items()}


# ---- sampling --------------------------------------------------------------------------------------------------------


def _length(value: int, asked: _Asked) -> Settings:
    if asked.has("flow.chunk_tokens") and asked.has("flow.max_chunks"):
        chunk = min(asked.recipe.flow.chunk_tokens, value)  # pyright: ignore[reportAttributeAccessIssue]
        return {"flow.chunk_tokens": chunk, "flow.max_chunks": max(value // max(chunk, 1), 1)}
    return {asked.first("max_completion_length", "flow.max_tokens"): value}


def _generations(value: int, asked: _Asked) -> Settings:
    if value < 2:
        raise _refuse("num_generations", value, "completions are compared with one another; give 2 or more")
    if asked.has("explore.num_alternatives"):
        return {"explore.num_alternatives": value - 1}
    return {asked.first("num_generations", "explore.num_rollouts"): value}


def _generations_eval(value: int, asked: _Asked) -> Settings:
    return {"evaluation.num_samples": value, **({"evaluation.greedy": False} if value > 1 else {})}


def _unfinished(value: bool, asked: _Asked) -> Settings:
    return {"grading.unfinished": "ungraded" if value else "wrong"}


def _vllm(value: Any, asked: _Asked) -> Settings:
    config = asked.config
    if not config.use_vllm:
        return {}
    if config.vllm_mode in (None, "colocate"):
        more = {"tensor_parallel_size": config.vllm_tensor_parallel_size}
        wide = config.vllm_tensor_parallel_size not in (None, 1)
        return {"engine_kind": "vllm", **({"engine.engine_args": more} if wide else {})}
    if config.vllm_mode != "server":
        raise _refuse("vllm_mode", config.vllm_mode, 'give "colocate" or "server"')
    host, port = config.vllm_server_host or "127.0.0.1", config.vllm_server_port or 8000
    url = config.vllm_server_base_url or f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    patience = {} if config.vllm_server_timeout is None else {"engine.patience_s": config.vllm_server_timeout}
    return {"engine_kind": "vllm_server", "engine.base_url": url, **patience}


# ---- model, data, saving ---------------------------------------------------------------------------------------------


def _bf16(value: bool, asked: _Asked) -> Settings:
    return {"model.dtype": "bfloat16"} if value else {}


def _cpu(value: bool, asked: _Asked) -> Settings:
    return {"model.device": "cpu"} if value else {}


_MODEL = {
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "revision": "model.model_revision",
    "trust_remote_code": "model.trust_remote_code",
}


def _model_init(value: Mapping[str, Any], asked: _Asked) -> Settings:
    found: Settings = {}
    for name, each in value.items():
        if name not in _MODEL:
            raise _refuse("model_init_kwargs", {name: each}, f"only {', '.join(_MODEL)} are read; use settings={{...}}")
        found[_MODEL[name]] = str(each).removeprefix("torch.") if _MODEL[name] == "model.dtype" else each
    return found


def _shuffle(value: Any, asked: _Asked) -> Settings:
    config = asked.config
    if config.shuffle_dataset is False:
        return {}
    seed = next((one for one in (config.data_seed, config.seed) if one is not None), 0)
    return {"data.shuffle_seed": seed}


def _saving(value: Any, asked: _Asked) -> Settings:
    config = asked.config
    if config.save_strategy in ("no", "epoch"):
        return {"run.save_updates": 0}
    if config.save_strategy not in (None, "steps"):
        raise _refuse("save_strategy", config.save_strategy, FIELDS["save_total_limit"].words)
    steps = 500 if config.save_steps is None else config.save_steps  # transformers'
    if steps != int(steps) or steps < 1:
        raise _refuse("save_steps", steps, "the total number of updates is not known in advance; give a number")
    return {"run.save_updates": int(steps)}


def _report_to(value: Any, asked: _Asked) -> Settings:
    names = [value] if isinstance(value, str) else list(value)
    if "all" in names:
        raise _refuse("report_to", value, "nothing is sent to a tracker that you did not name; name the trackers")
    return {"run.tracking.report_to": ",".join(names) or "none"}


_COMPUTED: Mapping[str, Callable[[Any, _Asked], Settings]] = {
    "per_device_train_batch_size": _examples,
    "gradient_accumulation_steps": _examples,
    "disable_dropout": _dropout,
    "max_steps": _max_steps,
    "warmup_steps": _warmup,
    "lr_scheduler_type": _schedule,
    "temperature": _temperature,
    "beta": _beta,
    "epsilon": _epsilon,
    "epsilon_high": _epsilon_high,
    "scale_rewards": _scale,
    "loss_type": _loss,
    "sync_ref_model": _reference,
    "ref_model_sync_steps": _reference,
    "ref_model_mixup_alpha": _reference,
    "max_completion_length": _length,
    "max_new_tokens": _length,
    "num_generations": _generations,
    "num_generations_eval": _generations_eval,
    "mask_truncated_completions": _unfinished,
    **dict.fromkeys(
        ("use_vllm", "vllm_mode", "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
         "vllm_tensor_parallel_size"),
        _vllm,
    ),
    "bf16": _bf16,
    "use_cpu": _cpu,
    "model_init_kwargs": _model_init,
    "data_seed": _shuffle,
    "shuffle_dataset": _shuffle,
    "save_steps": _saving,
    "save_strategy": _saving,
    "report_to": _report_to,
}  # fmt: skip
