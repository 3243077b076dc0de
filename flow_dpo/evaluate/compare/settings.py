"""The settings of a comparison, under `compare`: its arms, seeds, pool of traces, tests, rates and budget.

    --compare.arms [recipes] --compare.num_seeds 5 --compare.rates.candidates [1e-3,3e-3]

Invariant: what they cannot mean together is refused here or before the first command runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from flow_dpo.core.errors import ConfigError, expect

FIRST_RATE_SEED = 1000
"""Seeds by which rates are chosen begin here, beyond those of the comparison."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Pool of traces: the problems that are drawn on, and the draws."""

    num_traces: int = 1000
    """Traces that every compiled arm is fine-tuned on; those on given problems take all that are found (the paper:
    1,500)."""
    pool_problems: int = 4000
    """Problems that traces may be drawn on: those after the ones that the flow is trained on."""
    num_samples: int = 1
    """Draws on a problem of the pool. With one, which problems get a trace is up to their difficulty (not stated in the
    paper)."""
    matched_draws: int = 16
    """Draws on a problem where the problems are given."""
    more_draws: int = 8
    """Draws of the arms `self_more_draws`, `untrained_flow_more_draws` and `trained_flow_more_draws`."""

    def __post_init__(self) -> None:
        for name in ("num_traces", "pool_problems", "num_samples", "matched_draws", "more_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of 1 at least, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TestSettings:
    """Test sets that the arms are measured on."""

    __test__ = False  # pytest takes every class of such a name for tests

    test_dataset_name: str = ""
    """What is tested on; the training's own data set where empty."""
    test_split: str = "test"
    test_problems: int = 2000
    test_skip: int = 0
    """Problems of each test's split before those that are tested: a range that no earlier comparison has seen."""
    harder_split: str = ""
    """A second, harder split; none where empty."""
    harder_problems: int = 1000
    sampled: bool = True
    """Measure drawn answers, too, besides the greedy ones."""
    harder_sampled: bool = False
    """On the harder split as well."""
    test_samples: int = 1
    """Drawn answers to each problem."""
    test_draws: int = 6
    """Attempts at each problem of the arms that vote (`answer_votes`, `untrained_votes`)."""

    def __post_init__(self) -> None:
        for name in ("test_problems", "harder_problems", "test_samples", "test_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of 1 at least, found {getattr(self, name)}")
        expect(self, "of 0 or more", lambda value: value >= 0, "test_skip")


@dataclass(frozen=True, kw_only=True)
class RateSettings:
    """How the learning rate of each training is chosen, on problems that no test has (`evaluate.compare.rates`)."""

    candidates: tuple[float, ...] = ()
    """Learning rates that every training is tried at; where empty, each keeps that of its preset."""
    num_trainings: int = 1
    """Trainings at each rate, with seeds that the comparison has not (`FIRST_RATE_SEED` on)."""
    validation_split: str = "train"
    """Where the problems lie by which a rate is chosen."""
    validation_skip: int = 0
    """Problems of that split before them; they may be none that a test or a training has."""
    validation_problems: int = 500
    chosen_in: str = ""
    """A comparison.json whose chosen rates are taken, in place of choosing: of the same trainings, on problems that no
    test here has. A training that it has not keeps the rate of its preset."""

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
    """Settings of a comparison: its arms, seeds, pool, tests and budget."""

    output_dir: str = "runs/comparison"
    num_seeds: int = 3
    """Seeds 0, 1, ...: of the flow's training, the traces' draws, and the fine-tuning."""
    seeds: tuple[int, ...] = ()
    """Seeds by name, in place of `num_seeds`. Those of a finished comparison are kept, others are added to it."""
    redraw_problems: bool = False
    """Give each seed training problems and a pool of its own, so that an interval over seeds has their choice in it:
    the data set in another order, or of one that is made as it is read the next stretch."""
    arms: tuple[str, ...] = ()
    """Their names (`evaluate.compare.arms`, `team_arms`, `recipe_arms`), or "paper" for those of the paper's table,
    "core" for these and the flow itself, "team" for the flow against its members, "parts" for what is whose part, and
    "recipes" for the neighbours of Flow-DPO; all sources of traces where empty. `self_generated` is what the others are
    compared with, and an arm that names others is compared with those too."""
    run: str = ""
    """A run folder that stands for the trained flow, which is then not trained: of one seed. Its method, model and data
    are the defaults."""
    tokens: int = 0
    """Tokens, sampled and learned, of the arms that are to have as many as the flow; as many as it had where 0."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    tests: TestSettings = field(default_factory=TestSettings)
    rates: RateSettings = field(default_factory=RateSettings)
    jobs: int = 1
    """Seeds under way at once, each in a process of its own. Changes timing only."""

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")
        for name in ("num_seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of 1 at least, found {getattr(self, name)}")
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise ConfigError(f"expected different seeds of 0 or more, found {list(self.seeds)}")
        if self.rates.candidates and any(seed >= FIRST_RATE_SEED for seed in self.seeds):
            raise ConfigError(
                f"expected seeds below {FIRST_RATE_SEED}, from where on they choose rates, found {list(self.seeds)}"
            )
        if self.run and len(self.every_seed) > 1:
            raise ConfigError(
                f"expected one seed where a run stands for the trained flow, found {len(self.every_seed)}; add "
                "--compare.num_seeds 1, or leave out --compare.run"
            )
        if self.tokens < 0:
            raise ConfigError(f"expected tokens of 0 or more, found {self.tokens}")

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds of the comparison, in their order."""
        return self.seeds or tuple(range(self.num_seeds))
