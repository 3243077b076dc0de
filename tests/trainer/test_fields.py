"""Is every field of TRL's configs answered, and does what is mapped reach the setting that it names?"""

from __future__ import annotations

import warnings
from dataclasses import MISSING, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import flow_dpo
from flow_dpo import FlowDpoError, FlowDPOTrainer
from flow_dpo.core.recipe import Recipe
from flow_dpo.recipes.pair_objectives import Ipo
from flow_dpo.recipes.presets import load_recipe
from flow_dpo.runs.given_objects import GivenObjects, train_settings
from flow_dpo.trainer.fields import FIELDS
from flow_dpo.trainer.mapping import settings_of

FlowDPOConfig: Any = flow_dpo.FlowDPOConfig  # also with names and values that a type checker refuses
OWN = {"preset", "settings", "max_problems"}
"""Fields of `FlowDPOConfig` that TRL has none for."""


@cache
def trl_classes() -> list[Any]:
    from transformers import TrainingArguments
    from trl.trainer.grpo_config import GRPOConfig

    with warnings.catch_warnings(action="ignore"):  # that it is experimental
        from trl.experimental.online_dpo import OnlineDPOConfig

    return [TrainingArguments, GRPOConfig, OnlineDPOConfig]


def default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def test_every_field_of_trls_configs_is_in_the_table_and_its_default_asks_for_nothing() -> None:
    """Fails when a new release adds a field, or gives one another default than the table lets pass."""
    for config in trl_classes():
        for field in fields(config):
            known = FIELDS.get(field.name)
            assert known is not None, f"{config.__name__}.{field.name} is new: what becomes of it?"
            if known.fate in ("refused", "no effect"):
                FlowDPOConfig(**{field.name: default(field)})  # is let pass


DELIBERATE: dict[str, Any] = {
    "optim": ("adamw_torch", "adamw_torch_fused"),
    "hub_strategy": ("end", "every_save"),
    "router_aux_loss_coef": (0.0, 0.001),
    "gradient_checkpointing_kwargs": ({"use_reentrant": False},),
    "activation_checkpointing_kwargs": ({"use_reentrant": False},),
}
"""Values of refused fields that ask for nothing, besides their defaults: what is done anyway."""


def test_a_refused_field_lets_no_value_pass_that_asks_for_something() -> None:
    """Fields that share their words must not share their defaults. Empty ones ask for nothing."""
    defaults: dict[str, list[Any]] = {}
    for config in trl_classes():
        for field in fields(config):
            defaults.setdefault(field.name, []).append(default(field))
    for name, known in FIELDS.items():
        for value in known.harmless if known.fate == "refused" and name in defaults else ():
            if value is None or value is False or value in ("", [], {}) or value in DELIBERATE.get(name, ()):
                continue
            same = [one for one in FIELDS.values() if one.harmless == known.harmless and one.words == known.words]
            meant = [each for one in same for each in defaults.get(one.name, []) if type(each) is type(value)]
            own = [each for each in defaults[name] if type(each) is type(value)]
            assert value in own or (not own and value in meant), f"{name}={value!r} is let pass"


def test_the_enums_that_transformers_makes_are_read_as_their_texts() -> None:
    from transformers.trainer_utils import HubStrategy
    from transformers.training_args import OptimizerNames

    FlowDPOConfig(hub_strategy=HubStrategy.END, optim=OptimizerNames.ADAMW_TORCH)
    with pytest.raises(FlowDpoError, match="hub_strategy"):
        FlowDPOConfig(hub_strategy=HubStrategy.ALL_CHECKPOINTS)
    with pytest.raises(FlowDpoError, match="optim"):
        FlowDPOConfig(optim=OptimizerNames.ADAFACTOR)


def test_the_tables_fates_are_what_the_config_does() -> None:
    own = {field.name for field in fields(FlowDPOConfig)}
    acted_on = {name for name, field in FIELDS.items() if field.fate in ("setting", "computed", "trainer")}
    assert own == acted_on | OWN
    for name, field in FIELDS.items():
        assert field.words or field.fate == "setting", name
        if field.fate == "refused":
            with pytest.raises(FlowDpoError, match=rf"{name}=.* has no place here: "):
                FlowDPOConfig(**{name: "something else"})
        elif field.fate == "no effect":
            FlowDPOConfig(**{name: "something else"})
    with pytest.raises(FlowDpoError, match=r"learning_rte.*did you mean learning_rate"):
        FlowDPOConfig(learning_rte=1e-3)
    assert replace(FlowDPOConfig(seed=3), beta=0.5).seed == 3


# Each field with a value that is nobody's default, what goes with it, and the settings in which it must be found.
MAPPED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learning_rate": ({"learning_rate": 0.25}, {"learner.learning_rate": 0.25}),
    "max_grad_norm": ({"max_grad_norm": 0.25}, {"learner.max_grad_norm": 0.25}),
    "seed": ({"seed": 7}, {"run.seed": 7}),
    "gradient_checkpointing": ({"gradient_checkpointing": True}, {"learner.rows.gradient_checkpointing": True}),
    "activation_checkpointing": ({"activation_checkpointing": True}, {"learner.rows.gradient_checkpointing": True}),
    "trust_remote_code": ({"trust_remote_code": True}, {"model.trust_remote_code": True}),
    "chat_template_kwargs": ({"chat_template_kwargs": {"a": True}}, {"model.template_kwargs": {"a": True}}),
    "temperature": ({"temperature": 0.75}, {"explore.temperature": 0.75}),
    "top_p": ({"top_p": 0.75}, {"explore.top_p": 0.75}),
    "num_iterations": ({"num_iterations": 3}, {"learner.passes.epochs_per_batch": 3}),
    "per_device_train_batch_size": ({"per_device_train_batch_size": 5}, {"learner.examples_per_update": 5}),
    "gradient_accumulation_steps": ({"gradient_accumulation_steps": 5}, {"learner.examples_per_update": 40}),
    "report_to": ({"report_to": ["trackio", "wandb"]}, {"run.tracking.report_to": "trackio,wandb"}),
    "run_name": ({"run_name": "first"}, {"run.tracking.run_name": "first"}),
    "project": ({"project": "sums"}, {"run.tracking.project": "sums"}),
    "max_steps": ({"max_steps": 11}, {"run.budget.budget_updates": 11}),
    "warmup_steps": ({"warmup_steps": 11}, {"learner.warmup_updates": 11}),
    "lr_scheduler_type": (
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 9},
        {"learner.decay_after": 9, "learner.schedule": "inverse_sqrt"},
    ),
    "bf16": ({"bf16": True}, {"model.dtype": "bfloat16"}),
    "use_cpu": ({"use_cpu": True}, {"model.device": "cpu"}),
    "model_init_kwargs": (
        {"model_init_kwargs": {"dtype": "bfloat16", "revision": "main"}},
        {"model.dtype": "bfloat16", "model.model_revision": "main"},
    ),
    "data_seed": ({"data_seed": 5}, {"data.shuffle_seed": 5}),
    "shuffle_dataset": ({"shuffle_dataset": True, "seed": 4}, {"data.shuffle_seed": 4}),
    "save_steps": ({"save_steps": 7}, {"run.save_updates": 7}),
    "save_strategy": ({"save_strategy": "steps"}, {"run.save_updates": 500}),
    "max_completion_length": ({"max_completion_length": 48}, {"flow.chunk_tokens": 16, "flow.max_chunks": 3}),
    "max_new_tokens": ({"max_new_tokens": 10}, {"flow.chunk_tokens": 10, "flow.max_chunks": 1}),
    "num_generations": ({"num_generations": 4}, {"explore.num_alternatives": 3}),
    "beta": ({"beta": [0.25]}, {"objective.beta": 0.25}),
    "mask_truncated_completions": ({"mask_truncated_completions": True}, {"grading.unfinished": "ungraded"}),
    "sync_ref_model": (
        {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.5},
        {"learner.reference.kind": "snapshot", "learner.reference.every": 3, "learner.reference.lerp": 0.5},
    ),
    "use_vllm": (
        {"use_vllm": True, "vllm_tensor_parallel_size": 2},
        {"engine.engine_args": {"tensor_parallel_size": 2}},
    ),
    "vllm_mode": (
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_host": "10.0.0.1", "vllm_server_port": 81,
         "vllm_server_timeout": 60.0},
        {"engine.base_url": "http://10.0.0.1:81", "engine.patience_s": 60.0},
    ),
    "vllm_server_base_url": (
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://10.0.0.2:82"},
        {"engine.base_url": "http://10.0.0.2:82"},
    ),
}  # fmt: skip
COVERED = {
    "ref_model_sync_steps": "sync_ref_model",
    "ref_model_mixup_alpha": "sync_ref_model",
    "vllm_server_host": "vllm_mode",
    "vllm_server_port": "vllm_mode",
    "vllm_server_timeout": "vllm_mode",
    "vllm_tensor_parallel_size": "use_vllm",
}
"""Fields that are tried with another one."""
GRPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epsilon": ({"epsilon": 0.3}, {"objective.clip_low": 0.3, "objective.clip_high": 0.3}),
    "epsilon_high": ({"epsilon_high": 5.0, "loss_type": "cispo"}, {"objective.clip_high": 4.0}),
    "scale_rewards": ({"scale_rewards": "none"}, {"credit.scale": False}),
    "beta": ({"beta": 0.25}, {"objective.kl_coef": 0.25}),
    "num_generations": ({"num_generations": 6}, {"explore.num_rollouts": 6}),
    "max_completion_length": ({"max_completion_length": 77}, {"flow.max_tokens": 77}),
    "loss_type": (
        {"loss_type": "cispo"},
        {"objective.reduction": "tokens", "objective.surrogate": "weight", "objective.clip_low": 1.0},
    ),
}
EQUAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "disable_dropout": ({"disable_dropout": True}, {"lora.lora_dropout": 0.0}),
    "per_device_eval_batch_size": ({"per_device_eval_batch_size": 3}, {"evaluation.batch_problems": 3}),
    "num_generations_eval": (
        {"num_generations_eval": 4},
        {"evaluation.num_samples": 4, "evaluation.greedy": False},
    ),
}


def at(value: Any, name: str) -> Any:
    for part in name.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize(("recipe", "cases"), [("flow-dpo", MAPPED), ("grpo", GRPO)])
def test_a_mapped_field_changes_the_setting_that_is_named(recipe: str, cases: dict[str, Any]) -> None:
    plain = train_settings({}, GivenObjects(), recipe=recipe).sections()
    for name, (given, expected) in cases.items():
        found = settings_of(FlowDPOConfig(**given), load_recipe(recipe, "seed"))
        resolved = train_settings(found, GivenObjects(), recipe=recipe).sections()
        for setting, value in expected.items():
            assert at(resolved, setting) == value, (name, setting)
            section = setting.partition(".")[0]
            assert section == "engine" or FIELDS[name].setting == "engine" or section in FIELDS[name].setting
            if setting not in ("flow.chunk_tokens", "learner.reference.kind") and section != "engine":
                assert at(plain, setting) != value, f"{name}: {setting} is {value} anyway"


def test_trls_clips_and_losses_by_the_recipes_of_the_policy_gradient() -> None:
    asked = FlowDPOConfig(epsilon=0.1, epsilon_high=0.28, loss_type="dapo")
    assert settings_of(asked, load_recipe("grpo", "seed")) == {
        "objective.clip_low": 0.1, "objective.clip_high": 0.28, "objective.reduction": "tokens",
    }  # fmt: skip
    assert settings_of(FlowDPOConfig(epsilon=0.1, epsilon_high=5.0), load_recipe("cispo", "seed")) == {
        "objective.clip_high": 4.0
    }, "TRL's has no lower limit, and its upper one is the ratio itself"
    assert settings_of(FlowDPOConfig(loss_type="dr_grpo"), load_recipe("grpo", "seed")) == {
        "objective.reduction": "constant"
    }


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_a_recipe_that_weights_like_cispo_takes_no_other_loss(loss: str) -> None:
    """Its surrogate would stay: neither method."""
    with pytest.raises(FlowDpoError, match=rf"loss_type='{loss}' .*choose recipe"):
        settings_of(FlowDPOConfig(loss_type=loss), load_recipe("cispo", "seed"))
    assert (
        settings_of(FlowDPOConfig(loss_type="cispo"), load_recipe("cispo", "seed"))["objective.surrogate"] == "weight"
    )


def test_every_mapped_field_was_tried() -> None:
    mapped = {name for name, field in FIELDS.items() if field.fate in ("setting", "computed")}
    assert mapped == {*MAPPED, *GRPO, *EQUAL, *COVERED}
    assert set(COVERED.values()) <= set(MAPPED)
    for given, expected in EQUAL.values():
        assert settings_of(FlowDPOConfig(**given), load_recipe("flow-dpo", "seed")) == expected


def test_settings_by_name_come_before_fields() -> None:
    config = FlowDPOConfig(learning_rate=1.0, settings={"learner.learning_rate": 2.0})
    assert settings_of(config, load_recipe("flow-dpo", "seed")) == {"learner.learning_rate": 2.0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type='linear' has no meaning here: .*fall to 0 at `max_steps`"),
        ({"warmup_steps": 0.1}, "warmup_steps=0.1 .* give a number"),
        ({"num_generations": 1}, "num_generations=1"),
        ({"beta": [0.1, 0.2]}, "one"),
        ({"epsilon": 0.2}, "epsilon has no meaning for this recipe .*DpoAndVerdicts"),
        ({"loss_type": "ipo"}, "loss_type='ipo' .*another recipe"),
        ({"save_strategy": "best"}, "save_strategy"),
        ({"save_steps": 0.1}, "save_steps=0.1"),
        ({"model_init_kwargs": {"device_map": "auto"}}, "device_map"),
        ({"vllm_mode": "elsewhere", "use_vllm": True}, "vllm_mode"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_the_fields_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(FlowDpoError, match=words):
        settings_of(FlowDPOConfig(**given), load_recipe("flow-dpo", "seed"))


def test_an_objective_of_ones_own_has_its_own_names() -> None:
    flow_dpo_recipe = load_recipe("flow-dpo", "seed")
    recipe: Recipe = replace(flow_dpo_recipe, objective=Ipo())
    assert settings_of(FlowDPOConfig(beta=0.5, loss_type="ipo"), recipe) == {"objective.beta": 0.5}


def test_trls_configs_are_read_by_what_was_set_in_them(tmp_path: Path) -> None:
    _, grpo_class, online_class = trl_classes()

    def quiet(make: Any, **given: Any) -> Any:
        with warnings.catch_warnings(action="ignore"):  # of transformers' own deprecated defaults
            return make(use_cpu=True, bf16=False, **given)

    there = quiet(
        grpo_class,
        output_dir=str(tmp_path / "a"), learning_rate=1e-3, per_device_train_batch_size=16, num_generations=4,
        gradient_accumulation_steps=2, logging_steps=3, dataloader_num_workers=2,
    )  # fmt: skip
    read = FlowDPOConfig.from_trl(there, seed=1)
    assert read == FlowDPOConfig(
        output_dir=str(tmp_path / "a"), learning_rate=1e-3, per_device_train_batch_size=16, num_generations=4,
        gradient_accumulation_steps=2, use_cpu=True, seed=1,
    )  # fmt: skip
    # What TRL derives is not set: an untouched config leaves the model's precision to this package.
    with warnings.catch_warnings(action="ignore"):
        untouched = FlowDPOConfig.from_trl(grpo_class(str(tmp_path / "b"), use_cpu=True))
    assert untouched.given() == {"output_dir": str(tmp_path / "b"), "use_cpu": True}
    read = FlowDPOConfig.from_trl(quiet(online_class, output_dir=str(tmp_path), max_new_tokens=99, beta=[0.2]))
    assert (read.max_new_tokens, read.beta, read.learning_rate) == (99, 0.2, None)
    with pytest.raises(FlowDpoError, match=r"top_entropy_quantile=0.2 has no place here"):
        FlowDPOConfig.from_trl(quiet(grpo_class, output_dir=str(tmp_path), top_entropy_quantile=0.2))
    trainer = FlowDPOTrainer("seed", args=there)
    assert trainer.args.learning_rate == 1e-3


def test_eval_steps_of_trls_configs_are_read_where_they_are_what_trl_derives(tmp_path: Path) -> None:
    for make in trl_classes():
        for given, expected in (({"eval_steps": 10, "logging_steps": 10}, 10), ({"logging_steps": 7}, 7)):
            with warnings.catch_warnings(action="ignore"):
                there = make(output_dir=str(tmp_path), use_cpu=True, bf16=False, eval_strategy="steps", **given)
            read = FlowDPOConfig.from_trl(there)
            assert (read.eval_strategy, read.eval_steps) == ("steps", expected)
