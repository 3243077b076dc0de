"""How does a report become one HTML file that needs nothing else, and to which no hostile text can do anything?

Every text goes through `_text`: control and direction characters are shown as escapes, then `<`, `>`, `&` and quotes
are escaped. A policy in the page itself forbids scripts, pictures, fonts, forms and connections, and every style sheet
but this one (by its hash):

    <script>alert(1)</script>   ->   &lt;script&gt;alert(1)&lt;/script&gt;

Invariant: no attribute holds text from a source but `aria-label`, escaped; ids are numbers; no address is in the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable, Iterable

from flow_dpo.core.errors import visible
from flow_dpo.report.document import (  # fmt: skip
    Block,
    Bullets,
    Code,
    Figure,
    Fold,
    Line,
    Paragraph,
    Passage,
    Play,
    Report,
    Section,
    SideBySide,
    Table,
    Told,
    TreeDrawing,
)
from flow_dpo.report.html_style import STYLE


def page(report: Report) -> str:
    """The whole file."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = [f"<h1>{_text(report.title)}</h1>"]
    if report.findings:
        body += ["<h2>Findings</h2>", _list(report.findings, "findings plain")]
    body.append(f'<nav aria-label="Contents"><h2>Contents</h2>{_contents(report.sections, "s")}</nav>')
    body += [_section(section, f"s{number}", 2) for number, section in enumerate(report.sections, start=1)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _list(items: Iterable[str], name: str) -> str:
    return f'<ul class="{name}">' + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"


def _contents(sections: Iterable[Section], prefix: str) -> str:
    items: list[str] = []
    for number, section in enumerate(sections, start=1):
        inner = _contents(section.sections, f"{prefix}{number}-") if section.sections else ""
        items.append(f'<li><a href="#{prefix}{number}">{_text(section.title)}</a>{inner}</li>')
    return f"<ol>{''.join(items)}</ol>"


def _section(section: Section, id: str, level: int) -> str:
    parts = [f'<section id="{id}">', f"<h{level}>{_text(section.title)}</h{level}>"]
    parts += [_block(block) for block in section.blocks]
    parts += [_section(inner, f"{id}-{number}", level + 1) for number, inner in enumerate(section.sections, start=1)]
    return "\n".join([*parts, "</section>"])


def _block(block: Block) -> str:
    render: Callable[[Block], str] = _RENDERERS[type(block)]
    return render(block)


def _paragraph(block: Paragraph) -> str:
    return f"<p>{_text(block.text)}</p>"


def _bullets(block: Bullets) -> str:
    return _list(block.items, "plain")


def _code(block: Code) -> str:
    return f'<pre tabindex="0">{_text(block.text)}</pre>'


def _table(block: Table) -> str:
    def cell(name: str, column: int, text: str) -> str:
        scope = ' scope="col"' if name == "th" else ""
        return f"<{name}{scope}{_WORDY if column in block.wordy else ''}>{_text(text)}</{name}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(block.columns))
    rows = "".join(f"<tr>{''.join(cell('td', c, text) for c, text in enumerate(row))}</tr>\n" for row in block.rows)
    label = _text(block.caption)
    return (
        f'<p class="caption">{label}</p>\n<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


_WORDY = ' class="w"'


def _figure(block: Figure) -> str:
    caption = f"<figcaption>{_text(block.caption)}</figcaption>" if block.caption else ""
    return f'<figure><p class="title">{_text(block.title)}</p>{block.svg}{caption}</figure>'


def _fold(block: Fold) -> str:
    inner = "\n".join(_block(each) for each in block.blocks)
    return f'<details class="fold"><summary>{_text(block.title)}</summary>\n{inner}\n</details>'


def _question(question: str, gold: str) -> str:
    said, note = f'<div class="said">{_text(question)}</div>', f'<div class="note">Right answer: {_text(gold)}</div>'
    return f'<div class="question">{said}{note}</div>'


def _side_by_side(block: SideBySide) -> str:
    passages = "\n".join(_passage(passage) for passage in block.passages)
    return f'<div class="beside">{_question(block.question, block.gold)}<div class="grid">{passages}</div></div>'


def _passage(passage: Passage) -> str:
    lines = "".join(_line(line) for line in passage.lines)
    return (
        f'<div class="passage"><h4>{_text(passage.title)}</h4><p class="verdict {_status(passage.status)}">'
        f'{_text(passage.outcome)}</p><div class="said">{lines}</div></div>'
    )


def _line(line: Line) -> str:
    name = "line bad" if line.fault else "line old" if line.given_up else "line"
    why = f'<span class="why">\u2717 {_text(line.fault)}</span>' if line.fault else ""
    return f'<div class="{name}">{_text(line.text)}{why}</div>'


def _tree(block: TreeDrawing) -> str:
    first, *others = block.plays
    parts = [_question(block.question, block.gold), _play(first)]
    parts += [_instead(other, "Another play from the root") for other in others]
    return "\n".join(parts)


def _play(play: Play) -> str:
    told = "".join(f"<li>{_told(one)}</li>" for one in play.told)
    end = f'<p class="end {_status(play.status)}">\u2192 {_text(play.outcome)}</p>'
    return f'<ol class="play">{told}</ol>{end}' + "".join(_instead(other, "Then") for other in play.then)


def _told(told: Told) -> str:
    tag = f' <span class="tag {told.preferred}">{told.preferred}</span>' if told.preferred else ""
    notes = f' <span class="note">{_text("; ".join(told.notes))}</span>' if told.notes else ""
    head = f'<span class="who">{told.id} {_text(told.role)}</span>{tag}{notes}'
    return f'{head}<div class="said">{_text(told.text)}</div>' + "".join(
        _instead(play, "Instead") for play in told.instead
    )


def _instead(play: Play, words: str) -> str:
    first = play.told[0]
    said = " ".join(first.text.split())
    said = said if len(said) <= 60 else f"{said[:59]}\u2026"
    tag = f' <span class="tag {first.preferred}">{first.preferred}</span>' if first.preferred else ""
    outcome = f'<span class="{_status(play.status)}">\u2192 {_text(play.outcome)}</span>'
    summary = f'<summary>{words}, {_text(first.role)}: <span class="said">{_text(said)}</span>{tag} {outcome}</summary>'
    return f'<details class="instead">{summary}{_play(play)}</details>'


def _status(status: str | None) -> str:
    return status if status in ("correct", "wrong") else "ungraded"


_RENDERERS: dict[type, Callable[..., str]] = {
    Paragraph: _paragraph, Bullets: _bullets, Code: _code, Table: _table, Figure: _figure, Fold: _fold,
    SideBySide: _side_by_side, TreeDrawing: _tree,
}  # fmt: skip
