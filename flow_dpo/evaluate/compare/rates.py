"""The learning rate of each training of a comparison, chosen on problems that no test and no training has.

    OUT/rates/0.003/seed1000/grpo_same_tokens                                  trained at 3e-3, with a seed of its own
    OUT/rates/0.003/seed1000/evaluations/grpo_same_tokens/validation-greedy    what that comes to

Every training is tried at every candidate; of those the rate is taken whose mean accuracy is highest, over seeds and
over the decodings and arms by which the training is tested as it is: in one pass, or as its own flow. A training that
no arm tests so (one whose traces alone are tested) keeps the rate of its preset.

Invariant: neither seeds nor problems by which a rate is chosen are those of the comparison, so that no figure in it
is of a run that was chosen for its figure.
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
    """On the validation problems, of every training that could be made."""
    failed: Mapping[str, str]
    """Why an arm could not be made, by its name: too few examples, or a loss that was no number."""


def folder_of(path: Path, rate: float, seed: int) -> Path:
    """Where the trainings of a rate and a seed lie in a comparison's folder."""
    return path / FOLDER / f"{rate:g}" / f"seed{seed}"


def validation_sizes(sizes: Sizes, *, sampled: bool) -> Sizes:
    """The arms' sizes with the validation problems as their only tests, greedily and, if wished, sampled once."""
    drawn = (f"{VALIDATION}/sampled",) if sampled else ()
    return replace(sizes, tests=(f"{VALIDATION}/greedy", *drawn), test_samples=1)


def try_rate(do: JobRunner, arms: Sequence[Arm], sizes: Sizes, rate: float) -> Tried:
    """Make every arm that is tested as it is trained, with `do` whose trainings all have this rate."""
    found: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for arm in arms:
        if arm.kind not in ("single", "flow") or arm.name in PARTS:  # these are no test of one training as it is
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
    """By training: the rate `chosen`, and the accuracies `by_rate`, one a seed, None where it could not be made.

    A rate that failed with a seed is not chosen; of rates that are equal the lowest is. A training that no rate could
    make is left out, and says why where it is made.
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
    """The rates that another comparison chose, by training, as its comparison.json has them.

    Raises `ConfigError` where it cannot be read, or chose none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("rates")
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected a comparison.json in compare.rates.chosen_in, found {path}: {error}") from error
    if not found:
        raise ConfigError(f"expected a comparison that chose rates, found none in {path}; name another, or candidates")
    return found


def trained_for(name: str, names: Sequence[str]) -> bool:
    """Whether a training that is named as an arm is one of these arms': its own, that of the same flow not compiled, or
    the paper's flow, of which one role is tested."""
    return any(one in (name, f"{name}_itself") or (name == "paper_flow" and one.startswith("paper_")) for one in names)


def refuse_other_rates(path: Path, seeds: Sequence[int], names: Sequence[str], rates: Mapping[str, float]) -> None:
    """Raise `ConfigError` where a seed of the comparison at `path` is known whose arms of these names took a training
    at another learning rate than that of `rates`: one table would hold both. Where it is not known at which it was
    made, nothing is refused."""
    for file in (path_of(path, seed) for seed in seeds):
        known = read_seed(file) if file.exists() else None
        for arm in names if known is not None else ():
            for training, then in known.rates.get(arm, {}).items() if known is not None else ():
                if then != rates.get(training):
                    shown = [f"{rate:g}" if rate else "its preset's" for rate in (then, rates.get(training))]
                    raise ConfigError(
                        f"expected {training} of {arm} at one learning rate in all seeds, found {shown[0]} in {file} "
                        f"and {shown[1]} now. Ask for the arms and the candidates, or name the file in "
                        "compare.rates.chosen_in, that this rate was chosen by; or make all seeds in another folder "
                        "(--compare.output_dir)"
                    )


def _known(each: Sequence[float | None]) -> list[float]:
    return [value for value in each if value is not None]


def refuse_shared(sets: Mapping[str, Sequence[Problem]]) -> None:
    """Raise `ConfigError` where a validation problem is one of another set: of a test, or of those to be learned."""
    ids = {problem.id for problem in sets[VALIDATION]}
    for name, problems in sets.items():
        shared = [problem.id for problem in problems if problem.id in ids]
        if name != VALIDATION and shared:
            raise ConfigError(
                f"expected validation problems that are in no other set, found {len(shared)} of {name}, such as "
                f"{shared[0]}; choose others by --compare.rates.validation_skip or --compare.rates.validation_split"
            )
