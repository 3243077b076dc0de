"""A user's hour: problems learned from in an hour, and seconds to an accuracy, against TRL's online trainers.

    python -m benchmarks.whole_run                                              # the seed, to an accuracy
    python -m benchmarks.whole_run --only_given --model_name_or_path FOLDER --dataset_name SVAMP   # a few updates

Ours are the recipes online-dpo, grpo and flow-dpo. TRL's are its OnlineDPOTrainer and its GRPOTrainer, without gradient
checkpointing. All learn from the same problems by the same prompts (token for token, asserted), with LoRA of the same
rank on the same layers, as many problems an update, answers of the same length, the same temperature and top-p, and
this package's verifier as reward. Every other setting of a method is its own default. Sampling, grading, learning and
refreshing are in the time; evaluations are not.

Every side may choose its learning rate. Each of its rates (`--rates`) is run once and measured on a validation part of
the training split; the one that reaches the accuracy in the fewest seconds is run again `--repeats` times, with other
seeds, and measured on the test split. An accuracy is that of one greedy pass of the answering adapter, by one engine
for all sides, measured every `--every` problems. A side is done when it reaches `--target`. A peer that never does has
the time of its whole run, which is less than it would need (`hit` in the details).

On a real model a run to an accuracy takes hours, so a fixed number of updates is timed, with the accuracy after them
beside it. A whole batch's logits take more than 24 GiB there, so TRL's trainers accumulate gradients, in each way that
is named (`--online_dpo_ways`, `--grpo_ways`: a micro-batch of prompts, of completions; "2-checkpointing" adds gradient
checkpointing); the fastest counts. With half a billion parameters, one prompt of online DPO fits into 16 GiB and four
completions of GRPO do not: run that with nothing else in memory. Online DPO generates at most one micro-batch at a
time, and without a cache where it checkpoints. Our rows have `--row_tokens`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

if TYPE_CHECKING:
    from flow_dpo.core.types import Problem

MODULE = "benchmarks.whole_run"
SEED = "seed"
OURS = ("online-dpo", "grpo", "flow-dpo")
PEERS = {"trl-online-dpo": "TRL's online DPO", "trl-grpo": "TRL's GRPO"}
RATES = {"online-dpo": (1e-3, 3e-3), "grpo": (1e-3, 3e-3), "flow-dpo": (3e-3,)} | dict.fromkeys(
    PEERS, (3e-4, 1e-3, 3e-3)
)
PAIRS = (("online-dpo", "trl-online-dpo"), ("grpo", "trl-grpo"))
"""The same method on both sides."""


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", help="a real model, measured after the seed")
    parser.add_argument("--only_given", action="store_true", help="leave the seed out")
    parser.add_argument("--dataset_name", default="SVAMP", help="data set of the real model")
    parser.add_argument("--target", type=float, default=0.85, help="accuracy to reach, on the seed")
    parser.add_argument("--max_problems", type=int, default=1536, help="problems a side can learn from, on the seed")
    parser.add_argument("--every", type=int, default=64, help="problems between two measurements of accuracy")
    parser.add_argument("--held_out", type=int, default=200, help="problems an accuracy is measured on, on the seed")
    parser.add_argument("--real_problems", type=int, default=16, help="problems a side learns from, real model")
    parser.add_argument("--online_dpo_ways", nargs="+", default=["1"], help="TRL's micro-batches, real model")
    parser.add_argument("--grpo_ways", nargs="+", default=["4"], help="the same for TRL's GRPO")
    parser.add_argument("--row_tokens", type=int, default=2048, help="tokens of one forward of ours, real model")
    parser.add_argument("--systems", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to choose from, for every side")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="test", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.tiny:
        settings.max_problems, settings.every, settings.held_out, settings.target = 64, 32, 16, 0.3
        settings.repeats, settings.rates = 1, [3e-3]
    if settings.side:
        system, rate, seed, *way = settings.side.split()
        from benchmarks.trl_online import trl

        run = partial(trl, way=way[0] if way else "") if system in PEERS else ours
        measuring.report(run(settings, system, float(rate), int(seed)))
        return
    if not settings.only_given:
        to_an_accuracy(settings)
    if settings.model_name_or_path:
        few_updates(settings)


def to_an_accuracy(settings: argparse.Namespace) -> None:
    """The seed: seconds to the target, and problems an hour."""
    flags = ["--case", SEED, *(["--tiny"] if settings.tiny else [])]
    for name in ("target", "max_problems", "every", "held_out"):
        flags += [f"--{name}", str(getattr(settings, name))]
    found: dict[str, list[Report]] = {system: [] for system in settings.systems}
    rates = {system: settings.rates or RATES[system] for system in settings.systems}
    # 1. Each side's rate, on problems that are not the test's.
    validation = [*flags, "--part", "validation"]
    tried: dict[str, dict[str, Report]] = {system: {} for system in settings.systems}
    for system, several in rates.items():
        for side in (f"{system} {rate:g} 0" for rate in several):
            tried[system][side] = measuring.run_side(MODULE, side, validation, num_threads=settings.num_threads)
    chosen = {system: min(reports, key=lambda side: rank(reports[side])) for system, reports in tried.items()}
    # 2. In turns, with other seeds.
    for seed in range(1, settings.repeats + 1):
        for system, side in chosen.items():
            again = f"{side.rpartition(' ')[0]} {seed}"
            found[system].append(measuring.run_side(MODULE, again, flags, num_threads=settings.num_threads))
    details = {"chosen": chosen, "tried": tried, "runs": found, "target": settings.target}
    words = f"seconds to {settings.target:.0%}"
    made = figures("whole run seed", found, words)
    measuring.keep([replace(each, details=details) for each in made], settings, MODULE)


def few_updates(settings: argparse.Namespace) -> None:
    """A real model: problems an hour over a few updates."""
    flags = ["--case", settings.model_name_or_path, "--dataset_name", settings.dataset_name]
    flags += ["--real_problems", str(settings.real_problems), *(["--tiny"] if settings.tiny else [])]
    flags += ["--row_tokens", str(settings.row_tokens)]
    ways = {"trl-online-dpo": settings.online_dpo_ways, "trl-grpo": settings.grpo_ways}
    sides = {f"{system} 2e-4 0 {way}".strip(): flags for system in settings.systems for way in ways.get(system, [""])}
    found = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    by_system: dict[str, Sequence[Report]] = {}
    for side, reports in found.items():
        system = side.partition(" ")[0]
        by_system[system] = max(by_system.get(system, reports), reports, key=_problems_an_hour)
    name = settings.model_name_or_path.rstrip("/").rpartition("/")[2]
    made = figures(f"whole run {name}", by_system, "")
    measuring.keep([replace(each, details={"runs": found}) for each in made], settings, MODULE)


def rank(report: Report) -> tuple[bool, float]:
    """Fewest seconds first; those that miss the target last, the most accurate of them first."""
    return (False, report["seconds"]) if report.get("hit") else (True, -report.get("accuracy", 0.0))


def _problems_an_hour(reports: Sequence[Report]) -> float:
    return measuring.median(reports, "problems_an_hour")


def figures(case: str, found: Mapping[str, Sequence[Report]], words: str) -> list[Figure]:
    """Problems an hour of each method over TRL's own, and seconds (`words`) of each of ours under each of TRL's."""
    made: list[Figure] = []
    for mine, theirs in PAIRS:
        if mine in found and theirs in found:
            name = f"{case}, {mine} over {PEERS[theirs]}: problems an hour"
            made.append(_ratio(name, found[mine], found[theirs], "problems_an_hour"))
    for mine in (system for system in OURS if words and system in found):
        if not all(report["hit"] for report in found[mine]):
            print(f"{mine} missed the target: no ratio of its seconds", flush=True)
            continue
        for theirs in (system for system in PEERS if system in found):
            made.append(_ratio(f"{case}, {PEERS[theirs]} over {mine}: {words}", found[theirs], found[mine], "seconds"))
    return made


def _ratio(name: str, over: Sequence[Report], under: Sequence[Report], measure: str) -> Figure:
    ratio = measuring.median(over, measure) / measuring.median(under, measure)
    return Figure(name=name, ratio=ratio, reach="", repeats=measuring.by_turn(over, under, measure))


@dataclass
class Meter:
    """The clock of a run, which stands still while it is evaluated; done when the accuracy reaches the target."""

    evaluate: Callable[[], float]
    target: float | None
    every: int
    history: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])
    """Problems learned from, seconds and accuracy at each look."""
    problems: int = 0
    seconds: float = 0.0
    done: bool = False
    _started: float = field(default_factory=measuring.clock)

    def start(self) -> None:
        """Time begins now."""
        self._started = measuring.clock()

    def saw(self, problems: int) -> None:
        """So many problems were learned from in all."""
        self.seconds += measuring.clock() - self._started
        self.problems = problems
        if self.target is not None and problems >= self.every * (len(self.history) + 1):
            self.look()
        self._started = measuring.clock()

    def look(self) -> None:
        """Evaluate, outside of the time."""
        accuracy = self.evaluate()
        self.history.append((self.problems, self.seconds, accuracy))
        self.done = self.target is not None and accuracy >= self.target

    def report(self) -> Report:
        """What a side reports; evaluated once more where it never was."""
        if not self.history:
            self.look()
        return {
            "problems_an_hour": 3600 * self.problems / self.seconds,
            "seconds": self.seconds,
            "problems": self.problems,
            "accuracy": self.history[-1][2],
            "hit": self.done,
            "history": self.history,
        }


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all sides have in common."""

    loaded: Any
    flow: Any
    """One pass of the answering role."""
    preset: Any
    """Of the recipe, or of online DPO for a peer."""
    problems: Sequence[Problem]
    held_out: Sequence[Problem]
    target: float | None
    every: int


def work(settings: argparse.Namespace, recipe: str) -> Work:
    """Model, prompts and problems."""
    from flow_dpo.data.problems import load_problems
    from flow_dpo.models.load import load_model
    from flow_dpo.models.settings import ModelSettings
    from flow_dpo.recipes.presets import preset

    seeded = settings.case == SEED
    name, scale = (SEED, "seed") if seeded else (settings.dataset_name, "small")
    loaded = load_model(ModelSettings(model_name_or_path=settings.case, num_threads=settings.num_threads))
    count = settings.max_problems if seeded else settings.real_problems
    size = settings.held_out if seeded else 16
    if settings.part == "validation":
        held_out = load_problems(name, skip_problems=count, max_problems=size)
    else:
        held_out = load_problems(name, split="test", max_problems=size)
    found = preset(recipe, scale)
    flow: Any = preset("online-dpo", scale).recipe.flow
    # Of a few problems no pool would fill: every batch of a real model is an update.
    rows = replace(found.learner.rows, max_tokens=settings.row_tokens)
    short = replace(found, problems_per_batch=8, learner=replace(found.learner, examples_per_update=0, rows=rows))
    if settings.tiny and not seeded:
        flow = replace(flow, max_tokens=8)
    return Work(
        loaded=loaded,
        flow=flow,
        preset=found if seeded else short,
        problems=load_problems(name, max_problems=count).problems,
        held_out=held_out.problems,
        target=settings.target if seeded else None,
        every=settings.every,
    )


def ours(settings: argparse.Namespace, recipe: str, rate: float, seed: int) -> Report:
    """A recipe of this package in its own loop."""
    from flow_dpo.core.loop import learn
    from flow_dpo.core.protocols import Backends
    from flow_dpo.engines.factory import role_model_of
    from flow_dpo.engines.local.engine import LocalEngine
    from flow_dpo.engines.settings import LocalSettings
    from flow_dpo.evaluate.evaluate import EvaluationSettings, evaluate
    from flow_dpo.learner.learner import Learner
    from flow_dpo.learner.policy import Policy
    from flow_dpo.verify.grader import AnswerGrader
    from flow_dpo.verify.verifier import Verifier
    from flow_dpo.workers.in_process import InProcessWorkers

    common = work(settings, recipe)
    found, loaded = common.preset, common.loaded
    with Verifier(num_workers=1) as verifier:
        policy = Policy(loaded.model, found.recipe.flow.roles, found.lora, seed=seed)
        engine = LocalEngine(
            policy.model,
            role_model=role_model_of(policy, LocalSettings()),
            end_ids=loaded.end_ids,
            context_tokens=loaded.context_tokens,
        )
        grader = AnswerGrader(verifier, loaded.renderer)
        workers = InProcessWorkers(Backends(engine=engine, renderer=loaded.renderer, grader=grader))
        learner = Learner(policy, replace(found.learner, learning_rate=rate))

        def accuracy() -> float:
            explore, plan = preset_explore(common), EvaluationSettings(mode="single")
            arguments = (workers, loaded.renderer, grader, learner.adapters, plan)
            return evaluate(common.flow, explore, common.held_out, *arguments)[1]["accuracy"]

        meter = Meter(evaluate=accuracy, target=common.target, every=common.every)

        class Watching:
            """Looks at the clock after every batch."""

            def on_batch(self, row: dict[str, Any], trees: Sequence[Any], examples: Sequence[Any]) -> None:
                meter.saw(row["problems_seen"])

        def stream() -> Iterator[Problem]:
            for problem in common.problems:
                if meter.done:
                    return
                yield problem

        size = found.problems_per_batch
        learn(found.recipe, stream(), workers, learner, callbacks=[Watching()], seed=seed, problems_per_batch=size)
        return meter.report()


def preset_explore(common: Work) -> Any:
    """How evaluations explore: greedily, by the rules of online DPO whatever the recipe."""
    from flow_dpo.recipes.presets import preset

    return preset("online-dpo", "seed").recipe.explore


if __name__ == "__main__":
    main()
