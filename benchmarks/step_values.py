"""Bias and error of VinePPO's Monte Carlo estimates of state values.

    python -m benchmarks.step_values               of the base
    python -m benchmarks.step_values --run RUN     of a trained run's Answer

The states are those of one path a problem, drawn as the recipe `vineppo` draws it on the embedded seed: one state
before every step. A state's estimate is the recipe's own, by its exploration and its credit with K completions a state.
The mean over many other completions from the same state is taken as the truth:

    state          K = 4: 1 1 0 1    estimate 0.75      256 others, 160 right    truth 0.625      error 0.125

Bias is the mean error. Its 95 % interval resamples problems, because the states of one problem are alike. The root mean
squared error is shown beside that which unbiased estimates have by chance alone: the root of the mean of v (1 - v) / K,
where v is the value, plus the same term for the truth's own number of draws.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import StatisticsError, correlation, fmean
from typing import Any

from benchmarks import measuring
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Request

MODULE = "benchmarks.step_values"


@dataclass(frozen=True, kw_only=True)
class State:
    """One state of a path, and how good it is."""

    problem: str
    estimate: float
    truth: float


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--run", help="run folder whose Answer adapter is used (default: the base)")
    parser.add_argument("--named", help="name of the run in the figures, where its folder was moved")
    parser.add_argument("--num_problems", type=int, default=60)
    parser.add_argument("--num_truth", type=int, default=256, help="completions for the truth of a state")
    parser.add_argument("--completions", type=int, nargs="+", default=[4, 9], help="K: the seed's 4, the paper's 9")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    if settings.tiny:
        settings.num_problems, settings.num_truth = 4, 16
    states = measured(settings)
    row = {
        "name": f"step values, {settings.named or settings.run or 'base'}",
        "num_problems": settings.num_problems,
        "num_truth": settings.num_truth,
        "num_states": len(next(iter(states.values()))),
        "mean_truth": fmean(state.truth for state in next(iter(states.values()))),
        "completions": {k: compared(found, k, settings.num_truth, seed=settings.seed) for k, found in states.items()},
        "command": shlex.join(["python", "-m", MODULE, *sys.argv[1:]]),
        "machine": measuring.machine(settings.num_threads),
    }
    print(table(row))
    if settings.results is not None:
        measuring.merge(settings.results, [row])


def measured(settings: argparse.Namespace) -> dict[int, list[State]]:
    """The states by K, in the same order."""
    from flow_dpo.recipes.vineppo.credit import state_values
    from flow_dpo.recipes.vineppo.explore import StepRollouts
    from flow_dpo.runs.adapters import SpeakingSettings, load_adapters
    from flow_dpo.runs.runtime import open_runtime
    from flow_dpo.runs.settings import default_settings

    default = default_settings("vineppo", "seed")
    flow, explore = default.recipe.flow, default.recipe.explore
    assert isinstance(explore, StepRollouts)
    data = replace(default.runtime.data, dataset_name="seed", dataset_split="test", max_problems=settings.num_problems)
    model = replace(default.runtime.model, num_threads=settings.num_threads)
    most = max(settings.completions)
    with open_runtime(
        replace(default.runtime, data=data, model=model), flow, roles=flow.roles, seed=settings.seed
    ) as runtime:
        runtime.workers.refresh(load_adapters(runtime.policy, SpeakingSettings(run=settings.run, roles=flow.roles)))

        def sampled(num_completions: int) -> list[Tree]:
            one_path = replace(explore, num_rollouts=1, num_completions=num_completions)
            trees: list[Tree] = []
            for problem in runtime.fitting:
                trees += runtime.workers.submit(one_path, flow, [problem], seed=settings.seed).result().trees
            return trees

        # A state's completions are drawn one by one, so those after the first K are independent of them.
        truths = [others(tree, most) for tree in sampled(most + settings.num_truth)]
        found: dict[int, list[State]] = {}
        for k in settings.completions:
            estimates: list[Mapping[Request, float]] = [state_values(tree) for tree in sampled(k)]
            found[k] = [
                State(problem=problem.id, estimate=estimate[request], truth=truth)
                for problem, estimate, truths_of in zip(runtime.fitting, estimates, truths, strict=True)
                for request, truth in truths_of.items()
                if request in estimate
            ]
        return found


def others(tree: Tree, num_first: int) -> dict[Request, float]:
    """The mean reward of each state's graded probes after the first `num_first`."""
    rewards: dict[Request, list[float | None]] = {}
    for rollout in tree.rollouts:
        if rollout.probe:
            reward = None if rollout.verdict is None else rollout.verdict.reward
            rewards.setdefault(tree.nodes[rollout.start].request, []).append(reward)
    graded = {request: [v for v in values[num_first:] if v is not None] for request, values in rewards.items()}
    return {request: fmean(values) for request, values in graded.items() if values}


def compared(states: Sequence[State], k: int, num_truth: int, *, seed: int = 0) -> dict[str, Any]:
    """How far the estimates are from the truth."""
    import numpy as np

    errors = [state.estimate - state.truth for state in states]
    by_problem: dict[str, list[float]] = {}
    for state, error in zip(states, errors, strict=True):
        by_problem.setdefault(state.problem, []).append(error)
    sums = np.array([[sum(values), len(values)] for values in by_problem.values()])
    drawn = sums[np.random.default_rng(seed).integers(len(sums), size=(10_000, len(sums)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    # The share that is seen of v (1 - v) among n draws is (n - 1) / n of it.
    chance = fmean(s.truth * (1 - s.truth) for s in states) * num_truth / (num_truth - 1)
    try:
        related = correlation([s.estimate for s in states], [s.truth for s in states])
    except StatisticsError:  # all estimates or all truths are alike
        related = None
    return {
        "bias": fmean(errors),
        "bias_low": float(low),
        "bias_high": float(high),
        "mean_absolute_error": fmean(map(abs, errors)),
        "root_mean_squared_error": math.sqrt(fmean(error**2 for error in errors)),
        "root_mean_squared_error_by_chance": math.sqrt(chance * (1 / k + 1 / num_truth)),
        "correlation": related,
    }


def table(row: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"{row['name']}: {row['num_states']} states of {row['num_problems']} problems, true values by "
        f"{row['num_truth']} completions, mean {row['mean_truth']:.3f}",
        "",
        "| K | bias (95 % interval) | mean absolute error | root mean squared error | by chance alone | correlation |",
        "|---|---|---|---|---|---|",
    ]
    for k, found in row["completions"].items():
        related = "none" if found["correlation"] is None else f"{found['correlation']:.2f}"
        lines.append(
            f"| {k} | {found['bias']:+.4f} ({found['bias_low']:+.4f} to {found['bias_high']:+.4f}) | "
            f"{found['mean_absolute_error']:.3f} | {found['root_mean_squared_error']:.3f} | "
            f"{found['root_mean_squared_error_by_chance']:.3f} | {related} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
