"""Whether a source in a viewer's copy is the one that a report is about, by the facts that both know.

    is_same({"kind": "run", "facts": {"started": "2026-11-28T18:33:44+00:00", ...}}, run)      True

A copy has no path, only names, and many runs are called "flow". Invariant: only what both know can tell them apart. A
copy can be older than the report, so a run is compared as it was then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow_dpo.report.sources import EvaluationSource, RunSource, Source, TracesSource
from flow_dpo.report.viewer.facts import STARTED, first_row, moment
from flow_dpo.report.viewer.found import ViewSource
from flow_dpo.report.viewer.lines import mapping, number

_KINDS = {RunSource: "run", EvaluationSource: "evaluation", TracesSource: "traces"}


def is_same(held: Mapping[str, Any], source: Source) -> bool:
    """Whether no known fact differs; `held` is a source of the copy's list."""
    kind = _KINDS.get(type(source))
    if kind is None or held.get("kind", kind) != kind:
        return False
    facts, is_whole = mapping(held.get("facts")), held.get("state") == "finished"
    if isinstance(source, RunSource):
        return _is_run(facts, source)
    if isinstance(source, EvaluationSource):
        return not is_whole or _is_evaluation(facts, source.summary)
    return not isinstance(source, TracesSource) or not is_whole or _are_traces(facts, source)


def _is_run(facts: Mapping[str, Any], source: RunSource) -> bool:
    began = first_row(ViewSource(id="", name="", kind="run", path=source.path), STARTED)
    if not _agree(facts.get("started"), moment(number(began.get("start")))):
        return False
    if not _agree(facts.get("num_problems"), source.num_problems):
        return False
    seen = facts.get("problems_seen")
    if not seen:
        return True
    then = next((row for row in source.rows if row["problems_seen"] == seen), None)
    return then is not None and _agree(facts.get("accuracy"), then.get("progressive/window_accuracy"))


def _is_evaluation(facts: Mapping[str, Any], summary: Mapping[str, Any]) -> bool:
    """An accuracy that a report recomputes, of an older file, is not compared."""
    pairs = [("num_problems", "num_problems"), ("num_draws", "num_draws"), ("ungraded", "num_ungraded")]
    pairs += [("tokens_sampled", "tokens"), *([] if summary.get("num_ungraded") else [("accuracy", "accuracy")])]
    return all(_agree(facts.get(name), summary.get(own)) for name, own in pairs)


def _are_traces(facts: Mapping[str, Any], source: TracesSource) -> bool:
    header = source.file.header
    tokens = mapping(header.get("cost")).get("tokens_sampled")
    return (
        _agree(facts.get("num"), len(source.file.traces))
        and _agree(facts.get("num_problems"), header.get("num_problems"))
        and _agree(facts.get("tokens_sampled"), tokens)
    )


def _agree(one: Any, other: Any) -> bool:
    return one is None or other is None or one == other
