"""How does a figure of matplotlib become one that a page can hold, in light and in dark?

matplotlib draws with the placeholder colours of `INK`, `GRID` and `SERIES`; here each becomes a name that the page
gives two values, one for a light and one for a dark background:

    <path style="fill: none; stroke: #0a0001"/>   ->   <path fill="none" stroke="var(--ink)"/>

Invariant: no style sheet, no `style` attribute, no metadata and no address is left, so that a page may forbid all of
them; words stay words, which can be read aloud, searched and scaled.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

INK, GRID = "#0a0001", "#0a0002"
SERIES = ("#0a0011", "#0a0012", "#0a0013", "#0a0014", "#0a0015", "#0a0016")
"""Blue, orange, green, purple, red, grey."""
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = SERIES

PALETTE = {
    INK: ("--ink", "#1c2024", "#e6e8eb"),
    GRID: ("--grid", "#d5d9de", "#3a4149"),
    BLUE: ("--blue", "#1560ae", "#79b8ff"),
    ORANGE: ("--orange", "#b35000", "#f5a45d"),
    GREEN: ("--green", "#1f7a34", "#74d08a"),
    PURPLE: ("--purple", "#7540a6", "#c8a2f5"),
    RED: ("--red", "#b3261e", "#ff938a"),
    GREY: ("--grey", "#5c646d", "#a7b0ba"),
}
"""Placeholder: the page's name for it, its colour on light, its colour on dark."""

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"(?:(bold|\d{3})\s+)?(\d+(?:\.\d+)?)px\b")
_DECLARATION = re.compile(r"\s*([\w-]+)\s*:\s*([^;]+)")
_LOCAL = re.compile(r"#([\w-]+)")


def themed(drawn: str, label: str) -> str:
    """The `<svg>` element of what matplotlib drew, named for screen readers."""
    root = ET.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    elements = [element for element in root.iter() if isinstance(element.tag, str)]
    for element in elements:
        element.tag = element.tag.removeprefix(_SVG)
        _plain_attributes(element)
    used = {name for element in elements for name in _references(element)}
    for element in elements:
        if element.get("id") not in used:
            element.attrib.pop("id", None)
    box = root.get("viewBox", "0 0 1 1")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return ET.tostring(root, encoding="unicode")


def standalone(svg: str) -> str:
    """The same as a file of its own, which knows both sets of colours."""
    light, dark = (_values(side) for side in (0, 1))
    width, height = svg.split('viewBox="', 1)[1].split('"', 1)[0].split()[2:4]
    in_dark = f"@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    style = f"<style>svg{{{light};font-family:system-ui,sans-serif}}{in_dark}</style>"
    start, end = svg.split(">", 1)
    named = start.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"', 1)
    return f"{named}>{style}{end}\n"


def _values(side: int) -> str:
    return ";".join(f"{name}:{values[side]}" for name, *values in PALETTE.values())


def variables(side: int) -> str:
    """The palette as declarations: 0 for a light background, 1 for a dark one."""
    return _values(side)


def _plain_attributes(element: ET.Element) -> None:
    """Turn the style attribute into attributes of their own, and colours into names."""
    if _HREF in element.attrib:
        element.set("href", element.attrib.pop(_HREF))
    for name, value in _DECLARATION.findall(element.attrib.pop("style", "")):
        if name == "font":
            found = _FONT.search(value)
            if found:
                element.set("font-size", found[2])
                if found[1] in ("bold", "700"):
                    element.set("font-weight", "bold")
        else:
            element.set(name, value.strip())
    for name in ("fill", "stroke", "stop-color"):
        colour = element.get(name, "")
        if colour in PALETTE:
            element.set(name, f"var({PALETTE[colour][0]})")


def _references(element: ET.Element) -> list[str]:
    values = [element.get("href", ""), element.get("clip-path", "")]
    return [name for value in values for name in _LOCAL.findall(value)]
