"""The results of a comparison: `comparison.json`, read from the folders that the arms wrote.

Invariant: nothing is
computed here that is not in a folder: accuracies from predictions, costs from the records of the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from flow_dpo.core.stats import wilson
from flow_dpo.core.types import Problem
from flow_dpo.evaluate import statistics, step_validity
from flow_dpo.evaluate.compare.arms import BASELINE, SAME_TOKENS, Arm, Outcome
from flow_dpo.evaluate.compare.jobs import NUMBERS
from flow_dpo.evaluate.compare.team import team
from flow_dpo.evaluate.compare.verdicts import mean_of_draws
from flow_dpo.runs import run_folder
from flow_dpo.runs.records import Prediction, read_rows
from flow_dpo.traces.trace import Trace, read_traces


@dataclass(frozen=True, kw_only=True)
class ComparisonContext:
    """What is known of a comparison besides its arms."""

    seeds: Sequence[int]
    tests: Sequence[str]
    """The first is what `difference_to_self` is about."""
    facts: Mapping[str, Any]
    tokens: int = 0
    """What the arms of a budget of tokens were given; what the flow had where 0."""


def summarise(
    arms: Sequence[Arm], outcomes: Mapping[str, Sequence[Outcome]], context: ComparisonContext, folder: Path
) -> dict[str, Any]:
    """comparison.json: `outcomes` by arm, one a seed; `folder` is what paths are relative to."""
    rewards = {
        name: {test: [rewards_of(outcome.evaluations[test]) for outcome in each] for test in context.tests}
        for name, each in outcomes.items()
        if each[0].evaluations
    }
    rows = [_row(arm, outcomes[arm.name], rewards.get(arm.name, {}), context, folder) for arm in arms]
    tested = [arm for arm in arms if arm.name in rewards]
    declared = [(arm.name, other) for arm in tested for other in arm.against if other in rewards]
    _differences(rows, declared, rewards, context.tests)
    found = team(outcomes, rewards)
    return {
        "num_seeds": len(context.seeds),
        "seeds": list(context.seeds),
        "baseline": BASELINE if BASELINE in rewards else None,
        "primary": context.tests[0],
        **context.facts,
        **({} if found is None else {"team": found}),
        "arms": rows,
    }


def rewards_of(evaluation: Path) -> dict[str, float | None]:
    """The reward of each question of an evaluation, the mean over its draws; None where none could be graded."""
    found: dict[str, list[float | None]] = {}
    for row in read_rows(evaluation / "predictions.jsonl", Prediction):
        found.setdefault(row.id, []).append(None if row.verdict is None else row.verdict.right)
    return {id: mean_of_draws(each) for id, each in found.items()}


def _row(
    arm: Arm,
    each: Sequence[Outcome],
    rewards: Mapping[str, Sequence[statistics.Rewards]],
    context: ComparisonContext,
    folder: Path,
) -> dict[str, Any]:
    files = [read_traces(outcome.traces.folder) if outcome.traces else None for outcome in each]
    facts = [run_folder.read_facts(outcome.sft.folder) if outcome.sft else {} for outcome in each]
    learned = [file.traces[: fact["num_traces"]] if file else () for file, fact in zip(files, facts, strict=True)]
    counts = [file.header["counts"] if file else {} for file in files]
    totals = [_costs(outcome) for outcome in each]
    compiled, budget = any(learned), f"until it had {context.tokens:,} tokens" if context.tokens else SAME_TOKENS
    return {
        "name": arm.name,
        "kind": arm.kind,
        "what": arm.what.replace(SAME_TOKENS, budget),
        "num_traces": [len(traces) for traces in learned] if compiled else None,
        "num_problems": [len({trace.problem_id for trace in traces}) for traces in learned] if compiled else None,
        "problems_asked": [count.get("num_problems_sampled") for count in counts] if compiled else None,
        "accuracies": _accuracies(rewards),
        "costs": {name: fmean(total[name] for total in totals) for name in NUMBERS},
        "step_quality": {
            "traces": step_quality([pair for traces in learned for pair in _solutions(traces)]),
            "answers": step_quality([pair for outcome in each for pair in _right_answers(outcome, context.tests[0])]),
        },
        "trace_makeup": _makeup([trace for traces in learned for trace in traces]) if compiled else None,
        "folders": [_folders(outcome, folder) for outcome in each],
    }


def _accuracies(rewards: Mapping[str, Sequence[statistics.Rewards]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for test, each in rewards.items():
        problems, _, decoding = test.partition("/")
        values = [fmean(value or 0.0 for value in seed.values()) for seed in each if seed]
        known = [fmean(graded) for seed in each if (graded := [value for value in seed.values() if value is not None])]
        ungraded = sum(value is None for seed in each for value in seed.values())
        found.setdefault(problems, {})[decoding] = (
            statistics.mean_of(values) | {"mean_graded": fmean(known), "num_ungraded": ungraded} if known else None
        )
    return found


def _costs(outcome: Outcome) -> dict[str, float]:
    """Of all works, each counted once."""
    works = {work.name: work for work in outcome.works}
    return {name: sum(work.costs[name] for work in works.values()) for name in NUMBERS}


def recompute(found: Mapping[str, Any], rewards: Mapping[str, Mapping[str, Sequence[statistics.Rewards]]]) -> Any:
    """comparison.json with its accuracies, intervals and p made again from the verdicts of its tests (`verdicts`)."""
    rows = [dict(row) for row in found["arms"]]
    for row in rows:
        row["accuracies"] = _accuracies(rewards.get(row["name"], {}))
    declared = [(row["name"], one["against"]) for row in rows for one in row["contrasts"]]
    _differences(rows, declared, rewards, list(next(iter(rewards.values()))))
    return {**found, "arms": rows}


def _differences(
    rows: Sequence[dict[str, Any]],
    declared: Sequence[tuple[str, str]],
    rewards: Mapping[str, Mapping[str, Sequence[statistics.Rewards]]],
    tests: Sequence[str],
) -> None:
    """Put into each arm's row its differences to the baseline, and the declared ones to other arms.

    All of them are one family for Holm's correction, test by test: a pair of arms has one p, wherever it stands. That p
    is the method's, of seeds and questions; of one seed, where there is none, that of these models.
    """
    to_baseline = [(name, BASELINE) for name in rewards if BASELINE in rewards and name != BASELINE]
    found: dict[tuple[str, str], dict[str, Any]] = {pair: {} for pair in (*to_baseline, *declared)}
    for test in tests:
        each = {pair: statistics.difference(*(rewards[name][test] for name in pair)) for pair in found}
        names = {pair: " ".join(pair) for pair in each}
        deciding = {names[pair]: one["p"] if one["seed_p"] is None else one["seed_p"] for pair, one in each.items()}
        corrected = statistics.holm(deciding)
        for pair, one in each.items():
            found[pair][test] = one | {"p_holm": corrected[names[pair]]}
    for row in rows:
        name = row["name"]
        if BASELINE in rewards:
            row["differences_to_self"] = found.get((name, BASELINE), dict.fromkeys(tests))
            row["difference_to_self"] = row["differences_to_self"][tests[0]]
        row["contrasts"] = [
            {"against": other, "differences": found[one, other]} for one, other in declared if one == name
        ]


def step_quality(solutions: Sequence[tuple[Problem, str]]) -> dict[str, Any] | None:
    """How many right solutions have an invalid step, of those whose steps can be checked; None where none can."""
    judged = [
        invalid for problem, text in solutions if (invalid := step_validity.has_invalid_step(problem, text)) is not None
    ]
    if not judged:
        return None
    low, high = wilson(sum(judged), len(judged))
    return {
        "num_checked": len(judged),
        "num_invalid": sum(judged),
        "invalid_rate": sum(judged) / len(judged),
        "interval": [low, high],
    }


def _solutions(traces: Sequence[Trace]) -> list[tuple[Problem, str]]:
    return [(trace.problem, trace.solution) for trace in traces]


def _right_answers(outcome: Outcome, test: str) -> list[tuple[Problem, str]]:
    if test not in outcome.evaluations:
        return []
    rows = read_rows(outcome.evaluations[test] / "predictions.jsonl", Prediction)
    return [(row.problem, row.solution) for row in rows if row.verdict and row.verdict.status == "correct"]


def _makeup(traces: Sequence[Trace]) -> dict[str, dict[str, float]]:
    """Which problems have a trace: shares by level and by subject."""
    found: dict[str, dict[str, float]] = {}
    for column in ("level", "subject"):
        counts = Counter(getattr(trace, column) for trace in traces if getattr(trace, column))
        found[column] = {name: count / len(traces) for name, count in sorted(counts.items())}
    return found


def _folders(outcome: Outcome, folder: Path) -> dict[str, Any]:
    def of(path: Path | None) -> str | None:
        inside = path is not None and path.is_relative_to(folder)
        return None if path is None else path.relative_to(folder).as_posix() if inside else path.as_posix()

    trained = [work.folder for work in outcome.works if (work.folder / "trees.jsonl").exists()]
    return {
        "flow": of(trained[-1] if trained else None),
        "traces": of(outcome.traces.folder if outcome.traces else None),
        "sft": of(outcome.sft.folder if outcome.sft else None),
        "evaluations": {test: of(path) for test, path in outcome.evaluations.items()},
        "votes": {problems: of(path) for problems, path in outcome.votes.items()},
        "stop": of(outcome.stop),
    }
