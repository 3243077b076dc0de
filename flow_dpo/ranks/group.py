"""The process group of a learner's ranks: messages, gradients, and how it ends.

Commands of rank 0 go through the store, for which a rank can wait as long as rank 0 samples; objects and gradients by
collectives, once all are at it:

    rank 0   share(examples, command="update")        gather(...)   ...   close: "end"
    rank 1   next_command() -> "update"  share()      gather(...)   ...   next_command() -> "end"

Invariants: whoever waits ends when the one waited for does: rank 0 beats through the store, and a connection that is
closed in a collective is an error that names the rank, as far as it left word. Messages are pickles: ranks are one
program, and trust each other as torch's own object collectives do.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from flow_dpo.core.errors import ConfigError, LearningError
from flow_dpo.ranks.environment import Place, place

log = logging.getLogger("flow_dpo")

JOIN_LIMIT = timedelta(minutes=10)
"""For which ranks wait for one another at the beginning."""
COLLECTIVE_LIMIT = timedelta(minutes=30)
"""For which ranks wait for another one's row."""
BEAT_S = 1.0
"""Between two signs of life of rank 0."""
PATIENCE_S = 120.0
"""Without a sign of life, after which rank 0 is dead. A model that is loaded can hold the interpreter for a while."""
LAST_WORD_S = 20.0
"""For which rank 0 waits for the others at the end."""
_POLL_S = 0.02
"""Between two looks at the store."""
END = "end"
_HOW_TO_GO_ON = "What was committed is whole: resume, with as many ranks as there are"


class LostRank(LearningError):
    """Another rank is gone, or does not answer."""


class Rank0Lost(LostRank):
    """Rank 0 is gone, or does not answer."""


class Ended(Exception):
    """Rank 0 left in the middle of an update, as it does when it is interrupted: the others end too."""


class Caught:
    """A context that keeps an exception, to be sent to all ranks; an interruption passes, and a rank that is gone.

    What it holds is raised by whoever reads it: nothing is swallowed.
    """

    error: Exception | None = None

    def __enter__(self) -> Caught:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if isinstance(error, Exception) and not isinstance(error, (LostRank, Ended)):
            self.error = error
            return True
        return False


def portable(error: Exception, rank: int) -> bytes:
    """An exception as bytes: itself where it can be pickled, otherwise what it says."""
    with suppress(pickle.PicklingError, TypeError, AttributeError, ValueError, LookupError):
        sent = pickle.dumps(error)
        if type(pickle.loads(sent)) is type(error):
            return sent
    return pickle.dumps(LearningError(f"rank {rank}: {type(error).__name__}: {error}"))


class Ranks:
    """This process's end of the group. Make it with `joined`, and leave it as a context."""

    def __init__(self, where: Place) -> None:
        self.rank, self.num, self.place = where.rank, where.num, where
        if not self.rank:
            log.info("waiting for %d ranks", self.num)
        try:
            store, _, _ = next(iter(rendezvous("env://", timeout=JOIN_LIMIT)))
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.num, timeout=COLLECTIVE_LIMIT)
        except (ValueError, RuntimeError) as error:
            raise LostRank(
                f"expected {self.num} ranks to meet (WORLD_SIZE), found that not all came: {error}. Start all of them "
                "with torchrun or accelerate launch, or one process with WORLD_SIZE unset"
            ) from error
        # Otherwise a group that a program started from here makes for itself, as vLLM's engine does, would wait for a
        # store of torchrun's.
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        self._store = PrefixStore("flow_dpo", store)
        self._tensors: dist.ProcessGroup | None = None
        self._count = 0
        self._over = threading.Event()
        if not self.rank:
            threading.Thread(target=self._beat, daemon=True, name="rank 0 beats").start()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._close(error)

    def use_device(self, device: torch.device) -> None:
        """Gradients lie on this device: those on a GPU go from GPU to GPU. All ranks call it."""
        if device.type == "cuda":
            group = dist.new_group(backend="nccl", timeout=COLLECTIVE_LIMIT)
            assert isinstance(group, dist.ProcessGroup)
            self._tensors = group

    def announce(self, command: str) -> None:
        """Rank 0: let the others know what comes."""
        self._count += 1
        self._store.set(f"command/{self._count}", command)

    def next_command(self) -> str:
        """The others: wait for what rank 0 does next, however long it samples. Raises `LostRank` where it is dead."""
        self._count += 1
        beats, since = -1, time.monotonic()
        try:
            while not self._store.check([f"command/{self._count}"]):
                time.sleep(_POLL_S)
                if (now := self._store.add("beats", 0)) != beats:
                    beats, since = now, time.monotonic()
                elif time.monotonic() - since > PATIENCE_S:
                    raise Rank0Lost(f"no sign of life of rank 0 for {PATIENCE_S:.0f} s")
            return self._store.get(f"command/{self._count}").decode()
        except dist.DistError as error:
            raise Rank0Lost(f"rank 0 is gone: {error}") from error

    def share(self, value: Any = None, *, command: str = "") -> Any:
        """What rank 0 passes on, on all ranks. With a command rank 0 announces it before.

        Raises `ConfigError` for what cannot be sent, before anything is.
        """
        try:
            held: list[Any] = [None if self.rank else pickle.dumps(value)]
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"expected an objective and examples that can be sent to other ranks, found that they cannot: {error}; "
                "define their classes at the top of a module"
            ) from error
        if command:
            self.announce(command)
        with self._collective():
            dist.broadcast_object_list(held, src=0)
        return pickle.loads(held[0]) if self.rank else value

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on all ranks."""
        held: list[Any] = [None] * self.num
        with self._collective():
            dist.all_gather_object(held, value)
        return held

    def send(self, flat: torch.Tensor, source: int) -> None:
        """Fill this tensor with the one of rank `source`, to the bit."""
        with self._collective():
            dist.broadcast(flat.view(torch.uint8), src=source, group=self._tensors)

    def fail(self, error: Exception) -> NoReturn:
        """Leave for an error that others cannot be sent, since they wait in another collective."""
        if isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error):  # another rank's, seen from here
            self._lost(error)
        raise LostRank(f"rank {self.rank}: {type(error).__name__}: {error}") from error

    def ready(self) -> None:
        """The others: all is loaded, and what rank 0 sends will be read."""
        self._store.set(f"ready/{self.rank}", "")

    def _close(self, error: BaseException | None) -> None:
        """Leave. Rank 0 lets the others end, and waits for them; raises `LostRank` for those that do not answer."""
        self._over.set()
        if self.rank:
            # The reason first: whoever waits for this rank looks for it as soon as the connection is closed.
            if error is not None and not isinstance(error, Ended):
                own = f"rank {self.rank}: {type(error).__name__}: {error}"
                self._leave_word("failed", str(error) if isinstance(error, LostRank) else own, error)
            self._cut()
            self._leave_word("ended", "", error)
            return
        self._store.set(END, "")
        self.announce(END)
        self._cut()
        silent = self._silent()  # first: a rank that is slow to look needs the store, whatever another one has left
        reason = self._failures() or silent
        if reason and (error is None or isinstance(error, KeyboardInterrupt)):
            raise LostRank(f"{reason}. {_HOW_TO_GO_ON}") from error

    def _leave_word(self, what: str, text: str, error: BaseException | None) -> None:
        if not isinstance(error, Rank0Lost):  # then its store may be gone too
            with suppress(dist.DistError):
                self._store.set(f"{what}/{self.rank}", text)

    def _cut(self) -> None:
        """Close all connections: in whoever is in a collective it fails."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _wait_for(self, key: str, until: float) -> bool:
        """Whether the key is there before this time; not where the store is gone."""
        with suppress(dist.DistError):
            while not (found := self._store.check([key])) and time.monotonic() < until:
                time.sleep(_POLL_S)
            return found
        return False

    def _silent(self) -> str:
        """The ranks that had begun and do not answer in time; "" where all do."""
        until = time.monotonic() + LAST_WORD_S
        begun = [rank for rank in range(1, self.num) if self._store.check([f"ready/{rank}"])]
        silent = [str(rank) for rank in begun if not self._wait_for(f"ended/{rank}", until)]
        return f"rank {', '.join(silent)} does not answer: dead, cut off, or still at a row" if silent else ""

    def _failures(self) -> str:
        failed = [rank for rank in range(1, self.num) if self._store.check([f"failed/{rank}"])]
        return "; ".join(self._store.get(f"failed/{rank}").decode() for rank in failed)

    def _beat(self) -> None:
        with suppress(dist.DistError):  # without a store there is nobody to beat for
            while not self._over.wait(BEAT_S):
                self._store.add("beats", 1)

    @contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._lost(error)

    def _lost(self, error: Exception) -> NoReturn:
        """Why a collective failed, as far as another rank left word."""
        self._cut()  # the others wait for this rank as it waited for one
        if self.rank:
            if self._wait_for(END, time.monotonic() + 3 * LAST_WORD_S):
                raise Ended from error
            raise Rank0Lost(f"rank 0 is gone: {error}") from error
        self._store.set(END, "")
        silent = self._silent()
        raise LostRank(f"{self._failures() or silent or f'a rank was cut off: {error}'}. {_HOW_TO_GO_ON}") from error


def joined() -> AbstractContextManager[Ranks | None]:
    """The group that this process was launched in; None where it is alone."""
    where = place()
    return nullcontext() if where.num == 1 else Ranks(where)
