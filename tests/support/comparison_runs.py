"""A comparison as `flow-dpo compare` writes it, made by hand for tests."""

from __future__ import annotations

from typing import Any


def difference(mean: float, half: float, p: float, *, seeds: bool = True) -> dict[str, Any]:
    return {
        "mean": mean, "low": mean - half, "high": mean + half, "p": p, "p_holm": min(1.0, 4 * p),
        "per_seed": [mean - 0.01, mean, mean + 0.01] if seeds else [mean],
        "seed_low": mean - 2 * half if seeds else None, "seed_high": mean + 2 * half if seeds else None,
    }  # fmt: skip


def accuracy(mean: float | None, *, seeds: bool = True) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "low": None, "high": None, "per_seed": [None, None, None]}
    if not seeds:
        return {"mean": mean, "low": None, "high": None, "per_seed": [mean]}
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "per_seed": [mean - 0.01, mean, mean + 0.01]}


def arm(
    name: str, mean: float | None, gap: dict[str, Any] | None, *, traces: int | None, seeds: bool = True
) -> dict[str, Any]:
    num = 3 if seeds else 1
    return {
        "name": name,
        "kind": "base" if traces is None else "compiled",
        "what": f"What {name} is, in a sentence.",
        "num_traces": None if traces is None else [traces + k for k in range(num)],
        "num_problems": None if traces is None else [traces] * num,
        "problems_asked": [2400] * num,
        "accuracies": {
            "held_out": {"greedy": accuracy(mean, seeds=seeds), "sampled": accuracy(None, seeds=seeds)},
            "hard": {"greedy": accuracy(None if mean is None else mean - 0.3, seeds=seeds)},
        },
        "costs": {"tokens_sampled": 1234567.0, "tokens_learned": None, "verdicts_used": 40321, "seconds": 211.5},
        "step_quality": {
            "traces": None
            if traces is None
            else {"num_checked": 3000, "num_invalid": 120, "invalid_rate": 0.04, "interval": [0.033, 0.048]},
            "answers": {"num_checked": 0, "num_invalid": 0, "invalid_rate": None, "interval": None},
        },
        "trace_makeup": None if traces is None else {"level": {"2": 0.52, "3": 0.48}, "subject": {"total": 1.0}},
        "difference_to_self": gap,
        "differences_to_self": {"held_out/greedy": gap, "held_out/sampled": None, "hard/greedy": gap},
        "folders": [{"evaluations": {"held_out/greedy": f"seed0/{name}"}}],
    }  # fmt: skip


def comparison(*, seeds: bool = True) -> dict[str, Any]:
    """Five arms: one better, one worse, one not told apart, the baseline, and one of which nothing is known."""
    return {
        "schema": "comparison/1",
        "num_seeds": 3 if seeds else 1,
        "seeds": [0, 1, 2] if seeds else [0],
        "model": "seed",
        "dataset": "seed/train",
        "baseline": "self_generated",
        "primary": "held_out/greedy",
        "test_sets": {"held_out": {"dataset": "seed/test", "num_problems": 2000}, "hard": None},
        "arms": [
            arm("zero_shot", 0.581, difference(-0.189, 0.02, 1e-9, seeds=seeds), traces=None, seeds=seeds),
            arm("self_generated", 0.77, None, traces=1000, seeds=seeds),
            arm("untrained_flow", 0.764, difference(-0.006, 0.013, 0.42, seeds=seeds), traces=1000, seeds=seeds),
            arm("trained_flow", 0.886, difference(0.116, 0.024, 1e-7, seeds=seeds), traces=1000, seeds=seeds),
            arm("ground_truth", None, None, traces=2400, seeds=seeds),
        ],
        "commands": ["flow-dpo train --output_dir seed0/flow", "flow-dpo generate --run seed0/flow"],
        "versions": {"torch": "2.13.0", "peft": None},
        "code": "abc",
        "date": "2026-11-24",
    }  # fmt: skip
