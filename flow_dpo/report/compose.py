"""One report on all sources.

In reading order: the four answers, comparisons, runs, evaluations, traces, judges, what could not be read, and, folded,
the commands and versions that reproduce it. Invariant: every source that was named is in the report, a broken one with
its fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flow_dpo.report import formatting
from flow_dpo.report.comparison_answers import comparison_answers
from flow_dpo.report.comparison_section import comparison_section
from flow_dpo.report.document import Answers, Block, Code, Fold, Paragraph, Report, Section, Table
from flow_dpo.report.evaluation_answers import evaluation_answers, traces_answers
from flow_dpo.report.evaluation_pairs import Paired, pairs_of
from flow_dpo.report.evaluation_section import evaluation_section, traces_section
from flow_dpo.report.judge_section import judge_doubts, judge_finding, judge_section
from flow_dpo.report.run_answers import over_seeds, run_answers
from flow_dpo.report.sources import (  # fmt: skip
    BrokenSource,
    ComparisonSource,
    EvaluationSource,
    JudgeSource,
    RunSource,
    Source,
    TracesSource,
)
from flow_dpo.report.training_section import run_section
from flow_dpo.report.view_links import ViewCopy, view_blocks


def compose(sources: Sequence[Source], *, command: str, view: ViewCopy | None = None) -> Report:
    """The report on all sources, with links into the viewer's copy if there is one. Raises `DataError` if a comparison
    holds a value of the wrong kind."""
    evaluations = [source for source in sources if isinstance(source, EvaluationSource)]
    traces = [source for source in sources if isinstance(source, TracesSource)]
    runs = [source for source in sources if isinstance(source, RunSource)]
    judges = [source for source in sources if isinstance(source, JudgeSource)]
    sections = [comparison_section(source) for source in sources if isinstance(source, ComparisonSource)]
    sections += [run_section(run, view_blocks([run], view)) for run in runs]
    pairs = pairs_of([one for one in evaluations if not one.fixed_set])
    sections += [evaluation_section(evaluations, pairs, view_blocks(evaluations, view))] if evaluations else []
    sections += [traces_section(traces, view_blocks(traces, view))] if traces else []
    sections += [judge_section(judges)] if judges else []
    broken = [source for source in sources if isinstance(source, BrokenSource)]
    if broken:
        words = tuple(Paragraph(text=f"{source.name}: {source.reason}") for source in broken)
        sections.append(Section(title="Left out", blocks=words))
    sections.append(Section(title="How to reproduce it", blocks=tuple(_again(sources, command))))
    names, more = ", ".join(source.name for source in sources[:2]), len(sources) - 2
    title = f"Report on {names}" + (f" and {more} more" if more > 0 else "")
    return Report(title=title, answers=_answers(sources, pairs), sections=tuple(sections))


def _answers(sources: Sequence[Source], pairs: Sequence[Paired]) -> Answers:
    """The answers of all sources; with several runs or comparisons, each sentence begins with its source."""
    runs = [source for source in sources if isinstance(source, RunSource)]
    evaluations = [source for source in sources if isinstance(source, EvaluationSource)]
    several = sum(isinstance(source, (RunSource, ComparisonSource)) for source in sources) > 1
    found = [over_seeds(runs)] if len(runs) > 1 else []
    for source in sources:
        if isinstance(source, ComparisonSource):
            found.append(_named(comparison_answers(source), source.name) if several else comparison_answers(source))
        elif isinstance(source, RunSource):
            one = run_answers(source)
            # Of several runs, each has its interval in its change, and seeds are summarised together.
            one = replace(one, surely=()) if len(runs) > 1 else one
            found.append(_named(one, source.name) if several else one)
    found.append(evaluation_answers(evaluations, runs, pairs))
    found.append(traces_answers([source for source in sources if isinstance(source, TracesSource)]))
    for source in sources:
        if isinstance(source, JudgeSource):
            found.append(Answers(learned=(judge_finding(source),), distrust=tuple(judge_doubts(source))))
    doubts = (*_left_out(sources), *(words for one in found for words in one.distrust))
    return Answers(
        learned=tuple(words for one in found for words in one.learned),
        surely=tuple(words for one in found for words in one.surely),
        price=tuple(words for one in found for words in one.price),
        distrust=doubts or (f"0 reasons in the files of {len(sources)} source{'s' if len(sources) > 1 else ''}: "
                            "nothing interrupted, ungraded, cut off or skipped, and no measure that fell.",),
    )  # fmt: skip


_MOST_NAMED = 3
"""Most left-out sources that are named, or explained, among the reasons for distrust; the section has all of them."""


def _left_out(sources: Sequence[Source]) -> list[str]:
    broken = [source for source in sources if isinstance(source, BrokenSource)]
    if len(broken) <= _MOST_NAMED:
        return [f"{source.name} is left out: {source.reason}" for source in broken]
    names = ", ".join(source.name for source in broken[:_MOST_NAMED])
    return [f"{len(broken)} of {len(sources)} sources are left out: {names}, and others; the end says why."]


def _named(answers: Answers, name: str) -> Answers:
    parts = (answers.learned, answers.surely, answers.price, answers.distrust)
    learned, surely, price, distrust = (tuple(f"{name}: {words}" for words in part) for part in parts)
    return Answers(learned=learned, surely=surely, price=price, distrust=distrust)


def _again(sources: Sequence[Source], command: str) -> list[Fold]:
    """The commands as they were typed, settings, and versions."""
    commands = [line for source in sources for line in _commands(source)]
    words = "As they were typed, in the order of the sources; the last one made this page:"
    code = Code(text="\n".join([*commands, command]))
    folds = [Fold(title="Commands", blocks=(Paragraph(text=words), code))]
    facts = {source.name: _facts(source) for source in sources}
    named = {name: {**(found.get("versions") or {}), **_machine(found)} for name, found in facts.items()}
    columns = [name for name, found in named.items() if found]
    packages = list(dict.fromkeys(package for name in columns for package in named[name]))
    rows = tuple(
        (package, *(str(named[name].get(package) or formatting.NOTHING) for name in columns)) for package in packages
    )
    if rows:
        wordy = frozenset(range(len(columns) + 1))
        table = Table(caption="Versions", columns=("", *columns), rows=rows, wordy=wordy)
        folds.append(Fold(title="Versions", blocks=(table,)))
    settings = [block for source in sources for block in _settings(source)]
    return [*folds, *([Fold(title="Settings", blocks=tuple(settings))] if settings else [])]


def _commands(source: Source) -> list[str]:
    if isinstance(source, ComparisonSource):
        found = source.found.get("commands")
        whole = source.found.get("command")
        lines = [str(whole), "# which ran, with the settings below:"] if whole else []
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


def _settings(source: Source) -> list[Block]:
    if isinstance(source, RunSource):
        return [Paragraph(text=f"{source.name} (config.yaml)"), Code(text=source.settings_text)]
    settings = _facts(source).get("question" if isinstance(source, JudgeSource) else "settings")
    if not settings:
        return []
    return [Paragraph(text=source.name), Code(text=json.dumps(settings, indent=2, ensure_ascii=False))]
