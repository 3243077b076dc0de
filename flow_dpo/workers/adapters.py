"""Adapter folders: each version of the adapters in PEFT's layout, in a folder of its own, for as long as it is needed.

    folders = AdapterFolders(policy.save_adapter, Path("runs/x/served"))
    folders.publish({"answer": Adapter(role="answer", version=3)})     {"answer": Adapter(path=".../served/answer/4")}
    folders.keep([those of batches under way])                         deletes all others except the last

Invariant: a published adapter keeps the weights of that moment. The learner can change them while shards that were
submitted before are still under way, and a shard that is sampled again gets the same bytes as at first.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from flow_dpo.core.errors import StorageError
from flow_dpo.core.types import Adapter, Role


class AdapterFolders:
    """A folder with the versions of a policy's adapters that are in use."""

    def __init__(self, save: Callable[[Role, Path], object], folder: Path, *, roles: Sequence[Role] = ()) -> None:
        """`save` writes a role's current weights to a folder; `roles` are published even if no adapter names them."""
        self._save, self._folder, self._roles = save, folder.absolute(), tuple(roles)
        self._num = 0
        self._last: Mapping[Role, Adapter] = {}

    def publish(self, adapters: Mapping[Role, Adapter]) -> Mapping[Role, Adapter]:
        """The adapters with folders; adapters that have one keep it. Equal weights of equal versions are not written
        twice. Raises `StorageError`."""
        self._num += 1
        version = max((adapter.version for adapter in adapters.values()), default=0)
        found = {role: Adapter(role=role, version=version) for role in self._roles} | dict(adapters)
        found = {role: adapter if adapter.path else self._write(adapter) for role, adapter in found.items()}
        if _same(found, self._last):
            self._delete(lambda place: place.name == str(self._num))
        else:
            self._last = found
        return self._last

    def _write(self, adapter: Adapter) -> Adapter:
        place = self._folder / adapter.role / str(self._num)
        beside = place.with_name(f"{self._num}.tmp")
        for left in (beside, place):  # from a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            self._save(adapter.role, beside)
            beside.replace(place)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"could not write to {self._folder}: {error}; everything up to the last checkpoint is intact: free "
                "some space, and resume"
            ) from error
        return replace(adapter, path=str(place))

    def keep(self, needed: Sequence[Mapping[Role, Adapter]]) -> None:
        """Delete all folders except those of these adapters and of the last published ones."""
        places = {adapter.path for one in [*needed, self._last] for adapter in one.values()}
        self._delete(lambda place: str(place) not in places)

    def _delete(self, chosen: Callable[[Path], bool]) -> None:
        for place in filter(chosen, self._folder.glob("*/*")):
            shutil.rmtree(place, ignore_errors=True)

    def close(self) -> None:
        """Delete all folders."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _same(one: Mapping[Role, Adapter], other: Mapping[Role, Adapter]) -> bool:
    """Whether both have the same roles, versions and bytes."""
    versions = [{role: adapter.version for role, adapter in each.items()} for each in (one, other)]
    return versions[0] == versions[1] and all(
        one[role].path == other[role].path or _content(one[role]) == _content(other[role]) for role in one
    )


def _content(adapter: Adapter) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(adapter.path).iterdir()) if file.is_file()}
