"""The document tree of a report, before it is HTML: sections with a title, holding blocks of a few kinds.

Text in a block is plain: whoever renders it escapes it, always, since it may come from a model, a data set or a
settings file. Example:

    Section(title="Cost", blocks=(Table(caption="Tokens", columns=("", "tokens"), rows=(("sampled", "8,230"),)),))

Invariant: every number that a reader sees is text in a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flow_dpo.core.types import Status


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
class Figure:
    """A picture. Its title states what it shows."""

    title: str
    svg: str
    """An `<svg>` element without a namespace, its colours named by the page (`runs.charts.to_svg`)."""
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a solution."""

    text: str
    fault: str = ""
    """What is wrong with it, in words."""
    given_up: bool = False
    """It stands before the attempt that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One solution of one problem."""

    title: str
    """Who wrote it."""
    status: Status | None
    outcome: str
    """The verdict, in words."""
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """Several solutions of one problem."""

    question: str
    gold: str
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """One node of a tree: the completion of one turn."""

    id: int
    role: str
    text: str
    notes: tuple[str, ...]
    """What is known of it: its probability, its tags, whether a pair chose it."""
    preferred: Literal["", "chosen", "rejected", "both"] = ""
    """Which side of a pair it is."""
    alternatives: tuple[Branch, ...] = ()
    """The rollouts that have another completion in this node's place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One rollout: its nodes from its start to its leaf, and its verdict."""

    nodes: tuple[TreeNode, ...]
    status: Status | None
    outcome: str
    continuations: tuple[Branch, ...] = ()
    """The rollouts that go on from its leaf, where it stopped before its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeDrawing:
    """All rollouts of one problem, the trunk first."""

    question: str
    gold: str
    branches: tuple[Branch, ...]
    """The trunk; and more where several rollouts begin at the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Long content, folded under its title."""

    title: str
    blocks: tuple[Block, ...]


Block = Paragraph | Code | Table | Figure | SideBySide | TreeDrawing | Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report."""

    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole."""

    title: str
    findings: tuple[str, ...]
    """What came of it, in one line each."""
    sections: tuple[Section, ...] = ()
