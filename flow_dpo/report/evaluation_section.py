"""The sections of evaluations and of traces: one row each, in tables.

Invariant: a number stands beside how it was decoded and on how many problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.core.stats import wilson
from flow_dpo.evaluate.statistics import ungraded_words
from flow_dpo.evaluate.step_validity import invalid_rate
from flow_dpo.report import formatting
from flow_dpo.report.document import Block, Fold, Section, Table
from flow_dpo.report.sources import EvaluationSource, TracesSource


def evaluation_section(evaluations: Sequence[EvaluationSource]) -> Section:
    """All evaluations, a row each."""
    rows = tuple(_row(one) for one in evaluations)
    columns = (
        "evaluation",
        "who",
        "data set",
        "decoding",
        "accuracy (95 % interval)",
        "problems",
        "draws",
        "ungraded",
    )
    blocks: list[Block] = [Table(caption="Accuracy", columns=columns, rows=rows, wordy=frozenset({0, 1, 2, 3}))]
    steps = [_steps_row(one) for one in evaluations if one.summary.get("steps_of_right_answers")]
    if steps:
        blocks.append(_steps_table("Right answers with a wrong step", "evaluation", steps))
    stops = [_stop_row(one) for one in evaluations if (one.summary.get("stop") or {}).get("num_candidates")]
    stops = [row for row in stops if any(cell != formatting.NOTHING for cell in row[1:])]
    if stops:
        columns = (
            "evaluation", "right over finished wrong", "finished over unfinished", "Yes to unfinished",
            "Yes to finished wrong", "Yes to right",
        )  # fmt: skip
        blocks.append(
            Table(
                caption="Stop: areas under the curve of all graded candidates, and how often it says Yes",
                columns=columns,
                rows=tuple(stops),
            )
        )
    draws = [row for one in evaluations for row in _draws_rows(one)]
    if draws:
        columns = ("evaluation", "k", "pass@k", "majority@k")
        blocks.append(Table(caption="Several draws a problem", columns=columns, rows=tuple(draws)))
    groups = [row for one in evaluations for row in _group_rows(one)]
    if groups:
        columns = ("evaluation", "group", "accuracy", "95 % interval", "problems")
        table = Table(caption="By level and subject", columns=columns, rows=tuple(groups), wordy=frozenset({0, 1}))
        blocks.append(Fold(title="By the data set's level and subject", blocks=(table,)))
    return Section(title="Evaluations", blocks=tuple(blocks))


def summarise_evaluation(one: EvaluationSource) -> str:
    """An evaluation in one line."""
    summary = one.summary
    ungraded = ungraded_words(summary)
    return (
        f"{one.name}: {formatting.share(summary.get('accuracy'))} ({formatting.interval(summary['interval'])}) of "
        f"{formatting.count(summary.get('num_problems'))} problems of "
        f"{summary.get('dataset', 'an unnamed set')} right, "
        f"{describe_model(one)}, {describe_decoding(summary)}{f'; {ungraded}' if ungraded else ''}."
    )


def describe_model(one: EvaluationSource) -> str:
    """Flow or single pass, trained or not."""
    settings = one.summary.get("settings") or {}
    who = "single model" if one.single else "flow"
    if one.untrained:
        return f"untrained {who}" if who == "flow" else f"{who}, no adapter"
    return f"{who}, adapters of {settings.get('run') or settings.get('adapter') or 'an unnamed run'}"


def describe_decoding(summary: Mapping[str, Any]) -> str:
    """How completions were taken."""
    decoding = summary.get("decoding") or {}
    if not decoding:
        return "decoding not recorded"
    if decoding.get("greedy"):
        return "greedy"
    named = {"temperature": "temperature", "top_p": "top-p"}
    values = ", ".join(f"{words} {decoding[name]}" for name, words in named.items() if name in decoding)
    return f"sampled ({values})" if values else "sampled"


def _row(one: EvaluationSource) -> tuple[str, ...]:
    summary = one.summary
    return (
        one.name, describe_model(one), str(summary.get("dataset", formatting.NOTHING)), describe_decoding(summary),
        f"{formatting.share(summary.get('accuracy'))} ({formatting.interval(summary['interval'])})",
        formatting.count(summary.get("num_problems")), formatting.count(summary.get("num_draws")),
        _ungraded(summary),
    )  # fmt: skip


def _ungraded(summary: Mapping[str, Any]) -> str:
    """How many, and the accuracy without them where that is another."""
    count, known = formatting.count(summary.get("num_ungraded")), summary.get("accuracy_graded")
    return f"{count} ({formatting.share(known)} of the graded)" if summary.get("num_ungraded") else count


def _steps_row(one: EvaluationSource) -> tuple[str, ...]:
    return (one.name, *steps_cells(one.summary["steps_of_right_answers"]))


def steps_cells(steps: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """Checked, invalid, the share and its interval."""
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


def traces_section(traces: Sequence[TracesSource]) -> Section:
    """All folders of traces, a row each."""
    rows: list[tuple[str, ...]] = []
    steps: list[tuple[str, ...]] = []
    for one in traces:
        header, on = one.file.header, len(one.solutions)
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
        found = invalid_rate((solution.problem, solution.text) for solution in one.solutions.values())
        steps.append((one.name, *steps_cells(found)))
    columns = (
        "traces",
        "source",
        "traces",
        "problems with one",
        "problems tried",
        "draws",
        "tokens sampled",
        "verdicts",
        "time",
    )
    table = Table(caption="Traces, and what they cost", columns=columns, rows=tuple(rows), wordy=frozenset({0, 1}))
    return Section(
        title="Traces",
        blocks=(table, _steps_table("Traces with a wrong step (the first of each problem)", "traces", steps)),
    )
