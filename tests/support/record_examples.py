"""Which rows and objects are valid in each kind of file? Tests break them.

json.dumps(TRACE | {"draw": 0})      a row of traces.jsonl that is refused
"""

from __future__ import annotations

from typing import Any

METRICS: dict[str, Any] = {
    "schema": "metrics/1",
    "problems_seen": 8, "progressive/accuracy": 0.5, "progressive/low": 0.4, "progressive/high": 0.6,
    "progressive/window_accuracy": 0.5, "progressive/window_low": 0.4, "progressive/window_high": 0.6,
}  # fmt: skip
TRACE: dict[str, Any] = {
    "schema": "trace/1",
    "problem_id": "apples/1", "question": "Anna has 12 apples. She buys 7.", "gold": "19", "dataset": "apples/train",
    "level": "", "subject": "", "worked_solution": "", "messages": [{"role": "user", "content": "Anna has 12 apples."}],
    "solution": "12 + 7 = 19\nAnswer: 19", "token_ids": [5, 6, 7], "ended": True,
    "verdict": {"status": "correct", "answer": "19", "reason": ""}, "source": "trained_flow", "draw": 1,
    "draws_used": 2, "tokens_spent": 9,
}  # fmt: skip
HEADER: dict[str, Any] = {
    "schema": "traces/1",
    "complete": True, "source": "trained_flow", "selection": "the first", "model": "seed", "tokenizer": "x",
    "dataset": "a/b", "settings": {"recipe": "flow-dpo", "model": {"model_name_or_path": "seed"}}, "counts": {},
    "cost": {"seconds": 1.5},
}  # fmt: skip
VERDICT = {"status": "wrong", "answer": None, "reason": ""}
PAIR: dict[str, Any] = {
    "schema": "pair/1",
    "prompt": "Q", "chosen": "19", "rejected": "18", "problem_id": "apples/1", "role": "answer", "node": 0,
    "rejected_node": 1, "depth": 0, "tags": [], "margin": 1.0, "weight": 1.0, "chosen_verdict": TRACE["verdict"],
    "rejected_verdict": VERDICT, "policy_version": 0, "prompt_ids": [1], "chosen_ids": [5], "rejected_ids": [6],
}  # fmt: skip
TREE: dict[str, Any] = {
    "schema": "tree/2", "problem": {"id": "a", "question": "What?", "gold": "1"}, "choices": {"stop": ["Yes", "No"]},
    "nodes": [{
        "id": 0, "parent": None, "rollout": 0, "depth": 0, "role": "answer", "policy_version": 0, "token_ids": [5, 2],
        "text": "1", "logprobs": [-0.5, 0], "finish_reason": "stop", "choice": None, "choice_logprobs": [], "tags": [],
        "prompt": {"kept": 0, "token_ids": [1]}, "piece_lengths": [1, 0],
    }],
    "rollouts": [{
        "id": 0, "start": 0, "leaf": 0, "ended": True, "probe": False, "value": None, "text": "1", "verdict": VERDICT,
    }],
    "skipped": {"answer": 0},
}  # fmt: skip
PREDICTION: dict[str, Any] = {
    "schema": "prediction/2", "id": "q1", "draw": 1, "question": "How many?", "gold": "14", "dataset": "",
    "worked_solution": "", "solution": "6 + 8 = 14", "verdict": {"status": "correct", "answer": "14", "reason": ""},
    "tokens": 5, "ended": True, "yes": 0.5, "token_ids": [5, 6], "mean_logprob": -0.25,
}  # fmt: skip
SCORED: dict[str, Any] = {
    "schema": "scored/1", "prompt": "Q", "completion": "19", "problem_id": "apples/1", "role": "answer", "node": 0,
    "depth": 0, "tags": [], "advantage": -0.5, "weight": 1.0, "verdict": VERDICT, "policy_version": 0,
    "prompt_ids": [1], "completion_ids": [5],
}  # fmt: skip
JUDGEMENT: dict[str, Any] = {
    "schema": "judgement/1", "problem_id": "p", "dataset": "d", "first": "b", "verdict": "A", "preferred": "b",
    "reason": "", "log_odds": None, "tokens": 7, "words": "Verdict: A",
}  # fmt: skip
LEARNED: dict[str, Any] = {
    "schema": "learned/1", "version": 3, "reference_version": 0, "role": "answer", "problem_id": "apples/1", "node": 0,
    "rejected_node": 1, "policy": [[-0.5, -0.25], [-1.5]], "reference": [[-0.5, -0.5], [-1.0]],
}  # fmt: skip
TOKEN: dict[str, Any] = {"schema": "token/1", "id": 2, "text": "<end>", "special": True}
SPAN: dict[str, Any] = {
    "schema": "span/1", "batch": 0, "lane": "worker 0", "what": "sampling", "start": 1764331200.5, "end": 1764331212.0,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "schema": "run/1", "model": "seed", "num_problems": 3, "command": "flow-dpo train", "versions": {"torch": None},
}  # fmt: skip
SHAPE: dict[str, Any] = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA"}
SETTINGS: dict[str, Any] = {
    "recipe": "flow-dpo", "preset": "seed", "flow_source": "", "flow": {"chunk_tokens": 4},
    "model": {"model_name_or_path": "seed"}, "lora": {"lora_r": 4}, "data": {"dataset_name": "seed"},
}  # fmt: skip
ROW: dict[str, Any] = {"gold": "5", "model_output": "so Answer: 5", "is_correct": True, "policy": None}
