"""The document tree of a report before it becomes HTML: four answers, then sections with blocks of a few kinds.

Text in a block is plain. Whatever renders it must always escape it, since it can come from a model, a data set or a
settings file. Example:

    Section(title="Cost", blocks=(Table(caption="Tokens", columns=("", "tokens"), rows=(("sampled", "8,230"),)),))

Invariant: every number that a reader sees is text in a block; a drawing only repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass

from flow_dpo.runs.charts import Panel


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Text shown character by character: a command, a settings file."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose cells are text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wordy: frozenset[int] = frozenset({0})
    """Columns with words, aligned left; all others hold numbers, aligned right."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"expected {len(self.columns)} cells a row in {self.caption!r}, found {row}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A row of a forest plot: a value with its intervals, both drawn and in numbers."""

    label: str
    cells: tuple[str, ...]
    """The numbers, one per column of the forest."""
    mean: float | None
    inner: tuple[float, float] | None = None
    """Drawn thick: the interval over questions or problems."""
    outer: tuple[float, float] | None = None
    """Drawn thin: the interval over seeds, if it is known."""
    side: str = ""
    """"better" or "worse" if the difference is significant."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """A forest plot: values with intervals on one scale, one row each, in groups with headings."""

    caption: str
    groups: tuple[tuple[str, tuple[Effect, ...]], ...]
    columns: tuple[str, ...]
    unit: str
    """The unit of the scale."""
    reference: float | None = 0.0
    """Position of the line that rows are compared with; None for values that are not differences."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over x. Its title states what they show."""

    title: str
    panels: tuple[Panel, ...]
    x: str
    """The name of the axis, with its unit."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a lane of a time line did, and when, in the unit of the axis."""

    lane: int
    what: str
    start: float
    end: float
    text: str = ""
    """Shown below the bar if there is room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """A time line: one lane per row, the first on top."""

    title: str
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    x: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link to a page beside the report."""

    text: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Links to where a reader can look further."""

    text: str
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Long content, folded under its title."""

    title: str
    blocks: tuple[Block, ...]


Block = Paragraph | Code | Table | Forest | Chart | Lanes | Links | Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report."""

    title: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a reader asks first, answered in sentences with their numbers."""

    learned: tuple[str, ...] = ()
    """Did it learn?"""
    surely: tuple[str, ...] = ()
    """How surely?"""
    price: tuple[str, ...] = ()
    """At what price?"""
    distrust: tuple[str, ...] = ()
    """What should I distrust?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole report."""

    title: str
    answers: Answers
    sections: tuple[Section, ...] = ()
