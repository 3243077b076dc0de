"""Compute budget of a run, in tokens, verdicts or updates: the callback that counts them and ends the run.

Two methods are compared fairly if both may spend the same: tokens, verdicts or updates. A run with a budget ends when
everything that the budget names is spent, at the end of a batch of problems:

    tokens=1000            batch: 600 tokens   batch: 500 tokens   ends, with 1,100 spent
    tokens=1000 verdicts=9        5 verdicts          3 verdicts   continues: the verdicts are not spent yet

Invariant: spending is computed from the rows of metrics.jsonl alone, so a resumed run ends where it would have anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Problem


def spent(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Resources that the rows of metrics.jsonl used, by the names of a budget; `played` (sampled) and "learned" tokens
    add up to "tokens"."""
    total = {"tokens": 0, "verdicts": 0, "updates": 0, "played": 0, "learned": 0}
    for row in rows:
        learned = sum(int(value) for name, value in row.items() if name.startswith("learn/") and _is_tokens(name))
        sampled = int(row["rollout/sampled_tokens"])
        verdicts = int(row.get("num_verdicts", row["num_rollouts"]))  # older runs: one per rollout
        now = {"tokens": sampled + learned, "verdicts": verdicts, "updates": int(row["learn/updates"])}
        for name, value in {**now, "played": sampled, "learned": learned}.items():
            total[name] += value
    return total


def _is_tokens(name: str) -> bool:
    """Whether a measure is "learn/<role>/tokens"."""
    return name.count("/") == 2 and name.endswith("/tokens")


def is_empty(limits: Mapping[str, float], used: Mapping[str, float]) -> bool:
    """Whether everything that the limits name is spent; False if they name nothing."""
    return bool(limits) and all(used[name] >= limit for name, limit in limits.items())


class BudgetCallback:
    """A callback that counts what a run spends, and passes problems on until the budget is spent."""

    def __init__(
        self, *, tokens: int = 0, verdicts: int = 0, updates: int = 0, rows: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """A limit of 0 sets none. `rows` are those of the run so far, if it is resumed."""
        limits = {"tokens": tokens, "verdicts": verdicts, "updates": updates}
        self._limits = {name: limit for name, limit in limits.items() if limit}
        self._spent = spent(rows)

    @property
    def empty(self) -> bool:
        """Whether everything that the budget names is spent; False if it names nothing."""
        return is_empty(self._limits, self._spent)

    def on_batch(self, row: Mapping[str, Any], trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Count one batch."""
        for name, value in spent([row]).items():
            self._spent[name] += value

    def until_spent(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """The problems, until the budget is empty."""
        for problem in problems:
            if self.empty:
                return
            yield problem
