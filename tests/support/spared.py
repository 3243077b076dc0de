"""What hundreds of runs would do again and no test asks for: probes of a model that passed them, the same pictures, the
rehearsal of a problem's cost.

    spared.begin(request)       before each test

Invariant: what was found is taken only where it would be found again. A model whose code a test has exchanged is probed
each time, and so are all in the tests of what is probed; a picture is another run's only where both look alike but for
their numbers; a cost is one of the same recipe of the package, the same problems, vocabulary and template.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

_OTHER_CODE = tuple(
    f"flow_dpo.{room}" for room in ("cli", "evaluate", "hub", "learner.learner", "plugins", "recipes", "report", "runs",
                                    "traces", "trackers", "trainer", "workers")
)  # fmt: skip
"""What may be exchanged, for it is no part of a forward, nor of a way to compute log-probabilities."""
_ROOMS = ("contract", "core", "engines", "learner", "models", "ranks")
"""Of tests in which nobody takes for right what another found right."""


class Found(set[str]):
    """What a process has found right; nothing is in it once a forward may be another."""

    exchanged = False

    def __contains__(self, key: object) -> bool:
        return not self.exchanged and super().__contains__(key)

    def add(self, element: str) -> None:
        if not self.exchanged:
            super().add(element)


_found = Found()


def begin(request: pytest.FixtureRequest) -> None:
    """Begin a test."""
    probes(request)
    pictures()
    costs("monkeypatch" in request.fixturenames)


def probes(request: pytest.FixtureRequest) -> None:
    """Begin a test with what this process has found right, or in a room where that is tested with nothing: there a test
    that exchanges code does not even take for right what it found itself."""
    _found.exchanged = False
    if module := sys.modules.get("flow_dpo.models.probes"):
        own = Found()
        own.exchanged = "monkeypatch" in request.fixturenames
        vars(module)["_found_right"] = own if request.path.parent.name in _ROOMS else _found


def watch_exchanges() -> None:
    """Have pytest's monkeypatch tell what it exchanges."""
    for name in ("setattr", "delattr", "setitem", "delitem"):
        setattr(pytest.MonkeyPatch, name, _telling(getattr(pytest.MonkeyPatch, name)))


def _telling(exchange: Callable[..., None]) -> Callable[..., None]:
    def told(self: pytest.MonkeyPatch, target: Any, *words: Any, **named: Any) -> None:
        place = target if isinstance(target, str) else getattr(target, "__module__", getattr(target, "__name__", None))
        if target is not os.environ and not str(place).startswith(_OTHER_CODE):
            _found.exchanged = True
        exchange(self, target, *words, **named)

    return told


_drawn: dict[str, bytes] = {}
"""Pictures by their shape."""


def pictures() -> None:
    """Let a run take the picture of an earlier one that has as many panels, lines and points, finite ones and others,
    under the same names. What the drawing function itself is given is always drawn."""
    module = sys.modules.get("flow_dpo.runs.callbacks.progress")
    if module is None or hasattr(module.save_png, "spares"):
        return
    draw = module.save_png

    def save_png(path: Path, panels: Sequence[Any], *, x: str, height: float) -> None:
        lines = [
            (line.label, [None if value is None else math.isfinite(value) for value in line.y], len(line.low))
            for panel in panels
            for line in panel.lines
        ]
        shape = repr([x, height, [(panel.y, panel.title, panel.bounds, panel.marked) for panel in panels], lines])
        if shape not in _drawn:
            draw(path, panels, x=x, height=height)
            _drawn[shape] = path.read_bytes()
        path.write_bytes(_drawn[shape])

    save_png.spares = draw  # type: ignore[attr-defined]
    vars(module)["save_png"] = save_png


_costs: dict[str, Any] = {}
"""Costs of a problem by what they depend on."""
_exchanging = False
"""Whether this test may exchange code."""


def costs(exchanging: bool) -> None:
    """Let a run take the cost of a problem from an earlier run, unless a test may exchange what it depends on."""
    global _exchanging
    _exchanging = exchanging
    module = sys.modules.get("flow_dpo.runs.rehearsal")
    if module is None or hasattr(module.rehearse, "spares"):
        return
    rehearse = module.rehearse

    def taken(recipe: Any, problems: Sequence[Any], renderer: Any) -> Any:
        parts = (recipe.flow, recipe.explore, recipe.credit, recipe.objective)
        own = all(type(part).__module__.startswith("flow_dpo.") for part in parts)
        template = renderer.template
        texts = [renderer.encode(problem.solution or problem.question) for problem in problems]
        clock = template.date if template.reads_clock else ""
        key = repr([recipe, problems, texts, renderer.fingerprint(), template.source, template._variables, clock])
        if _exchanging or not own or " at 0x" in key:
            return rehearse(recipe, problems, renderer)
        if key not in _costs:
            _costs[key] = rehearse(recipe, problems, renderer)
        return _costs[key]

    taken.spares = rehearse  # type: ignore[attr-defined]
    vars(module)["rehearse"] = taken
