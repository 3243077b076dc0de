"""Data sets by name: where their problems come from, and how the steps of a solution to them are checked.

    register_dataset("apples", lambda split: my_problems(split))                   --dataset_name apples
    register_dataset("gsm8k", check_steps=my_checker)      problems from a file or the hub, steps by this checker

The embedded seed is one of them. A data set without a checker has its steps checked by the equations that they state
(`evaluate.step_validity`). Invariant: a name is registered once, and a checker is used on its own data set alone; the
name of a data set is what stands before the last "/" of a problem's `source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem
from flow_dpo.data.checked_steps import CheckedSolution

Loader = Callable[[str], Iterable[Problem]]
"""The problems of a split, in their order."""

StepChecker = Callable[[Problem, str], CheckedSolution | None]
"""Checks a solution's text by its problem; None where the problem is not one that it knows."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A registered data set: its problems and its step checker."""

    load: Loader | None = None
    """None where the name is a file, a folder or a hub id."""
    endless: bool = False
    """The split has no end: 1,000 problems are taken where no number is given."""
    check_steps: StepChecker | None = None


_REGISTERED: dict[str, DataSet] = {}


def register_dataset(name: str, load: Loader | None = None, *, check_steps: StepChecker | None = None) -> None:
    """Make a data set known by name in this process. Raises `DataError` for a name that is taken."""
    if dataset(name) is not None:
        raise DataError(f"expected a new name for a data set, found {name!r}, which is registered; choose another")
    _REGISTERED[name] = DataSet(load=load, check_steps=check_steps)


def dataset(name: str) -> DataSet | None:
    """The data set that is registered by this name; None where there is none."""
    if name == "seed":
        from flow_dpo.data.seed import check_steps, iter_seed_problems

        return DataSet(load=iter_seed_problems, endless=True, check_steps=check_steps)
    return _REGISTERED.get(name)


def dataset_names() -> list[str]:
    """The names that are registered."""
    return ["seed", *_REGISTERED]


def checked_by_data_set(problem: Problem, text: str) -> CheckedSolution | None:
    """Result of the step checker of a problem's own data set; None where it has none, or does not know the problem."""
    known = dataset(problem.source.rpartition("/")[0])
    return None if known is None or known.check_steps is None else known.check_steps(problem, text)
