"""Time of a learner's update on two ranks, against one process on the same rows.

    python -m benchmarks.ranks                  # on two idle cores: a rank has one thread, and so has the one process

One update of the random 50M model on both roles' pairs of many trees, after an update that is not timed. The rows are
as long as in a run (`--row_tokens`), and each role has at least eight, so that there is something to distribute. The
work is the same if the weights are: their checksums are compared, bit for bit.

Target: 1.7 times as fast. The details also have the processor seconds of the first rank, which do not suffer when other
processes use the cores. The remaining cost is what every rank does alike: cutting the rows, adding gradients, and Adam.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import time

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

MODULE = "benchmarks.ranks"
ROLES = ("answer", "stop")
RANKS = {"one": 1, "two": 2}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--trees", type=int, default=6)
    parser.add_argument("--row_tokens", type=int, default=320)
    parser.add_argument("--updates", type=int, default=1, help="timed updates of each run")
    parser.add_argument("--reach", default=">= 1.7", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.side:
        measuring.report(learned(settings))
        return
    flags = ["--trees", str(settings.trees), "--row_tokens", str(settings.row_tokens)]
    flags += ["--updates", str(settings.updates), *(["--tiny"] if settings.tiny else [])]
    sides = dict.fromkeys(RANKS, flags)
    reports = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    checksums = {report["checksum"] for side in reports.values() for report in side}
    if len(checksums) > 1:
        raise SystemExit(f"the weights differ, so the work does: {checksums}")
    one, two = (measuring.median(reports[side], "seconds") for side in RANKS)
    details = {
        side: {n: reports[side][0][n] for n in ("seconds", "processor_seconds", "rows", "tokens", "ranks")}
        for side in RANKS
    }
    name = f"learner on two ranks, {'tiny' if settings.tiny else '50m'}, {reports['one'][0]['rows']:.0f} rows: time"
    measuring.keep([Figure(name=name, ratio=one / two, reach=settings.reach, details=details)], settings, MODULE)


def learned(settings: argparse.Namespace) -> Report:
    """Updates by this process and the ranks beside it, which it starts."""
    import torch.multiprocessing

    num = RANKS[settings.side]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    others = [context.Process(target=be_rank, args=(rank, num, port, settings)) for rank in range(1, num)]
    for other in others:
        other.start()
    found = be_rank(0, num, port, settings)
    for other in others:
        other.join(timeout=60)
    assert found is not None
    return found


def be_rank(rank: int, num: int, port: int, settings: argparse.Namespace) -> Report | None:
    """One rank's part; what the first measured."""
    import os

    import torch

    from benchmarks.workloads import Shape, random_model, tree_pairs
    from flow_dpo.core.dpo import Dpo
    from flow_dpo.learner.learner import Learner, LearnerSettings
    from flow_dpo.learner.policy import LoraSettings, Policy
    from flow_dpo.learner.settings import RowSettings
    from flow_dpo.ranks.group import joined
    from flow_dpo.ranks.learner import LeadingLearner, checksums, follow

    torch.set_num_threads(settings.num_threads)
    if num > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    model = random_model("tiny" if settings.tiny else "50m")
    policy = Policy(model, ROLES, LoraSettings())
    learner_settings = LearnerSettings(examples_per_update=0, rows=RowSettings(max_tokens=settings.row_tokens))
    with joined() as ranks:
        if ranks is not None and ranks.rank:
            follow(ranks, policy, learner_settings)
            return None
        leading = None if ranks is None else LeadingLearner(policy, learner_settings, ranks=ranks)
        learner = Learner(policy, learner_settings) if leading is None else leading
        rng, shape = random.Random(0), Shape(*((20, 8, 4) if settings.tiny else (60, 60, 4)))
        vocabulary = min(model.config.vocab_size, 32_000)
        seconds: list[float] = []
        processor_seconds: list[float] = []
        row: dict[str, float] = {}
        for update in range(settings.updates + 1):
            # A small update first, before which the model is checked and the ranks meet.
            trees = range(settings.trees if update else 2)
            pairs = [p for tree in trees for p in tree_pairs(rng, f"p{tree}", shape, vocabulary=vocabulary)]
            began, busy = time.perf_counter(), time.process_time()
            row = learner.update(Dpo(), pairs)
            seconds.append(time.perf_counter() - began)
            processor_seconds.append(time.process_time() - busy)
        return {
            "seconds": statistics.mean(seconds[1:]),
            "processor_seconds": statistics.mean(processor_seconds[1:]),
            "checksum": "".join(checksums(learner).values()),
            **{name: sum(row[f"learn/{role}/{name}"] for role in ROLES) for name in ("rows", "tokens")},
            "ranks": {name: value for name, value in row.items() if name.startswith("ranks/")},
        }


if __name__ == "__main__":
    main()
