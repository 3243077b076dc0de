"""How does a report become Markdown, with its figures as files beside it?

The same blocks as the page, in the same order. Every text is escaped: what Markdown or HTML would read as a sign stands
behind a backslash or as an entity; solutions and commands stand in fences that are longer than any in them:

    [x](http://e.org) <b>   ->   \\[x\\](http\\://e.org) &lt;b&gt;

Invariant: no link and no picture comes out of a source's text; numbers are those of the page, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from flow_dpo.core.errors import visible
from flow_dpo.report.document import (  # fmt: skip
    Block,
    Bullets,
    Code,
    Figure,
    Fold,
    Paragraph,
    Play,
    Report,
    Section,
    SideBySide,
    Table,
    Told,
    TreeDrawing,
)

_SIGNS = re.compile(r"([\\`*_{}\[\]()#!|~$])")
_FIRST = re.compile(r"^(\d*)([-+=.)])")
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto|www)([:.])")


def markdown(report: Report, figures: str) -> str:
    """The whole file; `figures` is the folder, from here, in which the figures stand."""
    parts = [f"# {_text(report.title)}"]
    if report.findings:
        parts += ["## Findings", "\n".join(f"- {_line(item)}" for item in report.findings)]
    for section in report.sections:
        parts += _section(section, 2, figures)
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    line = " ".join(visible(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ADDRESS.sub(lambda match: f"{match[1]}\\{match[2]}", _SIGNS.sub(r"\\\1", line))


def _line(text: str) -> str:
    """The same at the start of a line, where more signs have a meaning."""
    return _FIRST.sub(r"\1\\\2", _text(text))


def _fence(text: str) -> str:
    shown = visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{shown}\n{marks}"


def _section(section: Section, level: int, figures: str) -> Iterator[str]:
    yield f"{'#' * level} {_text(section.title)}"
    for block in section.blocks:
        yield _block(block, figures)
    for inner in section.sections:
        yield from _section(inner, level + 1, figures)


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Figure):
        caption = f"\n\n{_line(block.caption)}" if block.caption else ""
        return f"**{_text(block.title)}**\n\n![{_text(block.alt)}]({figures}/{block.name}.svg){caption}"
    if isinstance(block, Fold):
        inner = "\n\n".join(_block(each, figures) for each in block.blocks)
        return f"<details><summary>{_text(block.title)}</summary>\n\n{inner}\n\n</details>"
    render: Callable[..., str] = _RENDERERS[type(block)]
    return render(block)


def _paragraph(block: Paragraph) -> str:
    return _line(block.text)


def _bullets(block: Bullets) -> str:
    return "\n".join(f"- {_line(item)}" for item in block.items)


def _code(block: Code) -> str:
    return _fence(block.text)


def _table(block: Table) -> str:
    marks = ["---" if column in block.wordy else "---:" for column in range(len(block.columns))]
    rows = [[_text(cell) for cell in row] for row in (block.columns, *block.rows)]
    lines = [f"| {' | '.join(row)} |" for row in [rows[0], marks, *rows[1:]]]
    return f"**{_text(block.caption)}**\n\n" + "\n".join(lines)


def _side_by_side(block: SideBySide) -> str:
    parts = [f"{_fence(block.question)}\n\nRight answer: {_text(block.gold)}"]
    for passage in block.passages:
        lines = [
            ("(given up) " if line.given_up else "") + line.text + (f"    \u2717 {line.fault}" if line.fault else "")
            for line in passage.lines
        ]
        parts.append(f"**{_text(passage.title)}**: {_text(passage.outcome)}\n\n{_fence(chr(10).join(lines))}")
    return "\n\n".join(parts)


def _tree(block: TreeDrawing) -> str:
    lines = [line for play in block.plays for line in _play(play, 0)]
    return f"{_fence(block.question)}\n\nRight answer: {_text(block.gold)}\n\n{_fence(chr(10).join(lines))}"


def _play(play: Play, level: int) -> Iterator[str]:
    for told in play.told:
        yield from _told(told, level)
    yield f"{'    ' * level}\u2192 {visible(play.outcome)}"
    for other in play.then:
        yield f"{'    ' * level}  then:"
        yield from _play(other, level + 1)


def _told(told: Told, level: int) -> Iterator[str]:
    indent = "    " * level
    notes = [*([told.preferred] if told.preferred else []), *told.notes]
    yield f"{indent}{told.id} {' '.join(told.role.split())}" + (f" ({'; '.join(notes)})" if notes else "")
    for line in told.text.split("\n"):
        yield f"{indent}  | {line}"
    for play in told.instead:
        yield f"{indent}  instead:"
        yield from _play(play, level + 1)


_RENDERERS: dict[type, Callable[..., str]] = {
    Paragraph: _paragraph, Bullets: _bullets, Code: _code, Table: _table, SideBySide: _side_by_side, TreeDrawing: _tree,
}  # fmt: skip
