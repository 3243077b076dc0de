"""`flow-dpo compare`: the whole comparison of sources of traces, over several seeds.

    flow-dpo compare --config study.yaml          settings of `train`, and those under `compare` and `training`
    flow-dpo compare --compare.run runs/train --compare.arms [team]     of a run that is there already

Everything is written under `output_dir`: settings/, one folder a seed, comparison.json. Interrupted,
the same command continues; with other settings it is refused. With several `jobs`, seeds run side by side.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from flow_dpo.cli.evaluate import evaluate
from flow_dpo.cli.generate import generate
from flow_dpo.cli.sft import fine_tune
from flow_dpo.cli.train import train
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import ConfigError, DataError, expect
from flow_dpo.core.explore import TurnSampling
from flow_dpo.evaluate.compare import provenance
from flow_dpo.evaluate.compare.arms import Outcome, Sizes
from flow_dpo.evaluate.compare.choose import EVERY, choose
from flow_dpo.evaluate.compare.jobs import Command, JobRunner
from flow_dpo.evaluate.compare.summary import ComparisonContext, summarise
from flow_dpo.evaluate.headers import Comparison
from flow_dpo.learner.settings import LearnerSettings
from flow_dpo.plugins.load import is_source
from flow_dpo.recipes.presets import preset as load_preset
from flow_dpo.recipes.scales import SCALES
from flow_dpo.recipes.single import Single
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import has_one_pass, one_pass, run_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.headers import write_header
from flow_dpo.runs.resolve import Given, command_line, read_settings, resolve, typed_command
from flow_dpo.runs.settings import RuntimeSettings, TrainSettings, named_settings
from flow_dpo.traces.settings import PAPER_LORA, SftTrainingSettings
from flow_dpo.workers.settings import TIMING_ONLY, with_shards_in_force

SUMMARY = "comparison.json"
_ADVICE = (
    "\nThe other arms are compared without it. Where traces are too few: more compare.pool.pool_problems or "
    "compare.pool.num_samples, or lower compare.pool.num_traces, in another --compare.output_dir"
)


COMMANDS: Mapping[str, Command] = {"train": train, "generate": generate, "sft": fine_tune, "evaluate": evaluate}
"""What the arms of a comparison are made of."""


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
    """Draws of the arm `self_more_draws`."""

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


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Settings of a comparison: its arms, seeds, pool, tests and budget."""

    output_dir: str = "runs/comparison"
    num_seeds: int = 3
    """Seeds 0, 1, ...: of the flow's training, the traces' draws, and the fine-tuning."""
    arms: tuple[str, ...] = ()
    """Their names (`evaluate.compare.arms`, `team_arms`, `recipe_arms`), or "paper" for those of the paper's table,
    "team" for the flow against its members, and "recipes" for the neighbours of Flow-DPO; all sources of traces where
    empty. `self_generated` is what the others are compared with, and an arm that names others is compared with those
    too."""
    run: str = ""
    """A run folder that stands for the trained flow, which is then not trained: of one seed. Its method, model and data
    are the defaults."""
    tokens: int = 0
    """Tokens, sampled and learned, of the arms that are to have as many as the flow; as many as it had where 0."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    tests: TestSettings = field(default_factory=TestSettings)
    jobs: int = 1
    """Seeds under way at once, each in a process of its own. Changes timing only."""

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")
        for name in ("num_seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of 1 at least, found {getattr(self, name)}")
        if self.run and self.num_seeds > 1:
            raise ConfigError(
                f"expected one seed where a run stands for the trained flow, found {self.num_seeds}; add "
                "--compare.num_seeds 1, or leave out --compare.run"
            )
        if self.tokens < 0:
            raise ConfigError(f"expected tokens of 0 or more, found {self.tokens}")


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo compare`: those of `train`, `compare` and `training` (of the fine-tuning)."""
    what = "Compare sources of traces (arXiv 2410.22304, table 1)."
    return resolve(
        "flow-dpo compare",
        what,
        argv,
        lambda given: sections(named_settings(given)),
        brings=_run_settings,
        doc=__doc__ or "",
    )


def _run_settings(given: Given) -> tuple[dict[str, Any], str]:
    """What the run that stands for the trained flow brings along: its method, its model and all of its problems."""
    run = given.text("compare.run")
    if not run:
        return {}, ""
    path = Path(run) / "config.yaml"
    found = run_settings(Path(run))  # refuses what is no run
    names = ("dataset_split", "skip_problems", "max_problems")
    data = read_settings(path).get("data", {})
    return found | {"data": found["data"] | {name: data[name] for name in names if name in data}}, str(path)


def sections(defaults: TrainSettings) -> dict[str, Any]:
    """The groups of settings, with their defaults."""
    trained = {name: value for name, value in defaults.sections().items() if name != "run"}
    return trained | {"compare": CompareSettings(), "training": SftTrainingSettings(), "sft_lora": PAPER_LORA}


def compare(argv: Sequence[str]) -> int:
    """`flow-dpo compare`."""
    parsed, console = parse(argv), Console()
    settings: CompareSettings = parsed["compare"]
    chosen = choose(settings.arms, parsed["credit"])
    if any(arm.kind == "compiled" for arm in chosen):
        from flow_dpo.traces.sft import check_trl  # loads torch, once the arguments are parsed

        check_trl()
    if parsed["data"].max_problems is None:
        raise ConfigError(
            "expected data.max_problems, the problems that the flow learns from: traces are drawn on those after them"
        )
    path = Path(settings.output_dir)
    with run_folder.locked(path):
        _begin(path, parsed)
        _write_configs(path / "settings", parsed)
        seeds = list(range(settings.num_seeds))
        sizes = _sizes(parsed)
        names, flags = [arm.name for arm in chosen], _code_flags(parsed)
        given = {"flow": Path(settings.run)} if settings.run else {}
        print_safe(console, f"{len(names)} arms, {len(seeds)} seeds, writing to {path}")
        try:
            if settings.jobs == 1:
                outcomes = [_one_seed(path, seed, names, sizes, flags, given) for seed in seeds]
            else:
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(settings.jobs, mp_context=context) as pool:
                    futures = [pool.submit(_one_seed, path, seed, names, sizes, flags, given) for seed in seeds]
                    outcomes = [future.result() for future in futures]
        except KeyboardInterrupt:
            print_safe(console, f"The commands that are done are kept in {path}; the same command continues after them")
            raise
        failed: dict[str, str] = {}
        for name, reason in (row for outcome in outcomes for row in outcome.items()):
            if isinstance(reason, str) and failed.setdefault(name, reason) is reason:
                print_safe(console, f"{name} could not be made: {reason}{_ADVICE}")
        made = [arm for arm in chosen if arm.name not in failed]
        if not made:
            raise DataError(f"expected an arm that can be made, found none; of {names[0]}: {failed[names[0]]}")
        by_arm = {
            arm.name: [one for outcome in outcomes if isinstance(one := outcome[arm.name], Outcome)] for arm in made
        }
        known = {**_tested(parsed), **provenance.collect(path, by_arm), "failed": failed}
        context = ComparisonContext(seeds=seeds, tests=sizes.tests, facts=known, tokens=sizes.tokens)
        found = summarise(made, by_arm, context, path)
        write_header(path / SUMMARY, Comparison, found)
    print_safe(console, f"Written to {path / SUMMARY}; as a page: {typed_command()} report {shlex.quote(str(path))}")
    return 0


def _code_flags(parsed: Mapping[str, Any]) -> list[str]:
    """The flags by which the user allowed code to be run."""
    values = {"flow_source": parsed["flow_source"], "flow.programs": getattr(parsed["flow"], "programs", False)}
    values |= {"recipe": is_source(parsed["recipe"]) and parsed["recipe"]}
    values |= {"model.trust_remote_code": parsed["model"].trust_remote_code}
    values |= {"explore_source": parsed.get("explore_source"), "data.schema": parsed["data"].schema}
    grading = parsed["grading"]
    values |= {"grading.grader": grading.grader, "grading.rewards": ",".join(grading.rewards)}
    return [f"--{name}={str(value).lower() if value is True else value}" for name, value in values.items() if value]


def _one_seed(
    path: Path, seed: int, names: Sequence[str], sizes: Sizes, flags: Sequence[str], given: Mapping[str, Path]
) -> dict[str, Outcome | str]:
    """All arms of one seed, one after another; of one for which the data do not suffice, such as traces that are too
    few, the reason."""
    if multiprocessing.parent_process() is not None:
        os.environ["TTY_COMPATIBLE"] = "0"  # seeds side by side would draw over each other: plain lines
    do = JobRunner(path / f"seed{seed}", seed, path / "settings", run=COMMANDS, code_flags=flags, given=given)
    found: dict[str, Outcome | str] = {}
    for name in names:
        try:
            found[name] = EVERY[name].make(do, sizes)
        except DataError as error:
            found[name] = str(error)
    return found


def _begin(path: Path, parsed: Mapping[str, Any]) -> None:
    """Write config.yaml, or make sure that it holds the same. Arms, seeds and jobs may be added, and other workers do
    the rest."""
    known, now = path / "config.yaml", run_folder.plain(parsed)
    if known.exists():
        free = {"compare.jobs", "compare.arms", "compare.num_seeds", *TIMING_ONLY}
        then = {"engine_kind": "local", "workers": {}} | read_settings(known)
        differing = run_folder.differences(with_shards_in_force(then), with_shards_in_force(now))
        found = {name: values for name, values in differing.items() if name not in free}
        if found:
            lines = "".join(f"\n  {name}: {old} then, {new} now" for name, (old, new) in found.items())
            raise ConfigError(
                f"{path} was started with other settings; name another folder with --compare.output_dir{lines}"
            )
    write_whole(known, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def _write_configs(folder: Path, parsed: Mapping[str, Any]) -> None:
    """The settings files that the commands name."""
    pool, tests = parsed["compare"].pool, parsed["compare"].tests
    folder.mkdir(exist_ok=True)
    data = parsed["data"]
    tested = {"dataset_name": tests.test_dataset_name or data.dataset_name, "skip_problems": 0}
    if tests.test_dataset_name:
        tested |= {"dataset_config": None, "question_column": None, "answer_column": None}
    sets = {
        "pool": replace(data, skip_problems=data.skip_problems + data.max_problems, max_problems=pool.pool_problems),
        "held_out": replace(data, **tested, dataset_split=tests.test_split, max_problems=tests.test_problems),
    }
    if tests.harder_split:
        sets["harder"] = replace(data, **tested, dataset_split=tests.harder_split, max_problems=tests.harder_problems)
    names = ("recipe", "preset", "flow_source", "engine_kind")
    train = {name: value for name, value in parsed.items() if name not in ("compare", "training", "sft_lora")}
    sampled = {name: parsed[name] for name in (*names, "flow", "explore", *RuntimeSettings().sections())}
    method = ("recipe", "flow_source", "flow", "explore", "credit", "objective")
    files: dict[str, Mapping[str, Any]] = {
        "train": train,
        "other": {name: value for name, value in train.items() if name not in method}
        | {"learner": _learner_of_others(parsed)},
        "sft": {"training": parsed["training"], "lora": parsed["sft_lora"]},
    }
    single = _single_pass(parsed)
    if single is not None:
        files["single"] = {**files["other"], "flow": single}
    sets["fixed"] = replace(data, max_problems=None)  # candidates that were drawn are judged whole
    # A run brings its engine along, an adapter none, and neither of them workers.
    elsewhere = parsed["workers"].kind != "here"
    workers = {name: parsed[name] for name in ("workers", "engine_kind", "engine")} if elsewhere else {}
    for name, problems in sets.items():
        more = {"generate": {"num_samples": pool.num_samples}} if name == "pool" else {}
        files |= {name: {**workers, "data": problems, **more}, f"base-{name}": {**sampled, "data": problems, **more}}
    for name, values in files.items():
        text = yaml.safe_dump(run_folder.plain(values), sort_keys=False, allow_unicode=True)
        write_whole(folder / f"{name}.yaml", text)


def _learner_of_others(parsed: Mapping[str, Any]) -> LearnerSettings:
    """How arms of other recipes learn: they may have other roles, which learn as all roles do, and where the number of
    examples of an update is the recipe's own for its preset, theirs is the scale's."""
    learner, preset = replace(parsed["learner"], roles={}), parsed["preset"]
    own = load_preset(parsed["recipe"], preset).learner.examples_per_update
    if preset in SCALES and learner.examples_per_update == own:
        return replace(learner, examples_per_update=SCALES[preset].learner.examples_per_update)
    return learner


def _sizes(parsed: Mapping[str, Any]) -> Sizes:
    settings: CompareSettings = parsed["compare"]
    flow = parsed["flow"]
    shape = (flow.chunk_tokens, flow.max_chunks) if hasattr(flow, "chunk_tokens") else None
    drawn = ("held_out/sampled",) if settings.tests.sampled else ()
    more = ("harder/sampled",) if settings.tests.sampled and settings.tests.harder_sampled else ()
    harder = ("harder/greedy", *more) if settings.tests.harder_split else ()
    return Sizes(
        num_traces=settings.pool.num_traces,
        matched_draws=settings.pool.matched_draws,
        more_draws=settings.pool.more_draws,
        flow_shape=shape,
        tests=("held_out/greedy", *drawn, *harder),
        max_problems=parsed["data"].max_problems,
        tokens=settings.tokens,
        preset=parsed["preset"],
        single_pass=_single_pass(parsed),
        test_samples=settings.tests.test_samples,
        test_draws=settings.tests.test_draws,
        outcome_pairs=isinstance(parsed["credit"], OutcomePairs),
        draws=parsed["explore"] if isinstance(parsed["explore"], TurnSampling) else TurnSampling(),
    )


def _single_pass(parsed: Mapping[str, Any]) -> Single | None:
    """The single pass of the comparison's flow; None of a flow without."""
    flow = parsed["flow"]
    return one_pass(flow) if has_one_pass(flow) else None


def _tested(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """The header's facts: model, data set, command and settings."""
    return {
        "model": parsed["model"].model_name_or_path,
        "dataset": f"{parsed['data'].dataset_name}/{parsed['data'].dataset_split}",
        "command": command_line(),
        "settings": run_folder.plain(parsed),
    }
