"""Loads objects from outside the package: from a file, a module, or the entry point of an installed plug-in.

    load_object("mine.py:ShortestRight", kind="recipe")       from a file, which is run as Python
    load_object("lab.recipes:ShortestRight", kind="recipe")   from a module that can be imported
    load_object("shortest", kind="recipe")                    from the entry point "shortest" in flow_dpo.recipes
    load_flow("critique.py:Critique")                         an instance of Critique with its defaults, checked

Invariant: code is run only if the user named it, and the log records that. Installing a plug-in counts as naming it. A
flow class is checked as far as possible here; the rest is found by walking the flow (`models.context_window`).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
import re
import sys
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, get_args

from flow_dpo.core.errors import ConfigError, FlowDpoError, FlowError
from flow_dpo.core.flow import Flow

log = logging.getLogger("flow_dpo")
Kind = Literal["flow", "recipe", "explore", "credit", "objective", "engine", "grader", "reward", "schema", "tracker"]
"""Kinds of objects. The entry points of a kind are in the group "flow_dpo.<kind>s"."""
KINDS: tuple[Kind, ...] = get_args(Kind)
MADE_OF_FILES = "flow_dpo_custom_"
"""Prefix of the names of modules made from files. No other process could import them."""
_RAN = "__ran__"
"""Attribute of a module made from a file: its `RanFile`."""
_SOURCE = re.compile(r".*\.py:.*|[\w.]+:[^\W\d]\w*", re.DOTALL)


def is_source(text: str) -> bool:
    """Whether a text names a place in a file or module: "path/to/file.py:Name" or "package.module:Name"."""
    return _SOURCE.fullmatch(text) is not None


def fingerprint(source: str, kind: Kind | None = None) -> str | None:
    """SHA-256 of the file that a source names. With `kind`, an installed plug-in's name gives its distribution, its
    version and the SHA-256 of its code. None for anything else. Imports nothing."""
    if not source:
        return None
    found = [] if kind is None or is_source(source) else _entries(kind, source)
    if found:
        return f"{_of(found[0])} {_checksum(_place(found[0])[0])}"
    place = source.rpartition(":")[0] if is_source(source) else ""
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def installed(kind: Kind) -> list[str]:
    """The names of the objects of a kind that installed plug-ins offer. Imports none of them."""
    return sorted({each.name for each in _entries(kind)})


@dataclass(frozen=True, kw_only=True)
class Installed:
    """An object that an installed plug-in offers."""

    kind: Kind
    name: str
    package: str
    """Distribution and version: "lab-recipes 0.2"."""
    place: str
    """ "package.module:Name"."""


def every_installed() -> list[Installed]:
    """All objects that installed plug-ins offer, by kind and name. Imports none of them."""
    return [
        Installed(kind=kind, name=each.name, package=_of(each), place=each.value)
        for kind in KINDS
        for each in sorted(_entries(kind), key=lambda entry: (entry.name, entry.value))
    ]


def _entries(kind: Kind, name: str | None = None) -> list[EntryPoint]:
    """The entry points of a kind, optionally only those of this name. Each is listed once, even if a distribution is on
    the path several times."""
    found = [each for each in _group(f"flow_dpo.{kind}s") if name in (None, each.name)]
    return list({(each.name, each.value, _of(each)): each for each in found}.values())


_UNREADABLE = (TypeError, ValueError, AttributeError, LookupError, OSError)
"""What importlib.metadata raises for a malformed entry_points.txt of any package."""


def _group(group: str) -> list[EntryPoint]:
    try:
        return list(entry_points(group=group))
    except _UNREADABLE:  # one package is malformed; use those of all others
        return [each for package in distributions() for each in _readable(package) if each.group == group]


def _readable(package: Distribution) -> list[EntryPoint]:
    try:
        return list(package.entry_points)
    except _UNREADABLE as error:
        name, place = package.metadata["Name"] or "without a name", package.locate_file("")
        _warn_unreadable(f"{name} in {place}", f"{type(error).__name__}: {error}")
        return []


@cache
def _warn_unreadable(package: str, why: str) -> None:
    log.warning("the entry points of the installed package %s cannot be read and are left out: %s", package, why)


def is_place(text: str) -> bool:
    """Whether the value of an entry point has the form "package.module:Name"."""
    return re.fullmatch(r"[\w.]+\s*:\s*[^\W\d]\w*\s*(\[.*\])?", text) is not None


def _place(entry: EntryPoint) -> tuple[str, str]:
    """Module and name of an entry point. Raises `ConfigError` if its value has another form."""
    if not is_place(entry.value):
        raise ConfigError(
            f"expected package.module:Name as the entry point {entry.name!r} of {_of(entry)}, found "
            f"{entry.value!r:.80}; correct that package and reinstall it"
        )
    return entry.module, entry.attr


def _of(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _checksum(module: str) -> str:
    """SHA-256 over all modules of the package that contains a module, which is located without importing it."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    folders = [] if spec is None else [Path(each) for each in spec.submodule_search_locations or ()]
    files = [(path, path.relative_to(folder)) for folder in folders for path in folder.rglob("*.py")]
    if spec is not None and not folders and spec.origin:
        files = [(Path(spec.origin), Path(Path(spec.origin).name))]
    digest = hashlib.sha256()
    for path, name in sorted(files, key=lambda each: each[1].as_posix()):
        digest.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def load_object(source: str, *, kind: Kind) -> Any:
    """The object that a source or the name of an installed plug-in stands for. Raises `ConfigError` if there is
    none."""
    place, _, name = source.rpartition(":")
    if not is_source(source):
        found = _entries(kind, source)
        if not found:
            raise ConfigError(
                f"expected path/to/file.py:Name, package.module:Name or an installed {kind} for --{kind}, found "
                f"{source!r}; installed: {', '.join(installed(kind)) or 'none'}"
            )
        if len(found) > 1:
            offers = " and ".join(f"{_of(each)} ({each.value})" for each in found)
            raise ConfigError(f"expected one installed {kind} {source!r}, found those of {offers}; uninstall one")
        place, name = _place(found[0])
    elif place.endswith(".py") and not Path(place).is_file():
        raise ConfigError(f"expected path/to/file.py:Name for --{kind}, found no file {place!r}")
    else:
        log.warning("running the code of %s for its %s %s", place, kind, name)
    with Foreign(place):
        module = _run(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if not callable(v) or v.__module__ == module.__name__]
        public = [n for n in known if n[0] != "_" and n != "annotations" and n not in sys.modules]
        raise ConfigError(f"expected {name} in {place} for --{kind}, found no such name; it has {public}")
    return getattr(module, name)


class Foreign:
    """Turns any error raised while code of a file or plug-in runs into a `ConfigError` with file and line."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, FlowDpoError):
            last = traceback.extract_tb(at)[-1]
            own = not isinstance(error, ImportError | SyntaxError) and last.filename not in (__file__, "")
            where = f" ({last.filename}, line {last.lineno})" if own else ""
            hint = _near_field(str(error), at)
            raise ConfigError(
                f"{self._place} could not be run: {type(error).__name__}: {error}{hint}{where}"
            ) from error


def _near_field(message: str, at: TracebackType | None) -> str:
    """A hint for a misspelled field of a dataclass: the closest name, or all names. Empty for other errors."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    kind = None if found is None or at is None else at.tb_frame.f_globals.get(found[1])
    if found is None or not is_dataclass(kind):
        return ""
    names = [each.name for each in fields(kind)]
    near = difflib.get_close_matches(found[2], names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; it has {', '.join(names)}"


def _run(path: Path) -> ModuleType:
    """The file as a module. As long as the file does not change, all names in it come from the same module."""
    return _made(RanFile(path=str(path.resolve()), source=path.read_bytes()))


def _made(file: RanFile) -> ModuleType:
    """The module of a file's source. Runs the source unless that was done before."""
    path = Path(file.path)
    # Files of the same name are different modules. A module name cannot have the dots and dashes of qwen2.5-0.5B.py.
    stem = re.sub(r"\W", "_", path.stem)
    name = f"{MADE_OF_FILES}{stem}_{hashlib.sha256(file.path.encode()).hexdigest()[:8]}"
    known = sys.modules.get(name)
    if known is not None and vars(known).get(_RAN) == file:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    # Dataclasses look up their own module by name.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    exec(compile(file.source, file.path, "exec"), vars(module))
    setattr(module, _RAN, file)
    return module


@dataclass(frozen=True, kw_only=True)
class RanFile:
    """A Python file, as this process ran it."""

    path: str
    source: bytes


def ran_files(names: Collection[str]) -> list[RanFile]:
    """The files from which these modules were made, for another process to run. Other modules are skipped."""
    modules = [module for name, module in [*sys.modules.items()] if name in names]
    return [vars(module)[_RAN] for module in modules if _RAN in vars(module)]


def run_again(files: Sequence[RanFile]) -> None:
    """Run files as another process ran them, whatever is on the disk by now. Raises `ConfigError` if one fails."""
    for each in files:
        with Foreign(each.path):
            _made(each)


def load_flow(source: str) -> Flow[Any]:
    """The flow that a source names. Raises `ConfigError`, or `FlowError` if it is no valid flow."""
    found = load_object(source, kind="flow")
    if not (isinstance(found, type) and issubclass(found, Flow)):
        raise ConfigError(f"expected a subclass of flow_dpo.core.flow.Flow in {source}, found {found!r}")
    settings: Any = getattr(found, "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        raise FlowError(f"expected {source} to be a frozen dataclass: its fields are settings, and it has no state")
    if not getattr(found, "roles", None):
        raise FlowError(f"expected {source} to declare its roles, found none")
    try:
        return found()
    except TypeError as error:
        raise FlowError(f"expected every field of {source} to have a default: {error}") from error


def load_part(source: str, kind: Kind) -> Any:
    """An exploration, a credit or an objective: a frozen dataclass, created with the defaults of its fields, which are
    its settings.

    Raises `ConfigError` for anything else.
    """
    found = load_object(source, kind=kind)
    settings: Any = getattr(found, "__dataclass_params__", None)
    if not isinstance(found, type) or settings is None or not settings.frozen:
        raise ConfigError(f"expected a frozen dataclass in {source} for --{kind}, found {found!r:.80}")
    try:
        made = found()
    except TypeError as error:
        raise ConfigError(f"expected every field of {source} to have a default: {error}") from error
    if not callable(made):
        raise ConfigError(f"expected {source} to be callable as a {kind}, found no __call__")
    return made
