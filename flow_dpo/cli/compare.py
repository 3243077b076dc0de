"""`flow-dpo compare`: compare sources of traces over several seeds, from training to tables.

    flow-dpo compare --config study.yaml          settings of `train`, and those under `compare` and `training`
    flow-dpo compare --compare.run runs/train --compare.arms [team]     with an existing run as the trained flow

Everything is written under `output_dir`: settings/, one folder per seed, comparison.json. After an interruption the
same command continues; with other settings it is refused. With several `jobs`, seeds run in parallel.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from flow_dpo.cli.evaluate import evaluate
from flow_dpo.cli.generate import generate
from flow_dpo.cli.sft import fine_tune
from flow_dpo.cli.side_by_side import side_by_side
from flow_dpo.cli.train import train
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import ConfigError, DataError, LearningError
from flow_dpo.core.explore import TurnSampling
from flow_dpo.data.problems import DataSettings, load
from flow_dpo.evaluate.compare import provenance, seed_results
from flow_dpo.evaluate.compare import rates as rates_of
from flow_dpo.evaluate.compare.arms import MOST_PROBLEMS, Outcome, Sizes
from flow_dpo.evaluate.compare.choose import EVERY, choose
from flow_dpo.evaluate.compare.jobs import Command, JobRunner
from flow_dpo.evaluate.compare.redraw import redrawn, redrawn_data
from flow_dpo.evaluate.compare.settings import FIRST_RATE_SEED, CompareSettings
from flow_dpo.evaluate.compare.summary import ComparisonContext, summarise
from flow_dpo.evaluate.headers import Comparison
from flow_dpo.recipes.presets import preset as load_preset
from flow_dpo.recipes.single import Single
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import has_one_pass, one_pass, run_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.headers import write_header
from flow_dpo.runs.resolve import Given, code_flags, command_line, read_settings, resolve, typed_command
from flow_dpo.runs.settings import RuntimeSettings, TrainSettings, named_settings
from flow_dpo.traces.settings import PAPER_LORA, SftTrainingSettings
from flow_dpo.workers.settings import TIMING_ONLY, with_shards_in_force

SUMMARY = "comparison.json"
_ADVICE = (
    "\nThe other arms are compared without it. If there are too few traces, raise compare.pool.pool_problems or "
    "compare.pool.num_samples, or lower compare.pool.num_traces, with another --compare.output_dir"
)


COMMANDS: Mapping[str, Command] = {"train": train, "generate": generate, "sft": fine_tune, "evaluate": evaluate}
"""The commands that the arms of a comparison run."""


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo compare`: those of `train`, `compare` and `training` (the fine-tuning)."""
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
    """The settings of `compare.run`, the run that serves as the trained flow: its method, model and problems."""
    run = given.text("compare.run")
    if not run:
        return {}, ""
    path = Path(run) / "config.yaml"
    found = run_settings(Path(run))  # refuses a folder that is not a run
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
            "expected data.max_problems (the flow learns from these; traces use the problems after them), found none"
        )
    for problems in _problem_sets(parsed).values():  # a missing column or split is told before anything is trained
        load(replace(problems, skip_problems=0, max_problems=1))
    _refuse_shared(parsed)
    path = Path(settings.output_dir)
    with run_folder.locked(path):
        _begin(path, parsed)
        if settings.run:
            provenance.refuse_learned_since(path, Path(settings.run))
        _write_configs(path / "settings", parsed)
        seeds = settings.every_seed
        sizes = _sizes(parsed)
        names = [arm.name for arm in chosen]
        do = _Runners(
            path=path,
            settings=run_folder.plain(parsed),
            flags=code_flags(parsed),
            given={"flow": Path(settings.run)} if settings.run else {},
            redraw=partial(redrawn, parsed["data"], settings.pool.pool_problems) if settings.redraw_problems else None,
        )
        print_safe(console, f"{len(names)} arms, {len(seeds)} seeds, writing to {path}")
        try:
            rates = _choose_rates(do, names, sizes, settings, console)
            do = replace(do, rates={name: row["chosen"] for name, row in rates.items()})
            rates_of.refuse_other_rates(path, seeds, names, do.rates)
            side_by_side(settings.jobs, _one_seed, [(do, seed, names, sizes) for seed in seeds])
        except KeyboardInterrupt:
            print_safe(console, f"Finished steps are kept in {path}; give the same command again to continue")
            raise
        results = [seed_results.read_seed(seed_results.path_of(path, seed)) for seed in seeds]
        failed = {name: why for result in results[::-1] for name, why in result.failed.items() if name in names}
        for name, why in failed.items():
            print_safe(console, f"{name} could not be completed: {why}{_ADVICE}")
        made = [arm for arm in chosen if arm.name not in failed]
        if not made:
            raise DataError(f"expected at least one arm to succeed, found none; {names[0]}: {failed[names[0]]}")
        known = {**_tested(parsed), **provenance.combine(path, [result.made for result in results])}
        facts = {**known, "failed": failed, "rates": rates or None}
        context = ComparisonContext(tests=sizes.tests, facts=facts, tokens=sizes.tokens)
        write_header(path / SUMMARY, Comparison, summarise(made, results, context))
    print_safe(console, f"Written to {path / SUMMARY}; for a page: {typed_command()} report {shlex.quote(str(path))}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Runners:
    """What the runners of all seeds share. It is pickled and sent to other processes."""

    path: Path
    settings: Mapping[str, Any]
    """All settings of the comparison, as plain values."""
    flags: Sequence[str]
    given: Mapping[str, Path]
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    redraw: Callable[[int], Mapping[str, Sequence[str]]] | None = None
    """Returns the flags that give a seed its own problems."""

    def of(self, seed: int, rate: float | None = None) -> JobRunner:
        """The runner of a seed or, with `rate`, of one training by which the learning rate is chosen."""
        folder = self.path / f"seed{seed}" if rate is None else rates_of.folder_of(self.path, rate, seed)
        rates = self.rates if rate is None else rate
        return JobRunner(
            folder,
            seed,
            self.path / "settings",
            run=COMMANDS,
            code_flags=self.flags,
            given=self.given,
            rates=rates,
            redrawn=self.redraw(seed) if self.redraw is not None and rate is None else None,
        )


def _plain_lines() -> None:
    if multiprocessing.parent_process() is not None:
        os.environ["TTY_COMPATIBLE"] = "0"  # progress bars of parallel seeds would overwrite each other


def _one_seed(do: _Runners, seed: int, names: Sequence[str], sizes: Sizes) -> None:
    """Run all arms of one seed, one after another, and write their results. An arm with insufficient data, such as
    too few traces, or whose learning went wrong, gets the reason instead. Does nothing if all outcomes are known."""
    _plain_lines()
    file, known = seed_results.path_of(do.path, seed), None
    if file.exists():
        known = seed_results.read_seed(file)
        _refuse_others(file, known.settings, do.settings)
        folder = do.path / f"seed{seed}"
        if set(names) <= known.arms.keys() | (set() if folder.exists() else known.failed.keys()):
            return
    runner, found, rates = do.of(seed), dict[str, Outcome | str](), dict[str, dict[str, float | None]]()
    for name in names:
        runner.trained_at = rates[name] = {}
        try:
            found[name] = EVERY[name].make(runner, sizes)
        except (DataError, LearningError) as error:
            found[name] = str(error)
    result = replace(seed_results.collect(do.path, seed, found, sizes.tests[0]), rates=rates)
    if known is not None:
        result = seed_results.added(known, result)
    seed_results.write_seed(do.path, replace(result, settings=do.settings))


def _one_rate(do: _Runners, rate: float, seed: int, names: Sequence[str], sizes: Sizes) -> rates_of.Tried:
    """Train the arms at one learning rate and measure them on the validation problems."""
    _plain_lines()
    return rates_of.try_rate(do.of(seed, rate), [EVERY[name] for name in names], sizes, rate)


def _choose_rates(
    do: _Runners, names: Sequence[str], sizes: Sizes, settings: CompareSettings, console: Console
) -> dict[str, dict[str, Any]]:
    """The learning rate of each training, with the results it was chosen by; empty if there are no candidates."""
    if settings.rates.chosen_in:
        taken = rates_of.taken_rates(Path(settings.rates.chosen_in))
        return {name: row for name, row in taken.items() if name not in EVERY or rates_of.trained_for(name, names)}
    wanted, seeds = settings.rates, range(FIRST_RATE_SEED, FIRST_RATE_SEED + settings.rates.num_trainings)
    sizes = rates_of.validation_sizes(sizes, sampled=settings.tests.sampled)
    tasks = [(do, rate, seed, names, sizes) for seed in seeds for rate in wanted.candidates]
    tried: list[rates_of.Tried] = side_by_side(settings.jobs, _one_rate, tasks)
    for each in tried:
        for name, reason in each.failed.items():
            print_safe(console, f"{name} could not be completed at learning rate {each.rate:g}: {reason}")
    found = rates_of.choose_rates(tried)
    for name, row in found.items():
        print_safe(console, f"{name}: learning rate {row['chosen']:g}")
    return found


_FREE = {"compare.jobs", "compare.arms", "compare.num_seeds", "compare.seeds", *TIMING_ONLY}
"""Settings that can change between the commands of one comparison: arms and seeds can be added, and jobs and workers
change its speed only."""


def _begin(path: Path, parsed: Mapping[str, Any]) -> None:
    """Write config.yaml, or check that the existing one has the same settings."""
    known, now = path / "config.yaml", run_folder.plain(parsed)
    if known.exists():
        _refuse_others(path, read_settings(known), now)
    write_whole(known, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def _refuse_others(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to add to results that were made with other settings."""
    then = {"engine_kind": "local", "workers": {}} | dict(then)
    # A setting that did not exist when the results were made counts as off.
    if then["engine_kind"] == "local":
        then["engine"] = {"int8": False} | dict(then.get("engine", {}))
    if roles := then.get("learner", {}).get("roles"):
        own = {role: {"by_problem": False} | dict(values) for role, values in roles.items()}
        then["learner"] = dict(then["learner"]) | {"roles": own}
    differing = run_folder.differences(with_shards_in_force(then), with_shards_in_force(now))
    # A seed's results can have been moved from the folder in which they were made.
    free = _FREE if path.is_dir() else {*_FREE, "compare.output_dir"}
    found = {name: values for name, values in differing.items() if name not in free}
    if found:
        lines = "".join(f"\n  {name}: {old} then, {new} now" for name, (old, new) in found.items())
        raise ConfigError(f"{path} was made with other settings; name another folder with --compare.output_dir{lines}")


def _write_configs(folder: Path, parsed: Mapping[str, Any]) -> None:
    """Write the settings files that the arms' commands read."""
    pool, sets = parsed["compare"].pool, _problem_sets(parsed)
    folder.mkdir(exist_ok=True)
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
    sets["fixed"] = replace(parsed["data"], max_problems=None)  # a fixed set of candidates is judged whole
    # A run brings its engine along, an adapter does not, and neither brings workers.
    elsewhere = parsed["workers"].kind != "here"
    workers = {name: parsed[name] for name in ("workers", "engine_kind", "engine")} if elsewhere else {}
    for name, problems in sets.items():
        more = {"generate": {"num_samples": pool.num_samples}} if name == "pool" else {}
        files |= {name: {**workers, "data": problems, **more}, f"base-{name}": {**sampled, "data": problems, **more}}
    for name, values in files.items():
        text = yaml.safe_dump(run_folder.plain(values), sort_keys=False, allow_unicode=True)
        write_whole(folder / f"{name}.yaml", text)


def _problem_sets(parsed: Mapping[str, Any]) -> dict[str, DataSettings]:
    """The problems on which traces are sampled, those of each test, and those by which learning rates are chosen."""
    pool, tests, rates = parsed["compare"].pool, parsed["compare"].tests, parsed["compare"].rates
    data: DataSettings = parsed["data"]
    tested = {"dataset_name": tests.test_dataset_name or data.dataset_name, "skip_problems": tests.test_skip}
    if tests.test_dataset_name:
        tested |= dict.fromkeys(("dataset_config", "question_column", "answer_column"))
        tested |= {"schema": "", "question_template": ""}
    after = data.skip_problems + (data.max_problems or 0)
    sets = {
        "pool": replace(data, skip_problems=after, max_problems=pool.pool_problems),
        "held_out": replace(data, **tested, dataset_split=tests.test_split, max_problems=tests.test_problems),
    }
    if tests.harder_split:
        sets["harder"] = replace(data, **tested, dataset_split=tests.harder_split, max_problems=tests.harder_problems)
    if rates.candidates:
        chosen_by = {"skip_problems": rates.validation_skip, "max_problems": rates.validation_problems}
        sets[rates_of.VALIDATION] = replace(data, dataset_split=rates.validation_split, **chosen_by)
    return sets


def _refuse_shared(parsed: Mapping[str, Any]) -> None:
    """Refuse validation problems that an arm learns from or is tested on."""
    data: DataSettings = parsed["data"]
    if parsed["compare"].rates.candidates:
        learned = replace(data, max_problems=MOST_PROBLEMS * (data.max_problems or 0))
        sets = {**_problem_sets(parsed), "those to be learned": learned}
        if parsed["compare"].redraw_problems:
            pool, most = parsed["compare"].pool.pool_problems, MOST_PROBLEMS * (data.max_problems or 0)
            for seed in parsed["compare"].every_seed:
                own = redrawn_data(data, pool, seed)["train"]
                sets[f"those of seed {seed}"] = replace(own, max_problems=max(most, pool + (data.max_problems or 0)))
        rates_of.refuse_shared({name: load(settings).problems for name, settings in sets.items()})


def _learner_of_others(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Learner settings that the comparison changed from its preset; other recipes' arms add them to their presets."""
    own = load_preset(parsed["recipe"], parsed["preset"]).learner
    then, now = (run_folder.plain(replace(learner, roles={})) for learner in (own, parsed["learner"]))
    changed: dict[str, Any] = {}
    for name, (_, value) in run_folder.differences(then, now).items():
        *groups, last = name.split(".")
        inner = changed
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return changed


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
    """The single pass of the comparison's flow; None for a flow without one."""
    flow = parsed["flow"]
    return one_pass(flow) if has_one_pass(flow) else None


def _tested(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Facts for the header: model, data set, command and settings."""
    return {
        "model": parsed["model"].model_name_or_path,
        "dataset": f"{parsed['data'].dataset_name}/{parsed['data'].dataset_split}",
        "command": command_line(),
        "settings": run_folder.plain(parsed),
    }
