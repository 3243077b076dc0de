"""Names that users of TRL or transformers may try and that do not exist here, each with what to use instead.

    FORMER["max_prompt_length"]     a field of earlier releases of TRL's configs
    ATTRIBUTES["optimizer"]         an attribute or method of `transformers.Trainer`

`fields.FIELDS` holds the fields of the installed releases; these tables hold the names that no installed class has.
Invariant: no name in them exists in this package.
"""

from __future__ import annotations

from collections.abc import Mapping

FORMER: Mapping[str, str] = {
    "max_prompt_length": "a prompt is never cut: leave it out",
    "warmup_ratio": "use warmup_steps, a number of updates: their total is not known in advance",
    "logging_dir": 'report_to="tensorboard" writes to OUTPUT_DIR/tensorboard',
    "judge": "a judge is a reward function: FlowDPOTrainer(reward_funcs=...); docs/rewards.md has one",
    "overwrite_output_dir": "a run is never overwritten: use another output_dir, delete the folder, or resume the run",
    "evaluation_strategy": "it is eval_strategy",
    "no_cuda": "it is use_cpu",
    "tokenizer": "the model's own is used; FlowDPOTrainer(processing_class=...) takes one with another chat template",
    "reward_funcs": "it is an argument of FlowDPOTrainer",
    "peft_config": "it is an argument of FlowDPOTrainer",
    "dataset_num_proc": "rows are read in this process, without preprocessing: leave it out",
    "push_to_hub_model_id": "it is hub_model_id",
    "push_to_hub_token": "it is hub_token",
    "vllm_device": "vLLM uses the devices of its process: set CUDA_VISIBLE_DEVICES",
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
    "tokenizer": "it is in the model's folder; one that you passed is in processing_class",
    "accelerator": "there is none; processes share an update without it",
    "optimizer": "it exists only while train() runs, and in the run's checkpoints",
    "lr_scheduler": "the learning rate of every update is in state.log_history",
    "ref_model": "the reference is the base without adapters, or a snapshot of them (learner.reference.kind)",
    "callback_handler": "the list of callbacks is in callbacks",
    "log": "log_metric(name, value) in a reward function adds numbers to metrics.jsonl",
    "log_metrics": "print what evaluate() returns, or read state.log_history",
    "save_metrics": "metrics.jsonl and evaluations.jsonl in the run folder hold every number",
    "save_state": "the run folder gets a checkpoint after every batch",
    "predict": "evaluate(rows) measures, generate_traces(rows) samples solutions, flow-dpo ask answers a question",
    "get_train_dataloader": "there is none; solutions are sampled problem by problem",
    "get_eval_dataloader": "there is none; evaluate() samples solutions of its problems",
    "create_model_card": "push_to_hub() writes the card",
    "create_optimizer": "the optimizer is torch's Adam for every role",
    "compute_loss": "a loss of your own is an objective (docs/plugins.md)",
    "training_step": "a loss of your own is an objective (docs/plugins.md)",
    "hyperparameter_search": "start a run for each value, in a folder of its own",
}
"""Attributes and methods of trainers."""
