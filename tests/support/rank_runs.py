"""Learners over several processes, each forked from one that has loaded the libraries once.

    python -m tests.support.rank_runs FOLDER equal    1, 2 and 3 ranks learn, and write what came of it

A fork is a rank, with the environment that torchrun would give it. A scenario writes to its folder and a test reads
that; what a rank printed is in output-RANK.txt. Invariant: a rank that does not end in time is killed and named.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from flow_dpo.core.objective import Loss
from flow_dpo.core.types import Example, by_role
from flow_dpo.learner.gradients import Gradient, Gradients
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import LearnerSettings, ReferenceSettings, RowSettings
from flow_dpo.ranks import group
from flow_dpo.ranks.environment import place
from flow_dpo.ranks.group import END, Caught, Ranks, joined
from flow_dpo.ranks.learner import LeadingLearner, follow
from flow_dpo.ranks.sharding import local_parameters, refuse_parallel
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from tests.learner.test_drift import pairs, recorded
from tests.learner.test_logprobs import stir
from tests.learner.test_pool import words
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import tiny_model

LIMIT_S = 240.0
Work = Callable[[Path], None]


def fork_ranks(work: Work, num: int, folder: Path, *, store: TCPStore | None = None) -> list[int]:
    """Processes that do `work(folder)` as ranks, by rank; with a store that outlives them, as torchrun's agent has."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] if store is None else store.port
    children: list[int] = []
    for rank in range(num):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num), "LOCAL_RANK": str(rank)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if store is not None:
                os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            _be(folder / f"output-{rank}.txt", lambda: work(folder))
        children.append(child)
    return children


def wait_for(children: Sequence[int], limit_s: float = LIMIT_S) -> list[int]:
    """Exit statuses, by rank, negative for a signal; whoever does not end in time is killed, which is an error."""
    ended: dict[int, int] = {}
    until = time.monotonic() + limit_s
    while len(ended) < len(children):
        for child in children:
            if child not in ended:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    ended[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            hung = [child for child in children if child not in ended]
            for child in hung:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise TimeoutError(f"ranks {[children.index(child) for child in hung]} did not end in {limit_s} s")
        time.sleep(0.01)
    return [ended[child] for child in children]


def run_ranks(work: Work, num: int, folder: Path) -> None:
    """Ranks that all must end well."""
    statuses = wait_for(fork_ranks(work, num, folder))
    output = "\n".join((folder / f"output-{rank}.txt").read_text() for rank in range(num))
    assert statuses == [0] * num, f"{statuses}\n{output}"


def _be(output: Path, work: Callable[[], None]) -> None:
    status = 1
    try:
        nowhere = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        work()
        status = 0
    except BaseException:  # noqa: BLE001  a fork must end here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# ---- 1, 2 and 3 ranks -----------------------------------------------------------------------------------------------


class Case:
    """A learner, and the calls that it gets."""

    def __init__(self, kind: str = "llama", *, dtype: torch.dtype = torch.float32, dropout: float = 0.0, **more: Any):
        self.kind, self.dtype, self.dropout, self.lora = kind, dtype, dropout, more.pop("lora", {})
        self.settings = LearnerSettings(
            **{"learning_rate": 1e-3, "examples_per_update": 0, "rows": RowSettings(max_tokens=40), **more}
        )

    def policy(self) -> Policy:
        model = tiny_model(self.kind).to(self.dtype)  # pyright: ignore[reportArgumentType]
        return stir(Policy(model, ROLES, LoraSettings(lora_r=4, lora_dropout=self.dropout, **self.lora), seed=5))

    def calls(self, policy: Policy) -> list[Sequence[Example]]:
        """Many rows of both roles and kinds; fewer rows than ranks; one role alone; a single pair."""
        made = pairs(3)
        return [
            recorded(policy, made, 0),
            [*made[:10], *words("ynyny")],
            by_role(made)["stop"][:2],
            by_role(made)["answer"][:5],
            made[:1],
        ]


SNAPSHOT = ReferenceSettings(kind="snapshot", every=2)
CASES = {
    "packed": Case(reference=SNAPSHOT, logit_temperature=0.7, lora={"modules_to_save": ("lm_head",)}),
    "plain, dropout, bfloat16": Case(
        "qwen2", dtype=torch.bfloat16, dropout=0.2, rows=RowSettings(packed=False, max_tokens=60)
    ),
}
SHARDED = [
    Case(kind, dtype=dtype, dropout=0.1, rows=RowSettings(max_tokens=40, gradient_checkpointing=True, **rows), **more)
    for kind, dtype, rows, more in [
        ("llama", torch.float32, {}, {"logit_temperature": 0.7}),
        ("llama", torch.bfloat16, {"packed": False}, {}),
        ("qwen2", torch.float32, {"packed": False}, {"lora": {"use_dora": True, "modules_to_save": ("norm",)}}),
        ("qwen2", torch.bfloat16, {}, {}),
    ]
]
AT = 2
"""Calls before the checkpoint that others go on from."""


def without_clock(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.startswith("learn/") and not k.endswith(("_s", "seconds"))}


def learn_case(case: Case, learner: Learner, folder: Path, *, begin_with: Path | None = None) -> None:
    """The case's calls, from a checkpoint on where there is one; what came of them is written."""
    folder.mkdir(parents=True)
    calls = case.calls(case.policy())
    if begin_with is not None:
        learner.load(begin_with)
    rows = []
    for number, examples in enumerate(calls):
        if begin_with is not None and number < AT:
            continue
        if number == AT and begin_with is None:
            learner.save(folder / "middle")
        rows.append(learner.update(DpoAndVerdicts(), examples))
    learner.save(folder / "end")
    (folder / "rows.json").write_text(json.dumps([without_clock(row) for row in rows]))
    (folder / "ranks.json").write_text(
        json.dumps([{k: v for k, v in r.items() if k.startswith("ranks/")} for r in rows])
    )


def learn_cases(folder: Path) -> None:
    """What every rank does."""
    before = folder.parent / "3"
    with joined() as ranks:
        for name, case in CASES.items():
            policy = case.policy()
            if ranks is None:
                learn_case(case, Learner(policy, case.settings, kept_versions=1), folder / name)
            elif ranks.rank:
                follow(ranks, policy, case.settings, kept_versions=1)
            else:
                learn_case(case, LeadingLearner(policy, case.settings, kept_versions=1, ranks=ranks), folder / name)
                if ranks.num == 2:
                    learner = LeadingLearner(case.policy(), case.settings, kept_versions=1, ranks=ranks)
                    learn_case(case, learner, folder / f"{name}, gone on", begin_with=before / name / "middle")
                ranks.announce(END)
            if ranks is None:
                learner = Learner(case.policy(), case.settings, kept_versions=1)
                learn_case(case, learner, folder / f"{name}, gone on", begin_with=before / name / "middle")


def equal(folder: Path) -> None:
    """Ranks of each number, the most first."""
    for num in (3, 2, 1):
        run_ranks(learn_cases, num, folder / str(num))


# ---- a base that is shared ------------------------------------------------------------------------------------------


def learn_sharded(folder: Path) -> None:
    """Each case with a whole base, and then with one that the ranks share."""
    held: list[tuple[int, int]] = []
    with joined() as ranks:
        assert ranks is not None
        for number, case in enumerate(SHARDED):
            for shard in (False, True):
                policy, rows = case.policy(), replace(case.settings.rows, shard_base=shard)
                settings = replace(case.settings, rows=rows)
                before = local_parameters(policy.model)
                if ranks.rank:
                    follow(ranks, policy, settings)
                    continue
                learner = LeadingLearner(policy, settings, ranks=ranks)
                learner.check()
                learn_case(case, learner, folder / f"{number}-{shard}")
                ranks.announce(END)
                held.append((before, local_parameters(policy.model)))
                with Caught() as caught:
                    refuse_parallel(policy.model)
                assert ("cannot be tensor parallel" in str(caught.error)) == shard
    if place().rank == 0:
        (folder / "held.json").write_text(json.dumps(held))


def sharded(folder: Path) -> None:
    """Three ranks, the number of whose rows is seldom a multiple of three."""
    run_ranks(learn_sharded, 3, folder)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


class OwnError(Exception):
    """An objective's own, with arguments that its message does not show: it cannot be pickled."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


@dataclass(frozen=True)
class Failing(DpoAndVerdicts):
    """Fails in the rows with a problem."""

    how: str = ""

    def __call__(self, examples: Any, policy: Any, reference: Any) -> Loss:
        loss = super().__call__(examples, policy, reference)
        if self.how == "killed" and place().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if any(each.problem_id == "p1" for each in examples):
            if self.how == "nan":
                return Loss(loss.total * math.nan, loss.measures)
            if self.how == "own":
                raise OwnError("of one's own", 7)
            if self.how == "memory":
                raise torch.OutOfMemoryError("no room")
        return loss


def refused(folder: Path, *, shard: bool, ways: Sequence[str]) -> None:
    """Errors in a row of whichever rank has it: all raise the same, nothing moves, and learning goes on."""
    case = Case(rows=RowSettings(max_tokens=1, shard_base=shard))
    said: list[tuple[str, str]] = []
    with joined() as ranks:
        assert ranks is not None
        policy = case.policy()
        if ranks.rank:
            follow(ranks, policy, case.settings)
            return
        learner = LeadingLearner(policy, case.settings, ranks=ranks)
        learner.check()
        made = pairs(3)
        with Caught() as caught:
            learner.update(type("Unknown", (DpoAndVerdicts,), {})(), made)
        assert "define their classes at the top of a module" in str(caught.error)
        for how in ways:
            before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
            with Caught() as caught:
                learner.update(Failing(how=how), made)
            said.append((type(caught.error).__name__, str(caught.error)))
            assert all(torch.equal(tensor, before[name]) for name, tensor in learner.tensors().items())
            assert learner.version == 0
        learner.update(DpoAndVerdicts(), made)
        said.append(("version", str(learner.version)))
        (folder / "said.json").write_text(json.dumps(said))
        if shard:
            learner.update(Failing(how="own"), made)


def differing(folder: Path) -> None:
    """A rank whose weights are others is found at the end of the update."""
    step = Learner._step

    def meddling(self: Learner, role: str, gradient: Sequence[torch.Tensor]) -> float:
        rate = step(self, role, gradient)
        if place().rank == 1 and role == "stop":
            with torch.no_grad():
                self.policy.weights(role)[0].view(-1)[3] += 1e-6
        return rate

    Learner._step = meddling
    with joined() as ranks:
        assert ranks is not None
        case = CASES["packed"]
        policy = case.policy()
        if ranks.rank:
            follow(ranks, policy, case.settings)
            return
        learner = LeadingLearner(policy, case.settings, ranks=ranks)
        with Caught() as caught:
            learner.update(DpoAndVerdicts(), pairs(1))
    (folder / "said.json").write_text(json.dumps(str(caught.error)))


def by_itself(folder: Path) -> None:
    """A rank lacks memory outside of its rows; slow to look for what is next, and others leave before: rank 0 waits."""
    case, compute, cut = CASES["packed"], Gradients.compute, Ranks._cut
    group._POLL_S = 1.0 if place().rank == 1 else group._POLL_S
    late = lambda ranks: (cut(ranks), time.sleep(0.5 * (ranks.rank == 0)))  # noqa: E731

    def lacking(self: Gradients, objective: Any, role: str, *rest: Any) -> Gradient:
        if place().rank == 1 and role == "stop":
            raise torch.OutOfMemoryError("no room")
        return compute(self, objective, role, *rest)

    Gradients.compute, Ranks._cut = lacking, late  # pyright: ignore[reportAttributeAccessIssue]
    with joined() as ranks:
        assert ranks is not None
        if ranks.rank:
            follow(ranks, case.policy(), case.settings)
            return
        learner = LeadingLearner(case.policy(), case.settings, ranks=ranks)
        learner.update(DpoAndVerdicts(), pairs(3))


def dying(folder: Path, *, who: int, when: str) -> None:
    """One rank is killed: while rank 0 samples, or in a row."""
    case = CASES["packed"]
    with joined() as ranks:
        assert ranks is not None
        assert "TORCHELASTIC_USE_AGENT_STORE" not in os.environ, "vLLM's engine would wait for such a store"
        policy = case.policy()
        if ranks.rank:
            if when == "sampling" and ranks.rank == who:  # once the first update is done, however long that takes
                wait, die = ranks.next_command, partial(os.kill, os.getpid(), signal.SIGKILL)
                ranks.next_command = lambda: (ranks._count and threading.Timer(0.5, die).start()) or wait()
            follow(ranks, policy, case.settings)
            return
        learner = LeadingLearner(policy, case.settings, ranks=ranks)
        learner.update(DpoAndVerdicts(), pairs(1))
        if when == "a row":
            learner.update(Failing(how="killed"), pairs(3))
        time.sleep(1.5)
        if who == 0 and when == "sampling":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt  # as torchrun's agent, which saw a rank die, would have it


def wrong(folder: Path) -> None:
    """Every way to go wrong, on two ranks or three; statuses by rank to a file."""
    group.PATIENCE_S = group.LAST_WORD_S = 6.0  # a machine under load is slow to answer
    found: dict[str, list[int]] = {}
    ways: dict[str, tuple[Work, int]] = {
        "refused": (partial(refused, shard=False, ways=("nan", "own", "memory")), 3),
        "refused, sharded": (partial(refused, shard=True, ways=("nan",)), 2),
        "differing": (differing, 2),
        "by itself": (by_itself, 3),
        "follower killed in a row": (partial(dying, who=1, when="a row"), 3),
        "follower killed while rank 0 samples": (partial(dying, who=1, when="sampling"), 3),
        "leader killed": (partial(dying, who=0, when="sampling"), 3),
        "leader interrupted": (partial(dying, who=0, when="interrupted"), 3),
    }
    for name, (work, num) in ways.items():
        found[name] = wait_for(fork_ranks(work, num, folder / name))
    store, alive = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), "leader killed, its store alive"
    found[alive] = wait_for(fork_ranks(*ways["leader killed"], folder / alive, store=store))
    (folder / "statuses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    gc.freeze()  # or every fork's collections walk through the libraries, and copy their pages
    for scenario in sys.argv[2:]:
        {"equal": equal, "sharded": sharded, "wrong": wrong}[scenario](Path(sys.argv[1]) / scenario)
