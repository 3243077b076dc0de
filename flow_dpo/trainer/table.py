"""The table of TRL's fields as Markdown: what each becomes here, or what to use instead.

    markdown()      all of docs/trl-fields.md, written by: python -m flow_dpo.trainer.table > docs/trl-fields.md

Invariant: the page is made only from `fields.FIELDS`, so it says what the code does; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable

from flow_dpo.trainer.fields import FIELDS, Fate, Field

_HEAD = """# Fields of TRL's configs

What becomes of every field of TRL's `GRPOConfig` and `OnlineDPOConfig` and of transformers' `TrainingArguments` in a
`FlowDPOConfig` ([how to use it](trainer.md)). A field that is not given has the value of the recipe's preset, not TRL's
default. This page is generated from the code's own table: `python -m flow_dpo.trainer.table > docs/trl-fields.md`.
"""
_PARTS: tuple[tuple[Fate, str, str], ...] = (
    ("setting", "Settings by another name", "setting"),
    ("computed", "Computed into settings", "settings, and how"),
    ("trainer", "What the trainer acts on", "what it does"),
    ("no effect", "Accepted, without effect", "why"),
    ("refused", "Refused at any value but the default", "what to use instead, and why"),
)


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for fate, title, head in _PARTS:
        rows = _grouped(field for field in FIELDS.values() if field.fate == fate)
        lines = [f"| {', '.join(f'`{name}`' for name in names)} | {words} |" for words, names in rows]
        parts.append("\n".join([f"## {title}", "", f"| field | {head} |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


def _grouped(fields: Iterable[Field]) -> list[tuple[str, list[str]]]:
    """Fields that share a description grouped together, in order of first appearance."""
    found: dict[str, list[str]] = {}
    for field in fields:
        found.setdefault(_cell(field), []).append(field.name)
    return list(found.items())


def _cell(field: Field) -> str:
    setting = f"`{field.setting}`" if field.setting else ""
    return ": ".join(filter(None, (setting, field.words))).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
