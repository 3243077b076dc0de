"""The section on a judge's verdicts on two sets of traces.

Which side was preferred, how surely, and how far the judge can be trusted: whether its verdicts agree in both orders,
and whether it favours a position or longer traces. Invariant: a preference is called one only if its interval excludes
one half.
"""

from __future__ import annotations

from collections.abc import Sequence

from flow_dpo.report import formatting
from flow_dpo.report.document import Effect, Fold, Forest, Paragraph, Section, Table
from flow_dpo.report.sources import JudgeSource

_AGREED = 0.8
"""The share of pairs with agreeing orders below which a judge gives a reason for distrust."""
_TIES = {
    "identical": "the same words on both sides",
    "both_orders": "a tie in both orders",
    "flipped": "flipped with the order",
    "one_order": "preferred in one order, a tie in the other",
}


def judge_section(judges: Sequence[JudgeSource]) -> Section:
    """All judges."""
    reasons = [row for one in judges for row in _kinds(one)]
    words = (
        "A judge reads two traces of one problem blind, once in each order. A pair is a win if both orders prefer the "
        "same trace, and a tie if they do not; a pair without a verdict enters no rate. A judge is not a verifier: it "
        "can prefer a wrong step."
    )
    rates = Forest(
        caption="How often side a is preferred; ties count half",
        groups=(("judged", tuple(_rate(one) for one in judges)),),
        columns=("a's win rate", "95 % interval", "p"), unit="per cent", reference=50.0,
        note="p is from the sign test over pairs that are not ties.",
    )  # fmt: skip
    columns = ("judged", "a wins", "b wins", "ties", "no verdict")
    trust = ("judged", "orders agree", "Cohen's kappa", "picks the first place", "longer one wins")
    tables = [
        Table(caption="Pairs", columns=columns, rows=tuple(_outcomes(one) for one in judges)),
        Table(caption="How far the judge can be trusted", columns=trust, rows=tuple(_trust(one) for one in judges)),
    ]
    if reasons:
        columns = ("judged", "why", "pairs or questions")
        caption = "Ties and missing verdicts"
        tables.append(Table(caption=caption, columns=columns, rows=tuple(reasons), wordy=frozenset({0, 1})))
    fold = Fold(title="Ties, and how far the judge can be trusted", blocks=tuple(tables))
    return Section(title="Judge", blocks=(Paragraph(text=words), rates, fold))


def _rate(one: JudgeSource) -> Effect:
    rate, bounds = _win_rate(one)
    side = "" if bounds is None else "better" if bounds[0] > 0.5 else "worse" if bounds[1] < 0.5 else ""
    return Effect(
        label=name_sides(one), note=f"by {_judge(one)}", side=side, mean=None if rate is None else 100 * rate,
        inner=None if bounds is None else (100 * bounds[0], 100 * bounds[1]),
        cells=(formatting.share(rate), formatting.interval(bounds), formatting.p_value(_number(one, "decided", "p"))),
    )  # fmt: skip


def name_sides(one: JudgeSource) -> str:
    """A source's name, and what its two sides are."""
    named = []
    for side in ("a", "b"):
        found = one.summary[side]
        named.append(formatting.short(str(found.get("source") or found.get("path") or "unnamed traces"), 40))
    return f"{one.name}: {named[0]} (a) and {named[1]} (b)"


def _number(one: JudgeSource, group: str, name: str) -> float | None:
    return one.summary[group].get(name)


def _win_rate(one: JudgeSource) -> tuple[float | None, tuple[float, float] | None]:
    bounds = one.summary["win_rate"].get("interval")
    return _number(one, "win_rate", "rate"), None if bounds is None else (bounds[0], bounds[1])


def _judge(one: JudgeSource) -> str:
    how = one.summary.get("verdict_format")
    name = one.summary.get("judge") or "an unnamed judge"
    return name + (", choosing between two words" if how == "choices" else "")


def _outcomes(one: JudgeSource) -> tuple[str, ...]:
    return (one.name, *(formatting.count(_number(one, "pairs", name)) for name in ("a", "b", "tie", "unparsed")))


def _trust(one: JudgeSource) -> tuple[str, ...]:
    shares = [_number(one, *names) for names in (("agreement", "rate"), ("position", "first_rate"), ("longer", "rate"))]
    kappa = formatting.decimal(_number(one, "agreement", "kappa"))
    return (one.name, formatting.share(shares[0]), kappa, formatting.share(shares[1]), formatting.share(shares[2]))


def _kinds(one: JudgeSource) -> list[tuple[str, ...]]:
    ties = [(words, _number(one, "ties", name)) for name, words in _TIES.items()]
    missing = [(f"no verdict: {reason}", _number(one, "unparsed", reason)) for reason in one.summary["unparsed"]]
    return [(one.name, words, formatting.count(value)) for words, value in [*ties, *missing] if value]


def judge_finding(one: JudgeSource) -> str:
    """Which side was preferred, and how surely."""
    rate, bounds = _win_rate(one)
    if rate is None or bounds is None:
        return f"{name_sides(one)}: no pair has a verdict."
    how = f"a's win rate is {formatting.share(rate)} ({formatting.interval(bounds)})"
    better = "a preferred" if bounds[0] > 0.5 else "b preferred" if bounds[1] < 0.5 else "neither preferred"
    return f"{name_sides(one)}: {how} by {_judge(one)}, {better}."


def judge_doubts(one: JudgeSource) -> list[str]:
    """Orders that disagree, a bias towards a position or length, and pairs without a verdict."""
    doubts: list[str] = []
    agreed, pairs = _number(one, "agreement", "rate"), one.summary["pairs"]
    if agreed is not None and agreed < _AGREED:
        doubts.append(f"{one.name}: the judge's two orders agree on {formatting.share(agreed)} of the pairs.")
    place = one.summary["position"]
    if place["p"] is not None and place["p"] < 0.05:
        rate, p = formatting.share(_number(one, "position", "first_rate")), formatting.p_value(place["p"])
        doubts.append(f"{one.name}: the judge picks what it is shown first in {rate} (p {p}, by the pairs that flip).")
    bounds = one.summary["longer"].get("interval")
    if bounds is not None and not bounds[0] <= 0.5 <= bounds[1]:
        rate = formatting.share(_number(one, "longer", "rate"))
        doubts.append(f"{one.name}: the judge prefers the longer trace in {rate} ({formatting.interval(bounds)}).")
    if pairs.get("unparsed"):
        doubts.append(f"{one.name}: pairs without a verdict: {formatting.count(pairs['unparsed'])}.")
    return doubts
