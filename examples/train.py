"""Train, evaluate and generate traces from Python, on the model and the problems that ship in the package.

python examples/train.py --max_problems 64 --output_dir runs/python
"""

from __future__ import annotations

import argparse

import flow_dpo


def main(max_problems: int, output_dir: str) -> None:
    run = flow_dpo.train("seed", "seed", max_problems=max_problems, output_dir=f"{output_dir}/run")
    result = flow_dpo.evaluate_flow(run.path, max_problems=max_problems)
    print(f"accuracy on held-out problems: {result['accuracy']:.1%}")
    traces = flow_dpo.generate_traces(run.path, output_dir=f"{output_dir}/traces", max_problems=max_problems)
    print(f"{len(traces.traces)} verified solutions, such as:\n{traces.traces[0].solution}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, evaluate and generate from Python.")
    parser.add_argument("--max_problems", type=int, default=64)
    parser.add_argument("--output_dir", default="runs/python")
    main(**vars(parser.parse_args()))
