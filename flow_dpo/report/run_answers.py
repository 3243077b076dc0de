"""What a run answers first: did it learn, how surely, at what price, and what to distrust.

    Accuracy rose by 22.7 points (95 %: +13.6 to +31.6): 71.1 % of the first quarter's 128 problems, 93.8 % of the
    last's 128.

Invariant: every sentence has a number from the run's files, and each verdict rests on an interval that excludes zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from flow_dpo.report import formatting
from flow_dpo.report import rates as learning
from flow_dpo.report.budgets import is_spent
from flow_dpo.report.document import Answers
from flow_dpo.report.rates import Part, Rate
from flow_dpo.report.sources import RunSource
from flow_dpo.report.training_section import costs
from flow_dpo.runs.callbacks.collapse_warnings import collapsed, fallen
from flow_dpo.runs.trends import trend

_PARTS = {2: "half", 3: "third", 4: "quarter"}
_DRIFTED = 0.5
"""Drift is reported from this share of the limit at which a run stops."""


def run_answers(run: RunSource) -> Answers:
    """The four answers of a run."""
    if not run.rows:
        given = formatting.count(run.num_problems)
        return Answers(distrust=(f"Interrupted, or still running, before its first batch: 0 of {given} problems.",))
    return Answers(
        learned=(*_reward(run), _learned(run)), surely=_surely(run), price=(_price(run),), distrust=tuple(doubts(run))
    )  # fmt: skip


def _ends(run: RunSource) -> tuple[Rate, Rate, str]:
    """Accuracy in the first and the last part, and what such a part is called; "" if there is only one."""
    parts = learning.quarters(run.num_seen)
    first, last = (learning.accuracy(run.counts, part) for part in (parts[0], parts[-1]))
    return first, last, _PARTS.get(len(parts), "")


def _learned(run: RunSource) -> str:
    first, last, part = _ends(run)
    gap = learning.change(first, last)
    if not part or gap.value is None or gap.bounds is None:
        return (
            f"Accuracy is {formatting.share(first.value)} over {first.of:,} problems: too few to compare the first "
            "with the last."
        )
    low, high = gap.bounds
    between = f"95 %: {formatting.points_interval(low, high)}"
    ends = (
        f"{formatting.share(first.value)} of the first {part}'s {first.of:,} problems, "
        f"{formatting.share(last.value)} of the last's {last.of:,}."
    )
    if low > 0 or high < 0:
        verb, size = ("rose", gap.value) if low > 0 else ("fell", -gap.value)
        return f"Accuracy {verb} by {100 * size:.1f} points ({between}): {ends}"
    return f"No significant change of accuracy: {formatting.points(gap.value)} points ({between}); {ends}"


def _functions(run: RunSource) -> list[str]:
    """The reward functions that graded; empty if the verifier did."""
    names = {name: None for row in run.rows for name in row if name.startswith("rewards/") and name.endswith("/mean")}
    found = [name.removeprefix("rewards/").removesuffix("/mean") for name in names]
    return [] if found == ["answer"] else found


def _reward(run: RunSource) -> list[str]:
    """What the reward functions gave, which is not the accuracy."""
    found = trend([row.get("reward") for row in run.rows]) if _functions(run) else None
    if found is None:
        return []
    ends = f"{formatting.decimal(found.first)} in the first third of the batches, {formatting.decimal(found.last)} in"
    if found.low is None or found.high is None:
        return [f"Mean reward: {ends} the last; too few batches to detect a change."]
    between = f"95 %: {found.low:+.2f} to {found.high:+.2f}"
    if not found.is_told:
        return [f"No significant change of the mean reward ({between}): {ends} the last."]
    verb = "rose" if found.last > found.first else "fell"
    return [f"The mean reward {verb} by {abs(found.last - found.first):.2f} ({between}): {ends} the last."]


def _graded_by(run: RunSource) -> str:
    names = _functions(run)
    if not names:
        return ""
    least = _setting(run, "grading", "correct_from")
    known = f" {least:g}" if isinstance(least, (int, float)) else " a threshold"
    return f"Not graded by the verifier alone: right means a reward of{known} or more by {', '.join(names)}."


def _setting(run: RunSource, group: str, name: str) -> object:
    """A setting of the run; None if config.yaml does not have it."""
    found = run.settings.get(group)
    return found.get(name) if isinstance(found, dict) else None


def _surely(run: RunSource) -> tuple[str, ...]:
    first, last, part = _ends(run)
    greedy = _setting(run, "explore", "greedy_trunk")
    how = f"; each problem was tried{'' if greedy else ', by sampling,'} before it was learned from"
    found = (
        f"First {part} {formatting.interval(first.bounds)}, last {part} {formatting.interval(last.bounds)} (95 %){how}."
        if part
        else f"{formatting.interval(first.bounds)} (95 %){how}."
    )
    seed = _setting(run, "run", "seed")
    named = "" if seed is None else f" ({seed})"
    return found, f"1 seed{named}: results of other seeds are unknown."


def _price(run: RunSource) -> str:
    spent = costs(run)
    seconds = [spent[f"{name}/seconds"] for name in ("rollout", "grade", "learn")]
    known = [value for value in seconds if value is not None]
    parts = [
        f"{formatting.count(spent[name])} {words}"
        for name, words in (
            ("rollout/sampled_tokens", "tokens sampled"), ("tokens", "tokens learned"), ("num_verdicts", "verdicts"),
            ("learn/updates", "updates"),
        )
        if spent[name] is not None
    ]  # fmt: skip
    sampled, learned = formatting.seconds(seconds[0]), formatting.seconds(seconds[2])
    time = f"{formatting.seconds(sum(known))} ({sampled} sampling, {learned} learning)" if known else ""
    return "; ".join(filter(None, (", ".join(parts), time))) + "."


# ---- reasons for distrust --------------------------------------------------------------------------------------------


def doubts(run: RunSource) -> list[str]:
    """Everything in the run's files that is a reason for distrust."""
    found = [
        _incomplete(run), *_learned_nothing(run), _graded_by(run), _order(run), _ungraded(run), _cut(run), _steps(run),
        *_likelihoods(run), *_choosing(run), *_drift(run), _skipped_rows(run),
    ]  # fmt: skip
    return [words for words in found if words]


def _incomplete(run: RunSource) -> str:
    given = run.num_problems
    if given is None or run.num_seen >= given or is_spent(run.settings, _spent(run)):
        return ""
    return f"Interrupted, or still running: {run.num_seen:,} of {given:,} problems."


def _spent(run: RunSource) -> dict[str, float]:
    """What the run has used of everything that a budget can limit."""
    used = costs(run)
    tokens = (used["rollout/sampled_tokens"] or 0) + (used["tokens"] or 0)
    return {"tokens": tokens, "verdicts": used["num_verdicts"] or 0, "updates": used["learn/updates"] or 0}


def _learned_nothing(run: RunSource) -> list[str]:
    spent = costs(run)
    found: list[str] = []
    if spent["learn/updates"] == 0:
        found.append(f"No update in {len(run.rows):,} batches: nothing was learned.")
    if spent["learn/skipped"]:
        found.append(
            f"{formatting.count(spent['learn/skipped'])} batches were dropped: their loss or gradient was not finite."
        )
    return found


def _order(run: RunSource) -> str:
    """For a data set that was not shuffled; the seed's problems are drawn at random."""
    name = _setting(run, "data", "dataset_name")
    part = _ends(run)[2]
    if not part or name in (None, "seed") or _setting(run, "data", "shuffle_seed") is not None:
        return ""
    return f"Problems came in the data set's own order: the first and the last {part} can differ in difficulty."


def _whole(run: RunSource) -> Part:
    return Part(start=0, end=run.num_seen)


def _ungraded(run: RunSource) -> str:
    number, rate = learning.ungraded(run.counts, _whole(run)), learning.accuracy(run.counts, _whole(run))
    if not number:
        return ""
    known = Rate(hits=rate.hits, of=rate.of - number)
    return (
        f"{number:,} of {rate.of:,} answers ({formatting.share(number / rate.of)}) could not be graded and count as "
        f"not right; of the graded ones {formatting.share(known.value)} are right."
    )


def _cut(run: RunSource) -> str:
    rate = learning.cut(run.counts, _whole(run))
    if not rate.hits:
        return ""
    return f"{rate.hits:,} of {rate.of:,} answers ({formatting.share(rate.value)}) were cut off by a limit."


def _steps(run: RunSource) -> str:
    parts = learning.quarters(run.num_seen)
    rate = learning.wrong_steps(run.counts, parts[-1])
    if not rate.hits:
        return ""
    where = f" in the last {_PARTS[len(parts)]}" if len(parts) in _PARTS else ""
    return (
        f"Right answers with a wrong step{where}: {rate.hits:,} of the {rate.of:,} whose steps could be checked "
        f"({formatting.share(rate.value)}, {formatting.interval(rate.bounds)})."
    )


def _likelihoods(run: RunSource) -> list[str]:
    return [
        f"{role}: chosen completions lost {-ratio:.1f} nats against the reference while the margin grew to "
        f"{margin:.1f}: the model unlearns both sides."
        for role in learning.roles(run.counts)
        if (found := fallen(run.rows, role)) is not None
        for ratio, margin in [found]
    ]


def _choosing(run: RunSource) -> list[str]:
    """For roles that choose: one word for everything, more Yes to wrong answers, right and wrong separated less."""
    found: list[str] = []
    parts = learning.quarters(run.num_seen)
    first, last, ends = parts[0], parts[-1], _PARTS.get(len(parts), "")
    for role in learning.choosing_roles(run.counts):
        rate = collapsed([one.prefers_yes for one in run.counts.choice_pairs if one.role == role])
        if rate is not None:
            found.append(
                f"{role}: {100 * rate:.0f} % of its last pairs prefer Yes, which pushes it to one word for everything."
            )
        if not ends:
            continue
        before, after = (learning.yes_rate(run.counts, part, role, "wrong") for part in (first, last))
        gap = learning.change(before, after)
        if gap.bounds is not None and gap.bounds[0] > 0:
            found.append(
                f"{role} says Yes to more of the finished wrong answers: {formatting.share(before.value)} of "
                f"{before.of} in the first {ends}, {formatting.share(after.value)} of {after.of} in the last "
                f"({formatting.points_interval(*gap.bounds)} points)."
            )
        areas = [learning.right_over_wrong(run.counts, part, role) for part in (first, last)]
        bounds = [area.bounds for area in areas if area.bounds is not None]
        if len(bounds) == 2 and bounds[1][1] < bounds[0][0]:
            found.append(
                f"{role} separates right from wrong less well: area {formatting.band(areas[0].value, bounds[0])} in "
                f"the first {ends}, {formatting.band(areas[1].value, bounds[1])} in the last, on other candidates."
            )
    return found


def _drift(run: RunSource) -> list[str]:
    limit = _setting(run, "learner", "max_logprob_drift")
    if not isinstance(limit, (int, float)):
        return []
    found: list[str] = []
    for role in learning.roles(run.counts):
        drifts = [row[name] for row in run.rows if (name := f"learn/{role}/logprob_drift") in row]
        if drifts and max(drifts) > _DRIFTED * limit:
            found.append(
                f"{role}: sampling and learning disagreed by up to {max(drifts):.3f} nats per token (mean over a "
                f"batch); a run stops at {limit:g}."
            )
    return found


def _skipped_rows(run: RunSource) -> str:
    number = run.facts.get("num_skipped_rows")
    return (
        f"{number:,} rows of the data set were left out: they are not valid problems."
        if isinstance(number, int) and number
        else ""
    )


# ---- several runs ----------------------------------------------------------------------------------------------------


def over_seeds(runs: Sequence[RunSource]) -> Answers:
    """What runs that differ only in their seed show together, and how many runs have no such counterpart."""
    from flow_dpo.evaluate.statistics import mean_of  # loads scipy

    groups: dict[str, dict[object, RunSource]] = {}
    for run in runs:
        if run.rows and _ends(run)[2]:
            groups.setdefault(_kind(run), {}).setdefault(_setting(run, "run", "seed"), run)
    several = [[*group.values()] for group in groups.values() if len(group) > 1]
    told: list[str] = []
    for group in several:
        gaps = [learning.change(*_ends(run)[:2]).value or 0.0 for run in group]
        found = mean_of(gaps)
        between = f"{formatting.points_interval(found['low'], found['high'])}, 95 % t-interval"
        if found["low"] > 0 or found["high"] < 0:
            verb, size = ("rose", found["mean"]) if found["low"] > 0 else ("fell", -found["mean"])
            change = f"Over {len(group)} seeds accuracy {verb} by {100 * size:.1f} points ({between})"
        else:
            change = (
                f"Over {len(group)} seeds no significant change of accuracy: {formatting.points(found['mean'])} points"
            )
            change += f" ({between})"
        told.append(f"{change} from the first part to the last: {', '.join(run.name for run in group)}.")
    single = len(runs) - sum(len(group) for group in several)
    sizes = ", ".join(f"{len(group)} seeds of one setting" for group in several)
    surely = (
        [f"{sizes}: an interval over seeds is about other seeds, each run's own about other problems."] if sizes else []
    )
    surely += [f"1 seed in {single} of {len(runs)} runs: results of other seeds are unknown."] if single else []
    return Answers(learned=tuple(told), surely=tuple(surely))


_NO_KIND = (
    "seed", "output_dir", "tracking", "resume", "allow", "reuse_sampled", "save_updates", "checkpoint_batches",
)  # fmt: skip


def _kind(run: RunSource) -> str:
    """A run's settings without its seed, its folder and whatever else changes no result: tracking, resuming,
    saving."""
    own = {key: value for key, value in (run.settings.get("run") or {}).items() if key not in _NO_KIND}
    return repr({**run.settings, "run": own})
