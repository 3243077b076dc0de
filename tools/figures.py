"""Figures in prose, each tied to the file that it is read from by a comment that readers do not see.

    beats it by +8.1 (0.9 to 15.2)<!--= arms.trained_flow.differences_to_self.held_out/greedy diff --> points

    python -m tools.figures                        lists figures that differ or are not tied; exit code 1 if any
    python -m tools.figures --write                replaces figures that differ by the files' values

A comment names a value of a JSON file by the keys that lead to it, followed by its format (`FORMATS`). An item of a
list is named by its number, by its name (`name`, `arm` or `against`), or by several of its fields:
`other=answer_votes,rule=best`. A dot in a key is escaped, `0\\.002`, and `~` is a space: `quickstart:~seconds.ratio`.
The file is the page's own comparison.json, or the one named before the keys, relative to the root of the repository:
`benchmarks/results.json:0.ratio`. In a Python file the keys name a constant, a setting's default or a recipe's value:
`flow_dpo/learner/settings.py:LearnerSettings.max_logprob_drift`,
`flow_dpo/recipes/presets.py:RECIPES.dapo.paper.recipe.objective.clip_low`. Figures of a run that was not kept are
between `<!-- not kept -->` and `<!-- end of not kept -->`, where the text tells the reader so.

Invariant: except on the pages in `WRITTEN`, every decimal in prose has such a comment; and every whole number of two or
more digits in the prose of a study is in one of the study's files, a setting for example, or in `SIZES`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
OWN = "comparison.json"
WRITTEN = ("docs/trl-fields.md",)
"""Pages that a program of the package writes completely; a test compares them."""

SIZES = {
    7473: "training problems of GSM8K", 1319: "its test problems", 700: "training problems of SVAMP",
    300: "its test problems", 45: "guidelines of ReGenesis", 250: "problems of the windowed accuracy", 95: "per cent",
}  # fmt: skip
"""Whole numbers that studies name and their files lack."""

_NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?"
_INTERVAL = rf"{_NUMBER} to {_NUMBER}"
_MADE = (
    r"<!-- tables -->.*?<!-- end of tables -->",
    r"<!-- speed.*?<!-- end of speed -->",
    r"<!-- settings.*?<!-- end of settings -->",
    r"<!-- curve: .*?<!-- end of curve -->",
    r"<!-- table: .*?<!-- end of table -->",
    r"<!-- not kept -->.*?<!-- end of not kept -->",
    r"\n## Where it deviates, and why\n.*?(?=\n## |\Z)",
    *(r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)", r"<!--.*?-->"),
)
"""Parts that are not prose: tables that other tools write, a recipe's deviations (the authors' values), code, links."""
_DECIMAL = re.compile(r"(?<![\w.-])(?!\d{4}\.\d{5}\b)[-+]?\d+\.\d+(?![\d.]*[BM\d])")
"""A decimal figure, but not an arXiv number or a model's size."""
_VERSION = re.compile(
    r"\b(?:vLLM|transformers|torch|TRL|PEFT|accelerate|math-verify|bitsandbytes|Python|Ray|lm-eval|Inspect|Llama|Qwen)"
    r"(?: v| |-)?(?:below |from )?\d+(?:\.\d+)+"
)
"""The version of a program or a model, which is not a figure."""
_WHOLE = re.compile(r"(?<![\w.,/-])\d[\d,]*\d(?![\w.]*\d)(?!\w)")
_DATE = re.compile(r"20\d\d-\d\d-\d\d")
_COMMENT = re.compile(r"<!--= (?:(?P<file>[\w./-]+\.(?:json|py)):)?(?P<keys>\S+) (?P<format>\S+) -->")


def _points(value: float, sign: str = "", digits: int = 1) -> str:
    text = f"{100 * value:{sign}.{digits}f}"
    return text.replace("-0.0", "0.0") if text == "-0.0" else text


def _interval(value: Mapping[str, Any]) -> str:
    """The interval over seeds and questions if the value has one; otherwise its only interval."""
    low, high = ("seed_low", "seed_high") if value.get("seed_low") is not None else ("low", "high")
    # A bound keeps its sign: "-0.0" is below zero, and "0.0" is not.
    return f"{100 * value[low]:.1f} to {100 * value[high]:.1f}"


def _negative(value: Mapping[str, Any]) -> dict[str, Any]:
    """The difference with the opposite sign."""
    names = {"mean": "mean", "seed_low": "seed_high", "seed_high": "seed_low", "low": "high", "high": "low"}
    return {name: None if value.get(other) is None else -value[other] for name, other in names.items()}


def _p(value: float) -> str:
    return "< 1e-4" if value < 1e-4 else f"{value:.2g}"


FORMATS: Mapping[str, tuple[Callable[[Any], str], str]] = {
    "%": (_points, _NUMBER),
    "%0": (lambda value: _points(value, digits=0), _NUMBER),
    "+%": (lambda value: _points(value, "+"), _NUMBER),
    "diff": (lambda value: f"{_points(value['mean'], '+')} ({_interval(value)})", rf"{_NUMBER} \({_INTERVAL}\)"),
    "-diff": (lambda value: FORMATS["diff"][0](_negative(value)), rf"{_NUMBER} \({_INTERVAL}\)"),
    "ci": (_interval, _INTERVAL),
    "seeds": (lambda value: ", ".join(_points(one, "+") for one in value), rf"{_NUMBER}(?:, {_NUMBER})*"),
    "p": (_p, rf"(?:< 1e-4|{_NUMBER}(?:e-\d+)?)"),
    "k": (lambda value: f"{value / 1000:.0f}", _NUMBER),
    "0": (lambda value: f"{value:,.0f}", _NUMBER),
    "1": (lambda value: f"{value:,.1f}", _NUMBER),
    "+1": (lambda value: f"{value:+,.1f}", _NUMBER),
    "2": (lambda value: f"{value:,.2f}", _NUMBER),
    "3": (lambda value: f"{value:,.3f}", _NUMBER),
    "+3": (lambda value: f"{value:+,.3f}", _NUMBER),
    "min": (lambda value: f"{value / 60:.1f}", _NUMBER),
    "ms": (lambda value: f"{1000 * value:.1f}", _NUMBER),
    "3g": (lambda value: f"{value:.3g}", _NUMBER),
}
"""By name, how a value is printed, and a pattern for the printed figure. Shares are printed in percentage points;
"-diff" is the difference with the opposite sign."""


@cache
def _content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _value(file: str | None, keys: str, folder: Path, root: Path) -> Any:
    """The value that a comment names."""
    if file is None or file.endswith(".json"):
        return look_up(_content(root / file if file else folder / OWN), keys)
    found: Any = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for name in keys.split("."):
        found = _part(found, name)
        if found is None:
            raise KeyError(f"expected {keys} in {file}, found no {name}")
    return found


def _part(found: Any, name: str) -> Any:
    """The value of this name in a mapping, a tuple or an object of the code; None if there is none."""
    if isinstance(found, tuple) and name.isdigit():
        return cast(tuple[Any, ...], found)[int(name)] if int(name) < len(found) else None
    if isinstance(found, Mapping):
        return cast(Mapping[str, Any], found).get(name)
    return getattr(found, name, None)


def look_up(content: Any, keys: str) -> Any:
    """The value that dotted keys lead to. Raises `KeyError` if there is none."""
    for key in re.split(r"(?<!\\)\.", keys):
        key = key.replace("\\.", ".").replace("~", " ")
        if isinstance(content, list):
            named = [one for one in content if isinstance(one, dict) and _is_named(one, key)]
            content = named[0] if named else content[int(key)] if key.isdigit() else None
        else:
            content = content.get(key) if isinstance(content, dict) else None
        if content is None:
            raise KeyError(f"expected a value at {keys}, found none from {key} on")
    return content


def _is_named(item: Mapping[str, Any], key: str) -> bool:
    if "=" not in key:
        return key in (item.get(name) for name in ("name", "arm", "against"))
    wanted = dict(pair.split("=") for pair in key.split(","))
    return all(str(item.get(name)) == value for name, value in wanted.items())


@dataclass(frozen=True, kw_only=True)
class _Tied:
    """A figure, the comment after it, and the prose before it."""

    prose: str
    figure: str
    comment: re.Match[str]


def _tied(text: str) -> tuple[list[_Tied], str]:
    """Every tied figure of a page, and the text after the last one."""
    found, at = list[_Tied](), 0
    for comment in _COMMENT.finditer(text):
        before = text[at : comment.start()]
        if comment["format"] not in FORMATS:
            raise ValueError(f"expected one of the formats {', '.join(FORMATS)}, found {comment[0]}")
        figure = re.search(rf"{FORMATS[comment['format']][1]}$", before)
        if figure is None:
            raise ValueError(f"expected a figure before {comment[0]}, found {before[-30:]!r}")
        found.append(_Tied(prose=before[: figure.start()], figure=figure[0], comment=comment))
        at = comment.end()
    return found, text[at:]


def rewritten(text: str, folder: Path, root: Path = ROOT) -> str:
    """The page with every tied figure as its file has it. Raises `ValueError` if there is no figure before a comment or
    its format is unknown, and `KeyError` if its value is not in the file."""
    found, rest = _tied(text)
    pieces = list[str]()
    for one in found:
        file, keys, style = one.comment.group("file", "keys", "format")
        pieces += [one.prose, FORMATS[style][0](_value(file, keys, folder, root)), one.comment[0]]
    return "".join([*pieces, rest])


def untied(text: str) -> list[str]:
    """Decimals in the prose of a page that no comment ties to a file, each with the text before it."""
    text = _prose(text)
    return [text[max(0, one.start() - 30) : one.end()] for one in _DECIMAL.finditer(text)]


def unknown(text: str, study: Path) -> list[str]:
    """Whole numbers of two or more digits in the prose of a study's page that none of the folder's files has."""
    known = set(SIZES)
    for file in study.rglob("*"):
        if file.suffix == ".json":
            _add_numbers(json.loads(file.read_text(encoding="utf-8")), known)
        elif file.suffix == ".yaml":
            _add_numbers(file.read_text(encoding="utf-8"), known)
    text = _DATE.sub("", _prose(text))
    return [
        text[max(0, one.start() - 30) : one.end()]
        for one in _WHOLE.finditer(text)
        if int(one[0].replace(",", "")) not in known
    ]


def _add_numbers(value: object, known: set[int]) -> None:
    """Add the whole numbers in a JSON value, those in its texts included."""
    if isinstance(value, str):
        known.update(int(one) for one in re.findall(r"(?<![\w.])\d+(?![\w.]*\d)", value))
    elif isinstance(value, int | float):
        known.update([int(value)] if float(value).is_integer() else [])
    elif isinstance(value, Mapping | list):
        each = value.items() if isinstance(value, Mapping) else enumerate(cast("list[object]", value))
        for name, one in cast("Iterable[tuple[object, object]]", each):
            _add_numbers(name if isinstance(name, str) else None, known)
            _add_numbers(one, known)


def _prose(text: str) -> str:
    """What a reader reads of a page as prose, without figures that are tied."""
    found, rest = _tied(text)
    text = "".join([*(one.prose for one in found), rest])
    for made in _MADE:
        text = re.sub(made, "", text, flags=re.DOTALL)
    return _VERSION.sub("", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Check or write the tied figures of all pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    write, wrong = parser.parse_args(argv).write, list[str]()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        right = rewritten(text, page.parent)
        if write and right != text:
            page.write_text(right, encoding="utf-8")
        elif right != text:
            lines = zip(text.splitlines(), right.splitlines(), strict=True)
            wrong += [f"{page.relative_to(ROOT)}: {now}\n  found: {then}" for then, now in lines if then != now]
    for page in checked_whole():
        left = untied(page.read_text(encoding="utf-8"))
        wrong += [f"{page.relative_to(ROOT)}: tied to no file: {one!r}" for one in left]
    for page in sorted((ROOT / "studies").glob("*/README.md")):
        left = unknown(page.read_text(encoding="utf-8"), page.parent)
        wrong += [f"{page.relative_to(ROOT)}: in no file of the study: {one!r}" for one in left]
    print("\n".join(wrong) or "every tied figure matches its file")
    return int(bool(wrong))


def pages() -> list[Path]:
    """The pages whose figures can be tied: README.md, and those of docs, studies and benchmarks."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "studies").rglob("*.md")]
    return [*found, ROOT / "benchmarks" / "RESULTS.md"]


def checked_whole() -> list[Path]:
    """The pages on which every decimal in prose must be tied."""
    return [page for page in pages() if str(page.relative_to(ROOT)) not in WRITTEN]


if __name__ == "__main__":
    sys.exit(main())
