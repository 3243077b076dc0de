"""How does one training run go, from its settings to its folder, and on again after an interruption?

    lock the folder   compare with what is resumed   load   begin, or go on from the last checkpoint   learn   publish

Invariant: a resumed run's records, adapters and optimizers are bit for bit those of an uninterrupted run with the same
settings on the same machine. Whatever could make them differ (settings, code, versions, device, data) is compared
before the model is loaded and anything is played or written, all of it at once, and refused unless the user allows it
by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from flow_dpo.core.errors import ConfigError, FlowDpoError, StorageError
from flow_dpo.core.loop import learn
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.plugins import fingerprint
from flow_dpo.core.protocols import Row
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Pair
from flow_dpo.data.problems import load
from flow_dpo.learner.learner import Learner
from flow_dpo.models.load import device_of
from flow_dpo.models.render import Renderer
from flow_dpo.runs import resolve, run_folder, tree_records
from flow_dpo.runs.callbacks import progress
from flow_dpo.runs.callbacks.budget import BudgetCallback
from flow_dpo.runs.callbacks.collapse_warnings import ChosenLikelihoodWarning, StopCollapseWarning
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.checkpoint import Checkpoints
from flow_dpo.runs.records import Metrics, PairRow, ScoredRow, read_metrics
from flow_dpo.runs.runtime import Runtime, open_runtime
from flow_dpo.runs.settings import TrainSettings

_OF_THE_RUN = frozenset(
    f"run.{name}" for name in ("output_dir", "resume", "allow", "saving.save_updates", "saving.checkpoint_batches")
)
"""Settings that change no result."""
_FACTS = ("code", "flow_file", "versions", "device", "data_fingerprint")
"""What besides the settings a result depends on, as run.json names it."""
_OTHER_CAUSES = tuple(name.removesuffix("_fingerprint") for name in _FACTS)


def run(settings: TrainSettings, console: Console) -> run_folder.RunFolder:
    """Train as told, keep everything in the run folder, and say at the end what came of it."""
    path = Path(settings.run.output_dir)
    resolve.refuse_unknown(_allowed(settings), settings.sections(), _OTHER_CAUSES, flag="--allow")
    if not settings.run.resume:
        run_folder.refuse_used(path)
    recipe, seed = settings.recipe, settings.run.seed
    with run_folder.locked(path), _shop(path, settings) as (runtime, differences):
        learner = Learner(runtime.policy, settings.learner)
        folder, validation = _open(path, settings, runtime, learner, differences)
        seen = validation.num_seen
        budget = BudgetCallback(settings.run.budget, read_metrics(path / "metrics.jsonl"))
        keeper = RunKeeper(folder, runtime, learner, validation, settings)
        going_on = f", going on after {seen}" if seen else ""
        print_safe(console, f"{runtime.loaded.name}: {len(runtime.fitting)} problems{going_on}, writing to {path}")
        try:
            with progress.ProgressBar(console, len(runtime.fitting), seen) as bar:
                learn(
                    recipe,
                    budget.until_spent(runtime.fitting[seen:]),
                    runtime.workers,
                    learner,
                    callbacks=[keeper, budget, bar, StopCollapseWarning(), ChosenLikelihoodWarning()],
                    seed=seed,
                    problems_per_batch=settings.run.problems_per_batch,
                    progress=validation,
                )
            keeper.checkpoint()
        except (KeyboardInterrupt, FlowDpoError) as error:
            # What was learned is kept and can be used, unless it is the disk that fails.
            if not isinstance(error, StorageError):
                keeper.finish()
            print_safe(console, f"Go on with: flow-dpo train --output_dir {path} --resume")
            raise
        keeper.finish()
    console.print(progress.summary_table(validation))
    print_safe(console, f"\nPicture:  {path / 'progressive.png'}")
    print_safe(console, f"Adapters: {', '.join(str(adapter) for adapter in folder.latest_adapters().values())}")
    print_safe(console, f"Next:     flow-dpo evaluate --run {path} --dataset_split test --max_problems 500")
    return folder


@contextmanager
def _shop(path: Path, settings: TrainSettings) -> Iterator[tuple[Runtime, dict[str, Any]]]:
    """Everything loaded, and what is allowed to differ from the run that is resumed, if one is.

    The comparison needs the problems and the device's name: it is made before the model is loaded.
    """
    problems, differences = load(settings.runtime.data), dict[str, Any]()
    if settings.run.resume and (path / "config.yaml").exists():
        facts = {
            "device": str(device_of(settings.runtime.model)),
            "data_fingerprint": problems.fingerprint,
            "flow_file": fingerprint(settings.flow_source),
        }
        differences = _compare(path, settings, facts)
    flow, seed = settings.recipe.flow, settings.run.seed
    with open_runtime(
        settings.runtime, flow, roles=flow.roles, seed=seed, problems=problems, served=path / "served"
    ) as runtime:
        yield runtime, differences


def _open(
    path: Path, settings: TrainSettings, runtime: Runtime, learner: Learner, differences: Mapping[str, Any]
) -> tuple[run_folder.RunFolder, ProgressiveValidation]:
    """A new folder and empty counts; or those that are resumed, and the learner is as the last checkpoint has it."""
    facts = {
        "command": resolve.command_line(),
        "model": runtime.loaded.name,
        "device": str(runtime.policy.device),
        "num_problems": len(runtime.fitting),
        "num_skipped_rows": runtime.problems.skipped,
        "data_fingerprint": runtime.problems.fingerprint,
        "flow_file": fingerprint(settings.flow_source),
    }
    found = Checkpoints(path).newest() if settings.run.resume else None
    if found is None:  # not begun, or interrupted before anything was committed
        folder = run_folder.RunFolder.create(path, settings.sections(), facts, over=settings.run.resume)
        return folder, ProgressiveValidation(window=settings.run.window)
    checkpoint, loop = found
    folder = run_folder.RunFolder.reopen(path, loop["sizes"])
    learner.load(checkpoint / "learner")
    validation = ProgressiveValidation.from_state(loop["progressive"])
    if differences:
        folder.note({"resumed_with": {"problems_seen": validation.num_seen, "differences": differences}})
    return folder, validation


def _compare(path: Path, settings: TrainSettings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the run at `path` and is allowed to. Raises `ConfigError` for what is not."""
    now = run_folder.plain(settings.sections())
    found = {
        name: values
        for name, values in run_folder.differences(
            {"engine_kind": "local"} | resolve.read_settings(path / "config.yaml"), now
        ).items()
        if name not in _OF_THE_RUN
    }
    before, present = run_folder.read_facts(path), {**run_folder.environment(), **facts}
    for name in _FACTS if before else ():
        if before.get(name) != present[name]:
            found[name.removesuffix("_fingerprint")] = (before.get(name), present[name])
    allowed = _allowed(settings)
    refused = {name: values for name, values in found.items() if name not in allowed}
    if refused:
        lines = "".join(f"\n  {name}: {old} then, {new} now" for name, (old, new) in refused.items())
        raise ConfigError(
            f"{path} was begun otherwise; to go on all the same, add --allow {','.join([*allowed, *refused])}{lines}"
        )
    return {name: list(values) for name, values in found.items()}


def _allowed(settings: TrainSettings) -> list[str]:
    """The names in `--allow`, each once."""
    return list(dict.fromkeys(name.strip() for name in settings.run.allow.split(",") if name.strip()))


class RunKeeper:
    """A recorder that writes the run folder."""

    def __init__(
        self,
        folder: run_folder.RunFolder,
        runtime: Runtime,
        learner: Learner,
        validation: ProgressiveValidation,
        settings: TrainSettings,
    ) -> None:
        self._folder, self._shop, self._learner, self._validation = folder, runtime, learner, validation
        saving = settings.run.saving
        self._every, self._save_updates = saving.checkpoint_batches, saving.save_updates
        self._checkpoints = Checkpoints(folder.path)
        self._saved = learner.version
        self._written_at = validation.num_seen or -1
        self._batches = 0

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Write one batch, and a checkpoint where one is due."""
        renderer = self._shop.loaded.renderer
        by_id = {tree.problem.id: tree for tree in trees}
        tree_rows = [
            tree_records.tree_row(tree, [renderer.to_text([node.completion.token_ids]) for node in tree.nodes])
            for tree in trees
        ]
        rows = [tree_records.example_row(e, by_id[e.problem_id], _example_texts(renderer, e)) for e in examples]
        with self._writing():
            self._folder.record(
                Metrics.of(row),
                tree_rows,
                pairs=[each for each in rows if isinstance(each, PairRow)],
                scored=[each for each in rows if isinstance(each, ScoredRow)],
            )
        self._batches += 1
        due = self._save_updates and self._learner.version - self._saved >= self._save_updates
        if due or self._batches % self._every == 0:
            self.checkpoint()
        if due:
            self._publish()

    def checkpoint(self) -> None:
        """Keep the present state, unless it is kept already."""
        seen = self._validation.num_seen
        if seen != self._written_at:
            facts = {"policy_version": self._learner.version, "progressive": self._validation.state()}
            with self._writing():
                self._checkpoints.write(self._learner, seen, {**facts, "sizes": self._folder.sizes()})
            self._written_at = seen

    def finish(self) -> None:
        """Publish the adapters of the last checkpoint, and draw the picture: also of a run that was interrupted."""
        self._publish()
        rows = read_metrics(self._folder.path / "metrics.jsonl")
        progress.plot(rows, self._folder.path / "progressive.png")

    def _publish(self) -> None:
        found = self._checkpoints.newest()
        if found is not None:
            checkpoint, loop = found
            self._saved = loop["policy_version"]
            with self._writing():
                run_folder.publish_adapters(checkpoint, self._folder.path, self._saved)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"could not write to {self._folder.path}: {error}; everything up to the last checkpoint is whole: make "
                f"room, and resume"
            ) from error


def _example_texts(renderer: Renderer, example: Example) -> dict[str, str]:
    names = ("chosen", "rejected") if isinstance(example, Pair) else ("completion",)
    ids = {"prompt": example.request.prompt_ids}
    ids |= {name: completion.token_ids for name, completion in zip(names, example.completions, strict=True)}
    decode = renderer.tokenizer.decode
    return {name: str(decode(list(each), skip_special_tokens=False)) for name, each in ids.items()}
