"""Names that someone who knows TRL or transformers may type and that are not here, each with what to use instead.

    FORMER["max_prompt_length"]     a field that earlier releases of TRL's configs had
    ATTRIBUTES["add_callback"]      an attribute or method of `transformers.Trainer`

The fields of the releases that are installed are in `fields.FIELDS`; these tables hold what no installed class names.
Invariant: no name in them is one of ours.
"""

from __future__ import annotations

from collections.abc import Mapping

FORMER: Mapping[str, str] = {
    "max_prompt_length": "a prompt is never cut: leave it out",
    "warmup_ratio": "use warmup_steps, a number of updates: how many a stream of problems gives is not known before",
    "logging_dir": 'report_to="tensorboard" writes to OUTPUT_DIR/tensorboard',
    "judge": "a judge is a reward function: FlowDPOTrainer(reward_funcs=...); docs/rewards.md has one",
    "overwrite_output_dir": "a run is never overwritten: take another output_dir, delete the folder, or resume it",
    "evaluation_strategy": "it is eval_strategy",
    "no_cuda": "it is use_cpu",
    "tokenizer": "the tokenizer is the model's; FlowDPOTrainer(processing_class=...) takes one with another template",
    "reward_funcs": "it is an argument of FlowDPOTrainer",
    "peft_config": "it is an argument of FlowDPOTrainer",
    "dataset_num_proc": "rows are read as they are, in this process: leave it out",
    "push_to_hub_model_id": "it is hub_model_id",
    "push_to_hub_token": "it is hub_token",
    "vllm_device": "vLLM takes the devices of its process: set CUDA_VISIBLE_DEVICES",
    "per_gpu_train_batch_size": "it is per_device_train_batch_size",
}
"""Fields of configs."""
ARGUMENTS: Mapping[str, str] = {
    "tokenizer": "it is processing_class",
    "dataset": "it is train_dataset",
    "config": "it is args",
    "reward_func": "it is reward_funcs",
    "reward_model": "call it in a function of your own: reward_funcs=...",
    "judge": "a judge is a reward function: reward_funcs=... (docs/rewards.md has one)",
    "reward_weights": "it is a field of FlowDPOConfig",
}
"""Arguments of trainers."""
ATTRIBUTES: Mapping[str, str] = {
    "tokenizer": "it is in the model's folder, and at processing_class where one was handed over",
    "accelerator": "there is none; each process takes its share of an update by itself",
    "optimizer": "it lives while train() runs, and in the run's checkpoints",
    "lr_scheduler": "the rate of every update is in state.log_history",
    "ref_model": "the reference is the base without adapters, or a snapshot of them (learner.reference.kind)",
    "callback_handler": "callbacks is the list of callbacks",
    "log": "log_metric(name, value) in a reward function adds numbers to metrics.jsonl",
    "log_metrics": "print what evaluate() returns, or read state.log_history",
    "save_metrics": "metrics.jsonl and evaluations.jsonl in the run folder hold every number",
    "save_state": "every batch is a checkpoint in the run folder",
    "predict": "evaluate(rows) measures, generate_traces(rows) samples solutions, flow-dpo ask answers a question",
    "get_train_dataloader": "there is none; problems are sampled from as they come",
    "get_eval_dataloader": "there is none; evaluate() samples from its problems",
    "create_model_card": "push_to_hub() writes the card",
    "create_optimizer": "the optimizer is torch's Adam for every role",
    "compute_loss": "a loss of your own is an objective (docs/plugins.md)",
    "training_step": "a loss of your own is an objective (docs/plugins.md)",
    "hyperparameter_search": "start a run for each value, in a folder of its own",
}
"""Attributes and methods of trainers."""
