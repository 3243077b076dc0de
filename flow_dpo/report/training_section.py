"""The section of one training run.

How accuracy went, where pairs came from, what Stop can tell apart, how the log-probabilities moved, what it cost, and
one tree. Invariant: each title states the result of the numbers below it, and where intervals overlap, that they do.
"""

from __future__ import annotations

from collections.abc import Sequence

from flow_dpo.report import formatting
from flow_dpo.report import rates as learning
from flow_dpo.report.document import Block, Figure, Fold, Paragraph, Section, Table
from flow_dpo.report.rates import to_series
from flow_dpo.report.sources import EvaluationSource, RunSource
from flow_dpo.report.stop_section import stop_section
from flow_dpo.report.timeline_section import timeline_section
from flow_dpo.report.tree_section import draw_outline, draw_tree
from flow_dpo.runs.charts import Level, Panel, Series, accuracy_series, draw
from flow_dpo.runs.trends import trend

_SEEN = "problems seen"


def run_section(run: RunSource, number: int, evaluations: Sequence[EvaluationSource]) -> tuple[Section, str]:
    """The section of a run, and its finding in one line. `number` keeps the ids of runs' figures distinct."""
    tag = f"run{number}"
    title = f"Training run {formatting.short(run.name)}"
    if not run.rows:
        words = "Interrupted, or still running, before its first batch was done: there is nothing to show yet."
        return Section(title=title, blocks=(Paragraph(text=words),)), f"{run.name}: interrupted before its first batch."
    progressive, finding = _progressive(run, tag, evaluations)
    sections = [progressive, _yields(run, tag)]
    sections += [stop_section(run, tag, role) for role in learning.choosing_roles(run.counts)]
    more = (_likelihoods(run, tag), _cost(run), timeline_section(run, tag), _tree(run, tag))
    sections += [section for section in more if section is not None]
    return Section(title=title, blocks=(Paragraph(text=_describe(run)),), sections=tuple(sections)), finding


def _describe(run: RunSource) -> str:
    data, method = (run.settings.get("data") or {}), run.settings.get("recipe", "flow-dpo")
    model = run.facts.get("model") or (run.settings.get("model") or {}).get("model_name_or_path", "an unnamed model")
    given = run.num_problems
    seen = f"{run.num_seen:,} problems"
    if given is not None and run.num_seen < given:
        seen = f"{run.num_seen:,} of {given:,} problems (interrupted, or still running)"
    updates = run.rows[-1].get("policy_version")
    ungraded = learning.ungraded(run.counts, learning.Part(start=0, end=run.num_seen))
    return (
        f"{method} on {model}, data {data.get('dataset_name', 'unknown')}/{data.get('dataset_split', 'unknown')}: "
        f"{seen}, {formatting.count(updates)} updates before the last batch, {ungraded} trunk rollouts that could not "
        "be graded."
    )


def _progressive(run: RunSource, tag: str, evaluations: Sequence[EvaluationSource]) -> tuple[Section, str]:
    quarters = learning.quarters(run.num_seen)
    rates = [learning.accuracy(run.counts, part) for part in quarters]
    finding = _rise(run.name, rates, len(quarters))
    lines = accuracy_series(run.rows)
    if len(lines) == 1:
        over = learning.parts(run.num_seen)
        each = [learning.accuracy(run.counts, part) for part in over]
        lines.insert(0, to_series(f"each {over[0].end} problems", [part.end for part in over], each))
    beside = [evaluation for evaluation in evaluations if _comparable(run, evaluation)]
    levels = [_level(evaluation) for evaluation in beside if evaluation.summary.get("accuracy") is not None]
    panel = Panel(y="accuracy (%)", lines=lines, levels=levels, bounds=(0, 100), marked=len(run.rows) < 12)
    alt = f"Accuracy in per cent over problems seen. {finding}"
    svg = draw(f"{tag}-progressive", [panel], x=_SEEN, alt=alt, height=3.6 + 0.2 * len(levels))
    caption = "Each problem is tried before anything is learned from it. Bands are 95 % Wilson intervals. "
    caption += "Dotted: evaluations of the same model without adapters." if levels else (
        "No evaluation of the untrained model was given to stand beside it."
    )  # fmt: skip
    window = run.rows[-1].get("progressive/window_problems") or 0
    named = [(part.name, part) for part in quarters] + [("all", learning.Part(start=0, end=run.num_seen))]
    named += [("last window", learning.Part(start=run.num_seen - int(window), end=run.num_seen))] if window else []
    table = Table(
        caption="Accuracy before learning; what could not be graded counts as not right",
        columns=("problems", "number", "accuracy", "95 % interval", "ungraded", "accuracy of the graded"),
        rows=tuple(_accuracy_row(run, name, part) for name, part in named),
    )
    figure = Figure(title=finding, svg=svg, caption=caption)
    return Section(title="Progressive validation", blocks=(figure, table)), finding


def _accuracy_row(run: RunSource, name: str, part: learning.Part) -> tuple[str, ...]:
    rate, ungraded = learning.accuracy(run.counts, part), learning.ungraded(run.counts, part)
    known = learning.Rate(hits=rate.hits, of=rate.of - ungraded)
    return (
        name, formatting.count(rate.of), formatting.share(rate.value), formatting.interval(rate.bounds),
        formatting.count(ungraded), formatting.share(known.value),
    )  # fmt: skip


def _rise(name: str, rates: Sequence[learning.Rate], num: int) -> str:
    first, last = rates[0], rates[-1]
    part = {1: "over all problems", 2: "half", 3: "third", 4: "quarter"}[num]
    if num == 1 or first.bounds is None or last.bounds is None:
        return f"{name}: accuracy is {formatting.share(first.value)} over {first.of} problems, too few for a trend."
    change = (
        f"from {formatting.share(first.value)} ({formatting.interval(first.bounds)}) in the first {part} of the "
        f"problems to {formatting.share(last.value)} ({formatting.interval(last.bounds)}) in the last"
    )
    if last.bounds[0] > first.bounds[1]:
        return f"{name}: accuracy rises {change}."
    if last.bounds[1] < first.bounds[0]:
        return f"{name}: accuracy falls {change}."
    return f"{name}: accuracy goes {change}; the intervals overlap, so no change is proved."


def _comparable(run: RunSource, evaluation: EvaluationSource) -> bool:
    model = run.facts.get("model")
    return (
        evaluation.untrained
        and not evaluation.fixed_set
        and (model is None or evaluation.summary.get("model") in (None, model))
    )


def _level(evaluation: EvaluationSource) -> Level:
    summary = evaluation.summary
    who = "single model" if evaluation.single else "untrained attempt" if evaluation.draws else "untrained flow"
    low, high = summary["interval"]
    greedy = (summary.get("decoding") or {}).get("greedy")
    how = "decoding unknown" if greedy is None else "greedy" if greedy else "sampled"
    label = f"{who}, {how}, {summary.get('dataset', evaluation.name)}"
    return Level(label=label, value=100 * summary["accuracy"], low=100 * low, high=100 * high)


def _yields(run: RunSource, tag: str) -> Section:
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
    finding = f"Share of {what} that gave an example: {shares}"
    panel = Panel(y=f"{unit} (%)", lines=lines, bounds=(0, None))
    alt = f"{unit} in per cent, by role, over problems seen. {finding}"
    figure = Figure(
        title=finding, svg=draw(f"{tag}-yield", [panel], x=_SEEN, alt=alt, height=3.2),
        caption=f"Bands are 95 % Wilson intervals. {why}",
    )  # fmt: skip
    blocks: list[Block] = [figure]
    thirds = learning.parts(run.num_seen, most=3)
    deep = {role: learning.depths(counts, role) for role in roles}
    panels = [
        Panel(
            y=f"{unit} (%)",
            title=role,
            bounds=(0, None),
            lines=[
                to_series(
                    f"problems {p.name}", deep[role], [learning.example_rate(counts, p, role, d) for d in deep[role]]
                )
                for p in thirds
            ],
        )
        for role in roles
        if deep[role]
    ]
    if any(len(deep[role]) > 1 for role in roles):
        alt = f"{unit} in per cent, by depth, for each role, early and late in the run."
        svg = draw(f"{tag}-depth", panels, x="depth (turns before)", alt=alt, height=3.1)
        blocks.append(Figure(title="The same by depth, early and late in the run", svg=svg))
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
    table = Table(caption=f"{unit}, by role and depth", columns=columns, rows=tuple(rows))
    blocks.append(Fold(title="All depths, as a table", blocks=(table,)))
    return Section(
        title="Where pairs come from" if not counts.singles else "Where examples come from", blocks=tuple(blocks)
    )


_YIELDS = {
    (False, False): (
        "trunk turns with a pair", "trunk turns",
        "A turn teaches where its rollout and the alternative's differ in correctness.",
    ),
    (True, False): (
        "scored turns", "turns of all rollouts",
        "A turn teaches where the rollouts of its problem differ in correctness.",
    ),
    (True, True): (
        "turns with an example", "turns of all rollouts",
        "A turn teaches by a pair where what it led to and what the alternative led to differ in correctness, or by "
        "itself, as Stop's do at candidates with a verdict.",
    ),
}  # fmt: skip
"""The unit, what it is a share of, and why a turn teaches: by whether the run learns from single completions, and from
both these and pairs."""


def _likelihoods(run: RunSource, tag: str) -> Section | None:
    roles = [role for role in learning.roles(run.counts) if any(f"learn/{role}/margin" in row for row in run.rows)]
    if not roles:
        return None
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
    alt = f"Margins, and log-probabilities of chosen and rejected completions, by role. {finding}"
    svg = draw(f"{tag}-margins", panels, x=_SEEN, alt=alt, height=3.0)
    figure = Figure(
        title=finding, svg=svg,
        caption="Means over a batch's pairs; log-probabilities are sums over a completion's tokens. Chosen ones that "
        "fall while the margin grows are a warning: the model unlearns both.",
    )  # fmt: skip
    columns = ("role", "margin", "chosen log-probability", "rejected log-probability")
    table = Table(caption="First third of the pairs to the last, nats", columns=columns, rows=tuple(margins))
    return Section(title="Margins and log-probabilities", blocks=(figure, table))


def _ends(values: Sequence[float | None], weights: Sequence[float | None]) -> str:
    """From where to where a mean over pairs went, and whether that can be told from noise."""
    found = trend(values, weights)
    if found is None:
        return formatting.NOTHING
    ends = f"{formatting.decimal(found.first)} to {formatting.decimal(found.last)}"
    if found.low is None:
        return f"{ends} ({found.num} batches: too few to tell a change)"
    return ends if found.is_told else f"{ends} (no change can be told)"


def _cost(run: RunSource) -> Section:
    def total(*names: str) -> float | None:
        found = [row[name] for row in run.rows for name in names if row.get(name) is not None]
        return sum(found) if found else None

    def learned(name: str) -> float | None:
        return total(*(f"learn/{role}/{name}" for role in learning.roles(run.counts)))

    sampled, kept = total("rollout/sampled_tokens"), total("rollout/tokens")
    shared, unshared = learned("tokens"), learned("unshared_tokens")
    rows: list[tuple[str, str]] = [
        ("tokens in the rollouts, shared ones once", formatting.count(kept)),
        ("tokens sampled by the engine", formatting.count(sampled)),
        ("rollouts", formatting.count(total("num_rollouts"))),
        ("examples that the rollouts gave", formatting.count(sum(run.counts.num_examples.values()))),
        ("tokens learned, what examples share counted once", formatting.count(shared)),
        ("the same, example by example", formatting.count(unshared)),
        ("updates", formatting.count(total("learn/updates"))),
    ]
    rows += [(f"{name} time", formatting.seconds(total(f"{key}/seconds"))) for name, key in
             (("rollout", "rollout"), ("grading", "grade"), ("learning", "learn"))]  # fmt: skip
    table = Table(caption="Cost of the whole run", columns=("", "sum"), rows=tuple(rows))
    return Section(title="Cost", blocks=(table,))


def _tree(run: RunSource, tag: str) -> Section | None:
    if run.counts.drawn is None:
        return None
    tree, examples = run.counts.drawn
    problem = tree.problem
    words = (
        f"The problem {problem.id}. The trunk stands from top to bottom; below a turn stand the rollouts with "
        "another completion in its place. Unless it was requested by name, it was picked to show what each role learns "
        "from: not a typical tree."
    )
    return Section(
        title="One tree",
        blocks=(Paragraph(text=words), draw_outline(f"{tag}-tree", tree, examples), draw_tree(tree, examples)),
    )
