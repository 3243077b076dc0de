"""The table of every field of TRL's `OnlineDPOConfig` and `GRPOConfig` and of transformers' `TrainingArguments`.

    FIELDS["learning_rate"].setting     # "learner.learning_rate": passed on unchanged under the flag's name
    FIELDS["fp16"].words                # what to use instead, and why

A field has one of five fates. It is a *setting* under another name; it is *computed* into settings (`mapping`); the
*trainer* acts on it; it has *no effect*, because what it asks for always holds or does not exist here; or it is
*refused* at any value other than the default, with what to use instead. Invariants, both tested: every field of the
installed classes is here, and nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["setting", "computed", "trainer", "no effect", "refused"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """What becomes of one field."""

    name: str
    fate: Fate
    setting: str = ""
    """The setting or settings that it becomes, by the names of their flags."""
    words: str = ""
    """How it is computed, what the trainer does with it, why it has no effect, or what to use instead."""
    harmless: tuple[Any, ...] = ()
    """Values at which a refused field is accepted because it asks for nothing."""


def _settings(**names: str) -> list[Field]:
    return [Field(name=name, fate="setting", setting=setting) for name, setting in names.items()]


def _computed(name: str, setting: str, words: str) -> Field:
    return Field(name=name, fate="computed", setting=setting, words=words)


def _trainer(**words: str) -> list[Field]:
    return [Field(name=name, fate="trainer", words=text) for name, text in words.items()]


def _no_effect(names: str, words: str) -> list[Field]:
    return [Field(name=name, fate="no effect", words=words) for name in names.split()]


def _refused(names: str, words: str, *harmless: Any) -> list[Field]:
    return [Field(name=name, fate="refused", words=words, harmless=(*harmless, None, False)) for name in names.split()]


_SETTINGS = _settings(
    learning_rate="learner.learning_rate",
    max_grad_norm="learner.max_grad_norm",
    seed="run.seed",
    gradient_checkpointing="learner.rows.gradient_checkpointing",
    activation_checkpointing="learner.rows.gradient_checkpointing",
    trust_remote_code="model.trust_remote_code",
    chat_template_kwargs="model.template_kwargs",
    top_p="explore.top_p",
    num_iterations="learner.passes.epochs_per_batch",
    per_device_eval_batch_size="evaluation.batch_problems",
    run_name="run.tracking.run_name",
    project="run.tracking.project",
)
_COMPUTED = [
    _computed(
        "report_to", "run.tracking.report_to", 'trackers: trackio, wandb, tensorboard, mlflow, "none"; "all" is refused'
    ),
    _computed(
        "per_device_train_batch_size",
        "learner.examples_per_update",
        "times gradient_accumulation_steps: the examples (pairs) of one update, across all processes",
    ),
    _computed(
        "gradient_accumulation_steps",
        "learner.examples_per_update",
        "times per_device_train_batch_size (8 if that is not given)",
    ),
    _computed("disable_dropout", "lora.lora_dropout", "True: 0, also over a peft_config's; the base never has dropout"),
    _computed("max_steps", "run.budget.budget_updates", "updates after which the run ends; -1 sets no limit"),
    _computed("warmup_steps", "learner.warmup_updates", "a number of updates; a fraction is refused"),
    _computed(
        "lr_scheduler_type",
        "learner.schedule, learner.decay_after",
        '"constant", "constant_with_warmup", "inverse_sqrt" (from the end of the warm-up), "linear" or "cosine"; the '
        "last two fall to 0 at `max_steps`, which must be given, since a stream of problems has no known end",
    ),
    _computed(
        "temperature",
        "explore.temperature, learner.logit_temperature",
        "the sampling temperature; with a policy gradient also the learner's, as in TRL's GRPO and RLOO",
    ),
    _computed("bf16", "model.dtype", "True is bfloat16 for the whole model: no float32 copy is kept beside it"),
    _computed("use_cpu", "model.device", 'True is "cpu"'),
    _computed(
        "model_init_kwargs",
        "model.dtype, model.model_revision, model.trust_remote_code",
        "dtype (or torch_dtype), revision and trust_remote_code; any other key is refused",
    ),
    _computed("data_seed", "data.shuffle_seed", "seed for shuffling the problems; by default they keep their order"),
    _computed("shuffle_dataset", "data.shuffle_seed", "True shuffles with data_seed, or seed"),
    _computed("save_steps", "run.save_updates", "adapters are kept whenever this many updates have passed"),
    _computed("save_strategy", "run.save_updates", '"no" and "epoch" keep only the final adapters'),
    _computed(
        "max_completion_length",
        "flow.max_chunks, flow.chunk_tokens or flow.max_tokens",
        "the longest solution in tokens, rounded down to whole chunks if the flow has chunks",
    ),
    _computed("max_new_tokens", "flow.max_chunks, flow.chunk_tokens or flow.max_tokens", "as max_completion_length"),
    _computed(
        "num_generations",
        "explore.num_alternatives or explore.num_rollouts",
        "completions that are compared: at every node of the trunk one is the trunk's and the others are alternatives; "
        "for recipes without a tree, the rollouts of a problem",
    ),
    _computed("num_generations_eval", "evaluation.num_samples", "rollouts of each problem; above 1 they are sampled"),
    _computed("beta", "objective.beta or objective.kl_coef", "by the recipe's objective; a list must hold one value"),
    _computed("epsilon", "objective.clip_low and objective.clip_high", "for recipes with a clipped policy gradient"),
    _computed("epsilon_high", "objective.clip_high", "the same; for a cispo loss it is the largest ratio itself"),
    _computed("scale_rewards", "credit.scale", 'for the recipe "grpo": "group" or "none"'),
    _computed(
        "loss_type",
        "objective.reduction, objective.surrogate and objective.clip_low",
        'for a clipped policy gradient "grpo", "bnpo", "dapo", "dr_grpo" or "cispo"; otherwise only the loss that the '
        'recipe\'s objective is, such as "sigmoid" for DPO',
    ),
    _computed(
        "mask_truncated_completions", "grading.unfinished", 'True is "ungraded": unfinished solutions teach nothing'
    ),
    _computed("sync_ref_model", "learner.reference.kind", 'True is "snapshot"'),
    _computed("ref_model_sync_steps", "learner.reference.every", "with sync_ref_model"),
    _computed("ref_model_mixup_alpha", "learner.reference.lerp", "with sync_ref_model"),
    _computed("use_vllm", "engine", 'True is vLLM in this process; with vllm_mode="server", a running server'),
    _computed("vllm_mode", "engine", '"colocate" or "server", with use_vllm'),
    _computed("vllm_server_base_url", "engine.base_url", "a plain `vllm serve` with LoRA, not `trl vllm-serve`"),
    _computed("vllm_server_host", "engine.base_url", "with vllm_server_port"),
    _computed("vllm_server_port", "engine.base_url", "with vllm_server_host"),
    _computed("vllm_server_timeout", "engine.patience_s", "seconds for which a failed request is retried"),
    _computed("vllm_tensor_parallel_size", "engine.engine_args", "for vLLM in this process; a server has its own"),
]
_TRAINER = _trainer(
    output_dir="the run folder; default: runs/train",
    eval_strategy='"steps": whenever eval_steps updates have passed; "epoch": at the end; "no"',
    eval_steps="updates between two evaluations of eval_dataset, each at the end of a batch of problems",
    eval_on_start="also evaluate before training",
    eval_delay="no evaluation before this many updates",
    num_train_epochs="the fraction of the problems to use, at most 1; a second pass is refused, because the run's "
    "accuracy is measured on each problem before it is learned from",
    push_to_hub="push_to_hub() at the end of train()",
    hub_model_id="the repository to push to; default: the run folder's name",
    hub_private_repo="default: True",
    hub_revision="the branch to push to",
    hub_token="used for the push, and recorded nowhere",
    metric_for_best_model='read by callbacks such as EarlyStoppingCallback: "accuracy", "single_accuracy"',
    greater_is_better="read by callbacks such as EarlyStoppingCallback",
    resume_from_checkpoint="as the argument of train()",
    disable_tqdm="True prints nothing during training",
    reward_weights="one weight for each of reward_funcs",
)
_NO_EFFECT = [
    *_no_effect(
        "logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node",
        "every batch of problems gets one row in metrics.jsonl and in the trackers",
    ),
    *_no_effect("log_level log_level_replica", "messages go through Python's logger flow_dpo"),
    *_no_effect("include_num_input_tokens_seen include_tokens_per_second", "tokens are always counted"),
    *_no_effect(
        "log_completions num_completions_to_print log_unique_prompts log_multimodal",
        "every solution is in trees.jsonl, and trackers get a table with a sample",
    ),
    *_no_effect(
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order dataloader_drop_last remove_unused_columns label_names "
        "length_column_name pad_to_multiple_of",
        "rollouts are sampled problem by problem and rows are packed: there is no DataLoader and no collator",
    ),
    *_no_effect(
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
        "include_for_metrics batch_eval_metrics",
        "an evaluation samples, grades and counts; it collects no logits",
    ),
    *_no_effect(
        "save_on_each_node save_only_model enable_jit_checkpoint", "rank 0 writes a checkpoint after each batch"
    ),
    *_no_effect("ignore_data_skip restore_callback_states_from_checkpoint", "a resumed run gives the same bytes"),
    *_no_effect("full_determinism", "always on: the same settings give the same bytes on the same machine"),
    *_no_effect("do_train do_eval do_predict", "call train() and evaluate()"),
    *_no_effect(
        "local_rank ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters "
        "ddp_static_graph average_tokens_across_devices",
        "ranks share the rows of an update and sum their gradients without DDP",
    ),
    *_no_effect("ds3_gather_for_generation vllm_group_port", "there is no DeepSpeed and no weight transfer by NCCL"),
    *_no_effect("use_cache", "rows use no KV cache"),
    *_no_effect(
        "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_cap "
        "vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min",
        "sampled and recomputed log-probabilities are compared, and a run that drifts is stopped",
    ),
    *_no_effect("skip_memory_metrics", "memory is not measured"),
    *_no_effect("max_tool_calling_iterations", "the flow decides its own turns (docs/flows.md)"),
    *_no_effect("ddp_timeout_seconds", "ranks wait as long as rank 0 lives"),
]
_NO_ENTROPY = "there is no entropy bonus; raise temperature if siblings are too alike"
_REFUSED = [
    *_refused("fp16", "use bf16=True: float16 has a smaller range and would need loss scaling, which is not supported"),
    *_refused("fp16_full_eval bf16_full_eval", "an evaluation uses the dtype of training: bf16=True sets both"),
    *_refused("tf32", "set torch.backends.cuda.matmul.allow_tf32 before training; it changes results"),
    *_refused(
        "deepspeed fsdp fsdp_config parallelism_config accelerator_config",
        'use settings={"learner.rows.shard_base": True} under torchrun for a base that does not fit: only small '
        "adapters are trained, so no wrapper of the model is needed",
        "",
        [],
        {},
    ),
    *_refused(
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        "checkpointing is always non-reentrant: leave it out",
        {"use_reentrant": False},
    ),
    *_refused(
        "optim",
        "every role's optimizer is torch's Adam, and resuming relies on that: leave it out",
        "adamw_torch",
        "adamw_torch_fused",
    ),
    *_refused(
        "optim_args optim_target_modules lr_scheduler_kwargs",
        "the optimizer is Adam with torch's defaults; the learning rate is "
        'set by settings such as {"learner.decay_after": 30, "learner.schedule": "inverse_sqrt"}',
        {},
    ),
    *_refused("weight_decay", "adapters are trained without weight decay: leave it out", 0.0),
    *_refused("adam_beta1", "Adam's betas are .9 and .999: leave it out", 0.9),
    *_refused("adam_beta2", "Adam's betas are .9 and .999: leave it out", 0.999),
    *_refused("adam_epsilon", "Adam's epsilon is 1e-8: leave it out", 1e-8),
    *_refused(
        "label_smoothing_factor",
        'for pairs that can be the wrong way round, use recipe="flow-dpo-paper" and '
        'settings={"objective.label_smoothing": 0.1}',
        0.0,
    ),
    *_refused("neftune_noise_alpha", "noise in the prompt would make learning differ from sampling: leave it out"),
    *_refused(
        "torch_compile torch_compile_backend torch_compile_mode",
        "every packed row has another shape: leave it out; vLLM compiles its own sampling",
    ),
    *_refused(
        "use_liger_kernel liger_kernel_config",
        "log-probabilities are already computed for one chunk of the vocabulary at a time "
        '(settings={"learner.rows.max_tokens": ...}): leave it out',
    ),
    *_refused("cast_lm_head_to_fp32", "log-probabilities are computed in float32 already: leave it out"),
    *_refused("torch_empty_cache_steps", 'lower settings={"learner.rows.max_tokens": ...} if memory is short'),
    *_refused("auto_find_batch_size", 'memory is bounded by settings={"learner.rows.max_tokens": ...}, not by a batch'),
    *_refused("group_by_length train_sampling_strategy", "rows are packed by their prefixes: leave it out", "random"),
    *_refused("debug", "leave it out", "", []),
    *_refused(
        "trackio_space_id trackio_bucket_id trackio_static_space_id",
        "configure trackers with their own environment variables, such as WANDB_PROJECT or TRACKIO_DIR",
    ),
    *_refused("save_total_limit", "adapters are small and all are kept; delete folders of adapters/ROLE/ by hand"),
    *_refused(
        "load_best_model_at_end",
        "every save stays in adapters/ROLE/VERSION, and evaluations.jsonl shows which was best: leave it out",
    ),
    *_refused("hub_strategy", 'the push is at the end: use "end", or flow-dpo push while it runs', "end", "every_save"),
    *_refused("hub_always_push", "the push is at the end: leave it out"),
    *_refused(
        "top_k", "use top_p: the log-probability of every sampled token must be known under the whole distribution", 0
    ),
    *_refused("min_p", "use top_p"),
    *_refused(
        "repetition_penalty", "use temperature and top_p: a penalty samples another policy than the learned one", 1.0
    ),
    *_refused("generation_kwargs cache_implementation", 'use temperature, top_p, or settings={"engine....": ...}', {}),
    *_refused(
        "use_transformers_paged use_transformers_continuous_batching transformers_continuous_batching_config",
        "the local engine always uses continuous batching; use use_vllm=True for vLLM",
    ),
    *_refused(
        "generation_batch_size steps_per_generation",
        'use settings={"run.problems_per_batch": N}: problems that are sampled with one version of the adapters',
    ),
    *_refused(
        "vllm_gpu_memory_utilization", 'use settings={"engine.kv_budget_gib": 8}: the learner needs the rest', 0.3, 0.55
    ),
    *_refused(
        "vllm_max_model_length vllm_model_impl vllm_structured_outputs_regex",
        'use settings={"engine.engine_args": {...}} with the names of vLLM\'s EngineArgs',
        "vllm",
    ),
    *_refused(
        "vllm_enable_sleep_mode",
        'settings={"engine.kv_budget_gib": ...} divides the GPU between engine and learner: leave it out',
    ),
    *_refused("reward_model_path", "use reward_funcs: a function can call any model (docs/rewards.md)"),
    *_refused(
        "multi_objective_aggregation", "rewards are summed with reward_weights: leave it out", "sum_then_normalize"
    ),
    *_refused(
        "missing_eos_penalty", 'a solution without an answer counts as wrong: settings={"grading.unfinished": ...}'
    ),
    *_refused(
        "max_length", "use max_completion_length; problems whose prompts do not fit the context are left out", 512
    ),
    *_refused("router_aux_loss_coef", "adapters do not change the router: leave it out", 0.001, 0.0),
    *_refused("delta", "the ratio has no second limit here: leave it out"),
    *_refused("importance_sampling_level", 'use settings={"objective.ratio_level": ...} or recipe="gspo"', "token"),
    *_refused(
        "off_policy_mask_threshold", 'settings={"run.lag": N} bounds how many batches old examples are: leave it out'
    ),
    *_refused("use_bias_correction_kl", "the penalty is the k3 estimator of the GRPO paper: leave it out", True),
    *_refused("sapo_temperature_neg", "there is no such loss here; recipes are listed in docs/recipes.md", 1.05),
    *_refused("sapo_temperature_pos", "there is no such loss here; recipes are listed in docs/recipes.md", 1.0),
    *_refused("vespo_k_pos vespo_lambda_neg", "there is no such loss here; recipes are listed in docs/recipes.md", 2.0),
    *_refused("vespo_lambda_pos vespo_k_neg", "there is no such loss here; recipes are listed in docs/recipes.md", 3.0),
    *_refused("top_entropy_quantile", "all sampled tokens are learned from: leave it out", 1.0),
    *_refused("entropy_coef use_adaptive_entropy entropy_coef_min", _NO_ENTROPY, 0.0),
    *_refused("entropy_coef_max", _NO_ENTROPY, 1.0),
    *_refused("entropy_coef_delta", _NO_ENTROPY, 0.005),
    *_refused("entropy_target", _NO_ENTROPY, 0.2),
    *_refused("log_completions_hub_repo", "push the run's pairs and traces as data sets: flow-dpo push --what pairs"),
    *_refused(
        "tools rollout_func environment_factory", "write a flow: its turns can call whatever they like (docs/flows.md)"
    ),
    *_refused("data_collator", "rows are packed by the learner: leave it out"),
    *_refused("optimizers optimizer_cls_and_kwargs", "every role's optimizer is torch's Adam: leave it out"),
    *_refused(
        "compute_metrics preprocess_logits_for_metrics compute_loss_func",
        "an evaluation grades with reward_funcs or the verifier; a loss of your own is an objective (docs/recipes.md)",
    ),
    *_refused("quantization_config", 'use settings={"model.quantization.load_in_4bit": True} (docs/models.md)'),
    *_refused(
        "ref_model", 'the reference is the base without adapters: settings={"learner.reference.kind": "snapshot"}'
    ),
    *_refused("reward_processing_classes", "reward_funcs are functions: load a reward model inside one of them"),
]

FIELDS: dict[str, Field] = {each.name: each for each in (*_SETTINGS, *_COMPUTED, *_TRAINER, *_NO_EFFECT, *_REFUSED)}
"""By name, the fields of the three classes and those arguments of TRL's trainers that are objects."""
