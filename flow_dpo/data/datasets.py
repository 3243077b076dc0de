"""Data sets by name: where their problems come from, and how the steps of their solutions are checked.

    register_dataset("apples", lambda split: my_problems(split))                   --dataset_name apples
    register_dataset("gsm8k", check_steps=my_checker)      problems from a file or the hub, steps by this checker

The embedded seed is one of them. Without a checker, steps are checked by the equations that they state
(`evaluate.step_validity`). Invariants: a name is registered once; a checker is used only on its own data set. A
problem's data set is named by its `source`, up to the last "/".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem
from flow_dpo.data.checked_steps import CheckedSolution

Loader = Callable[[str], Iterable[Problem]]
"""Returns the problems of a split, in order."""

StepChecker = Callable[[Problem, str], CheckedSolution | None]
"""Checks the text of a problem's solution; returns None for a problem that it does not know."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A registered data set: its problems and its step checker."""

    load: Loader | None = None
    """None if the name is a file, a folder or a hub id."""
    endless: bool = False
    """The split has no end: without a given number, 1,000 problems are taken."""
    check_steps: StepChecker | None = None


_REGISTERED: dict[str, DataSet] = {}


def register_dataset(name: str, load: Loader | None = None, *, check_steps: StepChecker | None = None) -> None:
    """Register a data set by name in this process. Raises `DataError` for a name that is taken."""
    if dataset(name) is not None:
        raise DataError(f"expected a new name for a data set, found {name!r}, which is taken; choose another")
    _REGISTERED[name] = DataSet(load=load, check_steps=check_steps)


def dataset(name: str) -> DataSet | None:
    """The data set registered under this name; None if there is none."""
    if name == "seed":
        from flow_dpo.data.seed import check_steps, iter_seed_problems

        return DataSet(load=iter_seed_problems, endless=True, check_steps=check_steps)
    return _REGISTERED.get(name)


def dataset_names() -> list[str]:
    """The names of all registered data sets."""
    return ["seed", *_REGISTERED]


def checked_by_data_set(problem: Problem, text: str) -> CheckedSolution | None:
    """The result of the data set's own step checker; None if it has none, or does not know the problem."""
    known = dataset(problem.source.rpartition("/")[0])
    return None if known is None or known.check_steps is None else known.check_steps(problem, text)
