"""What evaluations and traces answer first: trained against untrained on the same problems, and what to distrust.

    trained: 98.0 % against 58.0 % of zero_shot (single model, no adapter): better by 40.0 points (+35.6 to +44.4 over
    500 problems of seed/test).

Invariant: a model is called better or worse only if the interval of the paired difference excludes zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from flow_dpo.core.stats import wilson
from flow_dpo.report import formatting
from flow_dpo.report.document import Answers
from flow_dpo.report.evaluation_pairs import Paired
from flow_dpo.report.evaluation_section import describe_decoding, describe_model
from flow_dpo.report.sources import EvaluationSource, RunSource, TracesSource

_MOST = 4
"""Differences, or accuracies, that the answer names; the section has all of them."""


def evaluation_answers(
    evaluations: Sequence[EvaluationSource], runs: Sequence[RunSource], pairs: Sequence[Paired]
) -> Answers:
    """The answers of all evaluations of a whole model; `pairs` are made from them (`evaluation_pairs`)."""
    there = [one for one in evaluations if not one.fixed_set]
    learned = [_difference(pair) for pair in pairs[:_MOST]]
    # With nothing to compare it with, an evaluation says how good a model is.
    learned += [] if learned or runs else [_accuracy(one) for one in there[:_MOST]]
    more = len(pairs if pairs else there) - _MOST
    learned += [f"{more} more {'differences' if pairs else 'evaluations'} below."] if more > 0 and learned else []
    return Answers(learned=tuple(learned), surely=tuple(_surely(there)), distrust=tuple(_doubts(there, runs)))


def _accuracy(one: EvaluationSource) -> str:
    summary = one.summary
    return (
        f"{one.name}: {formatting.share(summary.get('accuracy'))} ({formatting.interval(summary['interval'])}) of "
        f"{formatting.count(summary.get('num_problems'))} problems of {summary.get('dataset') or 'an unnamed set'} "
        f"right, {describe_model(one)}, {describe_decoding(summary)}."
    )


def _difference(pair: Paired) -> str:
    trained, untrained = pair.trained, pair.untrained
    flat = pair.low == pair.high
    between = "the same on all" if flat else f"{formatting.points_interval(pair.low, pair.high)} over"
    between += f" {pair.num:,} problems of "
    between += str(trained.summary.get("dataset") or "an unnamed set")
    how = (
        f"{'better' if pair.side > 0 else 'worse'} by {100 * abs(pair.mean):.1f} points ({between})"
        if pair.side
        else f"no significant difference: {formatting.points(pair.mean)} points ({between})"
    )
    return (
        f"{trained.name}: {formatting.share(trained.summary['accuracy'])} against "
        f"{formatting.share(untrained.summary['accuracy'])} of {untrained.name} ({describe_model(untrained)}): {how}."
    )


def _surely(evaluations: Sequence[EvaluationSource]) -> list[str]:
    sizes = [one.summary["num_problems"] for one in evaluations if one.summary.get("num_problems")]
    if not sizes:
        return []
    most = f" to {formatting.count(max(sizes))}" if max(sizes) > min(sizes) else ""
    number = f"{len(evaluations)} evaluation{'s' if len(evaluations) > 1 else ''}"
    return [f"{number} over {formatting.count(min(sizes))}{most} problems each, 95 % intervals over problems."]


# ---- reasons for distrust --------------------------------------------------------------------------------------------


def _doubts(evaluations: Sequence[EvaluationSource], runs: Sequence[RunSource]) -> list[str]:
    found = [_ungraded(evaluations), _steps(evaluations), *_overlap(evaluations), _decoding(evaluations, runs)]
    return [words for words in found if words]


def _ungraded(evaluations: Sequence[EvaluationSource]) -> str:
    there = [one for one in evaluations if one.summary.get("num_ungraded")]
    if not there:
        return ""
    worst = max(there, key=lambda one: one.summary["num_ungraded"])
    summary = worst.summary
    return (
        f"Ungraded answers, which count as not right, in {len(there)} of {len(evaluations)} evaluations; most in "
        f"{worst.name}: {formatting.count(summary['num_ungraded'])} of {formatting.count(summary.get('num_draws'))}; "
        f"of the graded ones {formatting.share(summary.get('accuracy_graded'))} are right."
    )


def _steps(evaluations: Sequence[EvaluationSource]) -> str:
    found = [
        (one.name, steps["num_invalid"], steps["num_checked"])
        for one in evaluations
        for steps in [one.summary.get("steps_of_right_answers") or {}]
        if steps.get("num_invalid") and steps.get("num_checked")
    ]
    if not found:
        return ""
    name, invalid, checked = max(found, key=lambda one: one[1] / one[2])
    return (
        f"Right answers with a wrong step in {len(found)} of {len(evaluations)} evaluations; most in {name}: "
        f"{formatting.count(invalid)} of the {formatting.count(checked)} that could be checked "
        f"({formatting.share(invalid / checked)}, {formatting.interval(wilson(invalid, checked))})."
    )


def _overlap(evaluations: Sequence[EvaluationSource]) -> list[str]:
    """Test questions that were trained on, and evaluations that did not check for them."""
    found: list[str] = []
    unknown = 0
    for one in evaluations:
        overlap = one.summary.get("overlap")
        if isinstance(overlap, dict) and overlap.get("num_overlapping") and not overlap.get("excluded"):
            of = formatting.count(one.summary.get("num_problems"))
            found.append(f"{one.name}: {overlap['num_overlapping']:,} of its {of} test questions were trained on.")
        unknown += overlap is None and not one.untrained
    if unknown:
        found.append(
            f"{unknown} of {len(evaluations)} evaluations are of trained models and did not check whether their "
            "questions were learned from (--trained_on RUN)."
        )
    return found


def _decoding(evaluations: Sequence[EvaluationSource], runs: Sequence[RunSource]) -> str:
    greedy = sum(bool((one.summary.get("decoding") or {}).get("greedy")) for one in evaluations)
    if not greedy or (not runs and greedy == len(evaluations)):
        return ""
    what = "a run's accuracy over time is of sampled answers" if runs else f"{len(evaluations) - greedy} sample"
    return f"{greedy} of {len(evaluations)} evaluations decode greedily, while {what}: they cannot be compared."


def traces_answers(traces: Sequence[TracesSource]) -> Answers:
    """How many traces there are, what they cost, and which folders are interrupted or empty."""
    learned, price, doubts = list[str](), list[str](), list[str]()
    for one in traces:
        header, num = one.file.header, len(one.file.traces)
        counts, cost = header.get("counts") or {}, header.get("cost") or {}
        tried = counts.get("num_problems_sampled")
        of = "" if tried is None else f" of {formatting.count(tried)} tried"
        learned.append(f"{one.name}: {num:,} traces of {len(one.firsts):,} problems{of}.")
        if cost.get("tokens_sampled") is not None:
            price.append(f"{one.name}: {formatting.count(cost['tokens_sampled'])} tokens sampled.")
        if not header.get("complete", True):
            doubts.append(f"{one.name}: interrupted, or still running, after {formatting.count(tried)} problems.")
        if not num:
            doubts.append(f"{one.name}: 0 traces; try more draws, a model that solves some, or easier problems.")
    return Answers(learned=tuple(learned), price=tuple(price), distrust=tuple(doubts))
