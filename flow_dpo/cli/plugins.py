"""`flow-dpo plugins`: list the plug-ins of installed packages by kind and name, without importing any of them.

    recipe    shortest    lab-recipes 0.2    lab.recipes:ShortestRight

Invariant: a name that cannot be loaded (a built-in has it, or several packages offer it) is listed with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from flow_dpo.core.errors import visible
from flow_dpo.engines.settings import BUILT_IN
from flow_dpo.plugins.load import KINDS, every_installed, is_place
from flow_dpo.recipes.presets import RECIPES
from flow_dpo.runs.resolve import resolve
from flow_dpo.trackers.settings import NAMES


def plugins(argv: Sequence[str]) -> int:
    """`flow-dpo plugins`."""
    resolve("flow-dpo plugins", "List what installed plug-ins offer, without importing them.", argv, {})
    found = every_installed()
    if not found:
        groups = ", ".join(f"flow_dpo.{kind}s" for kind in KINDS)
        print(f"No installed package offers a plug-in for flow-dpo. Entry points are read from the groups {groups}.")
        return 0
    built_in = {"recipe": frozenset(RECIPES), "engine": BUILT_IN, "tracker": frozenset(NAMES), "reward": {"answer"}}
    counts = Counter((each.kind, each.name) for each in found)
    table = Table("kind", "name", "package", "place", "", box=None)
    for each in found:
        note = ""
        if each.name in built_in.get(each.kind, ()):
            note = "never used: a built-in has this name"
        elif not is_place(each.place):
            note = "refused: expected package.module:Name as its place"
        elif counts[each.kind, each.name] > 1:
            note = "refused: several packages offer this name; uninstall all but one"
        table.add_row(*(visible(cell) for cell in (each.kind, each.name, each.package, each.place, note)))
    Console(markup=False, highlight=False, width=None).print(table)
    return 0
