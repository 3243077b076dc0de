"""Problems from a trainer's data: a name, problems or rows, and the share of them that `num_train_epochs` takes.

    problems([{"prompt": [{"role": "user", "content": "2 + 3 = ?"}], "solution": "5"}], DataSettings())
    -> ProblemSet of Problem(id="given/0", question="2 + 3 = ?", gold="5")

Invariant: rows are read as everywhere else (`data.rows`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.data.problems import DataSettings, ProblemSet, load, load_problems
from flow_dpo.data.rows import problems_from


def problems(
    data: Any, settings: DataSettings, *, share: float | None = None, columns: bool = False
) -> ProblemSet | None:
    """The problems of `data`, chosen and shuffled by the settings; None for a named data set without a `share`, which
    is loaded later. `share` takes that fraction of the problems.

    Raises `ConfigError` and `DataError` as `problems_from` does.
    """
    if isinstance(data, str):
        if share is None or share == 1:
            return None
        settings = replace(settings, dataset_name=data)
        chosen = load(settings, columns=columns)
        if data == "seed" and settings.max_problems is None:
            raise ConfigError(f"expected max_problems with num_train_epochs={share}, since {data!r} has no end")
    else:
        chosen = problems_from(data, settings, columns=columns)
    if share is None or share == 1:
        return chosen
    wanted = max(round(share * len(chosen)), 1)
    return load_problems(chosen.problems, max_problems=wanted, columns=columns)
