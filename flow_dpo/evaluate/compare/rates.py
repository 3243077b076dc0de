"""The learning rate of each training of a comparison, chosen on problems that are in no test and no training.

    OUT/rates/0.003/seed1000/grpo_same_tokens                                  trained at 3e-3, with a seed of its own
    OUT/rates/0.003/seed1000/evaluations/grpo_same_tokens/validation-greedy    its validation result

Every training is tried at every candidate rate. The rate with the highest mean accuracy is taken, over seeds and over
the decodings and arms that test the training itself: in one pass, or as its own flow. A training that no arm tests in
this way (only its traces are tested) keeps its preset's rate.

Invariant: the seeds and problems used for choosing rates are not used in the comparison, so no figure in it comes from
a run that was chosen for that figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flow_dpo.core.errors import ConfigError, DataError, LearningError
from flow_dpo.core.types import Problem
from flow_dpo.evaluate.compare.arms import Arm, Sizes
from flow_dpo.evaluate.compare.jobs import JobRunner
from flow_dpo.evaluate.compare.seed_results import path_of, read_seed, rewards_of
from flow_dpo.evaluate.compare.team_arms import PARTS

FOLDER = "rates"
VALIDATION = "validation"
"""The name of the problem set."""
Accuracies = Mapping[str, float]
"""By training."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One rate with one seed."""

    rate: float
    seed: int
    accuracies: Accuracies
    """On the validation problems, for every training that could be made."""
    failed: Mapping[str, str]
    """Why an arm could not be made, by its name: too few examples, or a loss that was not finite."""


def folder_of(path: Path, rate: float, seed: int) -> Path:
    """Where the trainings of a rate and a seed are in a comparison's folder."""
    return path / FOLDER / f"{rate:g}" / f"seed{seed}"


def validation_sizes(sizes: Sizes, *, sampled: bool) -> Sizes:
    """The arms' sizes with the validation problems as their only tests: greedy and, with `sampled`, one sample."""
    drawn = (f"{VALIDATION}/sampled",) if sampled else ()
    return replace(sizes, tests=(f"{VALIDATION}/greedy", *drawn), test_samples=1)


def try_rate(do: JobRunner, arms: Sequence[Arm], sizes: Sizes, rate: float) -> Tried:
    """Make every arm that tests a training itself; all trainings of `do` have this rate."""
    found: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for arm in arms:
        if arm.kind not in ("single", "flow") or arm.name in PARTS:  # others do not test one training by itself
            continue
        try:
            made = arm.make(do, sizes)
        except (DataError, LearningError) as error:
            failed[arm.name] = str(error)
            continue
        for evaluation in made.evaluations.values() if made.works else ():
            rewards = rewards_of(evaluation).values()
            found.setdefault(made.works[-1].name, []).append(fmean(value or 0.0 for value in rewards))
    means = {name: fmean(each) for name, each in found.items()}
    return Tried(rate=rate, seed=do.seed, accuracies=means, failed=failed)


def choose_rates(tried: Sequence[Tried]) -> dict[str, dict[str, Any]]:
    """By training: the `chosen` rate, and the accuracies `by_rate`, one per seed, None if it could not be made.

    A rate that failed with a seed is not chosen; of equally good rates, the lowest is. A training that could be made at
    no rate is left out, and fails with its reason when it is made.
    """
    rates = sorted({each.rate for each in tried})
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for each in tried for name in each.accuracies):
        by_rate = {rate: [each.accuracies.get(name) for each in tried if each.rate == rate] for rate in rates}
        whole = {rate: fmean(known) for rate, each in by_rate.items() if len(known := _known(each)) == len(each)}
        if whole:
            best = max(whole, key=lambda rate: (whole[rate], -rate))
            found[name] = {"chosen": best, "by_rate": {f"{rate:g}": each for rate, each in by_rate.items()}}
    return found


def taken_rates(path: Path) -> dict[str, dict[str, Any]]:
    """The rates that another comparison chose, by training, from its comparison.json.

    Raises `ConfigError` if it cannot be read, or chose no rates.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("rates")
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected a comparison.json in compare.rates.chosen_in, found {path}: {error}") from error
    if not found:
        raise ConfigError(f"expected a comparison that chose rates, found none in {path}; name another, or candidates")
    return found


def trained_for(name: str, names: Sequence[str]) -> bool:
    """Whether a training with this name belongs to one of these arms: its own, the uncompiled arm of the same flow, or
    the paper's flow if one of its roles is tested."""
    return any(one in (name, f"{name}_itself") or (name == "paper_flow" and one.startswith("paper_")) for one in names)


def refuse_other_rates(path: Path, seeds: Sequence[int], names: Sequence[str], rates: Mapping[str, float]) -> None:
    """Raise `ConfigError` if a known seed of the comparison at `path` has arms of these names whose training used
    another learning rate than `rates`, since one table would then mix both. Nothing is refused if the earlier rate is
    unknown."""
    for file in (path_of(path, seed) for seed in seeds):
        known = read_seed(file) if file.exists() else None
        for arm in names if known is not None else ():
            for training, then in known.rates.get(arm, {}).items() if known is not None else ():
                if then != rates.get(training):
                    shown = [f"{rate:g}" if rate else "its preset's" for rate in (then, rates.get(training))]
                    raise ConfigError(
                        f"expected {training} of {arm} at one learning rate in all seeds, found {shown[0]} in {file} "
                        f"and {shown[1]} now. Use the arms and the candidates by which that rate was chosen, or name "
                        "its file in compare.rates.chosen_in; or make all seeds in another folder "
                        "(--compare.output_dir)"
                    )


def _known(each: Sequence[float | None]) -> list[float]:
    return [value for value in each if value is not None]


def refuse_shared(sets: Mapping[str, Sequence[Problem]]) -> None:
    """Raise `ConfigError` if a validation problem is also in another set, of a test or of training."""
    ids = {problem.id for problem in sets[VALIDATION]}
    for name, problems in sets.items():
        shared = [problem.id for problem in problems if problem.id in ids]
        if name != VALIDATION and shared:
            raise ConfigError(
                f"expected validation problems that are in no other set, found {len(shared)} of {name}, such as "
                f"{shared[0]}; choose others by --compare.rates.validation_skip or --compare.rates.validation_split"
            )
