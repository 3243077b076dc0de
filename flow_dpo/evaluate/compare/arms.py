"""The arms of a comparison: what is trained, compiled and evaluated, and what it is compared with.

An arm is a function from one seed's `JobRunner` to an `Outcome`: the pieces of work that it took, and the evaluations
of the result. Arms share work of the same name:

    trained_flow     train "flow" -> generate "traces/trained_flow" -> sft "sft/trained_flow" -> evaluations
    answer_adapter   train "flow" (the same one)                                              -> evaluations

Invariant: all compiled arms are fine-tuned with the same settings and evaluated in the same single pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.explore import Explore, TurnSampling
from flow_dpo.evaluate.compare.jobs import JobRunner, Work
from flow_dpo.recipes import presets
from flow_dpo.recipes.single import Single
from flow_dpo.runs import run_folder
from flow_dpo.runs.callbacks.budget import spent
from flow_dpo.runs.records import read_metrics

Kind = Literal["base", "compiled", "flow", "single", "votes", "stop"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one arm under one seed."""

    works: tuple[Work, ...]
    """All work that it took, in order."""
    evaluations: Mapping[str, Path]
    """Folders by test, such as "held_out/greedy"; empty for votes and Stops."""
    traces: Work | None = None
    """The traces that it was fine-tuned on."""
    sft: Work | None = None
    votes: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Folders of attempts that were drawn for votes, by problem set, such as "held_out"."""
    stop: Path | None = None
    """The evaluation of a Stop on the fixed set of candidates."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the arms need to know about the comparison's settings."""

    num_traces: int
    matched_draws: int
    more_draws: int
    flow_shape: tuple[int, int] | None
    """Tokens per chunk, and chunks; None for a flow without chunks."""
    tests: tuple[str, ...]
    """Problem set and decoding of each test."""
    max_problems: int
    """Problems that the flow is trained on."""
    tokens: int = 0
    """Tokens for the arms with a token budget; 0 means what the flow used."""
    preset: str = "seed"
    """The scale that recipes are fitted to."""
    single_pass: Single | None = None
    """The single pass of the flow's Answer role; None for a flow without one."""
    draws: TurnSampling = field(default_factory=TurnSampling)
    """How completions are sampled in tests."""
    test_samples: int = 1
    """Samples per problem in a sampled test."""
    test_draws: int = 6
    """Attempts per problem for votes."""
    outcome_pairs: bool = True
    """Whether the flow learns from pairs by outcome (`core.credit.OutcomePairs`), which some arms filter or weight."""


Make = Callable[[JobRunner, Sizes], Outcome]


MOST_PROBLEMS = 20
"""Most problems of an arm that ends by its budget, as a multiple of the flow's."""
SAME_TOKENS = "until it had the flow's tokens"
"""How an arm ends that can be given a number of tokens instead (`Sizes.tokens`)."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the table."""

    name: str
    kind: Kind
    """"compiled" is fine-tuned on traces; "single" is a trained adapter in one pass, "flow" the flow itself;
    "votes" and "stop" do not have a test of their own (`team_arms`)."""
    what: str
    make: Make
    against: tuple[str, ...] = ()
    """The arms that this one is compared with besides the baseline, if they are made too."""


# ---- pieces ---------------------------------------------------------------------------------------------------------


def evaluated(
    do: JobRunner, sizes: Sizes, name: str, *flags: str, run: Work | None = None, adapter: Work | None = None
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for test in sizes.tests:
        problems, _, decoding = test.partition("/")
        several = ["--num_samples", str(sizes.test_samples)] if sizes.test_samples > 1 else []
        drawn = [] if decoding == "greedy" else ["--greedy", "false", *several]
        where = f"evaluations/{name}/{problems}-{decoding}"
        found[test] = do.evaluate(where, problems, *flags, *drawn, run=run, adapter=adapter)
    return found


def compiled(do: JobRunner, sizes: Sizes, name: str, traces: Work, *before: Work, exactly: bool = True) -> Outcome:
    """Fine-tune on traces and measure in one pass: on the common number of traces if `exactly`, otherwise on all."""
    wanted = ["--num_traces", str(sizes.num_traces)] if exactly else []
    model = do.sft(f"sft/{name}", traces, *wanted)
    found = evaluated(do, sizes, name, "--mode", "single", adapter=model)
    return Outcome(works=(*before, traces, model), evaluations=found, traces=traces, sft=model)


def enough(sizes: Sizes) -> list[str]:
    return ["--max_traces", str(sizes.num_traces)]


def _flow(do: JobRunner) -> Work:
    return do.train("flow")


def _self(do: JobRunner, sizes: Sizes) -> Work:
    return do.traces("traces/self_generated", "--mode", "single", *enough(sizes))


def _trained(do: JobRunner, sizes: Sizes, flow: Work, name: str = "trained_flow", *flags: str) -> Work:
    return do.traces(f"traces/{name}", "--mode", "flow", *enough(sizes), *flags, run=flow)


# ---- the paper's arms ------------------------------------------------------------------------------------------------


def _zero_shot(do: JobRunner, sizes: Sizes) -> Outcome:
    return Outcome(works=(), evaluations=evaluated(do, sizes, "zero_shot", "--mode", "single"))


def _ground_truth(do: JobRunner, sizes: Sizes) -> Outcome:
    traces = do.traces("traces/ground_truth", "--mode", "ground_truth", *enough(sizes))
    return compiled(do, sizes, "ground_truth", traces)


def _self_generated(do: JobRunner, sizes: Sizes) -> Outcome:
    return compiled(do, sizes, "self_generated", _self(do, sizes))


def _untrained_flow(do: JobRunner, sizes: Sizes) -> Outcome:
    traces = do.traces("traces/untrained_flow", "--mode", "flow", *enough(sizes))
    return compiled(do, sizes, "untrained_flow", traces)


def _trained_flow(do: JobRunner, sizes: Sizes) -> Outcome:
    flow = _flow(do)
    return compiled(do, sizes, "trained_flow", _trained(do, sizes, flow), flow)


# ---- which problems have a trace? ------------------------------------------------------------------------------------


def _self_on_trained(do: JobRunner, sizes: Sizes) -> Outcome:
    flow = _flow(do)
    trained = _trained(do, sizes, flow)
    name = "self_on_trained_problems"
    flags = ("--mode", "single", "--problems_of", str(trained.folder), "--num_samples", str(sizes.matched_draws))
    return compiled(do, sizes, name, do.traces(f"traces/{name}", *flags), flow, trained, exactly=False)


def _truth_on_trained(do: JobRunner, sizes: Sizes) -> Outcome:
    flow = _flow(do)
    trained = _trained(do, sizes, flow)
    name = "ground_truth_on_trained_problems"
    flags = ("--mode", "ground_truth", "--problems_of", str(trained.folder))
    return compiled(do, sizes, name, do.traces(f"traces/{name}", *flags), flow, trained)


def _trained_on_self(do: JobRunner, sizes: Sizes) -> Outcome:
    flow, own = _flow(do), _self(do, sizes)
    name = "trained_on_self_problems"
    flags = ("--mode", "flow", "--problems_of", str(own.folder), "--num_samples", str(sizes.matched_draws))
    return compiled(do, sizes, name, do.traces(f"traces/{name}", *flags, run=flow), flow, own, exactly=False)


def _more_draws(name: str, mode: Literal["single", "flow"], *, trained: bool = False) -> Make:
    """Several draws per problem, equally many for the flow and for the base."""

    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        flow = _flow(do) if trained else None
        flags = ("--mode", mode, "--num_samples", str(sizes.more_draws), *enough(sizes))
        traces = do.traces(f"traces/{name}", *flags, run=flow)
        return compiled(do, sizes, name, traces, *([] if flow is None else [flow]))

    return make


# ---- not compiled ----------------------------------------------------------------------------------------------------


def _flow_itself(do: JobRunner, sizes: Sizes) -> Outcome:
    flow = _flow(do)
    return Outcome(works=(flow,), evaluations=evaluated(do, sizes, "flow_itself", "--mode", "flow", run=flow))


def _untrained_flow_itself(do: JobRunner, sizes: Sizes) -> Outcome:
    return Outcome(works=(), evaluations=evaluated(do, sizes, "untrained_flow_itself", "--mode", "flow"))


def _answer_adapter(do: JobRunner, sizes: Sizes) -> Outcome:
    flow = _flow(do)
    flags = ("--mode", "single", "--roles", "[answer]")
    return Outcome(works=(flow,), evaluations=evaluated(do, sizes, "answer_adapter", *flags, run=flow))


# ---- other ways to spend the flow's budget ---------------------------------------------------------------------------


def budgeted(
    recipe: str,
    by: Literal["tokens", "verdicts"],
    *flags: str,
    name: str = "",
    mode: Literal["single", "flow"] = "single",
) -> Make:
    """A recipe trained until it has used as much as the flow, then evaluated in one pass or as its own flow."""
    name = f"{name or recipe.replace('-', '_')}_same_{by}"

    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        given = sizes.tokens if by == "tokens" else 0
        had = given or spent(read_metrics(_flow(do).folder / "metrics.jsonl"))[by]
        longer = ["--max_problems", str(MOST_PROBLEMS * sizes.max_problems)]  # the budget ends the run
        fitted = presets.preset(recipe, sizes.preset).recipe
        config = (
            "single" if isinstance(fitted.flow, Single) and sizes.single_pass not in (None, fitted.flow) else "other"
        )
        budget = [f"--budget_{by}", str(had), *longer]
        work = do.train(name, *budget, *flags, recipe=recipe, config=config)
        drawn = draw_flags(fitted.explore, sizes.draws)
        return Outcome(works=(work,), evaluations=evaluated(do, sizes, name, "--mode", mode, *drawn, run=work))

    return make


def draw_flags(own: Explore, draws: TurnSampling) -> list[str]:
    """Flags that make a recipe with other sampling settings sample like all arms in tests."""
    names = ("temperature", "top_p", "choice_temperature")
    differing = [name for name in names if getattr(own, name, None) != getattr(draws, name)]
    return [flag for name in differing for flag in (f"--explore.{name}", str(getattr(draws, name)))]


def _variant(name: str, *flags: str) -> Make:
    """A variant of the flow's training, with its traces compiled."""

    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        work = do.train(name, *flags)
        return compiled(do, sizes, name, _trained(do, sizes, work, name, *_unseen(work, sizes)), work)

    return make


def _unseen(work: Work, sizes: Sizes) -> list[str]:
    """Flags that keep a pool free of problems seen by a training that took more of them than the flow's."""
    seen = int(read_metrics(work.folder / "metrics.jsonl")[-1]["problems_seen"])
    if seen <= sizes.max_problems:
        return []
    first = run_folder.read_settings(work.folder / "config.yaml")["data"]["skip_problems"]
    return ["--data.skip_problems", str(first + seen)]


def _variant_itself(name: str, *flags: str) -> Make:
    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        work = do.train(name, *flags)
        found = evaluated(do, sizes, f"{name}_itself", "--mode", "flow", run=work)
        return Outcome(works=(work,), evaluations=found)

    return make


def _one_role(role: str, *, by_traces: bool) -> Make:
    """Only one role learns, for as many updates as both roles had together."""

    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        had = spent(read_metrics(_flow(do).folder / "metrics.jsonl"))["updates"]
        longer = ["--max_problems", str(8 * sizes.max_problems)]
        flags = ["--credit.roles", f"[{role}]", "--budget_updates", str(had), *longer]
        return (_variant if by_traces else _variant_itself)(f"{role}_only", *flags)(do, sizes)

    return _of_pairs(make)


def _chunks(factor: float, *, by_traces: bool) -> Make:
    """Chunks of another size, with the same total number of tokens."""

    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        if sizes.flow_shape is None:
            raise ConfigError("chunks of another size need a flow with chunk_tokens and max_chunks; leave the arm out")
        tokens, chunks = sizes.flow_shape
        flags = ["--chunk_tokens", str(int(tokens * factor)), "--max_chunks", str(max(1, int(chunks / factor)))]
        name = "chunks_half" if factor < 1 else "chunks_double"
        return (_variant if by_traces else _variant_itself)(name, *flags)(do, sizes)

    return make


def _of_pairs(make: Make) -> Make:
    """An arm that changes which pairs by outcome are learned from."""

    def made(do: JobRunner, sizes: Sizes) -> Outcome:
        if not sizes.outcome_pairs:
            raise DataError(
                "expected a recipe of pairs by outcome, whose roles can learn alone; --recipe flow-dpo-paper"
            )
        return make(do, sizes)

    return made


_TWO = ("--num_alternatives", "2")
_BALANCED = ("--balance",)
_ROWS: tuple[tuple[str, Kind, str, Make], ...] = (
    ("zero_shot", "base", "the base in one pass", _zero_shot),
    ("ground_truth", "compiled", "SFT on the data set's own solutions", _ground_truth),
    ("self_generated", "compiled", "SFT on the base's own right solutions", _self_generated),
    ("untrained_flow", "compiled", "SFT on right solutions of the flow before learning", _untrained_flow),
    ("trained_flow", "compiled", "SFT on right solutions of the trained flow", _trained_flow),
    ("self_on_trained_problems", "compiled", "the base's solutions of the problems that the trained flow solved, by "
     "many draws", _self_on_trained),
    ("ground_truth_on_trained_problems", "compiled", "the data set's solutions of the problems that the trained flow "
     "solved", _truth_on_trained),
    ("trained_on_self_problems", "compiled", "the trained flow's solutions of the problems that the base solved",
     _trained_on_self),
    ("self_more_draws", "compiled", "the base's right solutions, several draws a problem",
     _more_draws("self_more_draws", "single")),
    ("untrained_flow_more_draws", "compiled", "right solutions of the flow before learning, several draws a problem",
     _more_draws("untrained_flow_more_draws", "flow")),
    ("trained_flow_more_draws", "compiled", "right solutions of the trained flow, several draws a problem",
     _more_draws("trained_flow_more_draws", "flow", trained=True)),
    ("untrained_flow_itself", "flow", "the flow before learning, not compiled", _untrained_flow_itself),
    ("flow_itself", "flow", "the trained flow, not compiled", _flow_itself),
    ("answer_adapter", "single", "the trained flow's Answer adapter in one pass, not compiled", _answer_adapter),
    ("online_dpo_same_tokens", "single", f"whole-answer online DPO {SAME_TOKENS}",
     budgeted("online-dpo", "tokens")),
    ("online_dpo_same_verdicts", "single", "whole-answer online DPO until it had the flow's verdicts",
     budgeted("online-dpo", "verdicts")),
    ("rejection_sampling_same_tokens", "single", f"iterated rejection-sampling SFT {SAME_TOKENS}",
     budgeted("rejection-sampling", "tokens")),
    ("rejection_sampling_same_verdicts", "single", "iterated rejection-sampling SFT until it had the flow's verdicts",
     budgeted("rejection-sampling", "verdicts")),
    ("answer_only", "compiled", "as trained_flow, only Answer learned, as many updates",
     _one_role("answer", by_traces=True)),
    ("answer_only_itself", "flow", "that flow, not compiled", _one_role("answer", by_traces=False)),
    ("stop_only", "compiled", "as trained_flow, only Stop learned, as many updates", _one_role("stop", by_traces=True)),
    ("stop_only_itself", "flow", "that flow, not compiled", _one_role("stop", by_traces=False)),
    ("alternatives_2", "compiled", "as trained_flow, two alternatives a node", _variant("alternatives_2", *_TWO)),
    ("alternatives_2_itself", "flow", "that flow, not compiled", _variant_itself("alternatives_2", *_TWO)),
    ("chunks_half", "compiled", "as trained_flow, chunks of half the size", _chunks(0.5, by_traces=True)),
    ("chunks_half_itself", "flow", "that flow, not compiled", _chunks(0.5, by_traces=False)),
    ("chunks_double", "compiled", "as trained_flow, chunks of twice the size", _chunks(2, by_traces=True)),
    ("chunks_double_itself", "flow", "that flow, not compiled", _chunks(2, by_traces=False)),
    ("balanced_stop", "compiled", "as trained_flow, Stop's finished and unfinished pairs weigh alike",
     _of_pairs(_variant("balanced_stop", *_BALANCED))),
    ("balanced_stop_itself", "flow", "that flow, not compiled",
     _of_pairs(_variant_itself("balanced_stop", *_BALANCED))),
)  # fmt: skip
_CHANGED: Mapping[Kind, str] = {"compiled": "trained_flow", "flow": "flow_itself", "single": "answer_adapter"}
"""The arm that an arm is a variant of, and is compared with besides the baseline."""


def _against(name: str, kind: Kind) -> tuple[str, ...]:
    if name == "trained_flow_more_draws":
        return ("trained_flow", "self_more_draws")
    if name == "trained_on_self_problems":  # which matters more, the steps or the problems?
        return ("trained_flow", "self_on_trained_problems")
    if name == "answer_adapter":
        return ("flow_itself",)
    return () if _CHANGED.get(kind, name) == name else (_CHANGED[kind],)


ARMS: Mapping[str, Arm] = {
    name: Arm(name=name, kind=kind, what=what, make=make, against=_against(name, kind))
    for name, kind, what, make in _ROWS
}
PAPER = ("zero_shot", "ground_truth", "self_generated", "untrained_flow", "trained_flow")
"""The rows of the paper's table 1, plus the untrained flow."""
CORE = (*PAPER, "self_more_draws", "trained_flow_more_draws", "flow_itself", "answer_adapter")
"""What the paper's claim rests on, with equally many draws on both sides, and the flow that the traces come from."""
BASELINE = "self_generated"
