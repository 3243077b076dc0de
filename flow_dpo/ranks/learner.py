"""One learner in several processes: rank 0's, which the loop knows, and its replicas on the other ranks.

    rank 0   LeadingLearner.update(dpo, examples)   sends the examples, learns its rows, returns the measures
    rank 1   follow(...)                            receives them, learns its rows, and steps its own replica

Invariant: after every call all ranks hold the same weights and the same moments of Adam, to the bit. A checksum of each
is compared; if one differs, the call fails on every rank and nothing of it is recorded.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flow_dpo.core.errors import FlowDpoError, LearningError
from flow_dpo.core.objective import Objective
from flow_dpo.core.types import Example
from flow_dpo.learner import state
from flow_dpo.learner.learner import Learner, LearnerSettings, Row
from flow_dpo.learner.policy import Policy
from flow_dpo.ranks.dealing import Dealt
from flow_dpo.ranks.group import END, Caught, Ended, Ranks, portable
from flow_dpo.ranks.sharding import refuse_parallel, shard_base

_SAMPLED = 256
"""Roughly how many numbers of each weight the base's checksum covers."""


class LeadingLearner(Learner):
    """Rank 0's learner: the others follow each of its updates."""

    def __init__(
        self, policy: Policy, settings: LearnerSettings | None = None, *, kept_versions: int = 0, ranks: Ranks
    ) -> None:
        self._dealt, self._ranks, self._sent = Dealt(ranks, policy.model.device), ranks, False
        self._base = base_checksum(policy)
        super().__init__(policy, settings, kept_versions=kept_versions, deal=self._dealt)

    def check(self) -> None:
        """Choose how log-probabilities are computed, then shard the base over the ranks if that is set."""
        super().check()
        _shard(self, self._ranks, self._dealt)

    def load(self, folder: str | Path) -> None:
        """Restore what `save` wrote, at any number of ranks; the others get it with the next update."""
        super().load(folder)
        self._sent = False

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Update as one process does, to the same bits. Adds "ranks/...": rows, tokens and busy seconds per rank."""
        self._check_examples(objective, examples)
        self._ranks.share((None if self._sent else _written(self), objective, examples), command="update")
        self._sent = True
        self._dealt.begin()
        learn = partial(super().update, objective, examples)
        row = _together(self._ranks, self, self._dealt, self._base, None, learn)
        return row | {f"ranks/{name}": value for name, value in self._dealt.measures().items()}


def follow(ranks: Ranks, policy: Policy, settings: LearnerSettings, *, kept_versions: int = 0) -> None:
    """Hold a replica of rank 0's learner, and take part in its updates until rank 0 ends."""
    dealt, base = Dealt(ranks, policy.model.device), base_checksum(policy)
    replica = Learner(policy, settings, kept_versions=kept_versions, deal=dealt)
    replica.check()
    _shard(replica, ranks, dealt)
    ranks.ready()
    with suppress(Ended):
        while ranks.next_command() != END:
            written, objective, examples = ranks.share()
            with Caught():  # rank 0 raises the same, and decides what follows
                _together(ranks, replica, dealt, base, written, partial(replica.update, objective, examples))


def _shard(learner: Learner, ranks: Ranks, dealt: Dealt) -> None:
    if learner.settings.rows.shard_base and not dealt.aligned:
        shard_base(learner.policy, ranks.num)
        dealt.aligned = True


def _together(
    ranks: Ranks, learner: Learner, dealt: Dealt, base: str, written: dict[str, bytes] | None, update: Callable[[], Row]
) -> Row:
    """Make an update together with all ranks, and compare the results.

    Raises this rank's own error or, without one, another rank's, and `LearningError` if ranks differ.
    """
    # 1. Before rows are dealt, all ranks must hold the same and cut rows alike.
    caught = Caught()
    with caught:
        if written is not None:
            _read(learner, written)
        learner.check()
    facts = {"base": base, "way": learner.way, "threads": torch.get_num_threads(), "version": learner.version}
    _agree(ranks, caught, facts)
    # 2. After the update, all must be the same.
    row: Row = {}
    with caught:
        row = update()
    if dealt.aligned and caught.error is not None and not isinstance(caught.error, FlowDpoError):
        ranks.fail(caught.error)  # this rank's own, such as out of memory: the others wait for it in a layer
    _agree(ranks, caught, None if caught.error else checksums(learner))
    return row


def _agree(ranks: Ranks, caught: Caught, facts: Any) -> None:
    """Raise what was caught here or on another rank, and `LearningError` if facts differ."""
    own = None if caught.error is None else portable(caught.error, ranks.rank)
    found: list[tuple[bytes | None, Any]] = ranks.gather((own, facts))
    if caught.error is not None:
        raise caught.error
    for error, _ in found:
        if error is not None:
            raise pickle.loads(error)
    for rank, (_, theirs) in enumerate(found):
        first = found[0][1]
        if odd := sorted(name for name in {*first, *theirs} if first.get(name) != theirs.get(name)):
            raise LearningError(
                f"expected the same on all ranks, found that rank {rank} and rank 0 differ in {len(odd)} of "
                f"{len(first)} values, such as {odd[0]!r} ({theirs.get(odd[0])} and {first.get(odd[0])}): nothing of "
                "this batch is recorded. Ranks need the same hardware, libraries and number of threads"
            )


def checksums(learner: Learner) -> dict[str, str]:
    """A checksum of each adapter's weights and of each of Adam's moments."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in learner.tensors().items():
        groups.setdefault("/".join(name.split("/")[:2]), {})[name] = tensor
    digests: dict[str, str] = {}
    for group, tensors in groups.items():
        # One copy per group, because each copy waits for the GPU.
        digest = hashlib.blake2b(" ".join(tensors).encode(), digest_size=16)
        digest.update(_bytes(torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()])))
        digests[group] = digest.hexdigest()
    return digests


def base_checksum(policy: Policy) -> str:
    """A checksum of some numbers of each of the base's weights; another model, precision or revision has another one.

    Raises `ModelError` for a base that is already distributed.
    """
    refuse_parallel(policy.model)
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in policy.model.named_parameters():
        if ".lora_" not in name:
            flat = weight.detach().reshape(-1)
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(_bytes(flat[:: max(1, len(flat) // _SAMPLED)]))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data


def _written(learner: Learner) -> dict[str, bytes]:
    """A learner's state as the files of a checkpoint, so the ranks need no shared folder."""
    with tempfile.TemporaryDirectory() as folder:
        learner.save(folder)
        return {name: (Path(folder) / name).read_bytes() for name in (state.FACTS, state.TENSORS)}


def _read(learner: Learner, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        learner.load(folder)
