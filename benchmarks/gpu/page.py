"""The page of the GPU benchmark, as Markdown and HTML: every figure with target, outcome, seconds and versions.

    write(folder, results)      # page.md, page.html

Text from a device, a model or a log is treated as hostile: in HTML it is escaped, in Markdown it cannot leave its cell.
Invariant: a figure is "met" or "missed" only if it was measured on a GPU and has a target.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.estimates import CARDS
from benchmarks.gpu.parts import PARTS

HEAD = ("part", "figure", "measured", "target", "", "seconds", *(f"estimate, {card.name}" for card in CARDS))
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#|~!&])")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:80em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;padding:.2em .6em;text-align:left}"
    "td.missed{color:#a00}pre{white-space:pre-wrap;background:#f4f4f4;padding:.6em}"
)


def rows(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """The table's cells in the order of the parts: one row per figure, and one for a part without figures."""
    for name in PARTS:
        outcome = results["parts"].get(name)
        if outcome is None:
            yield (name, PARTS[name].what, "", "", "not started", "", *("" for _ in CARDS))
            continue
        times = [f"{outcome['seconds']:.0f}" if "seconds" in outcome else ""]
        times += [str(outcome.get("estimates_s", {}).get(card.name, "")) for card in CARDS]
        found = outcome["figures"]
        for number, figure in enumerate(found):
            verdict = {True: "met", False: "missed", None: ""}[None if results["rehearsal"] else figure["met"]]
            cells = (figure["name"], f"{figure['ratio']:.3g}", figure["reach"], verdict)
            yield (name if not number else "", *cells, *(times if not number else [""] * len(times)))
        if outcome["status"] != "done" or not found:
            yield (
                name if not found else "",
                "",
                "",
                "",
                outcome["status"],
                *(times if not found else [""] * len(times)),
            )


def markdown(results: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    lines = [f"# GPU benchmark: {_plain(results['device'])}", ""]
    lines += [f"- {_plain(line)}" for line in facts(results)]
    lines += ["", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += ["| " + " | ".join(map(_plain, row)) + " |" for row in rows(results)]
    lines += [f"\n**{_plain(name)}**: {_plain(why)}" for name, why in reasons(results)]
    return "\n".join(lines) + "\n"


def page(results: Mapping[str, Any]) -> str:
    """The page as HTML that loads no other file."""
    title = html.escape(f"GPU benchmark: {results['device']}")
    items = "".join(f"<li>{html.escape(line)}</li>" for line in facts(results))
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in HEAD)
    body = "".join(
        "<tr>" + "".join(f"<td class='{_class(cell)}'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows(results)
    )
    logs = "".join(f"<h2>{html.escape(name)}</h2><pre>{html.escape(why)}</pre>" for name, why in reasons(results))
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"</head><body><h1>{title}</h1><ul>{items}</ul><table><tr>{head}</tr>{body}</table>{logs}</body></html>\n"
    )


def facts(results: Mapping[str, Any]) -> list[str]:
    """The machine, versions and commits that the figures are valid for."""
    found, torch = results["environment"], results["environment"]["torch"]
    lines = [found["machine"], ", ".join(f"{name} {version}" for name, version in found["packages"].items())]
    if "name" in torch:
        driver = found["driver"]
        lines.append(
            f"{torch['name']}, {torch['gib']:.1f} GiB, compute capability {'.'.join(map(str, torch['capability']))}, "
            f"driver {driver.get('version', 'unknown')} for CUDA {driver.get('cuda')}, torch for CUDA {torch['cuda']}"
        )
    if served := (results.get("vllm_environment") or {}).get("packages"):
        lines.append("vLLM's environment: " + ", ".join(f"{name} {version}" for name, version in served.items()))
    measured = results["parts"].values()
    if commits := sorted({outcome["commit"] for outcome in measured if outcome.get("commit")}):
        lines.append(f"code {', '.join(commits)}")
    if dates := sorted(outcome["date"] for outcome in measured if "date" in outcome):
        lines.append(f"measured from {dates[0]} to {dates[-1]}")
    if results["rehearsal"]:
        lines.append("A rehearsal on a CPU with tiny sizes: no figure says anything about a GPU.")
    return [*lines, *results["warnings"]]


def reasons(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each part that is not done, with the reason."""
    return [(outcome["name"], outcome["why"]) for outcome in results["parts"].values() if "why" in outcome]


def line(outcome: Mapping[str, Any]) -> str:
    """An outcome for the terminal, without the control characters that a log can contain."""
    figures = [f"  {one['name']}: {one['ratio']:.3g} {_target(one)}".rstrip() for one in outcome["figures"]]
    seconds = f" in {outcome['seconds']:.0f} s" if "seconds" in outcome else ""
    why = "".join(f"  {part}\n" for part in outcome.get("why", "").splitlines()[-12:])
    shown = "\n".join([f"{outcome['name']}: {outcome['status']}{seconds}", *figures, why]).rstrip()
    return _printable(shown)


def summary(results: Mapping[str, Any]) -> str:
    """How many figures met their targets, and which parts are not done."""
    outcomes = results["parts"].values()
    found = [figure["met"] for outcome in outcomes for figure in outcome["figures"]]
    open_parts = [f"{outcome['name']} ({outcome['status']})" for outcome in outcomes if outcome["status"] != "done"]
    shown = f"{len(found)} figures" if results["rehearsal"] else f"{found.count(True)} met, {found.count(False)} missed"
    return _printable(shown + (f"; not done: {', '.join(open_parts)}" if open_parts else ""))


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Replace both pages."""
    for name, text in (("page.md", markdown(results)), ("page.html", page(results))):
        beside = folder / (name + ".tmp")
        beside.write_text(text, encoding="utf-8")
        beside.replace(folder / name)


def _target(figure: Mapping[str, Any]) -> str:
    return f"(target {figure['reach']})" if figure["reach"] else ""


def _class(cell: str) -> str:
    return "missed" if cell in ("missed", "failed", "over time") else ""


def _plain(text: str) -> str:
    """The text, escaped for a cell of a Markdown table."""
    return _MARKDOWN.sub(r"\\\1", _printable(" ".join(text.split())))


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c == "\n")
