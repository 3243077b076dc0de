"""The pictures of docs/concepts.md: a tree, a pair and a packed row, as SVG in the reader's light or dark colours.

    python -m tools.pictures        rewrites docs/pictures/tree.svg, pair.svg and packed-row.svg

The tree and the pair show one problem, 6 * 7 + 5, by the paper's rule. The packed row is what `models.packing.merge`
makes of the sequences that are drawn, so the picture cannot differ from the code; a test compares them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from flow_dpo.models.packing import merge

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
_STYLE = """<style>
text{font:13px system-ui,sans-serif;fill:#1f2430}.small{font-size:11px;fill:#5b6472}
.role{font-size:11px;font-weight:600;fill:#5b6472}
.box{fill:#f4f6fa;stroke:#8a94a6}.answer{stroke:#3057c9;stroke-width:1.6}.stop{stroke:#b3630a;stroke-width:1.6}
.line{stroke:#6b7484;fill:none;stroke-width:1.6}.dash{stroke-dasharray:5 4}.good{fill:#12733a}.bad{fill:#b3261e}
.seen{fill:#3057c9}.unseen{fill:none;stroke:#c3cad6}.cell{fill:#f4f6fa;stroke:#8a94a6}
@media (prefers-color-scheme:dark){text{fill:#e6e9f0}.small,.role{fill:#a7b0c0}.box,.cell{fill:#262b36;stroke:#7d8798}
.answer{stroke:#8fb0ff}.stop{stroke:#f0b060}.line{stroke:#9aa4b5}.good{fill:#6fd499}.bad{fill:#ff9b92}.seen{fill:#8fb0ff}
.unseen{stroke:#454d5c}}
</style>"""


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """The parts as an SVG, with a title for screen readers."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", _STYLE, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def _node(x: float, y: float, role: str, words: str, width: int = 150) -> list[str]:
    box = f'<rect x="{x}" y="{y}" width="{width}" height="44" rx="7" class="box {role.lower()}"/>'
    return [box, _text(x + width / 2, y + 16, role, "role"), _text(x + width / 2, y + 34, words)]


def _edge(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    middle = (y1 + y2) / 2
    bend = f"C{x1} {middle} {x2} {middle} {x2} {y2}"
    return f'<path d="M{x1} {y1} {bend}" class="line {kind}"/>'


def tree() -> str:
    """A trunk of four nodes on the left, and one alternative at each of them, continued to the end."""
    trunk = [("Answer", "6 * 7 = 42"), ("Stop", "No"), ("Answer", "42 + 5 = 47"), ("Stop", "Yes")]
    others = [("Answer", "6 * 7 = 41", "... 46, wrong"), ("Stop", "Yes", "no answer, wrong"),
              ("Answer", "42 - 5 = 37", "... 37, wrong"), ("Stop", "No", "... 47, right")]  # fmt: skip
    parts = [_text(95, 20, "trunk"), _text(300, 20, "alternatives"), _text(462, 20, "continued to the end")]
    for row, ((role, words), (_, other, ended)) in enumerate(zip(trunk, others, strict=True)):
        y = 76 + 84 * row
        parts += [_edge(95, y - 40 if row else 52, 95, y), _edge(95, y - 20, 300, y, "dash")]
        parts += [*_node(20, y, role, words), *_node(225, y, role, other)]
        kind = "good" if ended.endswith("right") else "bad"
        parts += [f'<path d="M375 {y + 22} H400" class="line dash"/>', _text(406, y + 26, ended, kind, "start")]
    parts[3:3] = [_text(95, 46, "6 * 7 + 5 = ?", "small")]
    parts += [_edge(95, 372, 95, 392), _text(95, 410, "47, right", "good")]
    parts += [_text(225, 410, "3 pairs: the last two siblings are both right, a tie", "small", "start")]
    title = "A tree: a trunk of four turns, an alternative at each, and the verdict of where each leads"
    return _svg(540, 424, title, parts)


def pair() -> str:
    """One request, two completions, and what DPO does to their log-probabilities."""
    parts = [*_node(165, 12, "Request", "6 * 7 = 42, then Stop: No", 230)]
    parts += [_edge(280, 56, 130, 96), _edge(280, 56, 430, 96)]
    parts += [*_node(40, 96, "Answer", "42 + 5 = 47", 180), *_node(340, 96, "Answer", "42 - 5 = 37", 180)]
    parts += [_text(130, 162, "chosen: its rollout was right", "good"),
              _text(430, 162, "rejected: its rollout was wrong", "bad"),
              _text(130, 182, "log-probability rises", "small"), _text(430, 182, "log-probability falls", "small"),
              _text(280, 212, "against the reference; only the adapter of Answer learns", "small")]  # fmt: skip
    return _svg(560, 226, "A pair: two completions of one request, the better one chosen", parts)


def packed_row() -> str:
    """Three sequences, the packed row that they share, and which token attends to which."""
    sequences = [("a", "b", "c", "d", "e"), ("a", "b", "c", "x", "y"), ("a", "b", "c", "d")]
    row = merge([tuple(map(ord, sequence)) for sequence in sequences])
    tokens = [chr(one) for one in row.token_ids_N]
    size, parts = 30, [_text(20, 22, "three sequences, 14 tokens", "small", "start")]
    for line, sequence in enumerate(sequences):
        parts += _cells(20, 32 + line * (size + 6), sequence, size)
    top = 176
    parts += [
        _text(20, top - 10, f"one row, {row.num_tokens} tokens", "small", "start"),
        *_cells(20, top, tokens, size),
    ]
    parts += [_text(20 + size * (at + 0.5), top + size + 16, str(position), "small")
              for at, position in enumerate(row.positions_N)]  # fmt: skip
    parts += [_text(20, top + size + 36, "their positions: x and y stand where d and e do", "small", "start")]
    left, above = 350, 46
    parts += [_text(left + 3.5 * size, 16, "attends to", "small")]
    for at, token in enumerate(tokens):
        parts += [_text(left + size * (at + 0.5), above - 8, token), _text(left - 14, above + size * at + 20, token)]
        for key in range(len(tokens)):
            kind = "seen" if key <= at < row.subtree_end_N[key] else "unseen"
            x, y = left + size * key + 3, above + size * at + 3
            parts += [f'<rect x="{x}" y="{y}" width="{size - 6}" height="{size - 6}" rx="4" class="{kind}"/>']
    return _svg(580, 270, "A packed row: three sequences as one trie, and its attention mask", parts)


def _cells(x: int, y: int, tokens: tuple[str, ...] | list[str], size: int) -> list[str]:
    """Tokens side by side."""
    parts = []
    for at, token in enumerate(tokens):
        parts += [f'<rect x="{x + size * at}" y="{y}" width="{size}" height="{size}" class="cell"/>']
        parts += [_text(x + size * (at + 0.5), y + 20, token)]
    return parts


PICTURES = {"tree.svg": tree, "pair.svg": pair, "packed-row.svg": packed_row}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
