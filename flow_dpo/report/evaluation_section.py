"""The sections of evaluations and of traces: one table row each.

Invariant: every number is shown with its decoding and its number of problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.core.stats import wilson
from flow_dpo.evaluate.headers import AREA_WORDS
from flow_dpo.evaluate.step_validity import invalid_rate
from flow_dpo.evaluate.votes import RULE_WORDS
from flow_dpo.report import formatting
from flow_dpo.report.document import Block, Effect, Fold, Forest, Section, Table
from flow_dpo.report.evaluation_pairs import Paired
from flow_dpo.report.sources import EvaluationSource, TracesSource


def evaluation_section(
    evaluations: Sequence[EvaluationSource], pairs: Sequence[Paired], looks: Sequence[Block] = ()
) -> Section:
    """Trained against untrained models, all evaluations, one row each, and those of Stop on a fixed set; whatever else
    they measured is folded below. `looks` are links to their solutions."""
    fixed = [one for one in evaluations if one.fixed_set]
    evaluations = [one for one in evaluations if not one.fixed_set]
    shown: list[Block] = [_differences(pairs)] if pairs else []
    shown += [_accuracies(evaluations)] if evaluations else []
    folds = [_stop_forest(fixed)] if fixed else []
    made = [Fold(title=title, blocks=tuple(blocks)) for title, blocks in _folds(evaluations, fixed) if blocks]
    return Section(title="Evaluations", blocks=(*shown, *folds, *looks, *made))


def _differences(pairs: Sequence[Paired]) -> Forest:
    """Trained against untrained models, by data set; the largest difference first."""
    groups: dict[str, list[Effect]] = {}
    for pair in sorted(pairs, key=lambda pair: -pair.mean):
        between = formatting.points_interval(pair.low, pair.high)
        effect = Effect(
            label=pair.trained.name,
            note=f"against {pair.untrained.name} ({describe_model(pair.untrained, short=True)})",
            mean=100 * pair.mean,
            inner=(100 * pair.low, 100 * pair.high),
            side=("worse", "", "better")[1 + pair.side],
            cells=(formatting.points(pair.mean), between, formatting.count(pair.num)),
        )
        groups.setdefault(str(pair.trained.summary.get("dataset") or "an unnamed set"), []).append(effect)
    return Forest(
        caption="Trained against untrained, on the same problems",
        groups=tuple((name, tuple(effects)) for name, effects in groups.items()),
        columns=("points", "95 % interval", "problems"),
        unit="percentage points",
        note="Over problems, of one seed. Coloured if the interval excludes 0; a triangle marks a value off the scale.",
    )


def _accuracies(evaluations: Sequence[EvaluationSource]) -> Forest:
    """Accuracies by data set; the best first."""
    groups: dict[str, list[Effect]] = {}
    for one in sorted(evaluations, key=lambda one: -(one.summary.get("accuracy") or 0.0)):
        summary, bounds = one.summary, one.summary["interval"]
        accuracy = summary.get("accuracy")
        effect = Effect(
            label=one.name,
            note=_how(one),
            mean=None if accuracy is None else 100 * accuracy,
            inner=(100 * bounds[0], 100 * bounds[1]),
            cells=(
                formatting.share(accuracy),
                formatting.interval(bounds),
                formatting.count(summary.get("num_problems")),
            ),
        )
        groups.setdefault(str(summary.get("dataset") or "an unnamed set"), []).append(effect)
    return Forest(
        caption="Accuracy", groups=tuple((name, tuple(effects)) for name, effects in groups.items()),
        columns=("accuracy", "95 % interval", "problems"), unit="per cent right", reference=None,
    )  # fmt: skip


def _stop_forest(evaluations: Sequence[EvaluationSource]) -> Forest:
    """Stop on fixed sets, grouped by set: only rows of one set are comparable."""
    groups: dict[str, list[Effect]] = {}
    for one in evaluations:
        found = one.summary["candidates"]
        area = found["right_over_wrong"]
        num = sum(found["num"].get(kind) or 0 for kind in ("right", "wrong"))
        effect = Effect(
            label=one.name, note="untrained" if one.untrained else describe_model(one), mean=area["area"],
            inner=area["interval"] and (area["interval"][0], area["interval"][1]),
            cells=(formatting.decimal(area["area"]), _decimals(area["interval"]), formatting.count(num)),
        )  # fmt: skip
        groups.setdefault(f"set {str(found['sha256'])[:12]}", []).append(effect)
    return Forest(
        caption="Stop on a fixed set of candidates: area right over wrong",
        groups=tuple((name, tuple(effects)) for name, effects in groups.items()),
        columns=("area", "95 % interval", "candidates"), unit="area under the curve", reference=None,
    )  # fmt: skip


def _decimals(bounds: Sequence[float] | None) -> str:
    return formatting.NOTHING if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def _folds(evaluations: Sequence[EvaluationSource], fixed: Sequence[EvaluationSource]) -> list[tuple[str, list[Block]]]:
    """All that was measured, as tables."""
    steps = [_steps_row(one) for one in evaluations if one.summary.get("steps_of_right_answers")]
    tables = [_steps_table("Right answers with a wrong step", "evaluation", steps)] if steps else []
    draws = [row for one in evaluations for row in _draws_rows(one)]
    columns = ("evaluation", "k", "pass@k", "majority@k")
    tables += [Table(caption="Several samples per problem", columns=columns, rows=tuple(draws))] if draws else []
    stops = [_stop_row(one) for one in evaluations if (one.summary.get("stop") or {}).get("num_candidates")]
    stops = [row for row in stops if any(cell != formatting.NOTHING for cell in row[1:])]
    columns = (
        "evaluation", "right over finished wrong", "finished over unfinished", "Yes to unfinished",
        "Yes to finished wrong", "Yes to right",
    )  # fmt: skip
    caption = "Stop on each evaluation's own candidates: areas under the curve, and how often it says Yes"
    judged = [Table(caption=caption, columns=columns, rows=tuple(stops))] if stops else []
    groups = [row for one in evaluations for row in _group_rows(one)]
    columns = ("evaluation", "group", "accuracy", "95 % interval", "problems")
    grouped = [Table(caption="By level and subject", columns=columns, rows=tuple(groups), wordy=frozenset({0, 1}))]
    return [
        ("Several draws, and wrong steps", [*tables]),
        ("Stop on the evaluations' own candidates", [*judged]),
        ("Votes over several attempts", _votes_blocks([one for one in evaluations if one.draws])),
        ("By the data set's level and subject", [*grouped] if groups else []),
        ("Stop on fixed sets, as tables", _fixed_set_blocks(fixed) if fixed else []),
    ]


def _votes_blocks(evaluations: Sequence[EvaluationSource]) -> list[Block]:
    """What several attempts give by each rule, and what each threshold would give."""
    if not evaluations:
        return []
    of_k = [(one.name, k, at_k) for one in evaluations for k, at_k in one.summary["votes"]["by_k"].items()]
    rules = [rule for rule in RULE_WORDS if any(at_k.get(rule) for _, _, at_k in of_k)]
    rows = [
        (name, k, formatting.decimal(at_k["tokens"], 1),
         *(_measured(at_k[rule]) if at_k.get(rule) else formatting.NOTHING for rule in rules))
        for name, k, at_k in of_k
    ]  # fmt: skip
    columns = ("evaluation", "attempts", "tokens per problem", *(RULE_WORDS[rule] for rule in rules))
    table = Table(
        caption="Votes, all rules over the same sampled tokens (95 % interval)", columns=columns, rows=tuple(rows)
    )
    curves: list[Block] = []
    for field, probability in (("threshold_curve", "P(Yes)"), ("right_curve", "P(right), the flow's own rule,")):
        curve = [
            (one.name, formatting.count(row["max_attempts"]), f"{row['threshold']:g}", _measured(row),
             formatting.decimal(row["tokens"], 1), formatting.decimal(row["attempts"]))
            for one in evaluations
            for row in one.summary["votes"].get(field) or ()
        ]  # fmt: skip
        columns = ("evaluation", "attempts at most", "threshold", "accuracy", "tokens per problem", "attempts made")
        caption = (
            f"Accepting the first attempt whose {probability} exceeds a threshold, otherwise the best; mean over all "
            "orders of the draws"
        )
        curves += [Table(caption=caption, columns=columns, rows=tuple(curve))] if curve else []
    return [table, *([Fold(title="What each threshold would give", blocks=tuple(curves))] if curves else [])]


def _fixed_set_blocks(evaluations: Sequence[EvaluationSource]) -> list[Block]:
    """Stop on fixed sets; evaluations of the same file are comparable."""
    rows: list[tuple[str, ...]] = []
    bins: list[tuple[str, ...]] = []
    for one in evaluations:
        found = one.summary["candidates"]
        nums = [formatting.count(found["num"].get(kind)) for kind in ("right", "wrong", "unfinished")]
        who = "untrained" if one.untrained else describe_model(one)
        # Stop alone, and below it the flow's judgement if that is more than Stop.
        measured = [("Stop alone", found), ("the flow's judgement", found.get("judgement"))]
        for judge, numbers in measured:
            if not numbers:
                continue
            areas = [
                formatting.band(numbers[name]["area"], numbers[name]["interval"])
                if numbers.get(name) else formatting.NOTHING
                for name in AREA_WORDS
            ]  # fmt: skip
            scores = [formatting.decimal(numbers[name], 3) for name in ("brier", "brier_of_share", "calibration_error")]
            rows.append((one.name, judge, who, str(found["sha256"])[:12], *areas, *scores, *nums))
            bins += [
                (one.name, judge, f"{each['low']:.1f} to {each['high']:.1f}", formatting.decimal(each["mean"]),
                 formatting.share(each["right"]), formatting.count(each["num"]))
                for each in numbers["bins"] if each["num"]
            ]  # fmt: skip
    columns = (
        "evaluation", "judge", "Stop", "set (sha256)", *AREA_WORDS.values(), "Brier score", "Brier of the share",
        "calibration error", "right", "wrong", "unfinished",
    )  # fmt: skip
    caption = "Stop on a fixed set of candidates (95 % intervals over problems); rows of one set are comparable"
    table = Table(caption=caption, columns=columns, rows=tuple(rows), wordy=frozenset({0, 1, 2, 3}))
    columns = ("evaluation", "judge", "probability", "mean", "share right", "candidates")
    caption = "Reliability of P(Yes), and of P(right) by the flow's judgement, on finished candidates"
    reliability = Table(caption=caption, columns=columns, rows=tuple(bins), wordy=frozenset({0, 1}))
    return [table, reliability]


def _measured(found: Mapping[str, Any]) -> str:
    return f"{formatting.share(found['accuracy'])} ({formatting.interval(found['interval'])})"


def describe_model(one: EvaluationSource, *, short: bool = False) -> str:
    """Flow or single pass, trained or not; with `short`, a run is named by its folder alone."""
    settings = one.summary.get("settings") or {}
    who = "single model" if one.single else "attempt of the flow" if one.draws else "flow"
    if one.untrained:
        return f"untrained {who}" if not one.single else f"{who}, no adapter"
    source = str(settings.get("run") or settings.get("adapter") or "an unnamed run")
    return f"{who}, adapters of {source.rstrip('/').rpartition('/')[2] if short else source}"


def describe_decoding(summary: Mapping[str, Any]) -> str:
    """How completions were decoded."""
    decoding = summary.get("decoding") or {}
    if not decoding:
        return "decoding not recorded"
    named = {"temperature": "temperature", "top_p": "top-p"}
    values = ", ".join(f"{words} {decoding[name]}" for name, words in named.items() if name in decoding)
    if decoding.get("greedy"):
        return f"greedy, but later attempts sampled ({values})" if values else "greedy"
    return f"sampled ({values})" if values else "sampled"


def _how(one: EvaluationSource) -> str:
    """Who answered, with which decoding, in how many draws, and how many answers could not be graded."""
    summary = one.summary
    words = f"{describe_model(one, short=True)}, {describe_decoding(summary)}"
    draws, ungraded = summary.get("num_draws"), summary.get("num_ungraded")
    words += "" if draws in (None, summary.get("num_problems")) else f", {formatting.count(draws)} draws"
    known = f", {formatting.share(summary.get('accuracy_graded'))} of the graded right"
    return words + (f"; {formatting.count(ungraded)} ungraded{known}" if ungraded else "")


def _steps_row(one: EvaluationSource) -> tuple[str, ...]:
    return (one.name, *steps_cells(one.summary["steps_of_right_answers"]))


def steps_cells(steps: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """Number checked, number with a wrong step, their share and its interval."""
    if not steps or not steps.get("num_checked"):
        return (
            formatting.count((steps or {}).get("num_checked")),
            formatting.NOTHING,
            formatting.NOTHING,
            formatting.NOTHING,
        )
    checked, invalid = steps["num_checked"], steps.get("num_invalid")
    bounds = steps.get("interval") or (None if invalid is None else wilson(invalid, checked))
    return (
        formatting.count(checked),
        formatting.count(invalid),
        formatting.share(steps.get("invalid_rate")),
        formatting.interval(bounds),
    )


def _steps_table(caption: str, first: str, rows: Sequence[tuple[str, ...]]) -> Table:
    return Table(
        caption=caption, columns=(first, "checked", "with a wrong step", "share", "95 % interval"), rows=tuple(rows)
    )


def _stop_row(one: EvaluationSource) -> tuple[str, ...]:
    stop = one.summary["stop"]
    yes, of = stop.get("yes_rate") or {}, stop.get("num_candidates") or {}
    rates_of_yes = [
        f"{formatting.share(yes[kind])} of {of.get(kind, 0)}" if kind in yes else formatting.NOTHING
        for kind in ("unfinished", "wrong", "right")
    ]
    areas = [formatting.decimal(stop.get(name)) for name in ("auc_right_over_wrong", "auc_finished_over_unfinished")]
    return (one.name, *areas, *rates_of_yes)


def _draws_rows(one: EvaluationSource) -> list[tuple[str, ...]]:
    passed, voted = one.summary.get("pass_at_k") or {}, one.summary.get("majority_at_k") or {}
    return [(one.name, k, formatting.share(passed.get(k)), formatting.share(voted.get(k))) for k in passed]


def _group_rows(one: EvaluationSource) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for column in ("level", "subject"):
        for name, group in (one.summary.get(f"by_{column}") or {}).items():
            cells = (formatting.share(group.get("accuracy")), formatting.interval(group.get("interval")))
            rows.append((one.name, f"{column} {name}", *cells, formatting.count(group.get("num_problems"))))
    return rows


def traces_section(traces: Sequence[TracesSource], looks: Sequence[Block] = ()) -> Section:
    """All folders of traces, one row each; `looks` are links to them."""
    rows: list[tuple[str, ...]] = []
    steps: list[tuple[str, ...]] = []
    for one in traces:
        header, on = one.file.header, len(one.firsts)
        counts, cost = header.get("counts") or {}, header.get("cost") or {}
        source = str(header.get("source", formatting.NOTHING)) + (
            "" if header.get("complete", True) else ", interrupted"
        )
        rows.append((
            one.name, source, formatting.count(len(one.file.traces)), formatting.count(on),
            formatting.count(counts.get("num_problems_sampled")), formatting.count(counts.get("draws")),
            formatting.count(cost.get("tokens_sampled")), formatting.count(cost.get("verdicts_used")),
            formatting.seconds(cost.get("seconds")),
        ))  # fmt: skip
        found = invalid_rate((trace.problem, trace.solution) for trace in one.firsts)
        steps.append((one.name, *steps_cells(found)))
    columns = (
        "traces",
        "source",
        "traces",
        "problems with a trace",
        "problems tried",
        "draws",
        "tokens sampled",
        "verdicts",
        "time",
    )
    table = Table(caption="Traces, and what they cost", columns=columns, rows=tuple(rows), wordy=frozenset({0, 1}))
    return Section(
        title="Traces",
        blocks=(table, _steps_table("Traces with a wrong step (the first of each problem)", "traces", steps), *looks),
    )
