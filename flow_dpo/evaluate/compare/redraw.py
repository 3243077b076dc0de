"""Separate training problems for each seed: flags with which its trainings and traces use other problems.

    redrawn(DataSettings(dataset_name="seed", max_problems=1000), pool_problems=4000, seed=2)
    {"train": ["--data.skip_problems", "10000"], "pool": ["--data.skip_problems", "11000"]}

A data set is put in another order; training takes the first problems and the pool those after them. If problems are
generated as they are read (the embedded seed's), each seed has its own stretch; an arm that takes more
problems than that reaches into the next seed's.

Invariant: the training problems are not in the pool of the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flow_dpo.data.datasets import dataset
from flow_dpo.data.problems import DataSettings


def redrawn_data(data: DataSettings, pool_problems: int, seed: int) -> dict[str, DataSettings]:
    """A seed's training problems ("train") and pool ("pool")."""
    known, num_learned = dataset(data.dataset_name), data.max_problems or 0
    if known is not None and known.endless:
        first = data.skip_problems + seed * (num_learned + pool_problems)
        train = replace(data, skip_problems=first)
    else:
        train = replace(data, shuffle_seed=seed)
    return {
        "train": train,
        "pool": replace(train, skip_problems=train.skip_problems + num_learned, max_problems=pool_problems),
    }


def redrawn(data: DataSettings, pool_problems: int, seed: int) -> Mapping[str, Sequence[str]]:
    """The same as flags, where they differ from the settings files that all seeds share."""
    found = redrawn_data(data, pool_problems, seed)
    shared = {"train": data.skip_problems, "pool": data.skip_problems + (data.max_problems or 0)}
    flags: dict[str, list[str]] = {name: [] for name in found}
    for name, own in found.items():
        if own.skip_problems != shared[name]:
            flags[name] += ["--data.skip_problems", str(own.skip_problems)]
        if own.shuffle_seed != data.shuffle_seed:
            flags[name] += ["--data.shuffle_seed", str(own.shuffle_seed)]
    return flags
