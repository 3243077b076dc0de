"""The HTML page of a report: one self-contained file, safe against hostile text.

`templates/blocks.html` and `plots.html` lay out each block. In all text that they write, control and direction
characters become visible escapes; then `<`, `>`, `&` and quotes are escaped. A policy in the page itself forbids
scripts, images, fonts, forms, connections, and every style sheet but its own (by hash):

    <script>alert(1)</script>   ->   &lt;script&gt;alert(1)&lt;/script&gt;

Invariant: `aria-label` is the only attribute with text from a source, escaped; ids are numbers; the only addresses in
the page are those of the viewer's copy that the command named.
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
    """The whole page."""
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
    """The output of an expression: characters that move or hide other text are made visible before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breaking(name: str) -> Markup:
    """A long name that can break after its joints: `held_out/greedy`."""
    parts = re.split(r"(?<=[_/-])", visible(name))
    return Markup("<wbr>").join(escape(part) for part in parts)
