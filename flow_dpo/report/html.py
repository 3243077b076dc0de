"""The HTML page of a report: one self-contained file, safe against hostile text.

`templates/blocks.html` and `plots.html` lay out each block. Every text that they write is shown with its control and
direction characters as escapes, then `<`, `>`, `&` and quotes are escaped. A policy in the page itself forbids scripts,
pictures, fonts, forms and connections, and every style sheet but this one (by its hash):

    <script>alert(1)</script>   ->   &lt;script&gt;alert(1)&lt;/script&gt;

Invariant: no attribute holds text from a source but `aria-label`, escaped; ids are numbers; no address is in the page
but those of the viewer's copy that the command named.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from flow_dpo.core.errors import visible
from flow_dpo.report import plots
from flow_dpo.report.document import Report
from flow_dpo.runs.charts import COLOURS


def render_page(report: Report) -> str:
    """The whole file."""
    style = _templates().get_template("style.css").render(colours=COLOURS)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _templates().get_template("report.html")
    return page.render(report=report, style=style, style_hash=f"sha256-{digest}")


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("flow_dpo.report"),
        autoescape=True,
        finalize=_show,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "axes": plots.lay_out_panel, "scale": plots.lay_out_forest, "time_line": plots.lay_out_lanes, "name": _breaking,
    }  # fmt: skip
    return made


def _show(value: Any) -> Any:
    """What an expression writes: text with what moves or hides other text made visible, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breaking(name: str) -> Markup:
    """A long name, which may break after its joints: `held_out/greedy`."""
    parts = re.split(r"(?<=[_/-])", visible(name))
    return Markup("<wbr>").join(escape(part) for part in parts)
