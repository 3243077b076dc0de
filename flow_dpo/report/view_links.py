"""Links from a report into the viewer's static copy. All of them are built here.

    ViewCopy.read(Path("runs/view"), beside=Path("runs/report"))      what `flow-dpo view ... --export runs/view` wrote
    copy.links(run)      "wrong, and an alternative right" -> ../view/index.html#/s/gsm8k?status=wrong&flipped=1

Routes and parameters are those of the viewer (`report.viewer.queries`). Invariant: an address is relative and
percent-encoded, and leads to a source that the copy holds.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from flow_dpo.core.errors import DataError
from flow_dpo.report import rates
from flow_dpo.report.document import Block, Code, Fold, Link, Links, Paragraph
from flow_dpo.report.sources import EvaluationSource, RunSource, Source, TracesSource
from flow_dpo.report.view_match import is_same

_BEGIN = 'flowDpo.put("sources", '


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewCopy:
    """A static copy of the viewer."""

    base: str
    """Its folder, relative to the report's."""
    sources: Sequence[Mapping[str, Any]]
    """Their ids, names and facts; a name is the end of a source's path: the copy has no path of the machine that made
    it."""

    @classmethod
    def read(cls, folder: Path, *, beside: Path) -> ViewCopy:
        """The copy in `folder`, for a report in `beside`. Raises `DataError` if there is none."""
        file = folder / "data" / "sources.js"
        try:
            text = file.read_text(encoding="utf-8")
            found = json.loads(text[text.index(_BEGIN) + len(_BEGIN) : text.rindex(")")])["sources"]
            sources = [{**one, "id": str(one["id"]), "name": str(one["name"])} for one in found]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"expected a copy of the viewer in {folder}, found none that can be read ({file}: {error}); make one: "
                f"flow-dpo view RUN... --export {shlex.quote(str(folder))}"
            ) from error
        base = quote(Path(os.path.relpath(folder.resolve(), beside.resolve())).as_posix())
        return cls(base=base, sources=sources)

    def address(self, source: Source, **filters: str | int) -> str | None:
        """The list of a source's problems, filtered; None if the copy does not hold the source (by its name and by
        what else both know of it), or if several of its sources match."""
        parts = source.path.resolve().parts
        named = [(tuple(one["name"].split("/")), one["id"]) for one in self.sources if is_same(one, source)]
        longest = max((len(own) for own, _ in named if parts[-len(own) :] == own), default=0)
        ids = [id for own, id in named if own == parts[-longest:]]
        if len(ids) != 1:
            return None
        return f"{self.base}/index.html#/s/{quote(ids[0])}" + (f"?{urlencode(filters)}" if filters else "")

    def links(self, source: Source) -> tuple[Link, ...]:
        """The links into a source; empty if the copy does not hold it."""
        made = [(text, self.address(source, **filters)) for text, filters in _ways(source)]
        return tuple(Link(text=text, address=address) for text, address in made if address is not None)


_Way = tuple[str, dict[str, str | int]]


def _ways(source: Source) -> list[_Way]:
    ways: list[_Way] = [("all problems", {}), ("wrong ones", {"status": "wrong"})]
    if isinstance(source, RunSource):
        ways.append(("wrong, and an alternative right", {"status": "wrong", "flipped": 1}))
        ways.append(("most pairs", {"sort": "-examples"}))
        parts = rates.quarters(source.num_seen)
        named = ["first quarter", "second", "third", "last quarter"] if len(parts) == 4 else []
        for name, part in zip(named, parts, strict=False):
            ways.append((name, {"from": part.start, "to": part.end}))
        ungraded = any(reward is None for reward in source.counts.rewards)
    else:
        ungraded = isinstance(source, EvaluationSource) and bool(source.summary.get("num_ungraded"))
    if ungraded:
        ways.append(("ungraded", {"ungraded": 1}))
    return ways


def view_blocks(sources: Sequence[Source], copy: ViewCopy | None) -> list[Block]:
    """Where to look at the solutions: links into the copy, or the command that makes one."""
    shown = [one for one in sources if isinstance(one, (RunSource, EvaluationSource, TracesSource))]
    if not shown:
        return []
    if copy is None:
        paths = shlex.join(str(one.path) for one in shown)
        words = "Trees, solutions and curves, in a browser, or as a copy that this page can link to (--view FOLDER):"
        return [
            Fold(
                title="Look at the solutions",
                blocks=(
                    Paragraph(text=words),
                    Code(text=f"flow-dpo view {paths}\nflow-dpo view {paths} --export FOLDER"),
                ),
            )
        ]
    linked = [(one, copy.links(one)) for one in shown]
    return [Links(text=f"Look at {one.name}", links=links) for one, links in linked if links]
