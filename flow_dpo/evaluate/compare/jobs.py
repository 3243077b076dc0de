"""The jobs of a comparison: `flow-dpo` commands, each run once and recorded.

Every job is a `flow-dpo` command with its own folder. A finished job is recorded with its command line, beside the
folders; requested again, it is only looked up:

    do.train("flow", "--max_problems", "1000")     runs   flow-dpo train ... --output_dir OUT/seed0/flow
    do.train("flow", "--max_problems", "1000")     done already: nothing runs

Invariant: an interrupted training continues from its checkpoint; any other interrupted job starts again from scratch.
"""

from __future__ import annotations

import gc
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError, DataError, FlowDpoError
from flow_dpo.runs import files, headers, run_folder
from flow_dpo.runs.callbacks.budget import spent
from flow_dpo.runs.records import DoneJob, append_rows, read_metrics, read_rows
from flow_dpo.runs.resolve import read_settings

Command = Callable[[Sequence[str]], int]

DONE = "done.jsonl"
_OF_SAMPLING = ("--explore_source", "--grading.", "--data.")
"""Beginnings of flags that allow code which only sampling needs."""
NUMBERS = ("tokens_sampled", "tokens_learned", "verdicts_used", "seconds")
"""The costs of a job. Sampled tokens are those of rollouts; learned tokens are those that a learner reads, including
prompts; seconds are the time of the work, without loading."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A finished command."""

    name: str
    folder: Path
    costs: Mapping[str, float]


class JobRunner:
    """Runs one seed's commands."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        configs: Path,
        *,
        run: Mapping[str, Command],
        code_flags: Sequence[str] = (),
        given: Mapping[str, Path] | None = None,
        rates: Mapping[str, float] | float | None = None,
        redrawn: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`configs` holds the settings files that the commands name. `run` has the commands "train", "generate", "sft"
        and "evaluate". `code_flags` are the flags with which a person allowed code to run, without which no run or
        adapter can bring code along. `given` are runs to use as trainings, by name; they are only read. `rates` are the
        learning rates of trainings by name, or one for all; otherwise presets decide. `redrawn` are the flags that give
        this seed its own problems, for trainings ("train") and for sampling traces ("pool")."""
        self.folder, self.seed, self._configs, self._run = folder, seed, configs, run
        self._code_flags = tuple(code_flags)
        self._given = dict(given or {})
        self._rates = rates
        self._redrawn = redrawn or {}
        self.trained_at: dict[str, float | None] = {}
        """Learning rates of the requested trainings, by the name that each was chosen for; None for one that keeps its
        preset's."""
        self._done: dict[str, list[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / DONE).exists():
            files.cut_torn(folder / DONE)
            self._done = {row.name: list(row.words) for row in read_rows(folder / DONE, DoneJob)}

    def train(
        self,
        name: str,
        *flags: str,
        recipe: str = "",
        config: str = "other",
        seed: int | None = None,
        rate_of: str = "",
    ) -> Work:
        """`flow-dpo train` with the comparison's settings and these flags; or with another recipe, fitted by the same
        preset, with the same model, data and updates, and the flow of the settings file `config`. `seed` replaces the
        common seed; `rate_of` is the training whose learning rate to use, if not its own."""
        base = ["--recipe", recipe, "--config", str(self._configs / f"{config}.yaml")] if recipe else []
        rate = self._rates.get(rate_of or name) if isinstance(self._rates, Mapping) else self._rates
        if name not in self._given:
            self.trained_at[rate_of or name] = rate
        flags = flags if rate is None else (*flags, "--learning_rate", f"{rate:g}")
        flags = (*self._redrawn.get("train", ()), *flags)
        words = [
            *(base or ["--config", str(self._configs / "train.yaml")]),
            "--seed",
            str(self.seed if seed is None else seed),
            *flags,
        ]
        folder = self._given[name] if name in self._given else self._do("train", name, words)
        rows = read_metrics(folder / "metrics.jsonl")
        total = spent(rows)
        costs = (total["played"], total["learned"], total["verdicts"], work_seconds(rows))
        return Work(name=name, folder=folder, costs=dict(zip(NUMBERS, costs, strict=True)))

    def traces(self, name: str, *flags: str, run: Work | None = None) -> Work:
        """`flow-dpo generate` on the pool of problems, with a run's adapters or without."""
        problems = (*self._who("pool", run), *self._redrawn.get("pool", ()))
        folder = self._do("generate", name, [*problems, "--seed", str(self.seed), *flags])
        cost = _read(folder)["cost"]
        numbers = {"tokens_sampled": cost["tokens_sampled"], "verdicts_used": cost["verdicts_used"]}
        return Work(name=name, folder=folder, costs={**numbers, "tokens_learned": 0.0, "seconds": cost["seconds"]})

    def sft(self, name: str, traces: Work, *flags: str) -> Work:
        """`flow-dpo sft` on these traces."""
        words = ["--config", str(self._configs / "sft.yaml"), "--traces", str(traces.folder), *flags]
        words += [flag for flag in self._code_flags_of(traces.folder) if not flag.startswith(_OF_SAMPLING)]
        folder = self._do("sft", name, [*words, "--seed", str(self.seed)])
        cost = run_folder.read_facts(folder)["cost"]
        costs = {"tokens_learned": cost["tokens_read"], "seconds": cost["seconds"]}
        return Work(name=name, folder=folder, costs={"tokens_sampled": 0.0, "verdicts_used": 0.0, **costs})

    def evaluate(
        self, name: str, problems: str, *flags: str, run: Work | None = None, adapter: Work | None = None
    ) -> Path:
        """`flow-dpo evaluate` on a set of problems, with a run's adapters, a fine-tuned adapter, or none.

        Returns the folder with its predictions.
        """
        return self._do("evaluate", name, [*self._who(problems, run, adapter), "--seed", str(self.seed), *flags])

    def _who(self, problems: str, run: Work | None, adapter: Work | None = None) -> list[str]:
        """Flags for the model: a run or an adapter brings its method and needs the problems; the base needs both."""
        if run is None and adapter is None:
            return ["--config", str(self._configs / f"base-{problems}.yaml")]
        flag, made = ("--run", run) if run else ("--adapter", adapter)
        assert made is not None
        code_flags = self._code_flags_of(made.folder)
        return [flag, str(made.folder), *code_flags, "--config", str(self._configs / f"{problems}.yaml")]

    def _code_flags_of(self, folder: Path) -> list[str]:
        """The flags with which a person allowed code to run; a recipe's file only if the folder was made by it."""
        recipes = [flag for flag in self._code_flags if flag.startswith("--recipe=")]
        made_by = f"--recipe={_recipe_of(folder)}" if recipes else ""
        return [flag for flag in self._code_flags if flag not in recipes or flag == made_by]

    def _do(self, command: str, name: str, words: Sequence[str]) -> Path:
        folder, words = self.folder / name, [command, *words, "--output_dir", str(self.folder / name)]
        if name in self._done:
            if self._done[name] != words:
                raise ConfigError(
                    f"{folder} was made by another command; name another folder with --output_dir\n"
                    f"  then: {shlex.join(self._done[name])}\n  now:  {shlex.join(words)}"
                )
            return folder
        if folder.exists() and command != "train":
            shutil.rmtree(folder)  # started and interrupted
        resume = ["--resume"] if command == "train" and (folder / "config.yaml").exists() else []
        started = time.perf_counter()
        try:
            self._run[command]([*words[1:], *resume])
        except FlowDpoError as error:
            raise type(error)(f"seed {self.seed}, {name}: {error}") from error
        finally:
            gc.collect()  # a trainer holds its model in a reference cycle; the next command loads another
        seconds = round(time.perf_counter() - started, 3)
        append_rows(self.folder / DONE, [DoneJob(name=name, words=tuple(words), seconds=seconds)])
        self._done[name] = words
        return folder


def _recipe_of(folder: Path) -> object:
    """The recipe behind a run, a fine-tuned model or traces."""
    if (folder / "config.yaml").exists():
        return read_settings(folder / "config.yaml").get("recipe")
    return _read(folder)["settings"].get("recipe")


def work_seconds(rows: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of work in the rows of metrics.jsonl, summed over all workers: sampling, grading and learning."""
    return sum(row[f"{part}/seconds"] for row in rows for part in ("rollout", "grade", "learn"))


def _read(folder: Path) -> dict[str, Any]:
    """The content of traces.json, which says how traces were made."""
    try:
        return headers.read_header(folder / "traces.json", headers.TracesHeader)
    except DataError as error:
        raise DataError(f"{error}; remove the folder to make it again") from error
