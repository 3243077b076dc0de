"""Parsers of settings, each built only once, since jsonargparse reads the source of every settings class for it.

    parser = parser_of((("data", DataSettings), ("recipe", str)), ())
    parser.set_defaults({"data.max_problems": 8, "recipe": "flow-dpo"})

Invariant: a parser is shared, and keeps no caller's defaults: every caller sets all defaults before it parses.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=64)
def parser_of(sections: tuple[tuple[str, type], ...], entries: tuple[tuple[str, type, tuple[str, ...]], ...]) -> Any:
    """The parser for these sections, each a name and a settings class or a plain type. `entries` are the fields that
    map names to settings: the field, the class of its settings, and the names."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=False)  # only `help_pages` shows these
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    for name, kind in sections:
        if is_dataclass(kind):
            inside: set[str | int] = {
                key.removeprefix(f"{name}.") for key, _, _ in entries if key.startswith(f"{name}.")
            }
            parser.add_class_arguments(kind, name, skip=inside)
        else:
            parser.add_argument(f"--{name}", type=kind)
    for key, kind, names in entries:
        for entry in names:
            parser.add_class_arguments(kind, f"{key}.{entry}", instantiate=False)
    return parser
