"""The tables on a team and its members: differences over seeds, votes at equal tokens, Stop, learning curves.

They are part of a comparison's section (`comparison_section`). Invariant: what no arm of the comparison measured has no
table, and every difference is shown with its interval over seeds of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow_dpo.evaluate.votes import RULE_WORDS
from flow_dpo.report import formatting
from flow_dpo.report.document import Table

Team = Mapping[str, Any]


def team_tables(team: Team | None) -> list[Table]:
    """The tables that have a row; none for a comparison without a team."""
    if not team:
        return []
    tables = (_differences(team), _votes(team), _draws(team), _stops(team), _curves(team))
    return [table for table in tables if table.rows]


def _differences(team: Team) -> Table:
    rows: list[tuple[str, ...]] = []
    for gap in team["differences"]:
        area = gap["measure"] == "area"
        other = gap["other"] + (f", {RULE_WORDS.get(gap['rule'], gap['rule'])}" if gap["rule"] else "")
        seeds = ", ".join(_signed(value, area=area) for value in gap["per_seed"])
        between, over = (
            _bounds(gap.get(low), gap.get(high), area=area)
            for low, high in (("seed_low", "seed_high"), ("low", "high"))
        )
        p = formatting.p_value(gap.get("p_holm"))
        rows.append((gap["one"], other, gap["test"], _signed(gap["mean"], area=area), between, p, over, seeds))
    columns = (
        "arm",
        "against",
        "test",
        "difference",
        "95 % over seeds",
        "Holm's p",
        "95 % over questions",
        "each seed",
    )
    caption = (
        "The team against its members: accuracies in percentage points, areas (right over wrong) in units. Votes are "
        "compared at the flow's sampled tokens; without a p, their interval is over seeds only"
    )
    return Table(caption=caption, columns=columns, rows=tuple(rows), wordy=frozenset({0, 1, 2}))


def _signed(value: float | None, *, area: bool) -> str:
    if value is None:
        return formatting.NOTHING
    return f"{value:+.3f}" if area else formatting.points(value)


def _bounds(low: float | None, high: float | None, *, area: bool) -> str:
    if low is None or high is None:
        return formatting.NOTHING
    return f"{low:+.3f} to {high:+.3f}" if area else formatting.points_interval(low, high)


def _votes(team: Team) -> Table:
    rows: list[tuple[str, ...]] = []
    rules = [rule for rule in RULE_WORDS if any(rule in one["accuracies"] for one in team["votes"])]
    for one in team["votes"]:
        clipped = f" ({formatting.count(one['num_clipped'])} seeds beyond the draws)" if one["num_clipped"] else ""
        attempts = formatting.decimal(one["attempts"]["mean"]) + clipped
        accuracies = [_over_seeds(one["accuracies"][rule]) for rule in rules]
        rows.append((one["arm"], one["test"], formatting.decimal(one["tokens"]["mean"], 1), attempts, *accuracies))
    caption = (
        "Attempts by vote at the tokens per problem that the flow sampled, each seed's linearly interpolated in tokens "
        "between neighbouring numbers of attempts; the oracle is what a perfect Stop would reach"
    )
    columns = ("arm", "the flow's test", "tokens", "attempts", *(RULE_WORDS[rule] for rule in rules))
    return Table(caption=caption, columns=columns, rows=tuple(rows), wordy=frozenset({0, 1}))


def _draws(team: Team) -> Table:
    rules = [rule for rule in RULE_WORDS if any(rule in at for one in team["draws"] for at in one["by_k"].values())]
    rows = tuple(
        (
            one["arm"],
            one["problems"],
            k,
            formatting.decimal(at["tokens"], 1),
            *(formatting.share(at.get(rule)) for rule in rules),
        )
        for one in team["draws"]
        for k, at in one["by_k"].items()
    )
    columns = ("arm", "problems", "attempts", "tokens", *(RULE_WORDS[rule] for rule in rules))
    return Table(caption="Attempts by vote, mean over seeds", columns=columns, rows=rows, wordy=frozenset({0, 1}))


def _over_seeds(found: Mapping[str, Any]) -> str:
    bounds = formatting.interval((found["low"], found["high"]))
    return formatting.share(found["mean"]) + ("" if bounds == formatting.NOTHING else f" ({bounds})")


def _decimals(found: Mapping[str, Any], digits: int = 3) -> str:
    mean, low, high = (formatting.decimal(found[name], digits) for name in ("mean", "low", "high"))
    return mean if low == formatting.NOTHING else f"{mean} ({low} to {high})"


def _stops(team: Team) -> Table:
    names = ("right_over_wrong", "finished_over_unfinished", "brier", "calibration_error")
    rows = tuple((one["arm"], *(_decimals(one[name]) for name in names)) for one in team["stops"])
    columns = ("arm", "area right over wrong", "area finished over unfinished", "Brier score", "calibration error")
    caption = "Stop on the fixed set, the untrained Answer's attempts; mean over seeds (95 % t-interval over seeds)"
    return Table(caption=caption, columns=columns, rows=rows)


def _curves(team: Team) -> Table:
    rows: list[tuple[str, ...]] = []
    for curve in team["curves"]:
        last = [points[-1][2] for points in curve["points"] if points]
        lead = curve.get("least_lead")
        rows.append(
            (
                curve["training"],
                formatting.share(curve["level"]),
                formatting.counts(curve["problems"]["per_seed"]),
                formatting.counts(curve["tokens"]["per_seed"]),
                ", ".join(formatting.share(value) for value in last) or formatting.NOTHING,
                formatting.NOTHING if lead is None else ", ".join(formatting.points(v) for v in lead["per_seed"]),
            )
        )
    columns = (
        "training",
        "windowed accuracy",
        "reached after problems",
        "and sampled tokens",
        "at the end",
        "smallest lead over the other at equal tokens, points",
    )
    return Table(
        caption="Learning curves: windowed accuracy before learning, full windows only; each seed",
        columns=columns,
        rows=tuple(rows),
    )
