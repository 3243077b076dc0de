"""Prompt templates: text with gaps, filled with text and sampled ids.

    fill("Plan:\\n{plan}\\nSolve.", {"plan": ((71, 9, 5),)})   ->   "Plan:\\n", (71, 9, 5), "\\nSolve."

Invariant: only the template has gaps, and only the expected ones; braces in the filled-in text are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Piece


def fill(template: str, values: Mapping[str, tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """The template with each `{name}` replaced by the pieces for that name; other braces stay as they are."""
    parts = enumerate(re.split(r"\{(\w+)\}", template))
    pieces = (values.get(part, (f"{{{part}}}",)) if index % 2 else (part,) * bool(part) for index, part in parts)
    return tuple(piece for found in pieces for piece in found)


def check_gaps(prompts: object, needs: Mapping[str, Sequence[str]], known: Sequence[str] = ()) -> None:
    """Raise `ConfigError` for a text of the dataclass `prompts` that lacks a gap it `needs` (exactly once, except the
    question), or has one that is not in `needs` or `known`. Texts not in `needs` have none; \\boxed{x} is not a gap."""
    for name, text in vars(prompts).items():
        may = (*needs[name], *known) if name in needs else ()
        for gap in needs.get(name, ()):
            if (count := text.count(f"{{{gap}}}")) != 1 and not (gap == "question" and count):
                raise ConfigError(f"expected {{{gap}}} once in the prompt {name}, found {count} in {text!r:.200}")
        bare = re.sub(r"(\\[A-Za-z]{2,}|[\^_$])(\{[^{}]*\})+", "", text) if isinstance(text, str) else ""
        for gap in [gap for gap in re.findall(r"\{([A-Za-z_]\w+)\}", bare) if gap not in may]:
            names = ", ".join(f"{{{one}}}" for one in may) or "none"
            raise ConfigError(f"unknown {{{gap}}} in the prompt {name}: it takes {names}; as text, write {{ {gap} }}")
