"""The team against its members: the `team` section of comparison.json, from the results of its seeds (`team_results`).

Votes are compared with the flow at equal sampled tokens. What k attempts give is computed for every k from the draws;
the accuracy at the flow's tokens lies between two neighbouring k, linearly in tokens:

    k   tokens   majority            the flow samples 75 tokens per problem
    1     50       .60
    2    100       .60               between k = 1 and 2, half of each
    3    150       .66               majority .60, attempts 1.5

Invariant: differences are taken seed by seed first. An interval over seeds allows for other questions too, as in
`statistics.two_level`; for areas, and for votes whose results on each problem are not kept, it is Student's over one
value per seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from flow_dpo.evaluate import statistics
from flow_dpo.evaluate.compare.team_arms import ARMS
from flow_dpo.evaluate.compare.team_results import COMPARED, TRAININGS, Curve, TeamResult
from flow_dpo.evaluate.votes import RULES

LEVEL = 0.7
"""The windowed accuracy at which curves are compared."""
FLOW = "flow_itself"
Made = Mapping[str, Sequence[TeamResult]]
"""The results of each arm, one per seed."""
Rewards = Mapping[str, Mapping[str, Sequence[statistics.Rewards]]]
"""By arm and test, one mapping per seed."""
ByK = Sequence[Mapping[str, float]]
"""For 1, 2, 3, ... attempts: tokens per problem, and the accuracy of each rule."""


def team(made: Made, rewards: Rewards) -> dict[str, Any] | None:
    """The section; None for a comparison with none of the team's arms."""
    if not made.keys() & ARMS.keys():
        return None
    drawn = {
        name: {problems: [one.votes[problems] for one in each] for problems in each[0].votes}
        for name, each in made.items()
        if each[0].votes
    }
    votes = _votes(made, drawn)
    stops = _stops(made)
    return {
        "differences": _differences(made, rewards, votes, stops),
        "votes": votes,
        "draws": [
            {"arm": name, "problems": problems, "by_k": _mean_by_k(curves)}
            for name, sets in drawn.items()
            for problems, curves in sets.items()
        ],
        "stops": stops,
        "curves": _curves(made),
    }


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and t-interval over seeds; both None if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return {"mean": None, "low": None, "high": None, "per_seed": list(values)}
    return statistics.mean_of(known)


# ---- votes at the flow's tokens --------------------------------------------------------------------------------------


def at_tokens(curve: ByK, tokens: float) -> tuple[dict[str, float], bool]:
    """The curve's values at a number of tokens, by linear interpolation, and whether that number is beyond its ends;
    then the values are those of the nearest end."""
    if tokens <= curve[0]["tokens"] or tokens >= curve[-1]["tokens"]:
        end = curve[0] if tokens <= curve[0]["tokens"] else curve[-1]
        return dict(end), tokens != end["tokens"]
    below, above = next((a, b) for a, b in pairwise(curve) if a["tokens"] <= tokens < b["tokens"])
    share = (tokens - below["tokens"]) / (above["tokens"] - below["tokens"])
    return {name: value + share * (above[name] - value) for name, value in below.items()}, False


def _mean_by_k(curves: Sequence[ByK]) -> dict[str, dict[str, float]]:
    names = [name for name in curves[0][0] if name != "attempts"] if curves[0] else []
    return {
        str(k): {name: fmean(row[name] for row in rows) for name in names}
        for k, rows in enumerate(zip(*curves, strict=True), start=1)
    }


def _votes(made: Made, drawn: Mapping[str, Mapping[str, Sequence[ByK]]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    flow = made.get(FLOW, ())
    for test in flow[0].tokens if flow else ():
        tokens = [one.tokens[test] for one in flow]
        for arm, sets in drawn.items():
            curves = sets.get(test.partition("/")[0])
            if curves is None:
                continue
            read = [at_tokens(curve, num) for curve, num in zip(curves, tokens, strict=True)]
            found.append({
                "arm": arm,
                "test": test,
                "tokens": over_seeds(tokens),
                "attempts": over_seeds([values["attempts"] for values, _ in read]),
                "num_clipped": sum(clipped for _, clipped in read),
                "accuracies": {
                    rule: over_seeds([values[rule] for values, _ in read]) for rule in ("one_attempt", *RULES)
                },
            })  # fmt: skip
    return found


# ---- differences -----------------------------------------------------------------------------------------------------


def _differences(
    made: Made, rewards: Rewards, votes: Sequence[Mapping[str, Any]], stops: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The flow minus each of its members, test by test; and differences between areas of Stops."""
    found: list[dict[str, Any]] = []
    for test, flow in rewards.get(FLOW, {}).items():
        named = {"one": FLOW, "test": test, "measure": "accuracy"}
        for other in ("answer_adapter", "zero_shot", "paper_flow"):
            if other in rewards:
                gap = statistics.difference(flow, rewards[other][test])
                found.append({**named, "other": other, "rule": None, **gap})
        # What sampling at a temperature costs, a greedy pass avoids: the flow's gain over it is the team's own.
        greedy = f"{test.partition('/')[0]}/greedy"
        for other in ("answer_adapter", "zero_shot") if test != greedy else ():
            if greedy in rewards.get(other, {}):
                gap = statistics.difference(flow, rewards[other][greedy])
                found.append({**named, "other": other, "rule": "greedy", **gap})
        accuracies = [fmean(value or 0.0 for value in seed.values()) for seed in flow]
        for voted in votes:
            for rule in COMPARED if voted["test"] == test else ():
                theirs = voted["accuracies"][rule]["per_seed"]
                gap = _gap(accuracies, theirs)
                each = [
                    _voted_at(one, test, rule, at)
                    for one, at in zip(made[voted["arm"]], voted["tokens"]["per_seed"], strict=True)
                ]
                if all(each):
                    gap |= statistics.method_difference(flow, each)
                found.append({**named, "other": voted["arm"], "rule": rule, **gap})
    areas = {stop["arm"]: stop["right_over_wrong"]["per_seed"] for stop in stops}
    for one, other in (
        ("trained_stop", "untrained_stop"),
        ("trained_stop", "paper_stop"),
        ("paper_stop", "untrained_stop"),
    ):
        if one in areas and other in areas:
            named = {"one": one, "other": other, "rule": None, "test": "fixed set", "measure": "area"}
            found.append({**named, **_gap(areas[one], areas[other])})
    return found


def _voted_at(result: TeamResult, test: str, rule: str, tokens: float) -> dict[str, float]:
    """The accuracy of votes on each problem at a number of tokens; empty if the results have it only for all."""
    problems = test.partition("/")[0]
    by_id = result.voted.get(problems, {}).get(rule, {})
    curve = [
        {"tokens": row["tokens"], **{id: values[at] for id, values in by_id.items()}}
        for at, row in enumerate(result.votes[problems])
    ]
    found, _ = at_tokens(curve, tokens)
    return {id: found[id] for id in by_id}


def _gap(one: Sequence[float | None], other: Sequence[float | None]) -> dict[str, Any]:
    """The difference of two values per seed, with its interval over seeds."""
    gaps = [None if a is None or b is None else a - b for a, b in zip(one, other, strict=True)]
    found = over_seeds(gaps)
    return {
        "mean": found["mean"],
        "seed_low": found["low"],
        "seed_high": found["high"],
        "per_seed": found["per_seed"],
        "low": None,
        "high": None,
    }


# ---- Stop on the fixed set -------------------------------------------------------------------------------------------


def _stops(made: Made) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, each in made.items():
        measured = [one.stop for one in each if one.stop is not None]
        if measured:
            values = ("right_over_wrong", "finished_over_unfinished", "brier", "calibration_error")
            means = {value: over_seeds([one[value] for one in measured]) for value in values}
            found.append({"arm": name, **means, "sets": [one["sha256"] for one in measured]})
    return found


# ---- learning curves -------------------------------------------------------------------------------------------------


def least_lead(curve: Curve, other: Curve) -> float | None:
    """The smallest lead of a curve over another one at equal tokens, where both are known; the other's accuracy is
    interpolated linearly in tokens."""
    leads: list[float] = []
    for _, tokens, accuracy in curve:
        for (_, start, low), (_, end, high) in pairwise(other):
            if start <= tokens <= end and start < end:
                leads.append(accuracy - low - (tokens - start) / (end - start) * (high - low))
                break
    return min(leads, default=None)


def _curves(made: Made) -> list[dict[str, Any]]:
    curves: dict[str, list[Curve]] = {}
    for each in made.values():
        for name in TRAININGS:
            own = [one.curves[name] for one in each if name in one.curves]
            if own and len(own) == len(each):
                curves.setdefault(name, own)
    found: list[dict[str, Any]] = []
    for name, each in curves.items():
        first = [next((point for point in curve if point[2] >= LEVEL), (None, None, None)) for curve in each]
        [other] = [key for key in curves if key != name] or [""]
        leads = [least_lead(a, b) for a, b in zip(each, curves[other], strict=True)] if other else None
        found.append({
            "training": name,
            "level": LEVEL,
            "problems": over_seeds([point[0] for point in first]),
            "tokens": over_seeds([point[1] for point in first]),
            "points": [[list(point) for point in curve] for curve in each],
            "least_lead": None if leads is None else over_seeds(leads),
        })  # fmt: skip
    return found
