"""Train a flow by the names that TRL has, measure it while it learns and afterwards, and sample verified traces.

python examples/trainer.py          two CPU cores, about a minute; runs/trainer is a run folder as any other
"""

import flow_dpo

args = flow_dpo.FlowDPOConfig(output_dir="runs/trainer", max_problems=256, eval_strategy="steps", eval_steps=10)
held_out = flow_dpo.load_problems("seed", split="test", max_problems=64)
trainer = flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset="seed", eval_dataset=held_out)
if __name__ == "__main__":
    trainer.train()
    found = trainer.evaluate()
    print(f"the flow {found['eval_accuracy']:.1%}, one pass of its Answer role {found['eval_single_accuracy']:.1%}")
    traces = trainer.generate_traces(max_problems=64)
    print(f"{len(traces.traces)} verified solutions, such as:\n{traces.traces[0].solution}")
