"""What a comparison answers first: what is better than what, how surely, at what price, and what to distrust.

    On held_out/greedy, 22 of 27 arms are better than self_generated, 3 worse, 2 not significantly different.

Invariant: every sentence has a number from comparison.json, and "better", "worse" and "significant" mean: by every
known interval (`gaps.Gap.side`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.report import formatting
from flow_dpo.report.document import Answers
from flow_dpo.report.gaps import Gap, baseline_of, contrasts, every_pair, primary_of, to_baseline
from flow_dpo.report.sources import ComparisonSource

_SURE = 0.05
"""The corrected p below which a difference is significant among all others."""
_NAMED = 3
"""Contrasts that the answer names; the section has all of them."""
Found = Mapping[str, Any]


def comparison_answers(source: ComparisonSource) -> Answers:
    """The four answers of a comparison."""
    found, primary = source.found, primary_of(source.found)
    declared = [gap for gap in contrasts(found) if gap.test == primary]
    gaps = [gap for gap in to_baseline(found) if gap.test == primary]
    each = [gap for gap in every_pair(found) if gap.test == primary]
    return Answers(
        learned=(*_accuracy(found), *_baseline(found, gaps), *_declared(declared, primary)),
        surely=_surely(found, each), price=_price(found), distrust=tuple(_doubts(found)),
    )  # fmt: skip


def _count(gaps: Sequence[Gap], side: int) -> int:
    return sum(gap.side == side for gap in gaps)


def _baseline(found: Found, gaps: Sequence[Gap]) -> list[str]:
    if not gaps:
        return []
    return [
        f"On {primary_of(found)}, {_count(gaps, 1)} of {len(gaps)} arms are better than {baseline_of(found)}, "
        f"{_count(gaps, -1)} worse, {_count(gaps, 0)} not significantly different."
    ]


def _declared(gaps: Sequence[Gap], primary: str) -> list[str]:
    """How many contrasts are significant, and the largest of them against each arm; of all, if none is significant."""
    if not gaps:
        return []
    told = [gap for gap in gaps if gap.side]
    by_size = sorted(told or gaps, key=lambda gap: abs(gap.mean))
    of_each = {(gap.one if gap.team else gap.other): gap for gap in by_size}.values()
    largest = sorted(of_each, key=lambda gap: -abs(gap.mean))[:_NAMED]
    named = "; ".join(f"{gap.one} against {gap.other} {gap.words}" for gap in largest)
    how = "" if len(told) == 1 else "; the largest of them" if told else "; the largest"
    verb = "is" if len(told) == 1 else "are"
    found = [f"{len(told)} of {len(gaps)} contrasts on {primary} {verb} significant{how}: {named}."]
    alike = [gap for gap in gaps if not gap.side]
    if told and alike:
        # In the study's order, which puts its main questions first.
        named = "; ".join(f"{gap.one} against {gap.other} {gap.words}" for gap in alike[:_NAMED])
        more = f"; and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
        found.append(f"Not significant: {named}{more}.")
    return found


def _accuracy(found: Found) -> list[str]:
    """The arm with the highest accuracy on the primary test, and the untrained model."""
    primary = primary_of(found)
    test, _, how = primary.partition("/")
    there = [
        (arm, one)
        for arm in found["arms"]
        for one in [((arm.get("accuracies") or {}).get(test) or {}).get(how) or {}]
        if one.get("mean") is not None
    ]
    if not there:
        return []
    most = max(one["mean"] for _, one in there)
    best = [one for one in there if one[1]["mean"] == most]
    base = [one for one in there if one[0].get("kind") == "base" and one not in best][:1]
    named = "; the untrained model, ".join(
        ", ".join(
            f"{arm['name']} {formatting.share(one['mean'])}"
            + (f" ({formatting.interval((one['low'], one['high']))} over seeds)" if _varies(one) else "")
            for arm, one in group[:_NAMED]
        )
        + (f", and {len(group) - _NAMED} more" if len(group) > _NAMED else "")
        for group in (best, base) if group
    )  # fmt: skip
    return [f"Highest of {len(there)} arms on {primary}: {named}."]


def _varies(one: Found) -> bool:
    return one.get("low") is not None and one["low"] != one.get("high")


def _surely(found: Found, gaps: Sequence[Gap]) -> tuple[str, ...]:
    seeds, sizes = found.get("num_seeds"), found.get("test_sets") or {}
    num = (sizes.get(primary_of(found).partition("/")[0]) or {}).get("num_problems")
    questions = f"{formatting.count(num)} questions" if num is not None else "its questions"
    if seeds == 1:
        return (f"1 seed: results of other seeds are unknown; intervals are over {questions} only.",)
    said = [
        f"{formatting.count(seeds)} seeds of training, {questions} of {primary_of(found)}: 95 % intervals over both"
        + ("; for areas, and votes without a p, over seeds only." if any(gap.p is None for gap in gaps) else ".")
    ]
    several = [gap for gap in gaps if gap.seeds is not None and gap.questions is not None]
    if several:
        wide = sorted((high - low) / 2 for gap in several if gap.seeds for low, high in [gap.seeds])[len(several) // 2]
        narrow = sorted((high - low) / 2 for gap in several if gap.questions for low, high in [gap.questions])
        said.append(
            f"The median half-width of the intervals is {100 * wide:.1f} points over seeds and "
            f"{100 * narrow[len(several) // 2]:.1f} over questions."
        )
    return tuple(said)


def _price(found: Found) -> tuple[str, ...]:
    costs = [(arm["name"], arm.get("costs") or {}) for arm in found["arms"]]
    there = [(name, cost) for name, cost in costs if cost.get("tokens_sampled") is not None]
    if not there:
        return ()
    costliest, cost = max(there, key=lambda one: one[1]["tokens_sampled"])
    parts = [
        f"{formatting.count(cost[name])} {words}"
        for name, words in (("tokens_learned", "tokens learned"), ("verdicts_used", "verdicts"))
        if cost.get(name) is not None
    ]
    parts += [formatting.seconds(cost["seconds"])] if cost.get("seconds") is not None else []
    least = formatting.count(min(one["tokens_sampled"] for _, one in there))
    most = f"{least} to {formatting.count(cost['tokens_sampled'])} tokens sampled per arm and seed"
    return (f"{most}; the costliest, {costliest}: {', '.join(parts)}." if parts else f"{most}.",)


# ---- reasons for distrust --------------------------------------------------------------------------------------------


def _doubts(found: Found) -> list[str]:
    gaps = every_pair(found)
    doubts = [
        *_failed(found),
        *_code(found),
        *_learned_tests(found),
        _seeds(gaps),
        _flat(gaps),
        *_corrected(gaps),
        _turns(gaps),
    ]
    return [words for words in (*doubts, _steps(found), _ungraded(found)) if words]


def _failed(found: Found) -> list[str]:
    return [f"1 arm could not be made: {name} ({reason})." for name, reason in (found.get("failed") or {}).items()]


def _code(found: Found) -> list[str]:
    made = found.get("made_by") or ()
    parts = [f"{formatting.count(one.get('num_pieces'))} pieces by {one.get('commit')!s:.12}" for one in made]
    doubts = [f"It was made by {len(made)} versions of the code: {', '.join(parts)}."] if len(made) > 1 else []
    changed = [part for part, one in zip(parts, made, strict=True) if str(one.get("commit")).endswith("-dirty")]
    return doubts + ([f"Made with uncommitted changes: {', '.join(changed)}."] if changed else [])


def _learned_tests(found: Found) -> list[str]:
    return [
        f"{formatting.count(size['num_learned'])} of the {formatting.count(size.get('num_problems'))} questions of "
        f"{name} were in the training data of an arm."
        for name, size in (found.get("test_sets") or {}).items()
        if size and size.get("num_learned")
    ]


def _seeds(gaps: Sequence[Gap]) -> str:
    both = [gap for gap in gaps if gap.seeds is not None and gap.questions is not None]
    over_questions = [gap for gap in both if gap.questions and gap.questions[0] * gap.questions[1] > 0]
    lost = [gap for gap in over_questions if not gap.side]
    if not lost:
        return ""
    return (
        f"{len(lost)} of {len(both)} differences are significant over questions but not over seeds: with other seeds "
        "they can change sign."
    )


def _flat(gaps: Sequence[Gap]) -> str:
    """Intervals of zero width: all their seeds, or all their questions, have the same difference."""
    flat = [gap for gap in gaps if any(low == high for low, high in gap.known)]
    if not flat:
        return ""
    return (
        f"{len(flat)} of {len(gaps)} differences have an interval of zero width: all seeds or all questions are alike, "
        f"which says nothing about others. The first is {flat[0].one} against {flat[0].other} on {flat[0].test}."
    )


def _corrected(gaps: Sequence[Gap]) -> list[str]:
    told = [gap for gap in gaps if gap.side]
    known = [gap for gap in told if gap.holm and gap.p is not None]
    lost = [gap for gap in known if gap.p is not None and gap.p >= _SURE]
    found = (
        [f"{len(lost)} of {len(known)} significant differences do not survive Holm's correction (p of 0.05 or more)."]
        if lost
        else []
    )
    alone = len(told) - len(known)
    if alone and len(gaps) > 1:
        found.append(
            f"{alone} of {len(told)} significant differences have no p corrected for {len(gaps)} comparisons: without "
            "any true difference, up to 1 in 20 is significant by chance."
        )
    return found


def _turns(gaps: Sequence[Gap]) -> str:
    """Pairs of arms whose order differs between tests, by the intervals over questions."""
    pairs: dict[tuple[str, str], list[Gap]] = {}
    for gap in gaps:
        if not gap.area and gap.questions is not None and gap.questions[0] * gap.questions[1] > 0:
            pairs.setdefault((gap.one, gap.other), []).append(gap)
    turned = [found for found in pairs.values() if len({gap.mean > 0 for gap in found}) == 2]
    if not turned:
        return ""
    low, high = (pick(turned[0], key=lambda gap: gap.mean) for pick in (min, max))
    return (
        f"{len(turned)} of {len(pairs)} pairs of arms change their order between tests or decodings, over questions: "
        f"{low.one} against {low.other} is {high.points} points on {high.test}, {low.points} on {low.test}."
    )


def _steps(found: Found) -> str:
    arms = [
        (arm["name"], steps)
        for arm in found["arms"]
        for steps in [(arm.get("step_quality") or {}).get("answers") or {}]
        if steps.get("num_checked") and steps.get("num_invalid")
    ]
    if not arms:
        return ""
    name, worst = max(arms, key=lambda one: one[1]["num_invalid"] / one[1]["num_checked"])
    invalid, checked = worst["num_invalid"], worst["num_checked"]
    return (
        f"Right answers with a wrong step in {len(arms)} of {len(found['arms'])} arms, most in {name}: "
        f"{formatting.count(invalid)} of the {formatting.count(checked)} that could be checked "
        f"({formatting.share(invalid / checked)})."
    )


def _ungraded(found: Found) -> str:
    by_arm = {
        arm["name"]: sum(
            (one or {}).get("num_ungraded") or 0
            for tests in (arm.get("accuracies") or {}).values()
            for one in (tests or {}).values()
        )
        for arm in found["arms"]
    }
    name = max(by_arm, key=lambda arm: by_arm[arm])
    if not by_arm[name]:
        return ""
    total = formatting.count(sum(by_arm.values()))
    return (
        f"{total} answers could not be graded and count as not right, most in {name}: {formatting.count(by_arm[name])}."
    )
