"""The section of one training run: accuracy over time, and, folded, the details that a reviewer asks for.

Shown is the accuracy with its table; folded are where examples came from, what Stop can separate, how log-probabilities
moved, what it cost, and who worked when. Invariant: no baseline is drawn under the curve. The run's problems are
sampled before they are learned from; an evaluation has other problems and often decodes greedily.
"""

from __future__ import annotations

from collections.abc import Sequence

from flow_dpo.report import formatting
from flow_dpo.report import rates as learning
from flow_dpo.report.document import Block, Chart, Effect, Fold, Forest, Paragraph, Section, Table
from flow_dpo.report.rates import to_series
from flow_dpo.report.sources import RunSource
from flow_dpo.report.stop_section import stop_blocks
from flow_dpo.report.timeline_section import timeline_blocks
from flow_dpo.runs.charts import Panel, Series, accuracy_series
from flow_dpo.runs.trends import trend

_SEEN = "problems seen"


def run_section(run: RunSource, looks: Sequence[Block] = ()) -> Section:
    """The section of a run; `looks` are links to its solutions."""
    title = f"Training run {run.name}"
    if not run.rows:
        words = "Interrupted, or still running, before its first batch was done: there is nothing to show yet."
        return Section(title=title, blocks=(Paragraph(text=words),))
    folds: list[tuple[str, list[Block]]] = [
        ("Where pairs come from" if not run.counts.singles else "Where examples come from", _yields(run)),
        *((f"What {role} can separate", stop_blocks(run, role)) for role in learning.choosing_roles(run.counts)),
        ("Margins and log-probabilities", _likelihoods(run)),
        ("Cost", [_cost(run)]),
        ("Workers and learner over time", timeline_blocks(run)),
    ]
    made = [Fold(title=name, blocks=tuple(blocks)) for name, blocks in folds if blocks]
    return Section(title=title, blocks=(Paragraph(text=_describe(run)), *_progressive(run), *looks, *made))


def _describe(run: RunSource) -> str:
    data, method = (run.settings.get("data") or {}), run.settings.get("recipe", "flow-dpo")
    model = run.facts.get("model") or (run.settings.get("model") or {}).get("model_name_or_path", "an unnamed model")
    updates = run.rows[-1].get("policy_version")
    return (
        f"{method} on {model}, data {data.get('dataset_name', 'unknown')}/{data.get('dataset_split', 'unknown')}: "
        f"{run.num_seen:,} problems, {formatting.count(updates)} updates before the last batch."
    )


def _progressive(run: RunSource) -> list[Block]:
    # The last window; for a run hardly longer than one window, parts that do not overlap.
    line, *shorter = accuracy_series(run.rows)
    if not shorter:
        over = learning.parts(run.num_seen)
        each = [learning.accuracy(run.counts, part) for part in over]
        line = to_series(f"each {over[0].end} problems", [part.end for part in over], each)
    window = int(run.rows[-1].get("progressive/window_problems") or 0)
    named = [(part.name, part) for part in learning.quarters(run.num_seen)]
    named += [("all", learning.Part(start=0, end=run.num_seen))]
    named += [("last window", learning.Part(start=run.num_seen - window, end=run.num_seen))] if window else []
    return [
        Chart(
            title="Accuracy on each problem before learning from it",
            panels=(Panel(y=f"accuracy (%), {line.label}", lines=[line], bounds=(0, 100)),),
            x=_SEEN,
            note="The band is the 95 % Wilson interval. Evaluations are not drawn here: they have other problems and "
            "often another decoding than this run's sampling.",
        ),
        Forest(
            caption="Accuracy before learning", groups=(("problems", tuple(_accuracy(run, *one) for one in named)),),
            columns=("accuracy", "95 % interval", "problems"), unit="per cent right", reference=None,
        ),
    ]  # fmt: skip


def _accuracy(run: RunSource, name: str, part: learning.Part) -> Effect:
    rate, ungraded = learning.accuracy(run.counts, part), learning.ungraded(run.counts, part)
    known = learning.Rate(hits=rate.hits, of=rate.of - ungraded)
    low, high = rate.bounds or (0.0, 1.0)
    return Effect(
        label=name, mean=None if rate.value is None else 100 * rate.value, inner=(100 * low, 100 * high),
        cells=(formatting.share(rate.value), formatting.interval(rate.bounds), formatting.count(rate.of)),
        note=f"{ungraded:,} ungraded; {formatting.share(known.value)} of the graded" if ungraded else "",
    )  # fmt: skip


def _yields(run: RunSource) -> list[Block]:
    counts, roles = run.counts, learning.roles(run.counts)
    unit, what, why = _YIELDS[counts.singles, counts.pairs and counts.singles]
    over = learning.parts(run.num_seen)
    lines = [
        to_series(role, [part.middle for part in over], [learning.example_rate(counts, part, role) for part in over])
        for role in roles
    ]
    whole = learning.Part(start=0, end=run.num_seen)
    overall = {role: learning.example_rate(counts, whole, role) for role in roles}
    shares = "; ".join(f"{role} {formatting.share(rate.value)} of {rate.of:,}" for role, rate in overall.items())
    chart = Chart(
        title=f"Share of {what} that gave an example: {shares}",
        panels=(Panel(y=f"{unit} (%)", lines=lines, bounds=(0, None)),), x=_SEEN,
        note=f"Bands are 95 % Wilson intervals. {why}",
    )  # fmt: skip
    thirds = learning.parts(run.num_seen, most=3)
    rows = [
        (
            role,
            str(depth),
            *(
                f"{formatting.share(r.value)} of {r.of}"
                for r in (learning.example_rate(counts, p, role, depth) for p in thirds)
            ),
        )
        for role in roles
        for depth in sorted({node.depth for node in counts.nodes if node.role == role})
    ]
    columns = ("role", "depth", *(f"problems {part.name}" for part in thirds))
    return [chart, Table(caption=f"{unit}, by role and depth", columns=columns, rows=tuple(rows))]


_YIELDS = {
    (False, False): (
        "trunk turns with a pair", "trunk turns",
        "A turn gives a pair if its rollout and the alternative's differ in correctness.",
    ),
    (True, False): (
        "scored turns", "turns of all rollouts",
        "A turn is learned from if the rollouts of its problem differ in correctness.",
    ),
    (True, True): (
        "turns with an example", "turns of all rollouts",
        "A turn gives a pair if its outcome and the alternative's differ in correctness; others, like Stop's at "
        "candidates with a verdict, are learned from on their own.",
    ),
}  # fmt: skip
"""The unit, the set that it is a share of, and when a turn is learned from. The keys: does the run learn from single
completions, and from both these and pairs?"""


def _likelihoods(run: RunSource) -> list[Block]:
    roles = [role for role in learning.roles(run.counts) if any(f"learn/{role}/margin" in row for row in run.rows)]
    if not roles:
        return []
    seen = [row["problems_seen"] for row in run.rows]

    def column(role: str, name: str) -> list[float | None]:
        return [row.get(f"learn/{role}/{name}") for row in run.rows]

    panels = [
        Panel(y="margin (nats)", lines=[Series(label=role, x=seen, y=column(role, "margin")) for role in roles],
              title="Margin of chosen over rejected, times beta", reference=0.0),
        *(Panel(y="log-probability (nats)", title=role, lines=[
            Series(label="chosen", x=seen, y=column(role, "chosen_logprobs")),
            Series(label="rejected", x=seen, y=column(role, "rejected_logprobs"))]) for role in roles),
    ]  # fmt: skip
    margins = [
        (role, *(_ends(column(role, name), [row.get(f"pairs/{role}", 1) for row in run.rows])
                 for name in ("margin", "chosen_logprobs", "rejected_logprobs")))
        for role in roles
    ]  # fmt: skip
    finding = "Margin from the first third of the pairs to the last: " + "; ".join(
        f"{role} {margin}" for role, margin, _, _ in margins
    )
    chart = Chart(
        title=finding, panels=tuple(panels), x=_SEEN,
        note="Means over a batch's pairs; log-probabilities are sums over a completion's tokens. Chosen ones that "
        "fall while the margin grows are a warning: the model unlearns both.",
    )  # fmt: skip
    columns = ("role", "margin", "chosen log-probability", "rejected log-probability")
    return [
        chart, Table(caption="First third of the pairs to the last, nats", columns=columns, rows=tuple(margins)),
    ]  # fmt: skip


def _ends(values: Sequence[float | None], weights: Sequence[float | None]) -> str:
    """A mean over pairs at both ends of the run, and whether the change stands out from noise."""
    found = trend(values, weights)
    if found is None:
        return formatting.NOTHING
    ends = f"{formatting.decimal(found.first)} to {formatting.decimal(found.last)}"
    if found.low is None:
        return f"{ends} ({found.num} batches: too few to detect a change)"
    return ends if found.is_told else f"{ends} (no clear change)"


def _cost(run: RunSource) -> Table:
    spent = costs(run)
    rows: list[tuple[str, str]] = [
        ("tokens in the rollouts, shared ones counted once", formatting.count(spent["rollout/tokens"])),
        ("tokens sampled by the engine", formatting.count(spent["rollout/sampled_tokens"])),
        ("rollouts", formatting.count(spent["num_rollouts"])),
        ("verdicts", formatting.count(spent["num_verdicts"])),
        ("examples from the rollouts", formatting.count(sum(run.counts.num_examples.values()))),
        ("tokens learned, those shared by examples counted once", formatting.count(spent["tokens"])),
        ("tokens learned, each example counted in full", formatting.count(spent["unshared_tokens"])),
        ("updates", formatting.count(spent["learn/updates"])),
    ]
    rows += [(f"{name} time", formatting.seconds(spent[f"{key}/seconds"])) for name, key in
             (("rollout", "rollout"), ("grading", "grade"), ("learning", "learn"))]  # fmt: skip
    return Table(caption="Cost of the whole run", columns=("", "sum"), rows=tuple(rows))


def costs(run: RunSource) -> dict[str, float | None]:
    """What a run spent, by column; learned tokens are summed over all roles. None if no row has the column."""

    def total(*names: str) -> float | None:
        found = [row[name] for row in run.rows for name in names if row.get(name) is not None]
        return sum(found) if found else None

    columns = (
        "rollout/sampled_tokens", "rollout/tokens", "num_rollouts", "num_verdicts", "learn/updates", "learn/skipped",
        "rollout/seconds", "grade/seconds", "learn/seconds",
    )  # fmt: skip
    roles = learning.roles(run.counts)
    learned = {name: total(*(f"learn/{role}/{name}" for role in roles)) for name in ("tokens", "unshared_tokens")}
    return {name: total(name) for name in columns} | learned
