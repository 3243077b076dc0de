"""The differences of a comparison in order of importance: declared contrasts, then those to the baseline.

    {"arms": [{"name": "grpo", "contrasts": [{"against": "flow", "differences": {"held_out/greedy": {"mean": 0.01}}}]}]}

is one gap, `grpo` minus `flow`. Invariant: a gap has a side only if every known interval, over seeds and over
questions, excludes zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.evaluate.votes import RULE_WORDS
from flow_dpo.report import formatting
from flow_dpo.report.document import Effect, Forest

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One arm minus another on a test."""

    one: str
    other: str
    test: str
    mean: float
    seeds: Bounds | None
    """95 % over seeds of training."""
    questions: Bounds | None
    """95 % over test questions."""
    p: float | None
    holm: bool
    """Whether `p` is corrected for all comparisons of its kind."""
    area: bool = False
    """A difference of areas under the curve, in units, rather than of accuracies, in shares."""
    team: bool = False
    """One arm against several others, rather than several against one."""

    @property
    def known(self) -> list[Bounds]:
        """The known intervals, the one over seeds first."""
        return [bounds for bounds in (self.seeds, self.questions) if bounds is not None]

    @property
    def side(self) -> int:
        """1 or -1 if every known interval excludes zero; 0 otherwise, and if none is known."""
        known = self.known
        above, below = all(low > 0 for low, _ in known), all(high < 0 for _, high in known)
        return int(above) - int(below) if known else 0

    @property
    def words(self) -> str:
        """The difference and the interval that decides: the one that contains zero, or comes nearest to it."""
        named = [(bounds, over) for bounds, over in ((self.seeds, "seeds"), (self.questions, "questions")) if bounds]
        if not named:
            return f"{self.points} (no interval known)"
        bounds, over = min(named, key=lambda one: one[0][0] if self.mean > 0 else -one[0][1])
        return f"{self.points} ({self.between(bounds)} over {over})"

    @property
    def points(self) -> str:
        """The difference, with its sign."""
        return f"{self.mean:+.3f}" if self.area else formatting.points(self.mean)

    def between(self, bounds: Bounds | None) -> str:
        """An interval of the difference, as text."""
        if bounds is None:
            return formatting.NOTHING
        return f"{bounds[0]:+.3f} to {bounds[1]:+.3f}" if self.area else formatting.points_interval(*bounds)


def _gap(one: str, other: str, test: str, found: Mapping[str, Any] | None, **kind: bool) -> list[Gap]:
    """The gap in a list, which is empty if the difference is unknown."""
    found = found or {}
    if found.get("mean") is None:
        return []
    seeds, questions = (
        None if found.get(low) is None or found.get(high) is None else (found[low], found[high])
        for low, high in (("seed_low", "seed_high"), ("low", "high"))
    )
    # The corrected p if there is one, else the method's, else (without seeds) that of the trained models.
    p = next((found[name] for name in ("p_holm", "seed_p", "p") if found.get(name) is not None), None)
    holm = found.get("p_holm") is not None
    return [
        Gap(
            one=one,
            other=other,
            test=test,
            mean=found["mean"],
            seeds=seeds,
            questions=questions,
            p=p,
            holm=holm,
            **kind,
        )
    ]


def contrasts(found: Mapping[str, Any]) -> list[Gap]:
    """The contrasts that the comparison declares, on every test: the team's, then those of its arms. No pair comes a
    second time in the other order."""
    declared = [
        (arm["name"], str(contrast.get("against")), test, one)
        for arm in found["arms"]
        for contrast in arm.get("contrasts") or ()
        for test, one in (contrast.get("differences") or {}).items()
    ]
    # The same difference in the other order has its p in the family of all declared ones.
    corrected = {(against, name, test): (one or {}).get("p_holm") for name, against, test, one in declared}
    team = [
        gap
        for one in (found.get("team") or {}).get("differences") or ()
        for name in [one["other"] + (f", {RULE_WORDS.get(one['rule'], one['rule'])}" if one["rule"] else "")]
        for holm in [None if one["rule"] else corrected.get((one["one"], one["other"], one["test"]))]
        for gap in _gap(
            one["one"], name, one["test"], {"p_holm": holm, **one}, area=one["measure"] == "area", team=True
        )
    ]
    return _each_once(
        [*team, *(gap for name, against, test, one in declared for gap in _gap(name, against, test, one))]
    )


def every_pair(found: Mapping[str, Any]) -> list[Gap]:
    """Contrasts, then differences to the baseline: each pair once per test, in either order, as Holm's family counts
    it."""
    return _each_once([*contrasts(found), *to_baseline(found)])


def _each_once(gaps: Sequence[Gap]) -> list[Gap]:
    """The gaps without those that have already come in the other order."""
    found, there = list[Gap](), set[tuple[str, str, str]]()
    for gap in gaps:
        if (gap.other, gap.one, gap.test) not in there:
            found.append(gap)
            there.add((gap.one, gap.other, gap.test))
    return found


def to_baseline(found: Mapping[str, Any]) -> list[Gap]:
    """Every arm's differences to the baseline, on every test."""
    baseline, primary = baseline_of(found), primary_of(found)
    gaps: list[Gap] = []
    for arm in found["arms"]:
        others = {test: one for test, one in (arm.get("differences_to_self") or {}).items() if test != primary}
        for test, one in {primary: arm.get("difference_to_self"), **others}.items():
            gaps += _gap(arm["name"], baseline, test, one)
    return gaps


def baseline_of(found: Mapping[str, Any]) -> str:
    """The name of the baseline arm."""
    return str(found.get("baseline") or "self_generated")


def primary_of(found: Mapping[str, Any]) -> str:
    """The name of the primary test, which decides."""
    return str(found.get("primary") or "the primary test")


def forests(found: Mapping[str, Any]) -> tuple[list[Forest], list[Forest]]:
    """The main forests (the primary test, and areas), and the same on all other tests."""
    primary = primary_of(found)
    declared, main, others = contrasts(found), list[Forest](), list[Forest]()
    for what, gaps in (
        ("The team against its members", [gap for gap in declared if gap.team]),
        ("Contrasts", [gap for gap in declared if not gap.team]),
        (f"Differences to {baseline_of(found)}", to_baseline(found)),
    ):
        for test in dict.fromkeys([primary, *(gap.test for gap in gaps)]):
            mine = [gap for gap in gaps if gap.test == test]
            if mine:
                where = f"the {test}" if mine[0].area else test
                (main if test == primary or mine[0].area else others).append(_forest(f"{what} on {where}", mine))
    return main, others


def _forest(caption: str, gaps: Sequence[Gap]) -> Forest:
    area, seeds, holm = gaps[0].area, any(gap.seeds for gap in gaps), any(gap.holm for gap in gaps)
    p = any(gap.p is not None for gap in gaps)
    groups: dict[str, list[Effect]] = {_heading(gap): [] for gap in gaps}
    for gap in sorted(gaps, key=lambda gap: -gap.mean):
        cells = [gap.points, gap.between(gap.seeds), gap.between(gap.questions), formatting.p_value(gap.p)]
        effect = Effect(
            label=gap.other if gap.team else gap.one,
            mean=gap.mean if area else 100 * gap.mean,
            inner=_scaled(gap.questions, area),
            outer=_scaled(gap.seeds, area),
            side=("worse", "", "better")[1 + gap.side],
            cells=tuple(cell for cell, there in zip(cells, (True, seeds, True, p), strict=True) if there),
        )
        groups[_heading(gap)].append(effect)
    columns = ["area" if area else "points", "95 % over seeds", "95 % over questions", "Holm's p" if holm else "p"]
    return Forest(
        caption=caption,
        groups=tuple((heading, tuple(effects)) for heading, effects in groups.items()),
        columns=tuple(name for name, there in zip(columns, (True, seeds, True, p), strict=True) if there),
        unit="difference of areas" if area else "percentage points",
        note=("Thin: 95 % over seeds of training. " if seeds else "")
        + "Thick: 95 % over test questions. Coloured if all exclude 0; a triangle marks a value off the scale.",
    )


def _heading(gap: Gap) -> str:
    return f"{gap.one} against" if gap.team else f"against {gap.other}"


def _scaled(bounds: Bounds | None, area: bool) -> Bounds | None:
    return bounds if area or bounds is None else (100 * bounds[0], 100 * bounds[1])
