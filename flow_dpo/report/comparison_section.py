"""The section of a comparison, and its tables as a published study has them.

Which arm is better, by how much and how surely: a table, and the differences to the baseline as a forest plot; then on
how many traces and at what cost, and how many right answers hide a wrong step. What comparison.json leaves null is
shown as "-". Invariant: no difference is called one unless its interval leaves out zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow_dpo.report import formatting
from flow_dpo.report.document import Block, Figure, Fold, Paragraph, Section, Table
from flow_dpo.report.evaluation_section import steps_cells
from flow_dpo.report.figures import Effect, draw_forest
from flow_dpo.report.sources import ComparisonSource
from flow_dpo.report.team_section import team_tables

_FINDINGS = 12
"""Differences that stand at the top; all of them stand in the tables."""
_SURE = 0.05
"""The corrected p below which a difference counts beside all others."""
Arm = Mapping[str, Any]


def comparison_section(source: ComparisonSource, number: int) -> tuple[Section, tuple[str, ...]]:
    """The section of a comparison, and its findings."""
    found = source.found
    arms = found["arms"]
    baseline = found.get("baseline") or "self_generated"
    primary = found.get("primary") or "the primary test"
    findings = _findings(arms, str(baseline), str(primary))
    sizes = found.get("test_sets") or {}
    tests = ", ".join(_test_words(name, size or {}) for name, size in sizes.items())
    seeds = found.get("num_seeds")
    words = (
        f"Model {found.get('model', 'unnamed')}, trained on {found.get('dataset', 'an unnamed set')}, "
        f"{formatting.count(seeds)} seed{'s' if seeds != 1 else ''}; tests: {tests or 'not named'}."
    )
    if _by_difference(arms):
        words += f" Differences are to {baseline}, on {primary}."
    if _by_difference(arms) or _contrasted(arms):
        words += (
            " Differences are paired: the interval resamples test questions; p is the exact one of exchanging the two "
            "arms on whole questions, all seeds of a question together (of one seed McNemar's)."
        )
    blocks: list[Block] = [Paragraph(text=words)]
    if seeds == 1:
        blocks.append(
            Paragraph(
                text="One seed: how much another seed would change is not known; intervals are over questions alone."
            )
        )
    blocks += _caveats(found)
    plot = _forest(arms, f"comparison{number}", str(baseline), str(primary))
    blocks += [plot] if plot else []
    blocks += [*team_tables(found.get("team")), *_tables(arms, str(baseline))]
    blocks.append(Fold(title="Every test, and each seed", blocks=(_every_test(arms),)))
    blocks.append(Fold(title="What each arm is", blocks=(_descriptions(arms),)))
    makeup = _makeup(arms)
    if makeup.rows:
        blocks.append(Fold(title="Which problems got a trace", blocks=(makeup,)))
    return Section(title=f"Comparison {formatting.short(source.name)}", blocks=tuple(blocks)), tuple(findings)


def summary_tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of a comparison.json whose values are of the right kinds, and what each arm is."""
    arms: list[Arm] = list(found["arms"])
    tables = _tables(arms, str(found.get("baseline") or "self_generated"))
    return [*team_tables(found.get("team")), *tables, _descriptions(arms)]


def _tables(arms: list[Arm], baseline: str) -> list[Table]:
    """Differences where there are any, then what every comparison has."""
    tables = [_differences(arms, baseline)] if _by_difference(arms) else []
    tables += [contrasts] if (contrasts := _contrasts(arms)).rows else []
    return [*tables, _accuracies(arms), _costs(arms), _steps(arms)]


def _caveats(found: Mapping[str, Any]) -> list[Block]:
    """Arms that could not be made, and work by several versions of the code."""
    failed = found.get("failed") or {}
    blocks: list[Block] = [Paragraph(text=f"Not made: {name}, for {reason}.") for name, reason in failed.items()]
    made = found.get("made_by") or ()
    if len(made) > 1:
        counts = [formatting.count(one.get("num_pieces")) for one in made]
        parts = [f"{num} by {one.get('commit')!s:.12}" for num, one in zip(counts, made, strict=True)]
        blocks.append(Paragraph(text=f"The pieces of work were not all made by the same code: {', '.join(parts)}."))
    return blocks


def _test_words(name: str, size: Mapping[str, Any]) -> str:
    num, learned = size.get("num_problems"), size.get("num_learned")
    if num is None:
        return name
    seen = "" if learned is None else f", {formatting.count(learned) if learned else 'none'} of them learned from"
    return f"{name} ({formatting.count(num)} problems{seen})"


def _difference(arm: Arm) -> Mapping[str, Any]:
    return arm.get("difference_to_self") or {}


def _by_difference(arms: list[Arm]) -> list[Arm]:
    """Arms with a difference, the largest first."""
    there = [arm for arm in arms if _difference(arm).get("mean") is not None]
    return sorted(there, key=lambda arm: -_difference(arm)["mean"])


def _finding(name: str, found: Mapping[str, Any], baseline: str) -> str:
    low, high = found.get("low"), found.get("high")
    seed_low, seed_high = found.get("seed_low"), found.get("seed_high")
    apart = seed_low is None or seed_high is None or seed_low * seed_high > 0
    how = f"{formatting.points(found['mean'])} points against {baseline} ({formatting.points_interval(low, high)}"
    how += f"; Holm's p {formatting.p_value(found['p_holm'])})" if found.get("p_holm") is not None else ")"
    if low is None or high is None:
        return f"{name}: {how}, no interval known."
    if low > 0 or high < 0:
        lost = found.get("p_holm") is not None and found["p_holm"] >= _SURE
        doubt = (", but not after the correction" if lost else "") + (
            "" if apart else ", though the interval over seeds holds 0"
        )
        return f"{name}: {how}, {'better' if low > 0 else 'worse'}{doubt}."
    return f"{name}: {how}, not told apart."


def _findings(arms: list[Arm], baseline: str, primary: str) -> list[str]:
    """A few: differences to the baseline in the order of the arms; or the contrasts, where there is no baseline."""
    gaps = [(arm["name"], _difference(arm), baseline) for arm in arms]
    if not _by_difference(arms):
        gaps = [(arm, gap, other) for arm, other, test, gap in _contrasted(arms) if test == primary]
    found = [_finding(*gap) for gap in gaps if gap[1].get("mean") is not None]
    more = len(found) - _FINDINGS
    return found if more <= 0 else [*found[:_FINDINGS], f"{more} more differences: in the comparison's tables."]


def _forest(arms: list[Arm], tag: str, baseline: str, primary: str) -> Figure | None:
    shown = _by_difference(arms)
    if not shown:
        return None
    effects = []
    for arm in shown:
        found = _difference(arm)
        low, high, seed_low, seed_high = (
            None if found.get(name) is None else 100 * found[name] for name in ("low", "high", "seed_low", "seed_high")
        )
        outer = None if seed_low is None or seed_high is None else (seed_low, seed_high)
        effects.append(Effect(label=arm["name"], mean=100 * found["mean"], low=low, high=high, outer=outer))
    better = [arm for arm in shown if (_difference(arm).get("low") or 0) > 0]
    worse = [arm for arm in shown if (_difference(arm).get("high") or 0) < 0]
    title = (
        f"On {primary}, {len(better)} of {len(shown)} arms better than {baseline}, {len(worse)} worse, "
        f"{len(shown) - len(better) - len(worse)} not told apart"
    )
    alt = f"Forest plot of the differences to {baseline}. {title}."
    svg = draw_forest(f"{tag}-forest", effects, x="difference (percentage points)", alt=alt)
    caption = (
        "Thick: 95 % paired bootstrap over the test questions. Thin: 95 % t-interval over seeds. Blue circles are "
        "better, red ones worse, grey diamonds not told apart; intervals are not corrected for the number of arms, "
        "Holm's p in the table is."
    )
    return Figure(title=title, svg=svg, caption=caption)


def _differences(arms: list[Arm], baseline: str) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in arms:
        found = _difference(arm)
        over_seeds = formatting.points_interval(found.get("seed_low"), found.get("seed_high"))
        between = formatting.points_interval(found.get("low"), found.get("high"))
        p = (formatting.p_value(found.get("p")), formatting.p_value(found.get("p_holm")))
        rows.append((arm["name"], formatting.points(found.get("mean")), between, over_seeds, *p))
    columns = ("arm", "points", "95 % over questions", "95 % over seeds", "p", "Holm's p")
    return Table(caption=f"Difference to {baseline}, percentage points", columns=columns, rows=tuple(rows))


def _contrasted(arms: list[Arm]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Arm, what it is against, test and difference, of the arms that are compared with others than the baseline."""
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
        rows.append((arm, other, test, points, between, over_seeds, p))
    columns = ("arm", "against", "test", "points", "95 % over questions", "95 % over seeds", "Holm's p")
    return Table(caption="Contrasts, percentage points", columns=columns, rows=tuple(rows), wordy=frozenset({0, 1, 2}))


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
        "problems with one",
        "problems asked",
        "tokens sampled",
        "tokens learned",
        "verdicts",
        "time",
    )
    return Table(
        caption="Traces (of each seed) and cost (mean over seeds, the arm's whole chain)",
        columns=columns,
        rows=tuple(rows),
    )


def _steps(arms: list[Arm]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in (arm for arm in arms if arm.get("accuracies")):
        for name, words in (("traces", "its traces"), ("answers", "its right answers")):
            rows.append((arm["name"], words, *steps_cells((arm.get("step_quality") or {}).get(name))))
    columns = ("arm", "of", "checked", "with a wrong step", "share", "95 % interval")
    return Table(caption="Right, but by a wrong step", columns=columns, rows=tuple(rows), wordy=frozenset({0, 1}))


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
    columns = ("arm", "test", "accuracy of each seed", "points to baseline", "95 % over questions", "Holm's p")
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
