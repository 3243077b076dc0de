"""What `--help` prints: one page by default, and on request everything, one group or one setting.

    flow-dpo train --help                 usage, examples, recipes and presets, the most used settings
    flow-dpo train --help all             every setting of every group
    flow-dpo train --help learner         a group        flow-dpo train --help learning_rate       a setting

Pages are built from the settings classes alone: a field's docstring is its meaning, and its default is the one in force
with the recipe, preset and model given beside `--help`. On the short page a command's own groups are shown whole; from
the groups that commands share, it shows what `_USUAL` names. Invariant: every name is shown as it can be typed, and
nothing heavy is imported.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.settings import engine_names
from flow_dpo.recipes.presets import PRESET_LINES, recipe_lines
from flow_dpo.runs import refusals
from flow_dpo.runs.setting_names import TYPED_AS, Names, nearest

_USUAL: Mapping[str, Mapping[str, str]] = {
    "Method": {
        "recipe": "A recipe from below, or your own as FILE.py:NAME.",
        "preset": "One of the presets below: values for a size of model.",
        "flow_source": "Your own flow instead of the recipe's.",
        "flow.chunk_tokens": "Maximum length of an Answer chunk, in tokens.",
        "flow.max_attempts": "Maximum number of attempts at a problem.",
        "explore.temperature": "Sampling temperature of every role that writes.",
        "objective.beta": "Strength of the pull towards the reference policy.",
    },
    "Model and data": {
        "model.model_name_or_path": 'A folder, a hub id, or "seed", the embedded model.',
        "model.dtype": 'Precision; "auto" is the checkpoint\'s own.',
        "model.device": '"auto" takes a CUDA device if there is one.',
        "lora.lora_r": "Rank of every role's adapter.",
        "data.dataset_name": 'A hub id, a file or folder (JSONL, JSON, Parquet), or "seed".',
        "data.dataset_config": 'Configuration of a hub data set, such as "main".',
        "data.dataset_split": "Split of the data set.",
        "data.max_problems": "Maximum number of problems; all if not given.",
        "data.question_column": "Column of the question, for an unknown data set.",
        "data.answer_column": "Column of the gold answer.",
        "grading.rewards": "A reward function instead of the verifier.",
    },
    "Sampling and learning": {
        "engine_kind": "The engine that samples.",
        "workers.kind": "Where rollouts are sampled.",
        "learner.learning_rate": "Learning rate of all roles without one of their own.",
        "learner.examples_per_update": "Examples per update, of all roles together.",
        "run.problems_per_batch": "Problems sampled with the same weights.",
    },
    "The run": {
        "run.output_dir": "Folder of the run.",
        "run.seed": "Every random number derives from it.",
        "run.resume": "Resume the run in that folder.",
        "run.budget.budget_tokens": "End after this many tokens; 0 sets no limit.",
        "while_training.eval_steps": "Updates between evaluations of held-out problems; 0 for none.",
        "run.tracking.report_to": "Trackers that receive the run's curves.",
    },
}
"""The settings of shared groups that the short page shows, by heading, each with its meaning in one line."""
_SHARED = frozenset(
    {"", "flow", "explore", "credit", "objective", "model", "lora", "data", "grading", "engine", "workers", "learner"}
    | {"run", "while_training"}
)
_OF_NAMES = {
    "recipe": "A named recipe, or your own as FILE.py:NAME.",
    "preset": "Values for a size of model.",
    "flow_source": "Your own flow instead of the recipe's.",
    "engine_kind": "What samples: this package's engine, its plain version, vLLM in this process, or a vLLM server.",
}
"""Meanings of the settings that are not fields of a class."""
_FLAG_WIDTH = 34


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a command says about itself."""

    prog: str
    """The command, such as "flow-dpo train"."""
    what: str
    """What it does, in a sentence or two."""
    doc: str = ""
    """Its module's docstring: the lines that begin with the command are its examples."""
    others: str = ""
    """Its positional arguments, such as "FILE"."""


def help_text(page: Page, topic: str, names: Names) -> str:
    """The page on a topic: "" for the short page, "all", or the name of a group or a setting. Raises `ConfigError` for
    an unknown topic."""
    if not topic:
        return "\n".join([*_opening(page), *_usual(names), *_lists(names), *_closing(page, names)])
    if topic == "all":
        return "\n".join([*_opening(page), *(line for group in _groups(names) for line in _group(group, names))])
    topic = topic.removeprefix("--")
    by_typed = {typed: name for name, typed in TYPED_AS.items() if name in names.defaults}
    if topic in names.groups:
        inner = [group for group in _groups(names) if group == topic or group.startswith(f"{topic}.")]
        also = [*_setting(by_typed[topic], names), ""] if topic in by_typed else []
        return "\n".join([*also, *(line for group in inner for line in _group(group, names))]).strip("\n")
    name = by_typed.get(topic) or names.short.get(topic, topic)
    if name in names.defaults:
        return "\n".join(_setting(name, names))
    same = [each for each in names.defaults if each.rpartition(".")[2] == topic]
    if same:
        return "\n\n".join("\n".join(_setting(each, names)) for each in same)
    near = nearest(topic, [*names.short, *names.defaults, *names.groups]).replace(" --", " ")
    near = "" if near.startswith("-") else f"; {near}"
    raise ConfigError(f"expected all, a group or a setting after --help, found {topic!r}{near}")


def _opening(page: Page) -> Iterator[str]:
    others = f" {page.others}" if page.others and not page.prog.split()[-1].isupper() else ""
    yield f"usage: {page.prog}{others} [--NAME VALUE ...] [--config FILE.yaml]"
    yield ""
    yield from _wrap(page.what)
    command = " ".join(page.prog.split()[:2])
    lines = [line.strip() for line in page.doc.splitlines()]
    examples = [line for line in lines if line.startswith(f"{command} ")]
    if examples:
        yield from ["", "Examples", *(f"  {line}" for line in examples)]


def _usual(names: Names) -> Iterator[str]:
    """The command's own groups, and the most used settings of the others."""
    for group in _groups(names):
        own = group.partition(".")[0] not in _SHARED
        members = _members(group, names)
        if own and members and "." not in group:
            yield from ["", _heading(group, names)]
            for name in members:
                yield from _row(name, names, _sentence(_meaning(name, names)))
    for heading, wanted in _USUAL.items():
        if known := [name for name in wanted if name in names.defaults]:
            lines = ((name, wanted[name]) for name in known)
            yield from ["", heading, *(line for name, meaning in lines for line in _row(name, names, meaning))]


def _lists(names: Names) -> Iterator[str]:
    """The available recipes and presets."""
    if "recipe" in names.defaults:
        yield from ["", "Recipes", *_table(recipe_lines())]
    if "preset" in names.defaults:
        yield from ["", "Presets", *_table(PRESET_LINES)]


def _closing(page: Page, names: Names) -> Iterator[str]:
    num = len(names.defaults)
    yield ""
    groups = ", ".join(sorted({group for group in names.groups if "." not in group}))
    help_ = f"{' '.join(page.prog.split()[:2])} --help"
    yield from _wrap(
        f"{help_} all lists all {num} settings, {help_} GROUP those of a group ({groups}), {help_} NAME explains one. "
        "A setting can also be given by its full name, with its group in front. --config FILE.yaml can hold any of "
        "them; flags override it."
    )


def _groups(names: Names) -> list[str]:
    """All groups in the order of their settings; "" is the group of settings that belong to none."""
    found = dict.fromkeys(name.rpartition(".")[0] for name in names.defaults)
    return [group for group in found if _members(group, names)]


def _members(group: str, names: Names) -> list[str]:
    return [name for name in names.defaults if name.rpartition(".")[0] == group]


def _group(group: str, names: Names) -> Iterator[str]:
    """Every setting of a group, with its full meaning."""
    yield from ["", _heading(group, names)]
    for name in _members(group, names):
        yield from _row(name, names, _meaning(name, names))


def _heading(group: str, names: Names) -> str:
    kind = names.types.get(group)
    what = _sentence(inspect.getdoc(kind) or "") if inspect.isclass(kind) else ""
    return f"{group}: {what}" if group and what else group or "Names"


def _row(name: str, names: Names, meaning: str) -> Iterator[str]:
    """A flag, its meaning and its default, wrapped."""
    flag = f"{_typed(name, names)} {metavar(name, names)}".rstrip()
    shown = _default(names.defaults[name])
    text = " ".join([meaning, *([f"[{shown}]"] if shown else [])]).strip()
    lines = _wrap(text, narrower=_FLAG_WIDTH + 2) or [""]
    if len(flag) >= _FLAG_WIDTH:
        yield f"  {flag}"
    else:
        yield f"  {flag:<{_FLAG_WIDTH}}{lines.pop(0)}".rstrip()
    yield from (" " * (_FLAG_WIDTH + 2) + line for line in lines)


def _setting(name: str, names: Names) -> Iterator[str]:
    yield f"{_typed(name, names)} {metavar(name, names)}".rstrip()
    if (full := f"--{name}") != _typed(name, names):
        yield f"  in full    {full}"
    yield f"  expects    {refusals.expected(names.types[name])}"
    yield f"  default    {_default(names.defaults[name], most=400) or 'none'}"
    yield from (f"  {line}" for line in _wrap(_meaning(name, names), narrower=2))


def _typed(name: str, names: Names) -> str:
    return f"--{TYPED_AS.get(name) or names.shortest(name)}"


def metavar(name: str, names: Names) -> str:
    """The placeholder for a flag's value: "N", "a|b|c", "FILE.py:NAME"."""
    if name in ("flow_source", "grading.rewards"):
        return "FILE.py:NAME"
    if name == "engine_kind":
        return "|".join(engine_names())
    if names.defaults[name] is False:
        return ""  # the flag alone means true
    return _metavar(names.types[name])


def _metavar(type_: Any) -> str:
    origin, inner = get_origin(type_), [each for each in get_args(type_) if each is not NoneType]
    if type_ is bool:
        return "true|false"
    if origin is Literal:
        return "|".join(str(each) for each in inner)
    plain = {int: "N", float: "NUMBER", str: "TEXT"}.get(type_)
    if plain or not inner:
        return plain or "VALUE"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "{NAME: VALUE}"
    return "[A, B]" if origin in (tuple, list) else _metavar(inner[0])


def _default(value: Any, *, most: int = 40) -> str:
    """A default as it can be typed; "" if there is none."""
    if value is None or value in ("", (), {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        value = f"[{', '.join(map(str, value))}]"
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _meaning(name: str, names: Names) -> str:
    group, _, field = name.rpartition(".")
    kind = names.types.get(group)
    if not group or not inspect.isclass(kind):
        return _OF_NAMES.get(name, "")
    return next((docs[field] for each in kind.__mro__ if field in (docs := _field_docs(each))), "")


@cache
def _field_docs(kind: type) -> Mapping[str, str]:
    """The docstrings of a class's own fields; empty if its source is not available."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    lines = body.body if isinstance(body, ast.ClassDef) else []
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(lines)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


def _sentence(text: str) -> str:
    """The first sentence."""
    text = " ".join(text.split())
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]


def _table(lines: Mapping[str, str]) -> Iterator[str]:
    for name, line in lines.items():
        yield f"  {name:<20}{line}"


def _wrap(text: str, *, narrower: int = 0) -> list[str]:
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 110)
    return textwrap.wrap(text, max(width - narrower, 30), break_on_hyphens=False)
