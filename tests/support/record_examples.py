"""Which rows and objects are valid in each kind of file? Tests break them.

json.dumps(TRACE | {"draw": 0})      a row of traces.jsonl that is refused
"""

from __future__ import annotations

from typing import Any

TRACE: dict[str, Any] = {
    "problem_id": "apples/1", "question": "Anna has 12 apples. She buys 7.", "gold": "19", "dataset": "apples/train",
    "level": "", "subject": "", "messages": [{"role": "user", "content": "Anna has 12 apples."}],
    "solution": "12 + 7 = 19\nAnswer: 19", "token_ids": [5, 6, 7], "ended": True,
    "verdict": {"status": "correct", "answer": "19", "reason": ""}, "source": "trained_flow", "draw": 1,
    "draws_used": 2, "tokens_spent": 9,
}  # fmt: skip
HEADER: dict[str, Any] = {
    "complete": True, "source": "trained_flow", "selection": "the first", "model": "seed", "tokenizer": "x",
    "dataset": "a/b", "settings": {"recipe": "flow-dpo", "model": {"model_name_or_path": "seed"}}, "counts": {},
    "cost": {"seconds": 1.5},
}  # fmt: skip
VERDICT = {"status": "wrong", "answer": None, "reason": ""}
PAIR: dict[str, Any] = {
    "prompt": "Q", "chosen": "19", "rejected": "18", "problem_id": "apples/1", "role": "answer", "node": 0,
    "rejected_node": 1, "depth": 0, "tags": [], "margin": 1.0, "weight": 1.0, "chosen_verdict": TRACE["verdict"],
    "rejected_verdict": VERDICT, "policy_version": 0, "prompt_ids": [1], "chosen_ids": [5], "rejected_ids": [6],
}  # fmt: skip
TREE: dict[str, Any] = {"problem": {"id": "a", "question": "What?", "gold": "1"}, "nodes": [], "rollouts": []}
FACTS: dict[str, Any] = {"model": "seed", "num_problems": 3, "command": "flow-dpo train", "versions": {"torch": None}}
SHAPE: dict[str, Any] = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA"}
SETTINGS: dict[str, Any] = {
    "recipe": "flow-dpo", "preset": "seed", "flow_source": "", "flow": {"chunk_tokens": 4},
    "model": {"model_name_or_path": "seed"}, "lora": {"lora_r": 4}, "data": {"dataset_name": "seed"},
}  # fmt: skip
ROW: dict[str, Any] = {"gold": "5", "model_output": "so Answer: 5", "is_correct": True, "policy": None}
