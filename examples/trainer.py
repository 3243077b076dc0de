"""Train a flow with a reward of your own, under TRL's names, and evaluate it.

python examples/trainer.py          two CPU cores, about a minute; runs/trainer is an ordinary run folder
"""

import flow_dpo


def right(completions, answer, **columns):  # called as in TRL: every column of the data set is an argument
    return [float(text.endswith(f"Answer: {gold}")) for text, gold in zip(completions, answer, strict=True)]


args = flow_dpo.FlowDPOConfig(output_dir="runs/trainer", max_problems=256, eval_strategy="steps", eval_steps=10)
held_out = flow_dpo.load_problems("seed", split="test", max_problems=64)
trainer = flow_dpo.FlowDPOTrainer("seed", reward_funcs=right, args=args, train_dataset="seed", eval_dataset=held_out)
trainer.train()
print(f"accuracy of the flow on held-out problems: {trainer.evaluate()['eval_accuracy']:.1%}")
