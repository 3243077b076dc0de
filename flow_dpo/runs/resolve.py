"""Which settings does a command have, and how are they given?

Settings are nested frozen dataclasses. Defaults come from a preset; a YAML file (`--config`) overrides them, and flags
override the file. Every nested field is a flag, and where a field's own name is enough it is a flag too; what is true
or false needs no value to be true:

    flow-dpo train --explore.num_alternatives 2 --beta 0.5          (--beta is --objective.beta)

The parser is jsonargparse's. What it does not know is refused before anything is loaded, with the nearest name.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from argparse import ArgumentError
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from flow_dpo.core.errors import ConfigError

Sections = Mapping[str, Any]
"""Names of groups of flags, each with the settings that are its defaults."""


def parse(
    prog: str,
    description: str,
    sections: Sections,
    argv: Sequence[str],
    *,
    base: Mapping[str, Any] | None = None,
    origin: str = "the run's config.yaml",
) -> dict[str, Any]:
    """The sections with a file's and the flags' values in them. `base` holds settings that come before any file, from
    a file that errors name as `origin`.

    Raises `ConfigError` for a name that does not exist or a value that does not fit.
    """
    # Only a help shows what the docstrings of the settings say; reading them takes longer than all else here.
    asked = any(word == "-h" or "help" in word for word in argv)
    set_parsing_settings(docstring_parse_attribute_docstrings=asked)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    for name, default in sections.items():
        if is_dataclass(default):
            parser.add_class_arguments(type(default), name)
            parser.set_defaults(_leaves(name, default))
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default)
    names = _names(sections)
    short, empty = _short_names(names), _may_be_empty(sections)
    words: list[str] = []
    files: dict[str, str] = {}
    if base:
        words.append("--config=" + json.dumps(_full_names(base, Path(origin), names, short, empty)))
        files[words[-1]] = origin
    switches = {name for name, default in _defaults(sections).items() if isinstance(default, bool)}
    rest = [*argv]
    while rest:
        word = rest.pop(0)
        if word == "--config" or word.startswith("--config="):
            path = Path(word.partition("=")[2] if "=" in word else rest.pop(0) if rest else "")
            # The parser takes a settings text as well as a path; short names have become full ones in it.
            words.append("--config=" + json.dumps(_full_names(read_settings(path), path, names, short, empty)))
            files[words[-1]] = str(path)
        else:
            word = _expanded(word, names, short)
            alone = not rest or rest[0].startswith("--")
            words.append(f"{word}=true" if word.removeprefix("--") in switches and alone else word)
    try:
        parsed = parser.parse_args(words)
        built: Namespace = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ConfigError(_of_file(parser, files) + str(error)) from error
    return {name: built[name] for name in sections}


def _of_file(parser: ArgumentParser, files: Mapping[str, str]) -> str:
    """Which of the settings files cannot be taken even by itself, for the front of an error; "" where none."""
    for word, path in files.items():
        try:
            parser.instantiate(parser.parse_args([word]))
        except ArgumentError:
            return f"{path}: "
    return ""


def peek(argv: Sequence[str], name: str, default: str) -> str:
    """The value of `--name` before anything is parsed, from the flags or else from the file; `default` otherwise."""
    keys = (name, name.rpartition(".")[2])
    value, config = None, None
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        flag, equals, given = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            continue
        if flag in keys:
            value = given if equals else following
        if flag == "config":
            config = Path(given if equals else following)
    if value is None and config is not None:
        found: Any = read_settings(config)
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        value = found if isinstance(found, str) else None
    return default if value is None else value


def _names(sections: Sections) -> dict[str, bool]:
    """Every dotted name of a setting, and whether it is a group of settings."""
    names: dict[str, bool] = {}

    def walk(prefix: str, value: Any) -> None:
        names[prefix] = is_dataclass(value)
        for field in fields(value) if is_dataclass(value) else ():
            walk(f"{prefix}.{field.name}", getattr(value, field.name))

    for name, value in sections.items():
        walk(name, value)
    return names


def refuse_unknown(given: Sequence[str], sections: Sections, others: Sequence[str], *, flag: str) -> None:
    """Raise `ConfigError` for the first of these words that is neither a setting's full name, nor an entry of a setting
    that is a mapping ("learner.role_learning_rates.stop"), nor one of `others`."""
    settings = _defaults(sections)
    for name in given:
        known = name in settings or any(
            isinstance(value, Mapping) and name.startswith(f"{setting}.") for setting, value in settings.items()
        )
        if not known and name not in others:
            of_group = [setting for setting in settings if setting.startswith(f"{name}.")]
            near = _near(name, [*settings, *others]).replace(" --", " ")
            near = f"name its settings one by one: {', '.join(of_group)}" if of_group else near
            raise ConfigError(f"expected names of settings in {flag}, or {', '.join(others)}, found {name!r}; {near}")


def _defaults(sections: Sections) -> dict[str, Any]:
    """Every setting that is not a group, by its dotted name, with its default."""
    found: dict[str, Any] = {}
    for name, value in sections.items():
        found |= _leaves(name, value) if is_dataclass(value) else {name: value}
    return found


def _leaves(prefix: str, settings: Any) -> dict[str, Any]:
    """Every value that is not itself a group of settings, by its dotted name."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        name = f"{prefix}.{field.name}"
        found |= _leaves(name, value) if is_dataclass(value) else {name: value}
    return found


def _short_names(names: Mapping[str, bool]) -> dict[str, str]:
    """A field's own name, where exactly one setting bears it and no section does."""
    by_last: dict[str, list[str]] = {}
    for name, group in names.items():
        if "." in name and not group:
            by_last.setdefault(name.rpartition(".")[2], []).append(name)
    return {last: full[0] for last, full in by_last.items() if len(full) == 1 and last not in names}


def _expanded(word: str, names: Mapping[str, bool], short: Mapping[str, str]) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.removeprefix("--").partition("=")
    if flag in names or flag.split(".")[0] in ("config", "help", "print_config") or flag.endswith(".help"):
        return word
    if flag in short:
        return f"--{short[flag]}{equals}{value}"
    raise ConfigError(f"unknown setting --{flag}; {_near(flag, [*short, *names])}")


def _near(name: str, known: Sequence[str]) -> str:
    """A sentence with the nearest names: by the whole name, or by its last part."""
    last = name.rpartition(".")[2]
    found = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    found += [
        k
        for k in known
        if k.rpartition(".")[2]
        in difflib.get_close_matches(last, [last, *(k.rpartition(".")[2] for k in known)], n=3, cutoff=0.75)
    ]
    unique = list(dict.fromkeys(found))[:3]
    if not unique:
        return "--help lists all settings"
    return "did you mean " + " or ".join(f"--{near}" for near in unique) + "?"


def _may_be_empty(sections: Sections) -> set[str]:
    """Full names of the settings whose type allows that there is none."""
    found: set[str] = set()

    def walk(prefix: str, settings: Any) -> None:
        for field in fields(settings):
            name, value = f"{prefix}.{field.name}", getattr(settings, field.name)
            if is_dataclass(value):
                walk(name, value)
            elif any(word in str(field.type) for word in ("None", "Optional")):
                found.add(name)

    for name, value in sections.items():
        if is_dataclass(value):
            walk(name, value)
    return found


def _holds_nothing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_nothing, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_nothing, value))
    return value is None


def _full_names(
    found: Mapping[str, Any], path: Path, names: Mapping[str, bool], short: Mapping[str, str], empty: Collection[str]
) -> dict[str, Any]:
    """A file's settings under their full names. Raises `ConfigError` for a key that no setting has."""
    full: dict[str, Any] = {}

    def put(prefix: str, value: Any) -> None:
        name = short.get(prefix, prefix)
        if isinstance(value, str) and names.get(name) and f"{name}_kind" in names:
            name = f"{name}_kind"  # engine: vllm_server
        if name not in names:
            raise ConfigError(f"unknown setting {name} in {path}; {_near(name, [*short, *names]).replace('--', '')}")
        if names[name]:
            if not isinstance(value, dict):
                raise ConfigError(f"expected names and values under {name} in {path}, found {value!r:.80}")
            for key, item in value.items():
                put(f"{name}.{key}", item)
            return
        # The parser lets it pass in files, whatever the type.
        if name not in empty and _holds_nothing(value):
            raise ConfigError(f"expected a value for {name} in {path}, found null; leave it out to take its default")
        *groups, last = name.split(".")
        place = full
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value

    for key, value in found.items():
        put(str(key), value)
    return full


_MAX_VALUES = 10_000
_OF_VALUES = (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError)
"""What PyYAML raises besides its own errors where it cannot make a value: a date of month 99, a character too large."""


def read_settings(path: Path) -> dict[str, Any]:
    """The names and values of a YAML file. Raises `ConfigError` where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"could not read the settings file {path}: {error}") from error
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, *_OF_VALUES) as error:
        raise ConfigError(f"expected YAML in {path}: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"expected names and values in {path}, found {type(found).__name__}")
    _refuse_odd(found, path)
    return found


def _refuse_odd(settings: dict[Any, Any], path: Path) -> None:
    """Raise `ConfigError` for what YAML can hold and no setting can be: dates, sets, bytes, keys that are no words,
    values inside themselves, and aliases of aliases that unfold to millions of values."""
    waiting: list[tuple[str, Any]] = [("", settings)]
    left = _MAX_VALUES
    while waiting:
        name, value = waiting.pop()
        left -= 1
        if left < 0 or len(waiting) > _MAX_VALUES:
            raise ConfigError(f"expected at most {_MAX_VALUES} values in {path}, found more, or a value inside itself")
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, (str, int, float, bool))]
            if odd:
                raise ConfigError(f"expected words as names{_under(name)} in {path}, found {odd[0]!r:.80}")
            waiting += [(f"{name}.{key}".lstrip("."), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"expected a finite number{_under(name)} in {path}, found {value}")
        elif not (value is None or isinstance(value, (str, int, float, bool))):
            raise ConfigError(
                f"expected a text, a number, a list or names and values{_under(name)} in {path}, found "
                f"{value!r:.80}; quote it if it is a text"
            )


def _under(name: str) -> str:
    return f" under {name}" if name else ""


def command_line() -> str:
    """The command as it was typed, for the record; `python -m flow_dpo.cli` is the same as `flow-dpo`."""
    name = Path(sys.argv[0]).name
    return " ".join(["flow-dpo" if name == "cli.py" else name, *sys.argv[1:]])
