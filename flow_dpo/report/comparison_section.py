"""The section of a comparison: its contrasts as forest plots, all else folded; and its tables for a published study.

Shown are the declared contrasts, then the differences to the baseline, on the primary test (`gaps`). Folded are the
other tests, accuracies, cost, wrong steps and each seed. A null in comparison.json is shown as "-". Invariant: every
number of the file's arms is in the section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flow_dpo.report import formatting
from flow_dpo.report.document import Block, Fold, Paragraph, Section, Table
from flow_dpo.report.evaluation_section import steps_cells
from flow_dpo.report.gaps import baseline_of, forests
from flow_dpo.report.sources import ComparisonSource
from flow_dpo.report.team_section import team_tables

Arm = Mapping[str, Any]


def comparison_section(source: ComparisonSource) -> Section:
    """The section of a comparison."""
    found, arms = source.found, source.found["arms"]
    main, others = forests(found)
    tables, descriptions = _all_tables(found), _descriptions(arms)
    folds: list[tuple[str, list[Block]]] = [
        ("The same on the other tests", [*others]),
        ("Accuracies, costs and wrong steps, as tables", [*tables]),
        ("Every test, and each seed", [_every_test(arms)]),
        ("What each arm is", [descriptions]),
        ("How learning rates were chosen", [rates] if (rates := _rates(found)).rows else []),
        ("Which problems got a trace", [makeup] if (makeup := _makeup(arms)).rows else []),
    ]
    # Without any difference, the arms' accuracies are shown.
    shown: list[Block] = [*main] if main else [_accuracies(arms)]
    blocks = [*shown, *(Fold(title=title, blocks=tuple(inner)) for title, inner in folds if inner)]
    return Section(title=f"Comparison {source.name}", blocks=(Paragraph(text=_describe(found)), *blocks))


def _describe(found: Mapping[str, Any]) -> str:
    tests = ", ".join(_test_words(name, size or {}) for name, size in (found.get("test_sets") or {}).items())
    seeds = found.get("num_seeds")
    return (
        f"Model {found.get('model') or 'unnamed'}, trained on {found.get('dataset') or 'an unnamed set'}, "
        f"{formatting.count(seeds)} seed{'s' if seeds != 1 else ''}; tests: {tests or 'not named'}. Differences are "
        f"paired. {_p_words(found['arms'])}"
    )


def _p_words(arms: list[Arm]) -> str:
    """What p is about. A comparison of one seed, like older ones, only has the p of its trained models."""
    gaps = [_difference(arm) for arm in arms] + [gap for *_, gap in _contrasted(arms)]
    if any(gap.get("seed_p") is not None for gap in gaps):
        return (
            "Intervals over seeds, and p, are about the method: they allow for another training and other questions. "
            "Intervals over questions hold the trained models fixed. Areas, and votes without a p, have intervals over "
            "seeds only."
        )
    return (
        "p is about these trained models, which it holds fixed: it swaps the two arms on whole questions, all seeds of "
        "a question together (with one seed, McNemar's test)."
    )


def summary_tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of a checked comparison.json, and what each arm is."""
    rates = [table] if (table := _rates(found)).rows else []
    return [*_all_tables(found), *rates, _descriptions(list(found["arms"]))]


def _all_tables(found: Mapping[str, Any]) -> list[Table]:
    arms = list(found["arms"])
    tables = [*team_tables(found.get("team")), _interactions(found, arms), *_tables(arms, baseline_of(found))]
    return [table for table in tables if table.rows]


def _tables(arms: list[Arm], baseline: str) -> list[Table]:
    """Differences, if there are any, then the tables that every comparison has."""
    tables = [_differences(arms, baseline)] if _by_difference(arms) else []
    tables += [contrasts] if (contrasts := _contrasts(arms)).rows else []
    return [*tables, _accuracies(arms), _costs(arms), _steps(arms)]


def _test_words(name: str, size: Mapping[str, Any]) -> str:
    num, learned = size.get("num_problems"), size.get("num_learned")
    if num is None:
        return name
    seen = "" if learned is None else f", {formatting.count(learned) if learned else 'none'} of them learned from"
    return f"{name} ({formatting.count(num)} problems{seen})"


def _difference(arm: Arm) -> Mapping[str, Any]:
    return arm.get("difference_to_self") or {}


def _by_difference(arms: list[Arm]) -> list[Arm]:
    """Arms with a difference, largest first."""
    there = [arm for arm in arms if _difference(arm).get("mean") is not None]
    return sorted(there, key=lambda arm: -_difference(arm)["mean"])


def _differences(arms: list[Arm], baseline: str) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        found = _difference(arm)
        over_seeds = formatting.points_interval(found.get("seed_low"), found.get("seed_high"))
        between = formatting.points_interval(found.get("low"), found.get("high"))
        p = formatting.p_value(found.get("p_holm"))
        rows.append((arm["name"], formatting.points(found.get("mean")), over_seeds, p, between))
    columns = ("arm", "points", "95 % over seeds", "Holm's p", "95 % over questions")
    return Table(caption=f"Difference to {baseline}, percentage points", columns=columns, rows=tuple(rows))


def _contrasted(arms: list[Arm]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Arm, opponent, test and difference, for the arms that are compared with others than the baseline."""
    return [
        (arm["name"], str(contrast.get("against")), test, gap)
        for arm in arms
        for contrast in arm.get("contrasts") or ()
        for test, gap in (contrast.get("differences") or {}).items()
    ]


def _contrasts(arms: list[Arm]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm, other, test, gap in _contrasted(arms):
        between = formatting.points_interval(gap.get("low"), gap.get("high"))
        over_seeds = formatting.points_interval(gap.get("seed_low"), gap.get("seed_high"))
        points, p = formatting.points(gap.get("mean")), formatting.p_value(gap.get("p_holm"))
        rows.append((arm, other, test, points, over_seeds, p, between))
    columns = ("arm", "against", "test", "points", "95 % over seeds", "Holm's p", "95 % over questions")
    return Table(caption="Contrasts, percentage points", columns=columns, rows=tuple(rows), wordy=frozenset({0, 1, 2}))


def _interactions(found: Mapping[str, Any], arms: list[Arm]) -> Table:
    """Two changes alone and together, and by how much both together exceed their sum."""
    by_name = {arm["name"]: arm for arm in arms}
    rows: list[tuple[str, ...]] = []
    for each in found.get("interactions") or ():
        for test, gap in each["differences"].items():
            problems, _, how = test.partition("/")
            four = [by_name.get(each[of], {}) for of in ("neither", "one", "other", "both")]
            means = [formatting.share(_accuracy(arm, problems, how).get("mean")) for arm in four]
            over_seeds = formatting.points_interval(gap.get("seed_low"), gap.get("seed_high"))
            p = formatting.p_value(gap.get("p_holm"))
            rows.append((each["name"], test, *means, formatting.points(gap.get("mean")), over_seeds, p))
    columns = (
        "changes",
        "test",
        "neither",
        "the first",
        "the second",
        "both",
        "interaction",
        "95 % over seeds",
        "Holm's p",
    )
    caption = "Interactions: the effect of two changes together less the sum of each alone, percentage points"
    return Table(caption=caption, columns=columns, rows=tuple(rows), wordy=frozenset({0, 1}))


def _tests(arms: list[Arm]) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys(
            (test, how) for arm in arms for test, group in (arm.get("accuracies") or {}).items() for how in group or {}
        )
    )


def _accuracy(arm: Arm, test: str, how: str) -> Mapping[str, Any]:
    return ((arm.get("accuracies") or {}).get(test) or {}).get(how) or {}


def _accuracies(arms: list[Arm]) -> Table:
    tests = _tests(arms)
    tested = [arm for arm in arms if arm.get("accuracies")]
    rows = tuple((arm["name"], *(_cell(_accuracy(arm, *test)) for test in tests)) for arm in tested)
    columns = ("arm", *(f"{test}, {how}" for test, how in tests))
    return Table(caption="Accuracy, mean over seeds (95 % t-interval over seeds)", columns=columns, rows=rows)


def _cell(found: Mapping[str, Any]) -> str:
    bounds = formatting.interval((found.get("low"), found.get("high")))
    known, ungraded = found.get("mean_graded"), found.get("num_ungraded")
    more = f"; {ungraded:,.0f} ungraded, {formatting.share(known)} of the graded" if ungraded else ""
    return formatting.share(found.get("mean")) + ("" if bounds == formatting.NOTHING else f" ({bounds})") + more


def _costs(arms: list[Arm]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        cost = arm.get("costs") or {}
        traces = [formatting.counts(arm.get(name)) for name in ("num_traces", "num_problems", "problems_asked")]
        spent = [formatting.count(cost.get(name)) for name in ("tokens_sampled", "tokens_learned", "verdicts_used")]
        rows.append((arm["name"], *traces, *spent, formatting.seconds(cost.get("seconds"))))
    columns = (
        "arm",
        "traces",
        "problems with a trace",
        "problems tried",
        "tokens sampled",
        "tokens learned",
        "verdicts",
        "time",
    )
    return Table(
        caption="Traces (each seed) and cost of the arm's whole chain (mean over seeds)",
        columns=columns,
        rows=tuple(rows),
    )


def _steps(arms: list[Arm]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in (arm for arm in arms if arm.get("accuracies")):
        for name, words in (("traces", "its traces"), ("answers", "its right answers")):
            rows.append((arm["name"], words, *steps_cells((arm.get("step_quality") or {}).get(name))))
    columns = ("arm", "of", "checked", "with a wrong step", "share", "95 % interval")
    return Table(caption="Right, but with a wrong step", columns=columns, rows=tuple(rows), wordy=frozenset({0, 1}))


def _every_test(arms: list[Arm]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in (arm for arm in arms if arm.get("accuracies")):
        for test, how in _tests(arms):
            found = _accuracy(arm, test, how)
            other = (arm.get("differences_to_self") or {}).get(f"{test}/{how}") or {}
            seeds = ", ".join(formatting.share(value) for value in found.get("per_seed") or ()) or formatting.NOTHING
            gap = formatting.points_interval(other.get("low"), other.get("high"))
            cells = (seeds, formatting.points(other.get("mean")), gap, formatting.p_value(other.get("p_holm")))
            rows.append((arm["name"], f"{test}, {how}", *cells))
    columns = ("arm", "test", "accuracy of each seed", "points against baseline", "95 % over questions", "Holm's p")
    return Table(caption="All tests", columns=columns, rows=tuple(rows), wordy=frozenset({0, 1}))


def _descriptions(arms: list[Arm]) -> Table:
    rows = tuple(
        (arm["name"], *(str(arm.get(name) or formatting.NOTHING) for name in ("kind", "what"))) for arm in arms
    )
    return Table(caption="Arms", columns=("arm", "kind", "what it is"), rows=rows, wordy=frozenset({0, 1, 2}))


def _makeup(arms: list[Arm]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        for column, groups in (arm.get("trace_makeup") or {}).items():
            for name in groups or ():
                rows.append((arm["name"], f"{column} {name}", formatting.share(groups[name])))
    return Table(
        caption="Share of traces, by level and subject",
        columns=("arm", "group", "share"),
        rows=tuple(rows),
        wordy=frozenset({0, 1}),
    )


def _rates(found: Mapping[str, Any]) -> Table:
    """The learning rate of each training, and the validation accuracy at each candidate."""
    chosen: Mapping[str, Mapping[str, Any]] = found.get("rates") or {}
    tried = list(dict.fromkeys(rate for row in chosen.values() for rate in row["by_rate"]))
    rows = [
        (name, f"{row['chosen']:g}", *(_mean_share(row["by_rate"].get(rate, ())) for rate in tried))
        for name, row in chosen.items()
    ]
    caption = "The learning rate of each training, and validation accuracy by rate"
    return Table(caption=caption, columns=("training", "chosen", *tried), rows=tuple(rows))


def _mean_share(each: Sequence[float | None]) -> str:
    known = [value for value in each if value is not None]
    return formatting.share(fmean(known)) if known and len(known) == len(each) else "failed"
