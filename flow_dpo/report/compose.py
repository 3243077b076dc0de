"""One report of all sources.

In reading order: findings, comparisons, runs, evaluations, traces, judges, solutions side by side, and at last the
commands and versions with which all of it can be made again. Invariant: each source that was named is in it, a broken
one with what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.report import formatting
from flow_dpo.report import rates as learning
from flow_dpo.report.comparison_section import comparison_section
from flow_dpo.report.document import Block, Code, Fold, Paragraph, Report, Section, Table
from flow_dpo.report.evaluation_section import evaluation_section, summarise_evaluation, traces_section
from flow_dpo.report.judge_section import judge_section
from flow_dpo.report.side_by_side import side_by_side
from flow_dpo.report.sources import (  # fmt: skip
    BrokenSource,
    ComparisonSource,
    EvaluationSource,
    GivenSolution,
    JudgeSource,
    RunSource,
    Source,
    TracesSource,
)
from flow_dpo.report.training_section import run_section


def compose(sources: Sequence[Source], *, num_side_by_side: int, command: str) -> Report:
    """The report of all sources. Raises `DataError` where a comparison holds a value of the wrong kind."""
    evaluations = [source for source in sources if isinstance(source, EvaluationSource)]
    traces = [source for source in sources if isinstance(source, TracesSource)]
    runs = [source for source in sources if isinstance(source, RunSource)]
    comparisons = [source for source in sources if isinstance(source, ComparisonSource)]
    judges = [source for source in sources if isinstance(source, JudgeSource)]
    sections: list[Section] = []
    findings: list[str] = []
    for source in sources:
        if isinstance(source, BrokenSource):
            title = f"{formatting.short(source.name)}: nothing to show"
            sections.append(Section(title=title, blocks=(Paragraph(text=f"{source.path}: {source.reason}"),)))
            findings.append(f"{source.name}: left out: {source.reason}")
    for number, source in enumerate(comparisons, start=1):
        section, found = comparison_section(source, number)
        sections.append(section)
        findings += found
    if len(runs) > 1:
        sections.append(_glance(runs))
    for number, source in enumerate(runs, start=1):
        section, finding = run_section(source, number, evaluations)
        sections.append(section)
        findings.append(finding)
    if evaluations:
        sections.append(evaluation_section(evaluations))
        findings += [summarise_evaluation(one) for one in evaluations]
    if traces:
        sections.append(traces_section(traces))
    if judges:
        section, found = judge_section(judges)
        sections.append(section)
        findings += found
    beside = side_by_side(solutions_by_name(sources), num_side_by_side)
    if beside:
        words = (
            "The same problem, solved by different models; lines with a fault are marked. Picked to show differences "
            "(models that disagree, right answers by a wrong step), not at random: counts are in the tables."
        )
        sections.append(Section(title="Solutions side by side", blocks=(Paragraph(text=words), *beside)))
    sections.append(_reproduction(sources, command))
    names, more = ", ".join(formatting.short(source.name, 30) for source in sources[:2]), len(sources) - 2
    names += f" and {more} more" if more > 0 else ""
    return Report(title=f"Report on {names}", findings=tuple(findings), sections=tuple(sections))


def solutions_by_name(sources: Sequence[Source]) -> dict[str, Mapping[str, GivenSolution]]:
    """The solutions of every source that has some, by the name of the arm, evaluation or traces."""
    found: dict[str, Mapping[str, GivenSolution]] = {}
    for source in sources:
        if isinstance(source, ComparisonSource):
            found |= {
                f"{arm} ({source.name})" if arm in found else arm: solutions
                for arm, solutions in source.solutions.items()
            }
        elif isinstance(source, (EvaluationSource, TracesSource)) and source.solutions:
            found[source.name] = source.solutions
    return found


def _glance(runs: Sequence[RunSource]) -> Section:
    rows: list[tuple[str, ...]] = []
    for run in runs:
        quarters = learning.quarters(run.num_seen)
        rates = [learning.accuracy(run.counts, part) for part in (quarters[:1] + quarters[-1:])]
        accuracies = [f"{formatting.share(rate.value)} ({formatting.interval(rate.bounds)})" for rate in rates]
        given = formatting.count(run.num_problems)
        rows.append(
            (run.name, f"{formatting.count(run.num_seen)} of {given}", *(accuracies or [formatting.NOTHING] * 2))
        )
    columns = ("run", "problems", "first quarter right", "last quarter right")
    table = Table(caption="Accuracy before learning (95 % interval)", columns=columns, rows=tuple(rows))
    return Section(title="All runs at a glance", blocks=(table,))


def _reproduction(sources: Sequence[Source], command: str) -> Section:
    """The commands as they were typed, settings, and versions."""
    commands = [line for source in sources for line in _commands(source)]
    blocks: list[Block] = [
        Paragraph(text="Commands as they were typed, oldest source first, and the one that made this page:")
    ]
    blocks.append(Code(text="\n".join([*commands, command])))
    facts = {source.name: _facts(source) for source in sources}
    named = {name: {**(found.get("versions") or {}), **_machine(found)} for name, found in facts.items()}
    columns = [name for name, found in named.items() if found]
    packages = list(dict.fromkeys(package for name in columns for package in named[name]))
    rows = tuple(
        (package, *(str(named[name].get(package) or formatting.NOTHING) for name in columns)) for package in packages
    )
    if rows:
        wordy = frozenset(range(len(columns) + 1))
        blocks.append(Table(caption="Versions", columns=("", *columns), rows=rows, wordy=wordy))
    for source in sources:
        blocks += _settings(source)
    return Section(title="Commands and versions", blocks=tuple(blocks))


def _commands(source: Source) -> list[str]:
    if isinstance(source, ComparisonSource):
        found = source.found.get("commands")
        whole = source.found.get("command")
        lines = [str(whole), "# which ran, by the settings below:"] if whole else []
        return [f"# {source.name}", *lines, *map(str, found if isinstance(found, list) else ())]
    command = _facts(source).get("command")
    return [f"# {source.name}", str(command)] if command else [f"# {source.name}: its command was not recorded"]


def _facts(source: Source) -> Mapping[str, Any]:
    if isinstance(source, RunSource):
        return source.facts
    if isinstance(source, BrokenSource):
        return {}
    if isinstance(source, TracesSource):
        return source.file.header
    if isinstance(source, JudgeSource):
        return source.header
    return source.summary if isinstance(source, EvaluationSource) else source.found


def _machine(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(found[name])
        for name in ("python", "platform", "device", "commit", "code", "data_fingerprint", "date")
        if found.get(name)
    }


def _settings(source: Source) -> list[Fold]:
    if isinstance(source, RunSource):
        return [Fold(title=f"Settings of {source.name} (config.yaml)", blocks=(Code(text=source.settings_text),))]
    settings = _facts(source).get("question" if isinstance(source, JudgeSource) else "settings")
    if not settings:
        return []
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    return [Fold(title=f"Settings of {source.name}", blocks=(Code(text=text),))]
