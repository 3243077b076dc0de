"""Time and memory of a learner's update, against TRL's DPOTrainer on the same pairs.

    python -m benchmarks.learner_vs_trl
    python -m benchmarks.learner_vs_trl --model_name_or_path FOLDER        # a real model in place of the random 0.5B

Ours is `Learner.update` on both roles' pairs of one tree. TRL's is one `DPOTrainer` a role, with the same LoRA as ours;
a callback times its optimisation steps, and the times are summed. Both start from the same adapter, which is drawn by
name and is not zero, get the same pairs as the same token ids, take the same Adam steps, and first do one untimed
update on a small tree. The losses must agree, update by update: this is asserted, and shows that the work is the same.

TRL is run at its best (`benchmarks.trl_dpo`): batches of 1, 2, 4 and 8 pairs, reference log-probabilities computed on
the way or beforehand (which is counted: an online learner sees every pair once), gradient checkpointing on and off,
bf16 autocast of a float32 model, or none of a bf16 one. Every combination is first tried once on a sample of the same
work: Answer's pairs of the same tree, on a model with a twelfth (`--sample_share`) of the layers and of the vocabulary.
The fastest (`--finalists`), the fastest in our precision, and the one with the least memory then take turns with ours
on the whole work, each `--repeats` times. The one with the least memory computes only its deepest micro-batch, in which
it has its peak. Ours has two configurations as well: the fastest, and one that checkpoints layers, in rows of
`--small_row_tokens`. TRL itself switches padding-free off; dropout is zero.

Target: prompt 150, chunks of 160, 6 nodes: 4 times as fast, 0.4 of the memory; chunks of 24, 10 nodes: 6 times as fast.
"""

from __future__ import annotations

import argparse
import gc
import random
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import measuring, trl_dpo
from benchmarks.measuring import Figure, Report
from benchmarks.trl_dpo import ALPHA, BATCH_SIZES, BETA, RANK, RATE, Way

MODULE = "benchmarks.learner_vs_trl"
ROLES = ("answer", "stop")
SHAPES = {"long": (150, 160, 6), "short": (150, 24, 10)}
TINY_SHAPES = {"long": (20, 8, 6), "short": (20, 4, 10)}
TIMES = {"long": ">= 4", "short": ">= 6"}
MEMORY = "<= 0.4"
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.05}
"""Of the difference between losses, in nats. Half precision rounds differently in rows of other shapes."""


def options() -> argparse.ArgumentParser:
    parser = measuring.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["50m", "0.5b"])
    parser.add_argument("--model_name_or_path", help="a real model in place of the random 0.5b")
    parser.add_argument("--shapes", nargs="+", default=["long", "short"], choices=list(SHAPES))
    parser.add_argument("--updates", type=int, default=1, help="timed updates of each run")
    parser.add_argument("--finalists", type=int, default=1, help="fastest TRL configurations to repeat")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=list(BATCH_SIZES), help="TRL batch sizes to try")
    parser.add_argument("--sample_share", type=int, default=12, help="the search uses one part in this many")
    parser.add_argument("--row_tokens", type=int, default=2048, help="tokens of one forward of ours")
    parser.add_argument("--small_row_tokens", type=int, default=1536, help="the same for our least memory")
    parser.add_argument("--case", nargs=2, metavar=("MODEL", "SHAPE"), help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="+", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--deepest", type=int, default=0, help=argparse.SUPPRESS)
    trl_dpo.add_flags(parser)
    return parser


def main() -> None:
    settings = options().parse_args()
    if settings.side:
        kinds = {"ours": ours, "trl": trl, "search": search}
        measuring.report(next(run for kind, run in kinds.items() if settings.side.startswith(kind))(settings))
        return
    models = ["tiny"] if settings.tiny else settings.models
    if settings.model_name_or_path:
        models = [settings.model_name_or_path if model == "0.5b" else model for model in models]
    for model in models:
        for shape in settings.shapes:
            compare(model, shape, settings)


def compare(model: str, shape: str, settings: argparse.Namespace) -> None:
    """Find TRL's best ways, and let them take turns with ours."""
    # 1. Every way once, on a sample.
    flags = ["--case", model, shape, "--updates", str(settings.updates), *(["--tiny"] if settings.tiny else [])]
    num_pairs, half = sizes(settings)[shape][2], model not in trl_dpo.FLOAT32
    tried = trl_dpo.ways(num_pairs, settings.batch_sizes, half=half, autocast=not settings.no_autocast)
    # Joined by "=" so that the command line does not take them for flags of its own.
    named = ["--sample_share", str(settings.sample_share), "--ways", *(f"={shlex.join(way)}" for way in tried)]
    print(f"{model}, {shape}: {len(tried)} ways of TRL", flush=True)
    done = measuring.run_side(MODULE, "search", [*flags, *named], num_threads=settings.num_threads)["found"]
    found: dict[Way, Report] = dict(zip(tried, done, strict=True))
    # 2. The best of them in turns with ours, on the whole.
    chosen = choose(found, half=half, finalists=settings.finalists)
    rows = ["--row_tokens", str(settings.row_tokens)]
    small = ["--row_tokens", str(settings.small_row_tokens), "--checkpointing"]
    sides = {"ours": [*flags, *rows], "ours, least memory": [*flags, *small]}
    sides |= {f"trl {shlex.join(way)}": [*flags, *way] for way in chosen["fast"]}
    least = f"trl, least memory: {shlex.join(chosen['least'][0])}"
    sides[least] = [*flags, *chosen["least"][0], "--deepest", chosen["least"][0][1]]
    reports = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    # 3. Their ratios.
    fast = {way: reports[f"trl {shlex.join(way)}"] for way in chosen["fast"]}
    gap = max(check_losses(reports["ours"][0], each[0]) for each in fast.values())
    details: Report = {
        "seconds": {side: measuring.spread(each, "seconds") for side, each in reports.items() if side != least},
        "peak_mib": {side: measuring.spread(each, "peak_mib") for side, each in reports.items()},
        "trl_tried": {shlex.join(way): report for way, report in found.items()},
        "losses": reports["ours"][0]["losses"],
        "largest_difference_of_losses": gap,
    }
    kept = figures(shape, reports, fast, least, half=half)
    case = f"learner {model_name(model)}, {shape_name(*sizes(settings)[shape])}"
    measuring.keep([replace(each, name=f"{case}: {each.name}", details=details) for each in kept], settings, MODULE)


def choose(found: Mapping[Way, Report], *, half: bool, finalists: int) -> dict[str, list[Way]]:
    """Of the ways that were tried the fastest, with the fastest in the model's own precision, and that of the least
    memory."""
    order = sorted(found, key=lambda way: found[way]["seconds"])
    own = [way for way in order if ("--no_autocast" in way if half else "--autocast" not in way)]
    fast = [*dict.fromkeys([*order[:finalists], own[0]])]
    return {"fast": fast, "least": [min(found, key=lambda way: found[way]["peak_mib"])]}


def figures(
    shape: str, reports: Mapping[str, list[Report]], fast: Mapping[Way, list[Report]], least: str, *, half: bool
) -> list[Figure]:
    """Time against TRL's fastest, and against the fastest without autocast where that is another; memory of these two,
    and of the least that each side needs."""
    mine = reports["ours"]
    best = min(fast, key=lambda way: measuring.median(fast[way], "seconds"))
    kept = [_ratio("time", fast[best], mine, "seconds", TIMES[shape])]
    own = [way for way in fast if ("--no_autocast" in way if half else "--autocast" not in way)]
    if best not in own:
        plain = min(own, key=lambda way: measuring.median(fast[way], "seconds"))
        kept.append(_ratio("time, TRL without autocast", fast[plain], mine, "seconds", TIMES[shape]))
    if shape == "long":
        kept.append(_ratio("memory", mine, fast[best], "peak_mib", MEMORY))
        small = reports["ours, least memory"]
        kept.append(_ratio("least memory", small, reports[least], "peak_mib", MEMORY))
    return kept


def _ratio(name: str, over: Sequence[Report], under: Sequence[Report], measure: str, reach: str) -> Figure:
    ratio = measuring.median(over, measure) / measuring.median(under, measure)
    return Figure(name=name, ratio=ratio, reach=reach, repeats=measuring.by_turn(over, under, measure))


def sizes(settings: argparse.Namespace) -> dict[str, tuple[int, int, int]]:
    return TINY_SHAPES if settings.tiny else SHAPES


def shape_name(prompt_tokens: int, chunk_tokens: int, num_nodes: int) -> str:
    return f"{prompt_tokens} + {chunk_tokens} x {num_nodes}"


def model_name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]


def check_losses(mine: Report, theirs: Report) -> float:
    """The largest difference between the losses of the two sides. Exits where it shows that the work differs; autocast
    rounds as a model in bf16 does."""
    gaps = [abs(a - b) for role in ROLES for a, b in zip(mine["losses"][role], theirs["losses"][role], strict=True)]
    if max(gaps) > TOLERANCE[theirs["dtype"]]:
        raise SystemExit(f"the losses differ, so the work does: {mine['losses']} ours, {theirs['losses']} TRL's")
    return max(gaps)


def updates(settings: argparse.Namespace, vocabulary: int) -> list[list[Any]]:
    """The pairs of each update: a small tree first, which is not timed."""
    from benchmarks.workloads import Shape, tree_pairs

    shape = Shape(*sizes(settings)[settings.case[1]])
    rng = random.Random(0)
    small = Shape(8, 4, shape.num_nodes)
    return [
        tree_pairs(rng, f"p{i}", small if i == 0 else shape, vocabulary=min(vocabulary, 32_000))
        for i in range(settings.updates + 1)
    ]


def ours(settings: argparse.Namespace) -> Report:
    """Both roles in one update of the learner."""
    import torch

    from benchmarks.workloads import random_model
    from flow_dpo.core.dpo import Dpo
    from flow_dpo.learner.gradients import RowSettings
    from flow_dpo.learner.learner import Learner, LearnerSettings
    from flow_dpo.learner.policy import LoraSettings, Policy

    torch.set_num_threads(settings.num_threads)
    model = random_model(settings.case[0])
    batches = updates(settings, model.config.vocab_size)
    memory = measuring.PeakMemory()
    policy = Policy(model, ROLES, LoraSettings(lora_r=RANK, lora_alpha=ALPHA))
    names = {id(parameter): name for name, parameter in policy.model.named_parameters()}
    for role in ROLES:
        for parameter, weight in zip(policy.parameters(role), policy.weights(role), strict=True):
            with torch.no_grad():
                weight.copy_(trl_dpo.adapter_weights(names[id(parameter)], weight, ROLES))
        policy.publish(role)
    rows = RowSettings(max_tokens=settings.row_tokens, gradient_checkpointing=settings.checkpointing)
    learner = Learner(policy, LearnerSettings(learning_rate=RATE, examples_per_update=0, rows=rows))
    losses: dict[str, list[float]] = {role: [] for role in ROLES}
    seconds: list[float] = []
    row: dict[str, float] = {}
    for pairs in batches:
        started = measuring.clock()
        row = learner.update(Dpo(beta=BETA), pairs)
        seconds.append(measuring.clock() - started)
        for role in ROLES:
            losses[role].append(row[f"learn/{role}/loss"])
    parts = ("tokens", "unshared_tokens", "reference_s", "forward_s", "backward_s")
    return {
        "seconds": statistics.mean(seconds[1:]),
        "peak_mib": memory.mib(),
        "losses": losses,
        "dtype": str(model.dtype).removeprefix("torch."),
        **{name: sum(row[f"learn/{role}/{name}"] for role in ROLES) for name in parts},
    }


def trl(settings: argparse.Namespace) -> Report:
    """One DPOTrainer a role; the sum of their seconds, the larger of their peaks."""
    from benchmarks.workloads import random_model

    reports: list[Report] = []
    for role in ROLES:
        model = random_model(settings.case[0])
        batches = [[p for p in pairs if p.request.role == role] for pairs in updates(settings, model.config.vocab_size)]
        reports.append(trl_dpo.train(settings, model, [pairs[-settings.deepest :] for pairs in batches], run=role))
        del model
        gc.collect()
    return {
        "seconds": sum(r["seconds"] for r in reports),
        "peak_mib": max(r["peak_mib"] for r in reports),
        "losses": {role: r["losses"] for role, r in zip(ROLES, reports, strict=True)},
        "dtype": reports[0]["dtype"],
    }


def search(settings: argparse.Namespace) -> Report:
    """Every way of TRL once, on a sample of the work."""
    import torch

    from benchmarks.workloads import Shape

    torch.set_num_threads(settings.num_threads)
    share = 1 if settings.tiny else settings.sample_share

    def model() -> Any:
        return trl_dpo.sample_model(settings.case[0], share)

    shape = Shape(*sizes(settings)[settings.case[1]])
    pairs = trl_dpo.sample_pairs(shape, ROLES[0], min(model().config.vocab_size, 32_000))
    tried = [options().parse_args(shlex.split(way.removeprefix("="))) for way in settings.ways]
    # What the process does once, at the first use of autocast or of checkpointing, is in no way's time.
    trl_dpo.search([each for each in tried if each.batch_size == tried[0].batch_size], model, [pairs[0], pairs[0]])
    return {"found": trl_dpo.search(tried, model, pairs)}


if __name__ == "__main__":
    main()
