"""Settings of a comparison, under `compare`: its arms, seeds, trace pool, tests, learning rates and budget.

    --compare.arms [recipes] --compare.num_seeds 5 --compare.rates.candidates [1e-3,3e-3]

Invariant: contradictory settings are refused here, or before the first command runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from flow_dpo.core.errors import ConfigError, expect

FIRST_RATE_SEED = 1000
"""Seeds for choosing learning rates start here, beyond those of the comparison."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """The pool of traces: its problems, and the samples per problem."""

    num_traces: int = 1000
    """Traces that each compiled arm is fine-tuned on (the paper: 1,500). Arms on given problems use every trace that is
    found."""
    pool_problems: int = 4000
    """Problems on which traces can be sampled: those that follow the flow's training problems."""
    num_samples: int = 1
    """Samples per problem of the pool. With one, a problem's difficulty decides whether it gets a trace (not stated in
    the paper)."""
    matched_draws: int = 16
    """Samples per problem in arms whose problems are given."""
    more_draws: int = 8
    """Samples per problem in `self_more_draws`, `untrained_flow_more_draws` and `trained_flow_more_draws`."""

    def __post_init__(self) -> None:
        for name in ("num_traces", "pool_problems", "num_samples", "matched_draws", "more_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of 1 at least, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TestSettings:
    """The test sets on which the arms are measured."""

    __test__ = False  # pytest would collect a class of this name

    test_dataset_name: str = ""
    """Data set to test on; the training's own if empty."""
    test_split: str = "test"
    test_problems: int = 2000
    test_skip: int = 0
    """Problems to skip at the start of each test split, to test on a range that no earlier comparison has used."""
    harder_split: str = ""
    """A second, harder split to test on; none if empty."""
    harder_problems: int = 1000
    sampled: bool = True
    """Also measure sampled answers, not only greedy ones."""
    harder_sampled: bool = False
    """The same on the harder split."""
    test_samples: int = 1
    """Sampled answers per problem."""
    test_draws: int = 6
    """Attempts per problem in the arms that vote (`answer_votes`, `untrained_votes`)."""

    def __post_init__(self) -> None:
        for name in ("test_problems", "harder_problems", "test_samples", "test_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of 1 at least, found {getattr(self, name)}")
        expect(self, "of 0 or more", lambda value: value >= 0, "test_skip")


@dataclass(frozen=True, kw_only=True)
class RateSettings:
    """How the learning rate of each training is chosen, on problems of no test set (`evaluate.compare.rates`)."""

    candidates: tuple[float, ...] = ()
    """Learning rates to try for every training; if empty, each training keeps its preset's rate."""
    num_trainings: int = 1
    """Trainings per rate, with seeds that the comparison does not use (from `FIRST_RATE_SEED`)."""
    validation_split: str = "train"
    """The split of the validation problems, by which a rate is chosen."""
    validation_skip: int = 0
    """Problems to skip at the start of that split. No validation problem may be in a test or a training set."""
    validation_problems: int = 500
    chosen_in: str = ""
    """A comparison.json whose chosen rates are used instead of choosing new ones. It must be about the same trainings,
    with validation problems that are in no test here. A training that it does not list keeps its preset's rate."""

    def __post_init__(self) -> None:
        if self.chosen_in and self.candidates:
            raise ConfigError("expected candidates or chosen_in, found both; leave out one of them")
        expect(self, "of 1 or more", lambda value: value >= 1, "num_trainings", "validation_problems")
        expect(self, "of 0 or more", lambda value: value >= 0, "validation_skip")
        wrong = [rate for rate in self.candidates if not 0 < rate < math.inf]
        if wrong or len(set(self.candidates)) < len(self.candidates):
            raise ConfigError(f"expected different learning rates above 0, found {list(self.candidates)}")


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Settings of a comparison: its arms, seeds, trace pool, tests and budget."""

    output_dir: str = "runs/comparison"
    num_seeds: int = 3
    """Number of seeds, 0, 1, ...: each is used for the flow's training, the sampling of traces and the fine-tuning."""
    seeds: tuple[int, ...] = ()
    """Explicit seeds, instead of `num_seeds`. Seeds of a finished comparison are kept, and new ones are added to it."""
    redraw_problems: bool = False
    """Give each seed its own training problems and pool, so an interval over seeds covers the choice of problems. Each
    seed reads the data set in another order or, if it is generated while it is read, another stretch."""
    arms: tuple[str, ...] = ()
    """Names of arms (`evaluate.compare.arms`, `team_arms`, `recipe_arms`) or groups: "paper" for the rows of the
    paper's table, "core" for these and the flow itself, "team" for the flow against its members, "parts" for each role
    trained or untrained, "recipes" for the methods related to Flow-DPO. If empty, all sources of traces. Every arm is
    compared with `self_generated`, and with the arms that it names."""
    run: str = ""
    """A run folder to use as the trained flow, instead of training one. Needs a single seed. The run's method, model
    and data are the defaults."""
    tokens: int = 0
    """Tokens (sampled plus learned) for the arms that match the flow's token budget; 0 means what the flow used."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    tests: TestSettings = field(default_factory=TestSettings)
    rates: RateSettings = field(default_factory=RateSettings)
    jobs: int = 1
    """Seeds under way at once, each in its own process. Changes timing only."""

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")
        for name in ("num_seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of 1 at least, found {getattr(self, name)}")
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise ConfigError(f"expected different seeds of 0 or more, found {list(self.seeds)}")
        if self.rates.candidates and any(seed >= FIRST_RATE_SEED for seed in self.seeds):
            raise ConfigError(
                f"expected seeds below {FIRST_RATE_SEED}, as later ones choose rates, found {list(self.seeds)}"
            )
        if self.run and len(self.every_seed) > 1:
            raise ConfigError(
                f"expected one seed when a run stands for the trained flow, found {len(self.every_seed)}; add "
                "--compare.num_seeds 1, or leave out --compare.run"
            )
        if self.tokens < 0:
            raise ConfigError(f"expected tokens of 0 or more, found {self.tokens}")

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds of the comparison, in order."""
        return self.seeds or tuple(range(self.num_seeds))
