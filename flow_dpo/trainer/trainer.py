"""`FlowDPOTrainer`: train, evaluate and sample from a flow, with the interface of a TRL trainer.

    trainer = FlowDPOTrainer("seed", args=FlowDPOConfig(output_dir="runs/a"), train_dataset="seed")
    trainer.train()
    trainer.evaluate()["eval_accuracy"]

It is a facade over `flow_dpo.train`, evaluation and traces. It is no subclass of `transformers.Trainer`, whose loop,
optimizer and checkpoints differ. Invariants: the same settings give the same run folder, to the byte, as
`flow-dpo train` with the same flags; the trainer keeps no state that is not in that folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.flow import Flow
from flow_dpo.core.recipe import Recipe
from flow_dpo.data.problems import ProblemSet, load
from flow_dpo.evaluate import contamination
from flow_dpo.evaluate.during import (
    EvaluationPlan,
    Evaluator,
    calibrated_as,
    measure,
    refuse_unmeasured,
)
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.presets import default_preset, default_recipe, load_recipe
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import calibration, load_adapters
from flow_dpo.runs.given_objects import ChosenProblems, GivenObjects, grader_of, sampling_settings
from flow_dpo.runs.runtime import open_runtime
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings
from flow_dpo.runs.training import TrainResult
from flow_dpo.traces.run import generate_traces
from flow_dpo.traces.trace import TraceFile
from flow_dpo.trackers.transformers_callbacks import TransformersCallbacks
from flow_dpo.trainer import data, models, python_api
from flow_dpo.trainer.adapters import lora_settings
from flow_dpo.trainer.arguments import config_of, made, refuse, refuse_repository
from flow_dpo.trainer.habits import ATTRIBUTES
from flow_dpo.trainer.mapping import settings_of
from flow_dpo.trainer.parts import Parts, of_data
from flow_dpo.trainer.state import TrainState, prefixed, state_of
from flow_dpo.verify.rewards import RewardFunctions


class FlowDPOTrainer:
    """Trains the roles of a flow by online DPO, or by another recipe."""

    def __init__(
        self,
        model: Any = "seed",
        *,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        flow: Flow[Any] | None = None,
        recipe: str | Recipe | None = None,
        callbacks: Sequence[Any] | None = None,
        **others: Any,
    ) -> None:
        """Check and keep the arguments. Nothing is loaded and no folder is created until it is needed.

        `model` is a hub id, a folder or "seed". `reward_funcs` are called as TRL calls them; without them the verifier
        compares with the gold answer. `args` is a `FlowDPOConfig`, or one of TRL's configs, which
        `FlowDPOConfig.from_trl` converts. `train_dataset` and `eval_dataset` are names, problems, or rows with a prompt
        (a text or messages) and a gold answer. `processing_class` is the model's tokenizer; it can have its own chat
        template. `peft_config` is a `peft.LoraConfig` that gives the shape of every role's adapter. `flow` and `recipe`
        are as in `flow_dpo.train`; `callbacks` are flow-dpo's or transformers', in any order. `others` catches
        arguments that TRL's trainers have and this one does not.

        Raises `ConfigError` for arguments that have no meaning here, with what to use instead.
        """
        refuse(others)
        self.args = config = config_of(args)
        refuse_repository(config)
        self.model = models.name_of(model)
        self.flow, self.recipe = flow, recipe
        self.reward_funcs, self.callbacks = reward_funcs, made(callbacks)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.processing_class = processing_class
        found = {**models.settings_of_tokenizer(self.model, processing_class, config)}
        found |= {} if peft_config is None else lora_settings(peft_config)
        found |= settings_of(config, self._method())
        self._parts = Parts.of(found, self._method())
        self._evaluation = self._parts.evaluation()
        refuse_unmeasured(self._evaluation)
        self._grader = grader_of(None, reward_funcs, config.reward_weights)
        self._columns = self._grader is not None or bool(self._parts.run.get("grading.rewards"))
        """Whether reward functions grade; they read the data set's columns."""
        if config.eval_strategy in ("steps", "epoch") and eval_dataset is None:
            raise ConfigError(f"expected an eval_dataset with eval_strategy={config.eval_strategy!r}, found none")

    # ---- train -------------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainResult:
        """Train until the problems are used up, or for `max_steps` updates.

        `resume_from_checkpoint` resumes the run in `output_dir` (True) or in the given folder; a resumed run writes the
        same bytes as an uninterrupted one. Under torchrun or `accelerate launch` every process but the first takes its
        share of the updates and ends here with `SystemExit`. Raises `ConfigError` if there is no run to resume, or if
        `output_dir` holds a run already.
        """
        python_api.follow_rank_0()
        config = self.args
        resume = config.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        path = self._resumed_folder(resume) if resume else config.run_folder
        if not resume and (path / "config.yaml").is_file():
            raise ConfigError(
                f"output_dir {path} already holds a run: use train(resume_from_checkpoint=True) to continue it, or "
                "another output_dir to start a new one"
            )
        self._path = path
        plan, problems = self._plan(), self._train_problems()
        if isinstance(problems, ProblemSet):
            problems = ChosenProblems(problems=problems.problems, fingerprint=problems.fingerprint)
        result = python_api.train(
            self.model,
            problems,
            recipe=self.recipe,
            preset=config.preset,
            output_dir=path,
            flow=self.flow,
            callbacks=self._every_callback(),
            watchers=() if plan is None else (partial(Evaluator, plan),),
            max_problems=self._max_problems(),
            resume=bool(resume),
            quiet=bool(config.disable_tqdm),
            settings=self._parts.run,
            grader=self._grader,
        )
        if config.push_to_hub:
            self.push_to_hub()
        return result

    # ---- after training ----------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        *,
        max_problems: int | None = None,
        metric_key_prefix: str = "eval",
        **more: Any,
    ) -> dict[str, Any]:
        """Measure the flow and a single pass of its Answer role on held-out problems, with the run's newest adapters,
        or with none before training.

        Returns the accuracies as `eval_accuracy` and `eval_single_accuracy`, each with its interval and counts, as in
        the summary of `flow-dpo evaluate`; with `trained_on`, the overlap as `eval_overlap`. The data set is this
        `eval_dataset`, else the trainer's, else the test split of the named training set. `more` are settings by name:
        `evaluate(greedy=False, num_samples=4)`. Raises `ConfigError` for settings that this method does not support,
        such as `draws`, which `flow_dpo.evaluate_flow` takes.
        """
        given, chosen, overrides = self._held_out(eval_dataset, {"max_problems": max_problems, **of_data(more)})
        overrides = {**self._basis(), **overrides, **self._parts.group("evaluation"), **more}
        sections = {"evaluation": EvaluationSettings()}
        found = sampling_settings("FlowDPOTrainer.evaluate", self._source, sections, overrides, given)
        settings: EvaluationSettings = found["evaluation"]
        refuse_unmeasured(settings)
        with open_runtime(
            RuntimeSettings.from_sections(found),
            found["flow"],
            seed=settings.seed,
            grader=given.grader,
            problems=chosen,
        ) as runtime:
            adapters = load_adapters(runtime.policy, SpeakingSettings(run=self._run))
            problems, overlap = contamination.check(
                runtime.fitting, settings.trained_on, exclude=settings.exclude_overlap
            )
            summaries = measure(runtime, found["flow"], found["explore"], problems, adapters, settings)
        more = {} if overlap is None else {f"{metric_key_prefix}_overlap": overlap}
        return prefixed(summaries, metric_key_prefix) | more

    def generate_traces(
        self,
        dataset: Any = None,
        *,
        output_dir: str | Path | None = None,
        max_problems: int | None = None,
        **more: Any,
    ) -> TraceFile:
        """Sample verified solutions of the trained flow into a folder (default: RUN-traces beside the run folder) and
        return them. `more` are settings of `flow-dpo generate` by name: `num_samples=4`."""
        if dataset is None:
            problems: str | ProblemSet | None = self._train_problems()
        else:
            problems = dataset if isinstance(dataset, str) else self._held_out_problems(dataset, **of_data(more))
            more = more if isinstance(dataset, str) else {n: value for n, value in more.items() if not of_data({n: 0})}
        folder = Path(f"{self._folder}-traces") if output_dir is None else Path(output_dir)
        settings = {**self._basis(), **self._parts.group("generate", "selection"), **more}
        given = self._given()
        return generate_traces(
            self._source,
            problems,
            output_dir=folder,
            recipe=given.recipe,
            flow=given.flow,
            grader=given.grader,
            max_problems=max_problems,
            settings=settings,
        )

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        """Copy the newest adapter of every role to `output_dir/ROLE`, in PEFT's layout, and return the folder. Without
        `output_dir` nothing is copied and the run folder is returned. The model card is written by `push_to_hub`."""
        if output_dir is None:
            return self._folder
        for role, adapter in run_folder.latest_adapters(self._folder).items():
            shutil.copytree(adapter, Path(output_dir) / role, dirs_exist_ok=True)
        return Path(output_dir)

    def push_to_hub(self, repo_id: str | None = None, **more: Any) -> Any:
        """Push the adapters with a model card; the repository is private unless `hub_private_repo` is False. `more` are
        arguments of `flow_dpo.hub.push.push_to_hub`."""
        from flow_dpo.hub.push import push_to_hub

        config = self.args
        private = True if config.hub_private_repo is None else config.hub_private_repo
        given = {"private": private, "token": config.hub_token, "revision": config.hub_revision}
        name = repo_id or config.hub_model_id or self._folder.name
        return push_to_hub(self._folder, name, **{**given, **more})

    def add_callback(self, callback: Any) -> None:
        """Add a callback of flow-dpo or transformers, or its class, for the next `train`."""
        self.callbacks += made([callback])

    def __getattr__(self, name: str) -> Any:
        known = ATTRIBUTES.get(name)
        raise AttributeError(f"FlowDPOTrainer has no {name}" + (f": {known}" if known else ""), name=name, obj=self)

    @property
    def state(self) -> TrainState:
        """The state of the run, read from its folder."""
        return state_of(self._folder, self.args.max_steps)

    # ---- what is passed on -------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return getattr(self, "_path", self.args.run_folder)

    @property
    def _run(self) -> str | None:
        """The run folder, once it holds adapters."""
        return str(self._folder) if (self._folder / "adapters").is_dir() else None

    @property
    def _source(self) -> str:
        return self._run or self.model

    def _method(self) -> Recipe:
        """The recipe in force, with the preset's values."""
        if isinstance(self.recipe, Recipe):
            return self.recipe
        own_flow = self.flow is not None and not isinstance(self.flow, Attempts)
        name = self.recipe or default_recipe(own_flow=own_flow)
        return load_recipe(name, self.args.preset or default_preset(self.model), flow=self.flow)

    def _max_problems(self) -> int | None:
        """`max_problems` for a data set that is given by name; one that is given as an object is cut already."""
        return self.args.max_problems if isinstance(self.train_dataset, str | None) else None

    def _train_problems(self) -> str | ProblemSet | None:
        """The name of the data set, or the problems in it."""
        if self.train_dataset is None:
            return None
        config = self.args
        share = config.num_train_epochs
        if share is not None and not 0 < share <= 1:
            raise ConfigError(
                f"num_train_epochs={share} has no meaning here: every problem is answered before it is learned from, "
                "and the run's accuracy is measured on those answers. Give more problems, or 1 at most"
            )
        cut = {} if config.max_problems is None else {"max_problems": config.max_problems}
        found = data.problems(self.train_dataset, self._parts.data(**cut), share=share, columns=self._columns)
        return self.train_dataset if found is None else found

    def _given(self) -> GivenObjects:
        """The recipe, flow and grader that are objects; the flow has the run's calibration."""
        recipe = self.recipe if isinstance(self.recipe, Recipe) else None
        flow = recipe.flow if self.flow is None and recipe is not None else self.flow
        if flow is not None and self._run:
            flow = calibrated_as(flow, {f"flow/{name}": value for name, value in calibration(self._folder).items()})
        return GivenObjects(recipe=recipe, flow=flow, grader=self._grader)

    def _held_out(
        self, eval_dataset: Any, choice: Mapping[str, Any]
    ) -> tuple[GivenObjects, ProblemSet | None, dict[str, Any]]:
        """An evaluation's problems, as objects or by name in the settings, with a recipe and flow that are objects."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        given = self._given()
        overrides: dict[str, Any] = {"data.dataset_split": "test"}
        if dataset is None and not isinstance(self.train_dataset, str | None):
            raise ConfigError("expected an eval_dataset, found none: the training problems have no other split")
        if dataset is None or isinstance(dataset, str):
            # Also with a run: if it got a share of a named set as objects, its own config has no usable name.
            overrides |= {"data.dataset_name": dataset or self.train_dataset}
            return given, None, overrides | {"data.max_problems": choice["max_problems"]}
        found = self._held_out_problems(dataset, **choice)
        return replace(given, problems=found), found, overrides

    def _basis(self) -> dict[str, Any]:
        """The settings for sampling, if no run folder has them yet."""
        recipe = self.recipe if isinstance(self.recipe, str) else None
        return {} if self._run else {"recipe": recipe, "preset": self.args.preset, **self._parts.sampling()}

    def _held_out_problems(self, dataset: Any, **more: Any) -> ProblemSet | None:
        """The problems of held-out data that was given as an object."""
        return data.problems(dataset, self._parts.held_out(**more), columns=self._columns)

    def _plan(self) -> EvaluationPlan | None:
        """What to evaluate during training; None for no evaluation."""
        config = self.args
        if config.eval_strategy not in ("steps", "epoch"):
            return None
        dataset = self.eval_dataset
        if isinstance(dataset, str):
            problems = load(self._parts.held_out(dataset_name=dataset), columns=self._columns)
        else:
            problems = self._held_out_problems(dataset)
        if isinstance(self._grader, RewardFunctions):
            for problem in list(problems or ())[:1]:
                self._grader.check_columns(problem)
        own = self._evaluation
        kept, _ = contamination.check(list(problems or ()), own.trained_on, exclude=own.exclude_overlap)
        return EvaluationPlan(
            problems=kept,
            every=int(config.eval_steps or 0) if config.eval_strategy == "steps" else 0,
            at_start=config.eval_on_start,
            delay=int(config.eval_delay),
            settings=own,
        )

    def _every_callback(self) -> list[Any]:
        """flow-dpo's callbacks unchanged, and one callback that drives those of transformers."""
        ours = [each for each in self.callbacks if hasattr(each, "on_batch")]
        theirs = [each for each in self.callbacks if each not in ours]
        if not theirs:
            return ours
        evaluates = self.args.eval_strategy in ("steps", "epoch")
        metric = self.args.metric_for_best_model or ("accuracy" if evaluates else None)
        args = replace(self.args, metric_for_best_model=metric)
        return [*ours, TransformersCallbacks(theirs, args, self.processing_class)]

    def _resumed_folder(self, resume: str | Path | bool) -> Path:
        """The run folder to resume: the given one, or `output_dir`, or the newest run inside it. Raises `ConfigError`
        if there is none."""
        folder = self.args.run_folder if resume is True else Path(str(resume))
        if (folder / "config.yaml").is_file():
            return folder
        runs = sorted(folder.glob("*/config.yaml"), key=lambda path: (path.stat().st_mtime_ns, str(path)))
        if resume is True and runs:
            return runs[-1].parent
        runs = [str(each) for each in folder.parents if (each / "config.yaml").is_file()]
        hint = f"pass its folder, {runs[0]}" if runs else "call train() to start one"
        raise ConfigError(f"expected a run to resume in {folder}, found none; {hint}")
