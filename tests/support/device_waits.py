"""How often does a computation wait for its device? Counted on a CPU, as if the model were on a GPU.

A GPU works through its queue by itself until something reads a value: `.cpu()`, `.item()`, `bool(tensor)`, `tolist()`,
`torch.equal`, and what has a shape that depends on values (`nonzero`, masks of booleans, `unique`). Each is counted:

    with DeviceWaits() as waits:
        learner.update(objective, examples)
    waits.counts        # {"cpu": 4, "aten._local_scalar_dense": 1}

What was copied by `.cpu()` or comes from numpy is on the host, and reading that is not counted, until it is sent back
by `.to(...)`. Invariant: what is computed is not changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READ = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
        "repeat_interleave", "is_nonzero", "bincount")  # fmt: skip
MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")


_from_numpy = torch.from_numpy


class Host(torch.Tensor):
    """What lies on the host; the results of its operations do as well."""


def tensors_of(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_of(list(values.values()))
    elif isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            yield from tensors_of(value)


def has_host(values: Any) -> bool:
    return any(isinstance(tensor, Host) for tensor in tensors_of(values))


class DeviceWaits:
    """A context that counts them, by the name of what waits."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._patch = pytest.MonkeyPatch()
        self._modes: list[Any] = [_Methods(self.counts), _Operations(self.counts)]

    def __enter__(self) -> DeviceWaits:
        self._patch.setattr(torch, "from_numpy", lambda array: _from_numpy(array).as_subclass(Host))
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        self._patch.undo()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """A context of work that lies on the host as a whole, new tensors included."""
        before = self.counts.copy()
        yield
        self.counts.clear()
        self.counts.update(before)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class _Methods(TorchFunctionMode):
    """What Python calls by name."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        host = has_host(args)
        if name in ("cpu", "tolist", "numpy") and not host:
            self._counts[name] += 1
        if name == "tolist":
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        found = func(*args, **kwargs)
        if name == "to" and host:
            return found.as_subclass(torch.Tensor)
        return found.as_subclass(Host) if name == "cpu" else found


class _Operations(TorchDispatchMode):
    """What arrives at the device, from wherever it was called."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        by_mask = name in MASKED and any(each.dtype in (torch.bool, torch.uint8) for each in tensors_of(args[1]))
        if (name in READ or by_mask) and not has_host((args, kwargs)):
            self._counts[f"aten.{name}"] += 1
        return func(*args, **kwargs)
