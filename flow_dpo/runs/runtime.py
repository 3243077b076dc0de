"""The composition root: settings become a model, its adapters, an engine, a grader and rollout workers.

The only place that connects concrete classes. Whatever can be refused is refused here, the cheapest check first: names
and folders, then data, then the model, then whether the prompts fit it. Only then does work start.

    with open_runtime("seed") as runtime:
        learn(load_recipe("flow-dpo", "seed"), load_problems("seed"), runtime.workers, runtime.learner())
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import Backends, RolloutWorkers
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.types import Adapter, Problem, Role
from flow_dpo.data.problems import ProblemSet, fingerprint, load
from flow_dpo.engines import factory
from flow_dpo.engines.factory import AdapterStore
from flow_dpo.engines.settings import EngineSettings
from flow_dpo.engines.settings import default_settings as default_engine
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import Policy
from flow_dpo.models.context_window import fitting_problems
from flow_dpo.models.load import LoadedModel, ModelSettings, load_model
from flow_dpo.models.render import Renderer
from flow_dpo.ranks.group import Ranks
from flow_dpo.ranks.learner import LeadingLearner
from flow_dpo.ranks.threads import threads_of
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.presets import default_preset, default_recipe
from flow_dpo.runs.run_folder import environment
from flow_dpo.runs.settings import RuntimeSettings, default_settings
from flow_dpo.runs.starting_adapters import start_from
from flow_dpo.verify.rewards import RewardFunctions
from flow_dpo.workers.grading import GraderSource, named_grader, open_grader, reward_functions, shared
from flow_dpo.workers.in_process import InProcessWorkers
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.setup import (
    EngineElsewhere,
    EngineOpener,
    WorkerSetup,
    as_loaded,
    check_workers,
    open_workers,
    starting,
)

__all__ = ["EngineOpener", "GraderSource", "Runtime", "open_runtime"]


@dataclass(kw_only=True)
class Runtime:
    """Everything that sampling, grading and learning need, loaded and connected."""

    problems: ProblemSet
    loaded: LoadedModel
    policy: Policy
    backends: Backends
    """This process's backends; if the workers are elsewhere, its engine samples nothing."""
    workers: RolloutWorkers
    context_tokens: int
    """Size of the engine's context window, in tokens; it can be smaller than the model's."""
    shard: int = 0
    """Problems that a worker samples together; 0: all of a batch."""
    recipe: Recipe | None = None
    """The recipe that it was opened for, if known."""
    learner_settings: LearnerSettings = field(default_factory=LearnerSettings)
    """Settings of the preset that it was opened with; `learner` uses them if it is given none."""
    fitting: list[Problem] = field(default_factory=list[Problem])
    """The problems whose longest rollout fits into the context window."""
    adapters: Mapping[Role, Adapter] = field(default_factory=dict[Role, Adapter])
    """The adapters that were loaded; once there is a learner, its own are newer."""
    num_threads: int = 0
    """As in the model's settings."""
    _learner: Learner | None = None

    @property
    def renderer(self) -> Renderer:
        """Turns to token ids, token ids to text."""
        return self.loaded.renderer

    def learner(
        self, settings: LearnerSettings | None = None, *, kept_versions: int = 0, ranks: Ranks | None = None
    ) -> Learner:
        """A learner for this policy's adapters, with the preset's settings if none are given. If the policy's settings
        name trained adapters to begin with, they are loaded.

        `kept_versions` is the lag of the run that it is for, `ranks` the processes that share its work.
        Raises `ModelError` if log-probabilities of this model cannot be computed correctly.
        """
        settings = self.learner_settings if settings is None else settings
        start_from(self.policy)
        threads = threads_of(self.policy, self.num_threads)
        make = partial(Learner, deal=threads) if ranks is None else partial(LeadingLearner, ranks=ranks)
        self._learner = make(self.policy, settings, kept_versions=kept_versions)
        self._learner.check()
        return self._learner

    def problems_under_way(self, wanted: int) -> int:
        """The number of problems that a command that does not learn has under way: `wanted`, or at least two shards for
        each worker elsewhere, so that none of them waits for the last shard of a batch."""
        if isinstance(self.workers, PooledWorkers):
            wanted = max(wanted, 2 * self.shard * self.workers.progress.num_workers)
        return self.whole_shards(wanted)

    def whole_shards(self, wanted: int) -> int:
        """`wanted` rounded up to whole shards, so that batches of any size are split in the same way."""
        return -(-wanted // self.shard) * self.shard if self.shard else wanted

    @property
    def adapters_in_force(self) -> Mapping[Role, Adapter]:
        """The learner's adapters if there is one, otherwise those that were loaded."""
        return self.adapters if self._learner is None else self._learner.adapters


@contextmanager
def open_runtime(
    model: str | RuntimeSettings = "seed",
    flow: Flow[Any] | None = None,
    *,
    recipe: str | None = None,
    preset: str | None = None,
    roles: Sequence[Role] | None = None,
    seed: int = 0,
    engine: str | EngineSettings | EngineOpener | None = None,
    grader: GraderSource | None = None,
    problems: ProblemSet | None = None,
    served: Path | None = None,
    doing: Callable[[str], None] = lambda _: None,
) -> Iterator[Runtime]:
    """Load, check and connect everything that samples `flow`; close it at the end.

    `model` is either all settings, or a folder, a hub id or "seed"; adapters, learner and (by default) the flow are
    then those of `recipe` (default: `default_recipe`) and `preset`. Each of `roles` (default: the flow's) gets an
    adapter. `problems` are those of the settings' data if they are loaded already; for a named model none are loaded.
    `served` is the folder for the adapters of an engine that reads files (default: a temporary one). `doing` is called
    with a description of whatever takes a while.
    """
    named = isinstance(model, str)
    recipe = recipe or default_recipe(own_flow=flow is not None and not isinstance(flow, Attempts))
    defaults = default_settings(recipe, preset or default_preset(model if named else ""))
    settings = model if isinstance(model, RuntimeSettings) else defaults.runtime
    if named:
        settings = replace(settings, model=ModelSettings(model_name_or_path=model))
        problems = ProblemSet(problems=(), fingerprint=fingerprint(())) if problems is None else problems
    without_problems = named and not len(problems or ())
    if isinstance(engine, str):
        settings = replace(settings, engine=default_engine(engine))
    elif engine is not None and not callable(engine):
        settings = replace(settings, engine=engine)
    flow = defaults.recipe.flow if flow is None else flow
    roles = tuple(flow.roles if roles is None else roles)
    own = engine if callable(engine) else None
    check_workers(settings.workers, settings.engine, own_engine=own is not None)
    grader = named_grader(settings.grading) if grader is None else grader
    rewards = reward_functions(settings.grading, grader)
    own_grader = rewards or grader
    own_grader = shared(own_grader) if settings.workers.kind == "servers" else own_grader
    problems, loaded = _loaded(settings, problems, doing, rewards)
    setup = WorkerSetup(
        workers=settings.workers, model=as_loaded(settings.model, loaded), lora=settings.lora,
        engine=settings.engine, grading=settings.grading, roles=roles, seed=seed, opener=own, environment=environment,
        # Workers in processes of their own load named functions themselves.
        grader=grader if settings.workers.of_actors else own_grader,
    )  # fmt: skip
    with _access(setup, loaded, own_grader) as access, tempfile.TemporaryDirectory() as elsewhere:
        room = access.context_tokens
        fitting = [] if without_problems else fitting_problems(flow, loaded.renderer, problems.problems, room)
        policy = Policy(loaded.model, roles, settings.lora, seed=seed)
        with access.connect(policy, served or Path(elsewhere)) as (backends, workers):
            yield Runtime(
                problems=problems, loaded=loaded, policy=policy, backends=backends, workers=workers, fitting=fitting,
                context_tokens=room, shard=settings.workers.problems_of_shard,
                recipe=replace(defaults.recipe, flow=flow),
                learner_settings=defaults.learner, num_threads=settings.model.num_threads,
            )  # fmt: skip


def _loaded(
    settings: RuntimeSettings,
    problems: ProblemSet | None,
    doing: Callable[[str], None],
    rewards: RewardFunctions | None,
) -> tuple[ProblemSet, LoadedModel]:
    """Load the problems, if they are not given, and the model; `doing` is called before each step."""
    if problems is None:
        doing(f"reading the problems of {settings.data.dataset_name}")
        problems = load(settings.data, columns=rewards is not None)
    if rewards is not None:
        for problem in problems.problems[:1]:
            rewards.check_columns(problem)
    doing(f"loading {settings.model.model_name_or_path}")
    loaded = load_model(settings.model)
    if started := starting(settings.workers, settings.engine):
        doing(started)
    return problems, loaded


@dataclass(frozen=True, kw_only=True)
class _Access:
    """What samples, once it is known to be available."""

    context_tokens: int
    connect: Callable[[Policy, Path], AbstractContextManager[tuple[Backends, RolloutWorkers]]]
    """Begin to sample a policy; the folder holds its adapters if they are read from files."""


@contextmanager
def _access(setup: WorkerSetup, loaded: LoadedModel, grader: GraderSource | None) -> Iterator[_Access]:
    """The engine of this process (the caller's own, if there is one), or the workers elsewhere. `grader` is that of
    this process."""
    with ExitStack() as stack:
        if setup.workers.kind != "here":
            there = stack.enter_context(open_workers(setup, loaded))
            own = replace(setup, grader=grader)
            yield _Access(
                context_tokens=there.context_tokens,
                connect=lambda policy, folder: _elsewhere(own, loaded, there.connect(policy, folder)),
            )
            return
        if setup.opener is not None:
            opener, room = setup.opener, loaded.context_tokens
            build = lambda policy, _: opener(loaded, policy)  # noqa: E731
        else:
            access = stack.enter_context(factory.open_engine(setup.engine, loaded, num_roles=len(setup.roles)))
            build, room = access.build, access.context_tokens

        @contextmanager
        def connect(policy: Policy, folder: Path) -> Iterator[tuple[Backends, RolloutWorkers]]:
            store = AdapterStore(policy, folder)
            with (
                closing(store),
                closing(build(policy, store)) as engine,
                open_grader(setup.grading, setup.grader, loaded.renderer) as grader,
            ):
                backends = Backends(engine=engine, renderer=loaded.renderer, grader=grader)
                yield backends, InProcessWorkers(backends, shard=setup.workers.problems_of_shard)

        yield _Access(context_tokens=room, connect=connect)


@contextmanager
def _elsewhere(
    setup: WorkerSetup, loaded: LoadedModel, pool: PooledWorkers
) -> Iterator[tuple[Backends, RolloutWorkers]]:
    with closing(pool), open_grader(setup.grading, setup.grader, loaded.renderer) as grader:
        yield Backends(engine=EngineElsewhere(), renderer=loaded.renderer, grader=grader), pool
