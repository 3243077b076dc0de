"""From settings to running parts: the composition root, the one place that knows every concrete class.

What can be refused is refused here, in the order of its cost: names and folders, then data, then the model, then
whether the prompts fit it, and only then does work start.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import Backends, RolloutWorkers
from flow_dpo.core.types import Problem, Role
from flow_dpo.data.problems import ProblemSet, load
from flow_dpo.engines import factory
from flow_dpo.engines.factory import AdapterStore
from flow_dpo.learner.policy import Policy
from flow_dpo.models.context_window import fitting_problems
from flow_dpo.models.load import LoadedModel, load_model
from flow_dpo.runs.settings import RuntimeSettings
from flow_dpo.verify.grader import AnswerGrader
from flow_dpo.verify.verifier import Verifier
from flow_dpo.workers.in_process import InProcessWorkers


@dataclass(kw_only=True)
class Runtime:
    """Everything that a command works with."""

    problems: ProblemSet
    loaded: LoadedModel
    policy: Policy
    backends: Backends
    workers: RolloutWorkers
    fitting: list[Problem] = field(default_factory=list[Problem])
    """The problems whose longest play fits into the context window."""


@contextmanager
def open_runtime(
    settings: RuntimeSettings,
    flow: Flow[Any],
    *,
    roles: Sequence[Role],
    seed: int,
    problems: ProblemSet | None = None,
    served: Path | None = None,
) -> Iterator[Runtime]:
    """Load, check and connect everything that plays `flow`; close it at the end.

    `roles` get an adapter each; `problems` where those of `settings.data` are loaded already. In `served` lie the
    adapters of an engine that reads files, while they are in force; in a folder of the system's where none is named.
    """
    problems = load(settings.data) if problems is None else problems
    loaded = load_model(settings.model)
    with (
        factory.open_engine(settings.engine, loaded, num_roles=len(roles)) as reach,
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        fitting = fitting_problems(flow, loaded.renderer, problems.problems, reach.context_tokens)
        policy = Policy(loaded.model, roles, settings.lora, seed=seed)
        store = AdapterStore(policy, served or Path(elsewhere))
        grading = settings.grading
        with (
            closing(store),
            closing(reach.build(policy, store)) as engine,
            Verifier(rule=grading.rule, timeout_s=grading.timeout_s) as verifier,
        ):
            grader = AnswerGrader(verifier, loaded.renderer, settings.grading)
            backends = Backends(engine=engine, renderer=loaded.renderer, grader=grader)
            yield Runtime(
                problems=problems,
                loaded=loaded,
                policy=policy,
                backends=backends,
                workers=InProcessWorkers(backends),
                fitting=fitting,
            )
