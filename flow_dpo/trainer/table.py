"""The table of TRL's fields as Markdown: what each becomes here, or what to use instead.

    markdown()      docs/trl-fields.md, whole; written by: python -m flow_dpo.trainer.table > docs/trl-fields.md

Invariant: made of `fields.FIELDS` alone, so that the page says what the code does; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable

from flow_dpo.trainer.fields import FIELDS, Fate, Field

_HEAD = """# Fields of TRL's configs

What becomes of every field of TRL's `GRPOConfig` and `OnlineDPOConfig` and of transformers' `TrainingArguments` in a
`FlowDPOConfig` ([how to use it](trainer.md)). A field that is not given is as the recipe's preset has it, not as TRL
has it. This page is written from the table that the code uses: `python -m flow_dpo.trainer.table > docs/trl-fields.md`.
"""
_PARTS: tuple[tuple[Fate, str, str], ...] = (
    ("setting", "Settings by another name", "setting"),
    ("computed", "Computed into settings", "settings, and how"),
    ("trainer", "What the trainer acts on", "what it does"),
    ("no effect", "Let pass, without an effect", "why"),
    ("refused", "Refused but at their defaults", "what to use instead, and why"),
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
    """The fields of the same words together, in their order."""
    found: dict[str, list[str]] = {}
    for field in fields:
        found.setdefault(_cell(field), []).append(field.name)
    return list(found.items())


def _cell(field: Field) -> str:
    setting = f"`{field.setting}`" if field.setting else ""
    return ": ".join(filter(None, (setting, field.words))).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
