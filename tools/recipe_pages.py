"""The tables of settings in docs/recipes/, written from the presets that the code uses.

    python -m tools.recipe_pages        rewrites the part of each page between its two comments

A row is a setting of the recipe's parts, its adapters or its updates, with its value in each preset. Prompts are left
out, and so are settings of flows, adapters and updates that have their class's default in every preset.
Invariant: no value in these tables is typed by hand; a test compares the pages with this program's output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from flow_dpo.recipes.presets import RECIPES, preset, preset_names
from flow_dpo.recipes.scales import Preset

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "recipes"
BEGIN, END = "<!-- settings: python -m tools.recipe_pages -->", "<!-- end of settings -->"

_SECTIONS = ("flow", "explore", "credit", "objective", "lora", "learner", "run")
_PROMPTS = ("prompts", "module_words", "words", "labels", "guidelines")
_SAMPLING = ("greedy_trunk", "temperature", "top_p", "choice_temperature", "stop_strings")


def page(recipe: str) -> Path:
    """The page of a recipe."""
    return FOLDER / f"{recipe}.md"


def table(recipe: str) -> str:
    """The table of a recipe's presets, between its comments."""
    presets = {name: preset(recipe, name) for name in preset_names(recipe)}
    values = {name: dict(_settings(one)) for name, one in presets.items()}
    names = dict.fromkeys(setting for one in values.values() for setting in one)
    lines = [f"| setting | {' | '.join(presets)} |", f"|---|{'---|' * len(presets)}"]
    for setting in sorted(names, key=lambda name: _SECTIONS.index(name.partition(".")[0])):
        cells = [values[name].get(setting, ("", True)) for name in presets]
        if not all(default for _, default in cells):
            lines.append(f"| `--{setting}` | {' | '.join(text for text, _ in cells)} |")
    parts = [f"| {part} | {' | '.join(_classes(one, part) for one in presets.values())} |"
             for part in ("flow", "explore", "credit", "objective")]  # fmt: skip
    return "\n".join([BEGIN, "", *lines[:2], *parts, *lines[2:], "", END])


def written(recipe: str) -> str:
    """The text of a recipe's page, with the table as the code has it now."""
    text = page(recipe).read_text(encoding="utf-8")
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: table(recipe), text, flags=re.DOTALL)


def _classes(one: Preset, part: str) -> str:
    return f"`{type(getattr(one.recipe, part)).__name__}`"


def _settings(one: Preset) -> Iterator[tuple[str, tuple[str, bool]]]:
    """The names of settings, each with its value as text and whether to treat it as its class's default."""
    for section in ("flow", "explore", "credit", "objective"):
        yield from _leaves(section, getattr(one.recipe, section))
    yield from _leaves("lora", one.lora)
    yield from _leaves("learner", one.learner)
    yield "run.problems_per_batch", (str(one.problems_per_batch), False)


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, tuple[str, bool]]]:
    for field in fields(value):  # pyright: ignore[reportArgumentType]
        found, name = getattr(value, field.name), f"{prefix}.{field.name}"
        if field.name in _PROMPTS:
            continue
        if is_dataclass(found):
            yield from _leaves(name, found)
        elif isinstance(found, dict) and any(is_dataclass(each) for each in found.values()):
            for key, each in found.items():
                yield from _leaves(f"{name}.{key}", each)
        else:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            shown = prefix in ("explore", "credit", "objective") and field.name not in _SAMPLING
            yield name, (_text(found), found == default and not shown)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value).replace("|", "\\|") if value not in ((), {}, "") else "none"


if __name__ == "__main__":
    for each in RECIPES:
        page(each).write_text(written(each), encoding="utf-8")
