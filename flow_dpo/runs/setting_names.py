"""Names of settings: which flags, and which keys of settings files, exist, and the nearest of them.

A setting is a field of nested dataclasses. It goes by its dotted name, or by the field's own name if no other setting
has that. A mapping of dataclasses has an entry for every name that was given under it:

    learner: LearnerSettings(roles={})  and --learner.roles.stop.window 64   ->   learner.roles.stop.window, and the
                                                                                  other fields of its entry, by default

Invariant: an unknown name is refused with the nearest one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_type_hints

from flow_dpo.core.errors import ConfigError

_IN_FULL = ("workers",)
"""Sections whose settings need the section's name: on their own they would be mistaken for another section's."""


TYPED_AS = {"engine_kind": "engine", "workers.kind": "workers", "flow_source": "flow", "grading.rewards": "reward"}
"""Settings that are typed with a shorter name: `--engine vllm`, `--workers ray`, `--flow mine.py:Debate`."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a mapping, with its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class Names:
    """All names of the settings in these sections."""

    def __init__(self, sections: Mapping[str, Any], given: Sequence[str] = (), shown: Sequence[str] = ()) -> None:
        """A mapping of groups has the entries that the full names in `given` have under it, besides `shown`."""
        self._given, self._shown = given, shown
        self.entries: dict[str, tuple[type[Any], list[str]]] = {}
        """For every setting that is a mapping of groups: the class of its groups, and its entries."""
        self.defaults: dict[str, Any] = {}
        """The default of every setting that is not a group, by its dotted name."""
        self.types: dict[str, Any] = {}
        """The type of every setting, groups included."""
        self.groups, self.may_be_none = set[str](), set[str]()
        for name, value in sections.items():
            self._walk(name, value)
        in_full = tuple(f"{key}." for key in (*self.entries, *_IN_FULL))
        plain = [name for name in self.defaults if not name.startswith(in_full)]
        lasts = [name.rpartition(".")[2] for name in plain]
        self.short = {
            last: name
            for last, name in zip(lasts, plain, strict=True)
            if lasts.count(last) == 1 and last not in sections
        }
        """Full names by a field's own name, if just one setting has it, no section does, and it is not `_IN_FULL`."""

    def _walk(self, name: str, value: Any, type_: Any = None) -> None:
        self.types[name] = type(value) if type_ is None else type_
        if is_dataclass(value):
            self.groups.add(name)
            types = get_type_hints(type(value))
            for field in fields(value):
                self._walk(f"{name}.{field.name}", getattr(value, field.name), types[field.name])
            return
        if isinstance(value, Mapping) and is_dataclass(get_args(type_)[-1]):
            kind: type[Any] = get_args(type_)[-1]
            self.groups.add(name)
            named = [
                each.removeprefix(f"{name}.").partition(".")[0] for each in self._given if each.startswith(f"{name}.")
            ]
            self.entries[name] = kind, list(dict.fromkeys([*value, *named, *self._shown]))
            for entry in self.entries[name][1]:
                self._walk(f"{name}.{entry}", value.get(entry, kind()))
            return
        self.defaults[name] = value
        if type_ is Any or type(None) in get_args(type_):
            self.may_be_none.add(name)

    def _all(self) -> list[str]:
        return [*self.short, *self.defaults, *self.groups]

    def full(self, given: str) -> str:
        """A flag's full name. Raises `ConfigError` for an unknown name."""
        name = self.short.get(given, given)
        if name in self.entries:
            raise ConfigError(f"expected settings one by one, --{name}.NAME.SETTING, found --{name} for all of them")
        if not (name in self.defaults or name in self.groups or name in ("help", "print_config")):
            # One entry of a setting that is a mapping: --template_kwargs.enable_thinking
            mapping, _, entry = name.rpartition(".")
            mapping = self.short.get(mapping, mapping)
            if isinstance(self.defaults.get(mapping), Mapping):
                return f"{mapping}.{entry}"
            raise ConfigError(f"unknown setting --{name}; {nearest(name, [*self._all(), 'help'])}")
        return name

    def may_be_true(self, name: str) -> bool:
        """Whether a setting can be true or false, so that its flag alone means true."""
        type_ = self.types.get(name)
        return type_ is bool or bool in get_args(type_)

    def word(self, name: str, value: str | Literal[True]) -> str:
        """A flag for the parser, under its full name."""
        if value is True:
            return f"--{name}=true" if self.may_be_true(name) else f"--{name}"
        return f"--{name}={value}"

    def shortest(self, name: str) -> str:
        """The shortest name by which a setting can be given."""
        last = name.rpartition(".")[2]
        return last if self.short.get(last) == name else name

    def in_full(self, values: Mapping[str, Any], path: str) -> dict[str, Any]:
        """A file's settings under their full names. Raises `ConfigError` for an unknown key."""
        full: dict[str, Any] = {}
        for given, value in values.items():
            name = self.short.get(given, given)
            of_entries = name in self.entries or name.rpartition(".")[0] in self.entries
            if name in self.groups and not isinstance(value, Mapping) and not (of_entries and value is None):
                raise ConfigError(f"expected names and values under {name} in {path}, found {value!r:.80}")
            if name in self.groups and value is not None:
                full |= self.in_full({f"{name}.{key}": item for key, item in value.items()}, path)
            elif not (name in self.defaults or name in self.groups):
                deepest = next((leaf for leaf, _ in leaves({name: value})), name)
                near = nearest(deepest, self._all()).replace(" --", " ")
                raise ConfigError(f"unknown setting {name} in {path}; {near}")
            elif name not in self.may_be_none and _holds_nothing(value):  # the parser accepts it for any type
                raise ConfigError(f"expected a value for {name} in {path}, found null; leave it out for its default")
            else:
                full[name] = value
        return full


def _holds_nothing(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return value is None or any(map(_holds_nothing, inner))


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the nearest names, by the whole name or by its last part."""
    last = name.rpartition(".")[2]
    lasts = difflib.get_close_matches(last, [last, *(each.rpartition(".")[2] for each in known)], n=3, cutoff=0.75)
    found = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    found += [each for each in known if each.rpartition(".")[2] in lasts]
    unique = list(dict.fromkeys(found))[:3]
    return f"did you mean {' or '.join(f'--{near}' for near in unique)}?" if unique else "--help lists all settings"
