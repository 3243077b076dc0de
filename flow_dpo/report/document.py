"""The document tree of a report, before it is HTML: four answers, then sections that hold blocks of a few kinds.

Text in a block is plain: whoever renders it escapes it, always, since it may come from a model, a data set or a
settings file. Example:

    Section(title="Cost", blocks=(Table(caption="Tokens", columns=("", "tokens"), rows=(("sampled", "8,230"),)),))

Invariant: every number that a reader sees is text in a block; a drawing repeats what stands beside it.
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
    """Text that is shown letter by letter: a command, a settings file."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose cells are text already."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wordy: frozenset[int] = frozenset({0})
    """Columns that hold words and stand to the left; all others hold numbers and stand to the right."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"expected {len(self.columns)} cells a row in {self.caption!r}, found {row}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A row of a forest: a value with its intervals, drawn, and in numbers."""

    label: str
    cells: tuple[str, ...]
    """The numbers, one for each column of the forest."""
    mean: float | None
    inner: tuple[float, float] | None = None
    """Drawn thick."""
    outer: tuple[float, float] | None = None
    """Drawn thin: the interval over seeds, which decides where it is there."""
    side: str = ""
    """"better" or "worse" where it is told apart from nothing."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Values with intervals on one scale, a row each, in groups with a heading."""

    caption: str
    groups: tuple[tuple[str, tuple[Effect, ...]], ...]
    columns: tuple[str, ...]
    unit: str
    """Of the scale."""
    reference: float | None = 0.0
    """Where the line stands that rows are told apart from; None of values that are no differences."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over x. Its title states what they show."""

    title: str
    panels: tuple[Panel, ...]
    x: str
    """The axis' name, with its unit."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a lane of a time line did from when to when, in the unit of the axis."""

    lane: int
    what: str
    start: float
    end: float
    text: str = ""
    """Stands below the bar where there is room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """A time line: a lane a row, the first on top."""

    title: str
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    x: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way to an address that the reader of the report has: a page beside it."""

    text: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Where to look on."""

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
    """What a reader asks first, in sentences with their numbers."""

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
    """The whole."""

    title: str
    answers: Answers
    sections: tuple[Section, ...] = ()
