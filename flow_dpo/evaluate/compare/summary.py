"""The results of a comparison: `comparison.json`, made from the results of its seeds (`seed_results`).

Invariant: everything here is computed from these files alone, so the same files give the same figures anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from flow_dpo.core.stats import wilson
from flow_dpo.evaluate import statistics
from flow_dpo.evaluate.compare.arms import BASELINE, SAME_TOKENS, Arm
from flow_dpo.evaluate.compare.interactions import interactions
from flow_dpo.evaluate.compare.seed_results import ArmResult, SeedResult, mean_costs
from flow_dpo.evaluate.compare.team import team
from flow_dpo.evaluate.compare.team_results import TeamResult
from flow_dpo.evaluate.compare.verdicts import Draws


@dataclass(frozen=True, kw_only=True)
class ComparisonContext:
    """What is known about a comparison besides its arms."""

    tests: Sequence[str]
    """The first one is the primary test, used for `difference_to_self`."""
    facts: Mapping[str, Any]
    tokens: int = 0
    """Tokens given to the arms with a token budget; 0 means what the flow used."""


def summarise(arms: Sequence[Arm], seeds: Sequence[SeedResult], context: ComparisonContext) -> dict[str, Any]:
    """comparison.json for these arms, which every seed must have."""
    rewards = {
        arm.name: {test: [seed.rewards(arm.name, test) for seed in seeds] for test in context.tests}
        for arm in arms
        if seeds[0].arms[arm.name].verdicts
    }
    rows = [
        _row(arm, [seed.arms[arm.name] for seed in seeds], rewards.get(arm.name, {}), context.tokens) for arm in arms
    ]
    tested = [arm for arm in arms if arm.name in rewards]
    declared = [(arm.name, other) for arm in tested for other in arm.against if other in rewards]
    found = team({arm.name: [seed.arms[arm.name].team for seed in seeds] for arm in arms}, rewards)
    crossed = interactions(rewards, context.tests)
    add_differences(rows, declared, rewards, context.tests, others(found, crossed))
    return {
        "num_seeds": len(seeds),
        "seeds": [seed.seed for seed in seeds],
        "baseline": BASELINE if BASELINE in rewards else None,
        "primary": context.tests[0],
        **context.facts,
        **({} if found is None else {"team": found}),
        "interactions": crossed,
        "arms": rows,
    }


def _row(
    arm: Arm, each: Sequence[ArmResult], rewards: Mapping[str, Sequence[statistics.Rewards]], tokens: int
) -> dict[str, Any]:
    compiled = each[0].num_traces is not None
    budget = f"until it had {tokens:,} tokens" if tokens else SAME_TOKENS
    return {
        "name": arm.name,
        "kind": arm.kind,
        "what": arm.what.replace(SAME_TOKENS, budget),
        "num_traces": [one.num_traces for one in each] if compiled else None,
        "num_problems": [one.num_problems for one in each] if compiled else None,
        "problems_asked": [one.problems_asked for one in each] if compiled else None,
        "accuracies": _accuracies(rewards, {test: [one.verdicts[test] for one in each] for test in rewards}),
        **_facts([one.team for one in each]),
        "costs": mean_costs(each),
        "step_quality": {
            "traces": step_quality([one.steps["traces"] for one in each]),
            "answers": step_quality([one.steps["answers"] for one in each], same_questions=True),
        },
        "trace_makeup": _shares(each) if compiled else None,
        "folders": [one.folders for one in each],
    }


def _facts(each: Sequence[TeamResult]) -> dict[str, Any]:
    """By test, the shares of solutions that were cut and of Stop's Yes; by training, what it learned from. What a
    seed's file lacks is left out."""
    found: dict[str, Any] = {}
    if all(one.cut for one in each):
        found["cut"] = {test: statistics.mean_of([one.cut[test] for one in each]) for test in each[0].cut}
    if all(one.yes for one in each):
        found["yes"] = {test: _means([one.yes.get(test, {}) for one in each]) for test in each[0].yes}
    if all(one.learned for one in each):
        found["learned"] = {training: _means([one.learned[training] for one in each]) for training in each[0].learned}
    return found


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the values that every seed has."""
    shared = [name for name in each[0] if all(name in values for values in each)]
    return {name: fmean(values[name] for values in each) for name in shared}


def step_quality(checked: Sequence[tuple[int, int]], *, same_questions: bool = False) -> dict[str, Any] | None:
    """How many right solutions have an invalid step, out of those whose steps can be checked; None if none can.

    The interval contains Wilson's of the pooled count and, with several seeds, the t-interval over their rates, since
    the solutions of one model are not independent. If all seeds answer the same questions, the former is that of the
    questions of one seed: a model that is the same in all seeds gives the same answers in each.
    """
    num_checked, num_invalid = (sum(column) for column in zip(*checked, strict=True))
    if not num_checked:
        return None
    times = len(checked) if same_questions else 1
    intervals = [wilson(num_invalid / times, num_checked / times)]
    over_seeds = statistics.t_interval([invalid / known for known, invalid in checked if known])
    intervals += [(max(0.0, over_seeds[0]), min(1.0, over_seeds[1]))] if over_seeds is not None else []
    return {
        "num_checked": num_checked,
        "num_invalid": num_invalid,
        "invalid_rate": num_invalid / num_checked,
        "interval": [min(low for low, _ in intervals), max(high for _, high in intervals)],
    }


def _shares(each: Sequence[ArmResult]) -> dict[str, dict[str, float]]:
    """Which problems have a trace: shares of all seeds' traces, by level and by subject."""
    total, found = sum(one.num_traces or 0 for one in each), dict[str, dict[str, float]]()
    for column in ("level", "subject"):
        counts = sum((Counter(one.makeup[column]) for one in each if one.makeup), Counter[str]())
        found[column] = {name: count / total for name, count in sorted(counts.items())}
    return found


def _accuracies(
    rewards: Mapping[str, Sequence[statistics.Rewards]], drawn: Mapping[str, Sequence[Draws]]
) -> dict[str, dict[str, Any]]:
    """By problem set and decoding: the mean over seeds and questions, the mean over graded answers, and the number of
    ungraded ones."""
    found: dict[str, dict[str, Any]] = {}
    for test, each in rewards.items():
        problems, _, decoding = test.partition("/")
        values = [fmean(value or 0.0 for value in seed.values()) for seed in each if seed]
        texts = ["".join(draws) for draws in drawn[test]]
        known = [text.count("1") / graded for text in texts if (graded := text.count("1") + text.count("0"))]
        ungraded = sum(text.count("?") for text in texts)
        found.setdefault(problems, {})[decoding] = (
            statistics.mean_of(values) | {"mean_graded": fmean(known), "num_ungraded": ungraded} if known else None
        )
    return found


def recompute(
    found: Mapping[str, Any],
    rewards: Mapping[str, Mapping[str, Sequence[statistics.Rewards]]],
    drawn: Mapping[str, Mapping[str, Sequence[Draws]]],
) -> Any:
    """comparison.json with its accuracies, intervals and p recomputed from the verdicts of its tests (`verdicts`)."""
    rows = [dict(row) for row in found["arms"]]
    for row in rows:
        row["accuracies"] = _accuracies(rewards.get(row["name"], {}), drawn.get(row["name"], {}))
    declared = [(row["name"], one["against"]) for row in rows for one in row["contrasts"]]
    of_team, crossed = deepcopy((found.get("team"), found.get("interactions") or []))
    add_differences(rows, declared, rewards, list(next(iter(rewards.values()))), others(of_team, crossed))
    same = {"team": of_team, "interactions": crossed}
    return {**found, **{name: value for name, value in same.items() if name in found}, "arms": rows}


def others(
    of_team: Mapping[str, Any] | None, crossed: Sequence[Mapping[str, Any]]
) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """By test, the differences with a p that belong to no arm's row: what is compared, and the difference itself."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for gap in of_team["differences"] if of_team else ():
        if gap.get("seed_p") is not None:
            pair = " ".join(sorted((gap["one"], gap["other"])))
            found.setdefault(gap["test"], []).append((f"{pair} {gap['rule']}" if gap["rule"] else pair, gap))
    for each in crossed:
        for test, gap in each["differences"].items():
            if gap["seed_p"] is not None:
                found.setdefault(test, []).append((each["name"], gap))
    return found


def add_differences(
    rows: Sequence[dict[str, Any]],
    declared: Sequence[tuple[str, str]],
    rewards: Mapping[str, Mapping[str, Sequence[statistics.Rewards]]],
    tests: Sequence[str],
    unlisted: Mapping[str, Sequence[tuple[str, dict[str, Any]]]],
) -> None:
    """Add to each arm's row its differences to the baseline, and the declared ones to other arms; and to every one of
    these and of the `unlisted` its corrected p.

    All of them form one family for Holm's correction, test by test. A pair of arms is in it once, with one p, whichever
    arm comes first and wherever it is shown. That p is the method's, over seeds and questions; with one seed, where
    that does not exist, it is the p of these models.
    """
    to_baseline = [(name, BASELINE) for name in rewards if BASELINE in rewards and name != BASELINE]
    found: dict[tuple[str, str], dict[str, Any]] = {pair: {} for pair in (*to_baseline, *declared)}
    for test in tests:
        each = {pair: statistics.difference(*(rewards[name][test] for name in pair)) for pair in found}
        names = {pair: " ".join(sorted(pair)) for pair in each}
        deciding = {names[pair]: one["p"] if one["seed_p"] is None else one["seed_p"] for pair, one in each.items()}
        deciding |= {name: gap["seed_p"] for name, gap in unlisted.get(test, ()) if name not in deciding}
        corrected = statistics.holm(deciding)
        for name, gap in unlisted.get(test, ()):
            gap["p_holm"] = corrected[name]
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
