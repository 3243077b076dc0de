"""Prompt templates: text with gaps, filled with text and sampled ids.

    fill("Plan:\\n{plan}\\nSolve.", {"plan": ((71, 9, 5),)})   ->   "Plan:\\n", (71, 9, 5), "\\nSolve."

Invariant: only the template itself has gaps; braces in what is filled in, such as a hostile question, are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from flow_dpo.core.types import Piece


def fill(template: str, values: Mapping[str, tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """The template with each `{name}` replaced by the pieces of that name; other braces stay as they are."""
    pieces: list[Piece] = []
    for index, part in enumerate(re.split(r"\{(\w+)\}", template)):
        if index % 2 == 0:
            found: tuple[Piece, ...] = (part,) if part else ()
        else:
            found = values.get(part, (f"{{{part}}}",))
        pieces.extend(found)
    return tuple(pieces)
