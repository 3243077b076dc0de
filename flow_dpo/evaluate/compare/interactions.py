"""Two by two: the effect of two changes alone and together, and whether they add up.

    problems and steps       base's steps    flow's steps       interaction = (94 - 93) - (93 - 86) = -6: together they
    base's problems               86              93            give less than the sum of each alone
    flow's problems               93              94

Invariant: it is a difference of differences on the same questions under the same seeds, with the same interval and p as
any difference (`statistics.difference`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.evaluate import statistics

Rewards = Mapping[str, Mapping[str, Sequence[statistics.Rewards]]]
"""By arm and test, one mapping per seed."""


@dataclass(frozen=True, kw_only=True)
class TwoByTwo:
    """Four arms: with neither change, with one, with the other, and with both."""

    name: str
    neither: str
    one: str
    other: str
    both: str


EVERY = (
    TwoByTwo(
        name="problems that the trained flow solved, and its steps",
        neither="self_generated",
        one="self_on_trained_problems",
        other="trained_on_self_problems",
        both="trained_flow",
    ),
    TwoByTwo(
        name="a trained Answer, and a trained Stop",
        neither="untrained_flow_itself",
        one="trained_answer_untrained_stop",
        other="untrained_answer_trained_stop",
        both="flow_itself",
    ),
)


def interactions(rewards: Rewards, tests: Sequence[str]) -> list[dict[str, Any]]:
    """The interaction, test by test, for every two by two whose four arms exist."""
    found: list[dict[str, Any]] = []
    for each in EVERY:
        arms = {of: getattr(each, of) for of in ("neither", "one", "other", "both")}
        if all(arm in rewards for arm in arms.values()):
            differences = {
                test: statistics.difference(
                    _minus(rewards[each.both][test], rewards[each.one][test]),
                    _minus(rewards[each.other][test], rewards[each.neither][test]),
                )
                for test in tests
            }
            found.append({"name": each.name, **arms, "differences": differences})
    return found


def _minus(arm: Sequence[statistics.Rewards], baseline: Sequence[statistics.Rewards]) -> list[statistics.Rewards]:
    """Differences question by question; an ungraded answer counts as not right."""
    return [
        {id: (value or 0.0) - (theirs[id] or 0.0) for id, value in mine.items()}
        for mine, theirs in zip(arm, baseline, strict=True)
    ]
