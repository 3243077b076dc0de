"""The process group of a learner's ranks: messages, gradients, and how it ends.

Rank 0's commands go through the store, on which a rank can wait for as long as rank 0 samples. Objects and gradients go
through collectives, once all ranks take part:

    rank 0   share(examples, command="update")        gather(...)   ...   close: "end"
    rank 1   next_command() -> "update"  share()      gather(...)   ...   next_command() -> "end"

Invariants: a rank that waits for another ends when that one does: rank 0 sends heartbeats through the store, and a
connection that closes in a collective is an error that names the lost rank, if it left word. Messages are pickles:
ranks are one program, and trust each other as in torch's own object collectives.
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
"""How long ranks wait for one another at the beginning."""
COLLECTIVE_LIMIT = timedelta(minutes=30)
"""How long ranks wait for another one's row."""
BEAT_S = 1.0
"""Seconds between two heartbeats of rank 0."""
PATIENCE_S = 120.0
"""Seconds without a heartbeat after which rank 0 counts as dead; loading a model can hold the interpreter a while."""
LAST_WORD_S = 20.0
"""How many seconds rank 0 waits for the others at the end."""
_POLL_S = 0.02
"""Seconds between two looks at the store."""
END = "end"
_HOW_TO_GO_ON = "Committed batches are whole: resume, with any number of ranks"


class LostRank(LearningError):
    """Another rank is gone, or does not answer."""


class Rank0Lost(LostRank):
    """Rank 0 is gone, or does not answer."""


class Ended(Exception):
    """Rank 0 left in the middle of an update, as it does when it is interrupted, so the others end too."""


class Caught:
    """A context that keeps an exception, to be sent to all ranks; an interruption and a lost rank pass through.

    The code that reads the exception raises it: nothing is swallowed.
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
    """An exception as bytes: itself if it can be pickled, otherwise a `LearningError` with its text."""
    with suppress(pickle.PicklingError, TypeError, AttributeError, ValueError, LookupError):
        sent = pickle.dumps(error)
        if type(pickle.loads(sent)) is type(error):
            return sent
    return pickle.dumps(LearningError(f"rank {rank}: {type(error).__name__}: {error}"))


class Ranks:
    """This process's end of the group. Make it with `joined`, and use it as a context manager."""

    def __init__(self, where: Place) -> None:
        self.rank, self.num, self.place = where.rank, where.num, where
        if not self.rank:
            log.info("waiting for %d ranks", self.num)
        try:
            store, _, _ = next(iter(rendezvous("env://", timeout=JOIN_LIMIT)))
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.num, timeout=COLLECTIVE_LIMIT)
        except (ValueError, RuntimeError) as error:
            raise LostRank(
                f"expected {self.num} ranks to connect (WORLD_SIZE), found that not all did: {error}. Start all of "
                "them with torchrun or accelerate launch, or one process with WORLD_SIZE unset"
            ) from error
        # Otherwise a program started from here that makes a group of its own, as vLLM's engine does, would wait for
        # torchrun's store.
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
        """Use the device that gradients are on: from a GPU they go straight to the other GPUs. All ranks call it."""
        if device.type == "cuda":
            group = dist.new_group(backend="nccl", timeout=COLLECTIVE_LIMIT)
            assert isinstance(group, dist.ProcessGroup)
            self._tensors = group

    def announce(self, command: str) -> None:
        """Rank 0: tell the others which command comes next."""
        self._count += 1
        self._store.set(f"command/{self._count}", command)

    def next_command(self) -> str:
        """The others: wait for rank 0's next command, however long it samples. Raises `LostRank` if rank 0 is dead."""
        self._count += 1
        beats, since = -1, time.monotonic()
        try:
            while not self._store.check([f"command/{self._count}"]):
                time.sleep(_POLL_S)
                if (now := self._store.add("beats", 0)) != beats:
                    beats, since = now, time.monotonic()
                elif time.monotonic() - since > PATIENCE_S:
                    raise Rank0Lost(f"no heartbeat from rank 0 for {PATIENCE_S:.0f} s")
            return self._store.get(f"command/{self._count}").decode()
        except dist.DistError as error:
            raise Rank0Lost(f"rank 0 is gone: {error}") from error

    def share(self, value: Any = None, *, command: str = "") -> Any:
        """Rank 0's value, on all ranks. If a command is given, rank 0 announces it first.

        Raises `ConfigError` for a value that cannot be sent, before anything is sent.
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
        """Every rank's value, in rank order, on all ranks."""
        held: list[Any] = [None] * self.num
        with self._collective():
            dist.all_gather_object(held, value)
        return held

    def send(self, flat: torch.Tensor, source: int) -> None:
        """Fill this tensor with that of rank `source`, to the bit."""
        with self._collective():
            dist.broadcast(flat.view(torch.uint8), src=source, group=self._tensors)

    def fail(self, error: Exception) -> NoReturn:
        """Leave because of an error that cannot be sent to the others, since they wait in another collective."""
        if isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error):  # caused by another rank
            self._lost(error)
        raise LostRank(f"rank {self.rank}: {type(error).__name__}: {error}") from error

    def ready(self) -> None:
        """The others: everything is loaded, and what rank 0 sends will be read."""
        self._store.set(f"ready/{self.rank}", "")

    def _close(self, error: BaseException | None) -> None:
        """Leave. Rank 0 lets the others end and waits for them; raises `LostRank` if any failed or does not answer."""
        self._over.set()
        if self.rank:
            # The reason first: a rank that waits for this one looks for it as soon as the connection is closed.
            if error is not None and not isinstance(error, Ended):
                own = f"rank {self.rank}: {type(error).__name__}: {error}"
                self._leave_word("failed", str(error) if isinstance(error, LostRank) else own, error)
            self._cut()
            self._leave_word("ended", "", error)
            return
        self._store.set(END, "")
        self.announce(END)
        self._cut()
        silent = self._silent()  # first: a slow rank still needs the store, whatever word another has left
        reason = self._failures() or silent
        if reason and (error is None or isinstance(error, KeyboardInterrupt)):
            raise LostRank(f"{reason}. {_HOW_TO_GO_ON}") from error

    def _leave_word(self, what: str, text: str, error: BaseException | None) -> None:
        if not isinstance(error, Rank0Lost):  # rank 0's store may be gone too
            with suppress(dist.DistError):
                self._store.set(f"{what}/{self.rank}", text)

    def _cut(self) -> None:
        """Close all connections, which fails the collective of any rank that is in one."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _wait_for(self, key: str, until: float) -> bool:
        """Whether the key exists before this time; False if the store is gone."""
        with suppress(dist.DistError):
            while not (found := self._store.check([key])) and time.monotonic() < until:
                time.sleep(_POLL_S)
            return found
        return False

    def _silent(self) -> str:
        """The ranks that had begun and do not answer in time; "" if all do."""
        until = time.monotonic() + LAST_WORD_S
        begun = [rank for rank in range(1, self.num) if self._store.check([f"ready/{rank}"])]
        silent = [str(rank) for rank in begun if not self._wait_for(f"ended/{rank}", until)]
        return f"rank {', '.join(silent)} does not answer: dead, cut off, or busy with a row" if silent else ""

    def _failures(self) -> str:
        failed = [rank for rank in range(1, self.num) if self._store.check([f"failed/{rank}"])]
        return "; ".join(self._store.get(f"failed/{rank}").decode() for rank in failed)

    def _beat(self) -> None:
        with suppress(dist.DistError):  # without a store nobody reads heartbeats
            while not self._over.wait(BEAT_S):
                self._store.add("beats", 1)

    @contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._lost(error)

    def _lost(self, error: Exception) -> NoReturn:
        """Raise why a collective failed, as far as another rank left word."""
        self._cut()  # the others wait for this rank, as it waited for another
        if self.rank:
            if self._wait_for(END, time.monotonic() + 3 * LAST_WORD_S):
                raise Ended from error
            raise Rank0Lost(f"rank 0 is gone: {error}") from error
        self._store.set(END, "")
        silent = self._silent()
        raise LostRank(f"{self._failures() or silent or f'a rank was cut off: {error}'}. {_HOW_TO_GO_ON}") from error


def joined() -> AbstractContextManager[Ranks | None]:
    """The group that this process was launched in; None if it runs alone."""
    where = place()
    return nullcontext() if where.num == 1 else Ranks(where)
