"""Settings of a command: flags, settings files and what a run brings along, resolved once on top of presets.

Settings are nested frozen dataclasses. A YAML file (`--config`) overrides what a named run or adapter brings along, and
flags override files. Every nested field is a flag by its full name, and by its own name if that is unique. A setting
that is true or false needs no value to be true:

    flow-dpo train --explore.num_alternatives 2 --beta 0.5          (--beta is --objective.beta)

Everything is read into one table (`Given`), in which the settings that choose defaults are looked up (recipe, preset,
model, engine); then jsonargparse converts the values. Invariant: an unknown name is refused with the nearest one and
its file, before anything is loaded; and no folder makes code run that the user has not asked for by name.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from flow_dpo.core.errors import ConfigError
from flow_dpo.plugins.load import installed, is_source
from flow_dpo.recipes.presets import OBJECTIVE_LINES
from flow_dpo.runs import refusals
from flow_dpo.runs.help_pages import Page, help_text
from flow_dpo.runs.parser import parser_of
from flow_dpo.runs.setting_names import Names, leaves, nearest

if TYPE_CHECKING:
    from argparse import ArgumentError

Sections = Mapping[str, Any]
"""Groups of flags by name, each with the settings that are its defaults."""
RUNS_CODE = ("flow_source", "explore_source", "credit_source", "objective_source", "recipe", "grading.rewards",
             "grading.grader", "data.schema", "flow.programs", "model.trust_remote_code")  # fmt: skip
"""Settings that run code from outside this package (a recipe only if it names a file): the user must give each by name;
no folder may set it."""
IN_PYTHON = "the settings given"
"""Takes the place of a file's name for settings that are given in Python."""
OF_RECIPE = ("flow", "explore", "credit", "objective")
"""Groups whose class is chosen by the recipe, not by flags."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Everything that was given to a command."""

    layers: tuple[tuple[str, Mapping[str, Any]], ...]
    """A file, and the values from it by name; later layers override earlier ones. Flags are the last layer, with "" as
    the file; their values are texts, or True for a flag without a value."""
    others: tuple[str, ...] = ()
    """Arguments that belong to no flag."""

    @classmethod
    def read(cls, argv: Sequence[str]) -> Given:
        """Read the arguments after a command, and the settings files that they name.

        Raises `ConfigError` for a file that holds no settings.
        """
        words, others = [*argv], list[str]()
        flags, files = dict[str, Any](), list[tuple[str, Mapping[str, Any]]]()
        while words:
            word = "--help" if words[0] == "-h" else words[0]
            del words[0]
            if not word.startswith("--"):
                others.append(word)
                continue
            name, equals, value = word.removeprefix("--").partition("=")
            if not equals:
                alone = not words or words[0].startswith("--")
                value = True if alone else words.pop(0)
            if name == "config" and (value is True or not value):
                raise ConfigError("expected a YAML file after --config, found none")
            if name == "config":
                files.append((str(value), _named(read_settings(Path(str(value))))))
            else:
                flags.pop(name, None)
                flags |= _named({name: value})
        return cls(layers=(*files, ("", flags)), others=tuple(others))

    def over(self, base: Mapping[str, Any], origin: str) -> Given:
        """The same on top of `base`, which comes from the file `origin`. If another engine than the base's is chosen,
        the base's engine settings are left out."""
        base = _named(base)
        chosen = self.find("engine_kind")[0] or self.implied_engine
        if chosen and chosen != base.get("engine_kind", "local"):
            base = {name: value for name, value in base.items() if name not in ("engine", "engine_kind")}
        return replace(self, layers=((origin, base), *self.layers))

    def with_size(self) -> Given:
        """The same with `problems_per_update` 0 if `examples_per_update` was given in a later layer, or alone: the
        default of a preset or a run must not override what was given."""
        named = [{name.rpartition(".")[2] for name, _ in leaves(values) if "roles." not in name}
                 for _, values in self.layers]  # fmt: skip
        examples, problems = (
            max((at for at, names in enumerate(named) if name in names), default=-1)
            for name in ("examples_per_update", "problems_per_update")
        )
        if examples <= problems:
            return self
        origin, values = self.layers[examples]
        layer = origin, {**values, "learner.passes.problems_per_update": 0 if origin else "0"}
        return replace(self, layers=(*self.layers[:examples], layer, *self.layers[examples + 1 :]))

    def find(self, name: str) -> tuple[Any, str]:
        """The value of a setting and the file that sets it; None and "" if it was not given."""
        for origin, values in reversed(self.layers):
            for found, value in reversed([*leaves(values)]):
                if value is not None and found in (name, name.rpartition(".")[2]):
                    return value, origin
        return None, ""

    def text(self, name: str, default: str = "") -> str:
        """The value of a setting that is a text."""
        value, origin = self.find(name)
        if value is True and not origin:
            raise ConfigError(f"expected a value after --{name.rpartition('.')[2]}, found none")
        if not (value is None or isinstance(value, str)):
            raise ConfigError(f"expected a text under {name}{f' in {origin}' if origin else ''}, found {value!r:.80}")
        return default if value is None else value

    def choice(self, name: str, known: Sequence[str], default: str, *, source: bool = False) -> str:
        """The value of a setting that is one of the known names or, with `source`, FILE.py:NAME."""
        chosen = self.text(name, default)
        if chosen in known or (source and is_source(chosen)):
            return chosen
        near, origin = difflib.get_close_matches(chosen, known, n=1), self.find(name)[1]
        where, hint = f" in {origin}" if origin else "", f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown {name.removesuffix('_kind')} {chosen!r}{where}; there are {', '.join(known)}{hint}")

    @property
    def implied_engine(self) -> str:
        """The engine that the kind of workers implies, if it implies one."""
        return "vllm_server" if self.find("workers.kind")[0] == "servers" else ""

    def refuse_unasked(self) -> None:
        """Raise `ConfigError` if settings from a folder would run code that the user has not asked for by name."""
        (origin, base), (_, flags) = self.layers[0], self.layers[-1]
        typed = {*flags, *(found for layer, values in self.layers if layer == IN_PYTHON for found, _ in leaves(values))}
        for name in RUNS_CODE:
            names = {name, name.rpartition(".")[2]}
            for found, value in leaves(base):
                own = name == "objective_source" and str(value) in OBJECTIVE_LINES
                runs = is_source(str(value)) if name == "recipe" else bool(value) and not own
                if found in names and runs and not names & typed:
                    word = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
                    raise ConfigError(
                        f"{origin} asks for {name} = {value!r:.200}, which runs code from outside this package; if "
                        f"you trust it, add --{name} {shlex.quote(word.lower() if value is True else word)}"
                    )


def code_flags(parsed: Mapping[str, Any]) -> list[str]:
    """The flags with which the user allowed code to run."""
    values = {"flow_source": parsed["flow_source"], "flow.programs": getattr(parsed["flow"], "programs", False)}
    values |= {"recipe": is_source(parsed["recipe"]) and parsed["recipe"]}
    values |= {"model.trust_remote_code": parsed["model"].trust_remote_code}
    values |= {"explore_source": parsed.get("explore_source"), "data.schema": parsed["data"].schema}
    grading = parsed["grading"]
    values |= {"grading.grader": grading.grader, "grading.rewards": ",".join(grading.rewards)}
    return [f"--{name}={str(value).lower() if value is True else value}" for name, value in values.items() if value]


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with `engine: NAME`, `workers: NAME` and `flow: FILE.py:NAME` under the names of the settings that
    they stand for."""
    names = {name: name for name in values}
    if isinstance(values.get("engine"), str):
        names["engine"] = "engine_kind"
    if isinstance(values.get("workers"), str):
        names["workers"] = "workers.kind"
    for kind in ("flow", "explore", "credit", "objective"):
        value = values.get(kind)
        own = OBJECTIVE_LINES if kind == "objective" else ()
        if isinstance(value, str) and (value in own or is_source(value) or value in installed(kind)):
            names[kind] = f"{kind}_source"
    for name in {"reward", "rewards", "grading.rewards"} & set(values):
        names[name], value = "grading.rewards", values[name]
        if isinstance(value, str) and not value.startswith("["):  # one, or several separated by commas
            values = {**values, name: [each.strip() for each in value.split(",")]}
    return {str(names[name]): value for name, value in values.items()}


def resolve(
    prog: str,
    description: str,
    argv: Sequence[str],
    sections: Sections | Callable[[Given], Sections],
    *,
    brings: Callable[[Given], tuple[Mapping[str, Any], str]] | None = None,
    trusted: bool = False,
    others: str = "",
    values: Mapping[str, Any] | None = None,
    doc: str = "",
) -> dict[str, Any]:
    """The sections, filled in with what was given. With `--help`, the page on them is printed and `SystemExit` raised.

    `sections` can be a function of what was given. `brings` returns the settings that a given folder brings along, and
    their file; unless it is `trusted`, code that it names is refused. Positional arguments are returned under the name
    `others`. `values` are settings by name from Python; flags override them. `doc` is the docstring of the command's
    module, which has examples. Raises `ConfigError` for an unknown name or a value that does not fit.
    """
    given = Given.read(argv)
    if given.others and not others:
        raise ConfigError(f"expected --name value, found {given.others[0]!r}; {prog} --help lists all settings")
    if values is not None:
        *files, flags = given.layers
        given = replace(given, layers=(*files, (IN_PYTHON, _named(values)), flags))
    if brings is not None:
        given = given.over(*brings(given))
        if not trusted:
            given.refuse_unasked()
    given = given.with_size()
    found = sections(given) if callable(sections) else sections
    if "help" in given.layers[-1][1]:
        _show_help(Page(prog=prog, what=description, doc=doc, others=others.upper()), found, given)
    parsed = _parse(found, given)
    return parsed | ({others: given.others} if others else {})


def _show_help(page: Page, sections: Sections, given: Given) -> NoReturn:
    """Print the page that was asked for, and exit."""
    topic = given.layers[-1][1]["help"]
    named = [name for _, values in given.layers for name, _ in leaves(values)]
    names = Names(sections, named, shown=() if topic is True else ("NAME",))
    for name in given.layers[-1][1]:
        names.full(name)
    print(help_text(page, "" if topic is True else str(topic), names))
    raise SystemExit(0)


def _parse(sections: Sections, given: Given) -> dict[str, Any]:
    """Convert what was given to the types of the settings, with jsonargparse."""
    named = [name for _, values in given.layers for name, _ in leaves(values)]
    names = Names(sections, named)
    # The parser takes YAML text as well as a path; short names are replaced by full ones in it.
    files = {path: names.in_full(values, path) for path, values in given.layers[:-1]}
    flags = {names.full(name): (name, value) for name, value in given.layers[-1][1].items()}
    # What a flag overrides is not read, so that an error has only one possible place.
    files = {
        path: {name: value for name, value in values.items() if name not in flags} for path, values in files.items()
    }
    from argparse import ArgumentError  # late: unknown names are refused without the parser

    parser = parser_of(
        tuple((name, type(default)) for name, default in sections.items()),
        tuple((key, kind, tuple(entries)) for key, (kind, entries) in names.entries.items()),
    )
    parser.set_defaults({name: value for name, value in names.defaults.items() if "." in name})
    parser.set_defaults({name: default for name, default in sections.items() if not is_dataclass(default)})
    words = [f"--config={_yaml(values)}" for values in files.values()]
    words += [names.word(name, value) for name, (_, value) in flags.items()]
    try:
        read = parser.parse_args(words)
        refusals.refuse_endless({name: read.get(name) for name in names.defaults})
        made: dict[str, dict[str, Any]] = {}
        for key, (kind, entries) in names.entries.items():
            made[key] = {entry: kind(**vars(read[f"{key}.{entry}"])) for entry in entries}
            read.pop(key, None)
        parsed = parser.instantiate(read)
        for key, value in made.items():
            section, _, field = key.partition(".")
            parsed[section] = replace(parsed[section], **{field: value})
    except (ArgumentError, ConfigError) as error:
        raise ConfigError(_refusal(error, names, files, flags)) from error
    return {name: parsed[name] for name in sections}


def _yaml(values: Mapping[str, Any]) -> str:
    """The values as JSON that is valid YAML, too. YAML has no surrogate pairs for characters beyond 16 bits, such as an
    emoji in a prompt: they become one long escape."""

    def whole(found: re.Match[str]) -> str:
        pair = found[1]
        return found[0] if pair is None else "\\U" + format(ord(json.loads(f'"{pair}"')), "08x")

    return re.sub(r"\\\\|(\\ud[89ab]..\\ud[c-f]..)", whole, json.dumps(values))


def _refusal(
    error: ArgumentError | ConfigError,
    names: Names,
    files: Mapping[str, Mapping[str, Any]],
    flags: Mapping[str, tuple[str, Any]],
) -> str:
    """The error in plain words, with the flag as it was typed, or the file and the setting in it."""
    # 1. The setting that the error is about: the parser names it, a settings class names its field.
    given = [*flags, *(name for values in files.values() for name in values)]
    own = isinstance(error, ConfigError)
    key = refusals.named_in(str(error), given) if own else refusals.refused_key(str(error), [*names.types, *given])
    if not key:
        return refusals.one_line(str(error))
    # 2. How the setting was named, and its value.
    path = next((path for path, values in reversed([*files.items()]) if key in values), "")
    typed, value = flags.get(key, (key, files.get(path, {}).get(key)))
    flag = f"--{typed}" if key in flags else key
    where = "" if key in flags or not path else f"{path}: "
    if own:
        return f"{where}{flag}: {error}"
    if value is True and key in flags and not names.may_be_true(key):
        return f"expected a value after {flag}, found none"
    if key in names.groups:
        of_group = [f"--{names.shortest(name)}" for name in names.defaults if name.startswith(f"{key}.")]
        return where + refusals.whole_group(key, of_group, value, of_recipe=key in OF_RECIPE)
    return where + refusals.wrong_value(flag, names.types.get(key), value)


def refuse_unknown(given: Sequence[str], sections: Sections, others: Sequence[str], *, flag: str) -> None:
    """Raise `ConfigError` for the first of these names that is neither a setting's full name, nor an entry of a
    setting that is a mapping ("learner.roles.stop.window"), nor one of `others`."""
    names = Names(sections)
    settings = names.defaults
    mappings = [*names.entries, *(setting for setting, value in settings.items() if isinstance(value, Mapping))]
    for name in given:
        known = name in settings or name.startswith(tuple(f"{mapping}." for mapping in mappings))
        if not known and name not in others:
            of_group = [setting for setting in settings if setting.startswith(f"{name}.")]
            near = nearest(name, [*settings, *others]).replace(" --", " ")
            near = f"name its settings one by one: {', '.join(of_group)}" if of_group else near
            raise ConfigError(f"expected names of settings in {flag}, or {', '.join(others)}, found {name!r}; {near}")


_MAX_VALUES = 10_000
_OF_VALUES = (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError)
"""What PyYAML raises besides its own errors if it cannot make a value: a date in month 99, a character out of range."""


def read_settings(path: Path) -> dict[str, Any]:
    """The names and values in a YAML file. Raises `ConfigError` if it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"could not read the settings file {path}: {error}") from error
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, *_OF_VALUES) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"expected YAML in {path}{where}: {problem}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"expected names and values in {path}, found {type(found).__name__}")
    _refuse_odd(found, path)
    return found


def _refuse_odd(settings: dict[Any, Any], path: Path) -> None:
    """Raise `ConfigError` for what YAML can hold and no setting can be: dates, sets, bytes, keys that are not words,
    values that contain themselves, and aliases of aliases that expand to millions of values."""
    waiting: list[tuple[str, Any]] = [("", settings)]
    num_values = 0
    while waiting:
        name, value = waiting.pop()
        num_values += 1
        expected, found, under = "", value, f" under {name}" if name else ""
        if num_values > _MAX_VALUES or len(waiting) > _MAX_VALUES:
            raise ConfigError(f"expected at most {_MAX_VALUES} values in {path}, found more, or a value inside itself")
        if isinstance(value, dict):
            found = next((key for key in value if not isinstance(key, (str, int, float, bool))), None)
            expected = "" if found is None and None not in value else f"words as names{under} in {path}"
            waiting += [(f"{name}.{key}".lstrip("."), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, float) and not math.isfinite(value):
            expected = f"a finite number{under} in {path}"
        elif not (value is None or isinstance(value, (str, int, float, bool))):
            expected = f"a text, a number, a list or names and values{under} in {path}"
        if expected:
            raise ConfigError(f"expected {expected}, found {found!r:.80}; quote it if it is a text")


def typed_command() -> str:
    """How this program can be called from the current folder: "flow-dpo" if that is on the path, otherwise the script
    or the module of the interpreter that runs now, such as ".venv/bin/flow-dpo"."""
    if shutil.which("flow-dpo"):
        return "flow-dpo"
    script = Path(sys.executable).with_name("flow-dpo")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "flow_dpo"]
    beside = Path(words[0])
    if beside.is_relative_to(Path.cwd()):
        words[0] = str(beside.relative_to(Path.cwd()))
    return shlex.join(words)


def command_line() -> str:
    """The command as it was typed, for the record; `python -m flow_dpo` is written as `flow-dpo`."""
    name = Path(sys.argv[0]).name
    return shlex.join(["flow-dpo" if name == "__main__.py" else name, *sys.argv[1:]])
