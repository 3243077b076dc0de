"""Win rates from a judge's verdicts on two sets of traces, with intervals, agreement and position bias.

Each pair was judged in both orders. With a > b for "trace a is preferred":

    a > b, a > b   a wins                 a > b, b > a   flipped with the order: a tie
    tie,   tie     a tie                  a > b, tie     preferred in one order only: a tie
    a > b, (no verdict)   unparsed: the pair enters no rate, and is counted

Invariant: every pair is counted once, as a win of a, a win of b, a tie, or unparsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.judge.protocol import JudgeQuestion, TracePair
from flow_dpo.evaluate.statistics import agreement, share, sign_test
from flow_dpo.runs import files
from flow_dpo.runs.records import Judgement, iter_rows

ROWS = "judgements.jsonl"
Key = tuple[str, str, str]


def read_judgements(path: Path, questions: Sequence[JudgeQuestion]) -> dict[Key, Judgement]:
    """The judgements of a file by problem and order. A torn last line is cut off, so rows can be added. Raises
    `DataError` for a row that answers none of the questions, or one that was already answered."""
    if not path.exists():
        return {}
    files.cut_torn(path)
    known = {one.key for one in questions}
    found: dict[Key, Judgement] = {}
    for number, row in iter_rows(path, Judgement):
        key = (row.dataset, row.problem_id, row.first)
        if key not in known or key in found:
            raise DataError(
                f"{path}, line {number}: expected a judgement of one of the compared pairs and orders, each once, "
                f"found {'a second one' if key in found else 'another'} ({key!r:.200}); judge again in another "
                "--output_dir"
            )
        found[key] = row
    return found


def summarise(pairs: Sequence[TracePair], rows: Mapping[Key, Judgement]) -> dict[str, Any]:
    """All counts, the win rate of side a with its intervals, the agreement of the two orders, and the position bias.

    Intervals are Wilson's, 95 %. Ties count as half a win in `win_rate` and are left out of `decided`, whose `p` is
    from the two-sided sign test. `kappa` is Cohen's, with the two orders as raters that choose a, b or tie.
    """
    outcomes: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    both: list[tuple[str, str]] = []
    decided: list[tuple[TracePair, str]] = []
    for pair in pairs:
        preferences = [rows[(*pair.key, first)].preferred for first in ("a", "b")] if not pair.identical else []
        outcome, kind = _outcome(preferences)
        outcomes[outcome] += 1
        if kind:
            ties[kind] += 1
        if preferences and preferences[0] is not None and preferences[1] is not None:
            both.append((preferences[0], preferences[1]))
        if outcome in ("a", "b"):
            decided.append((pair, outcome))
    return {
        "num_pairs": len(pairs),
        "num_judgements": len(rows),
        "pairs": {name: outcomes[name] for name in ("a", "b", "tie", "unparsed")},
        "ties": {name: ties[name] for name in ("identical", "both_orders", "flipped", "one_order")},
        "unparsed": dict(sorted(Counter(row.reason for row in rows.values() if row.preferred is None).items())),
        "win_rate": share(outcomes["a"] + outcomes["tie"] / 2, outcomes["a"] + outcomes["b"] + outcomes["tie"]),
        "decided": sign_test(outcomes["a"], outcomes["b"]),
        "agreement": agreement(both),
        "position": _position(rows.values(), both),
        "log_odds": _log_odds(pairs, rows),
        "longer": _longer(decided),
        "tokens": sum(row.tokens for row in rows.values()),
    }


def _outcome(preferences: Sequence[str | None]) -> tuple[str, str]:
    """The outcome of a pair, and the kind of tie; `preferences` is empty if the traces are equal."""
    if not preferences:
        return "tie", "identical"
    if None in preferences:
        return "unparsed", ""
    one, other = preferences
    if one == other:
        return ("tie", "both_orders") if one == "tie" else (str(one), "")
    return "tie", "one_order" if "tie" in preferences else "flipped"


def _position(rows: Iterable[Judgement], both: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The share of picks that took the solution shown first; an unbiased judge takes half. A pair whose verdict does
    not flip picks each position once, so only flips count: `p` is from the sign test on them."""
    picks = [row.verdict for row in rows if row.verdict in ("A", "B")]
    first, second = both.count(("a", "b")), both.count(("b", "a"))
    tested = sign_test(first, second)
    return {
        "first_rate": picks.count("A") / len(picks) if picks else None,
        "num_picks": len(picks),
        "flipped_to_first": first,
        "flipped_to_second": second,
        "p": tested["p"],
    }


def _log_odds(pairs: Sequence[TracePair], rows: Mapping[Key, Judgement]) -> dict[str, Any] | None:
    """For a judge that chose between two words: its log-odds for a over b in nats, averaged over the two orders, which
    cancels a position bias. `rate` is the share of pairs in which they favour a. None if the judge wrote text."""
    for_a: list[float] = []
    places: list[float] = []
    for pair in pairs:
        odds = [rows[(*pair.key, first)].log_odds if not pair.identical else None for first in ("a", "b")]
        if odds[0] is not None and odds[1] is not None:
            for_a.append((odds[0] - odds[1]) / 2)
            places.append((odds[0] + odds[1]) / 2)
    if not for_a:
        return None
    favoured = sum(value > 0 for value in for_a) + sum(value == 0 for value in for_a) / 2
    means = {"mean_for_a": sum(for_a) / len(for_a), "mean_for_first": sum(places) / len(places)}
    return means | share(favoured, len(for_a))


def _longer(decided: Sequence[tuple[TracePair, str]]) -> dict[str, Any]:
    """How often the longer trace (in characters) won, over decided pairs with traces of different lengths."""
    lengths = [(len(p.a.solution.strip()), len(p.b.solution.strip()), name) for p, name in decided]
    won = [(a > b) == (name == "a") for a, b, name in lengths if a != b]
    return share(sum(won), len(won))
