"""The arms of a comparison, chosen by their names or by the names of groups.

    choose(("paper", "flow_itself"))    the rows of the paper's table, and one more
    choose(("core",))                   these, the flow itself, and equally many draws on both sides
    choose(("team",))                   the flow, its members alone and by vote, and the paper's flow
    choose(("parts",))                  each role trained or not, and Answer with the Stop of another run
    choose(("recipes",))                the methods related to Flow-DPO, and Flow-DPO with them
    choose(("cost",))                   the practical alternatives, for accuracy at several budgets
    choose(("instructed",))             those that need a model which follows instructions
    choose(())                          every source of traces and its controls

Invariant: an arm is made once, however often it is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flow_dpo.core.credit import Credit
from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate.compare import arms, recipe_arms, team_arms
from flow_dpo.evaluate.compare.arms import Arm

EVERY: Mapping[str, Arm] = {**arms.ARMS, **team_arms.ARMS, **recipe_arms.ARMS}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "paper": arms.PAPER,
    "core": arms.CORE,
    "team": team_arms.TEAM,
    "parts": ("flow_itself", *team_arms.PARTS),
    "recipes": recipe_arms.CONTRASTS,
    "cost": recipe_arms.COST,
    "instructed": recipe_arms.INSTRUCTED,
}


_CHANGED = {"answer_only": "roles", "stop_only": "roles", "balanced_stop": "balance"}
"""The setting of the flow's credit that each of these variants changes."""


def choose(names: Sequence[str], credit: Credit | None = None) -> list[Arm]:
    """The arms with these names, or in the groups of these names; without names, all sources of traces except variants
    whose setting the flow's `credit` lacks.

    Raises `ConfigError` for an unknown name, and for a named variant whose setting is lacking.
    """
    wanted = [arm for name in names for arm in GROUPS.get(name, (name,))]
    unknown = [name for name in wanted if name not in EVERY]
    if unknown:
        raise ConfigError(
            f"unknown arms {', '.join(unknown)}; known ones are {', '.join(EVERY)}, and groups of them "
            f"{', '.join(GROUPS)}"
        )
    changed = {name: _CHANGED.get(name.removesuffix("_itself"), "") for name in dict.fromkeys(wanted or arms.ARMS)}
    lacking = [name for name, one in changed.items() if credit is not None and one and not hasattr(credit, one)]
    if wanted and lacking:
        raise ConfigError(
            f"expected a credit with the settings that {', '.join(lacking)} change, found {type(credit).__name__} "
            f"without them; add --recipe flow-dpo-paper, or leave these arms out"
        )
    return [EVERY[name] for name in changed if name not in lacking]
