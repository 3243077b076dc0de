"""Train a flow by a reward of your own, by the names that TRL has, and measure it.

python examples/trainer.py          two CPU cores, about a minute; runs/trainer is a run folder as any other
"""

import flow_dpo


def right(completions, answer, **columns):  # as TRL calls it: any column of the data set is an argument
    return [float(text.endswith(f"Answer: {gold}")) for text, gold in zip(completions, answer, strict=True)]


args = flow_dpo.FlowDPOConfig(output_dir="runs/trainer", max_problems=256, eval_strategy="steps", eval_steps=10)
held_out = flow_dpo.load_problems("seed", split="test", max_problems=64)
trainer = flow_dpo.FlowDPOTrainer("seed", reward_funcs=right, args=args, train_dataset="seed", eval_dataset=held_out)
trainer.train()
print(f"accuracy of the flow on held-out problems: {trainer.evaluate()['eval_accuracy']:.1%}")
