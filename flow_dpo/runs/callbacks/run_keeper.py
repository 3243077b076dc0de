"""The callback that writes the run folder: every batch's row, trees and examples; checkpoints, adapters, the picture.

    keeper = RunKeeper(folder, runtime.renderer, learner, validation, settings.run)
    learn(..., callbacks=[keeper, ...])

Invariants: the file sizes in a checkpoint cover whole batches only; whatever was written after them is cut off when the
run is resumed. Which adapters `save_updates` saves follows from the rows of metrics.jsonl alone, so a resumed run saves
the same ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from safetensors import SafetensorError

from flow_dpo.core.errors import StorageError
from flow_dpo.core.loop import InFlight
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.protocols import Row
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Pair
from flow_dpo.learner.learner import Learner
from flow_dpo.models.render import Renderer
from flow_dpo.models.token_texts import TokenTexts
from flow_dpo.runs import replay, run_folder, tree_records
from flow_dpo.runs.callbacks import progress
from flow_dpo.runs.checkpoint import Checkpoints
from flow_dpo.runs.journal import JournalWorkers
from flow_dpo.runs.records import Metrics, PairRow, ScoredRow, read_metrics, read_rows, versions_after
from flow_dpo.runs.settings import RunSettings
from flow_dpo.runs.tree_rows import TokenRow, TreeForm


class RunKeeper:
    """The callback that writes the run folder."""

    def __init__(
        self,
        folder: run_folder.RunFolder,
        renderer: Renderer,
        learner: Learner,
        validation: ProgressiveValidation,
        saving: RunSettings,
        in_flight: Collection[InFlight] = (),
        journal: JournalWorkers | None = None,
    ) -> None:
        """`in_flight` are the loop's batches that were submitted but not yet learned from; `journal` keeps what they
        sampled until it is committed."""
        self._folder, self._renderer, self._learner, self._validation = folder, renderer, learner, validation
        self._texts = TokenTexts(renderer.tokenizer)
        known = folder.path / "tokens.jsonl"
        self._known = {row.id for row in read_rows(known, TokenRow)} if known.exists() else set[int]()
        self._every, self._save_updates = saving.checkpoint_batches, saving.save_updates
        self._form: TreeForm = saving.budget.records
        self._checkpoints = Checkpoints(folder.path)
        rows = read_metrics(folder.path / "metrics.jsonl") if self._save_updates else []
        self._saved = last_saved([*versions_after(rows)[:-1], learner.version], self._save_updates)
        """The last version that was saved because it was due, not because of an interruption."""
        self._written_at = validation.num_seen or -1
        self._batches = 0
        self._in_flight, self._journal = in_flight, journal
        if self._saved and self._saved == learner.version:  # the run may have ended in between
            self._publish()

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Write one batch, and a checkpoint if one is due."""
        renderer = self._renderer
        by_id = {tree.problem.id: tree for tree in trees}
        tree_rows = [tree_records.tree_row(tree, self._texts, self._form) for tree in trees]
        rows = [tree_records.example_row(e, by_id[e.problem_id], _example_texts(renderer, e)) for e in examples]
        with self._writing():
            self._folder.record(
                Metrics.of(row),
                tree_rows,
                pairs=[each for each in rows if isinstance(each, PairRow)],
                scored=[each for each in rows if isinstance(each, ScoredRow)],
                learned=[tree_records.learned_row(each) for each in self._learner.learned],
                tokens=tree_records.token_rows(trees, self._known, self._texts),
            )
        self._batches += 1
        due = self._save_updates and self._learner.version - self._saved >= self._save_updates
        if due or self._batches % self._every == 0:
            self.checkpoint()
        if due:
            self._publish()
            self._saved = self._learner.version

    def checkpoint(self) -> None:
        """Write a checkpoint of the current state, unless there is one already."""
        seen = self._validation.num_seen
        if seen != self._written_at:
            facts = {"policy_version": self._learner.version, "progressive": self._validation.state()}
            facts |= {"in_flight": [replay.facts(each) for each in self._in_flight], "sizes": self._folder.sizes()}
            with self._writing():
                self._checkpoints.write(self._learner, seen, facts)
            self._written_at = seen
        if self._journal is not None:
            self._journal.done(len(self._in_flight))

    def finish(self) -> None:
        """Publish the adapters of the last checkpoint, and draw the picture; also for a run that was interrupted."""
        self._publish()
        rows = read_metrics(self._folder.path / "metrics.jsonl")
        progress.plot(rows, self._folder.path / "progressive.png")

    def _publish(self) -> None:
        found = self._checkpoints.newest()
        if found is not None:
            checkpoint, loop = found
            with self._writing():
                run_folder.publish_adapters(checkpoint, self._folder.path, loop["policy_version"])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"could not write to {self._folder.path}: {error}; everything up to the last checkpoint is whole: make "
                f"room, and resume"
            ) from error


def last_saved(versions: Iterable[int], every: int) -> int:
    """The version that was saved last, given the versions after each batch, if one is saved whenever `every` updates
    have passed; 0 if none was."""
    saved = 0
    for version in versions if every else ():
        saved = version if version - saved >= every else saved
    return saved


def _example_texts(renderer: Renderer, example: Example) -> dict[str, str]:
    names = ("chosen", "rejected") if isinstance(example, Pair) else ("completion",)
    ids = {"prompt": example.request.prompt_ids}
    ids |= {name: completion.token_ids for name, completion in zip(names, example.completions, strict=True)}
    decode = renderer.tokenizer.decode
    return {name: str(decode(list(each), skip_special_tokens=False)) for name, each in ids.items()}
