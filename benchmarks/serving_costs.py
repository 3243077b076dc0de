"""What the seconds of sampling through vLLM are made of: runs of many shapes, their cost model, and a GPU's estimate.

    cost_runs(settings, "process")               # {"runs": [(tokens read, written, steps, seconds), ...]}
    cost_figures(runs, sides, "serving seed")    # errors on runs held out; the flow and one-shot requests predicted

The shapes are not those of the flow: random prompts that no cache holds, for both roles. The counts of the flow and of
one-shot requests at a GPU's cost (`cost_model.gpu_cost`) tell which rate to expect there: an estimate, not a figure.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks import measuring
from benchmarks.cost_model import GPUS, MODELS, Run, fit, gpu_cost, held_out_errors
from benchmarks.measuring import Figure, Report
from benchmarks.vllm_engines import counted_steps, engine_of, forget

GRID = {False: ((8, 64, 192), (1, 8, 32), (2, 16, 64)), True: ((8, 24), (1, 4), (2, 4))}
"""Tokens of a prompt and of a text, and texts that are sampled together, in runs that the cost model is fitted to."""
REPEATS = 3


def cost_runs(settings: argparse.Namespace, kind: str) -> Report:
    """Runs of many shapes: prompts, texts and batches that are long and short, of tokens that no cache holds."""
    from benchmarks.playing import parts
    from flow_dpo.core.types import Problem, Request

    settings.case, settings.rounds = settings.model_name_or_path, 1
    loaded, preset, _, _ = parts(settings)
    rng, ids = random.Random(0), sorted(set(range(loaded.num_tokens)) - set(loaded.end_ids))
    turn = preset.recipe.flow.turn(preset.recipe.flow.start(Problem(id="", question="", gold="")))
    sampling = preset.recipe.explore.for_turn(turn, trunk=True)
    asked = [
        [
            Request(role=role, prompt_ids=tuple(rng.choices(ids, k=prompt_tokens)), max_tokens=max_tokens)
            for role in itertools.islice(itertools.cycle(preset.recipe.flow.roles), min(batch, settings.batch_size))
        ]
        for prompt_tokens, max_tokens, batch in itertools.product(*GRID[settings.tiny])
    ]
    rng.shuffle(asked)
    runs = dict[int, tuple[float, ...]]()
    with engine_of(settings, kind, loaded, preset) as (engine, _):
        steps = counted_steps(engine)
        engine.sample(asked[0], sampling, seeds=range(len(asked[0])))
        for number, requests in [*enumerate(asked)] * REPEATS:
            forget(engine, preset.recipe.flow.roles)
            steps.clear()
            engine.take_stats()
            started = time.perf_counter()
            engine.sample(requests, sampling, seeds=range(len(requests)))
            seconds = time.perf_counter() - started
            stats = engine.take_stats()
            run = (stats["prefilled_tokens"], stats["sampled_tokens"], len(steps), seconds)
            # Of the same tokens again the fastest run: what was slower waited for other work on this machine.
            runs[number] = min(run, runs.get(number, run), key=lambda run: run[-1])
    return {"runs": [*runs.values()]}


def cost_figures(runs: Sequence[Sequence[float]], sides: Mapping[str, Sequence[Report]], name: str) -> list[Figure]:
    """The fitted cost of reading, writing and steps, and a GPU's by its published peaks."""
    grid = [Run(*run) for run in runs]
    cost, errors = fit(grid), held_out_errors(grid)
    flow, answers = (_as_run(sides[side]) for side in ("flow", "answers"))
    print(
        f"{name}, cost model: {cost.read_s * 1e3:.3g} ms a token read, {cost.written_s * 1e3:.3g} ms a token written, "
        f"{cost.step_s * 1e3:.3g} ms a step; {len(grid)} runs, largest relative error held out {max(errors):.2f}"
    )
    context = measuring.median(sides["flow"], "prompt_tokens") / measuring.median(sides["flow"], "num_questions")
    tokens = {side: measuring.median(sides[side], "tokens") for side in ("flow", "answers")}
    for (gpu, peaks), (model, size) in itertools.product(GPUS.items(), MODELS.items()):
        estimated = gpu_cost(peaks, size, context_tokens=context)
        for words, change in (("as many under way as here", replace), ("256 under way", _full)):
            took = {side: estimated.seconds(change(run)) for side, run in (("flow", flow), ("answers", answers))}
            ratio = tokens["flow"] / took["flow"] / (tokens["answers"] / took["answers"])
            print(f"  {gpu}, {model}, {words}: the flow at {ratio:.2f} of one-shot requests, estimated")
    details = {"cost": vars(cost), "errors": errors, "runs": runs}
    return [
        Figure(
            name=f"{name}: cost model, mean relative error on runs held out",
            ratio=sum(errors) / len(errors),
            reach="<= 0.15",
            details=details,
        ),
        *(
            Figure(name=f"{name}: cost model, predicted over measured seconds of {words}",
                   ratio=cost.seconds(run) / run.seconds, reach="", details=details)
            for words, run in (("the flow", flow), ("one-shot requests", answers))
        ),
    ]  # fmt: skip


def _as_run(reports: Sequence[Report]) -> Run:
    """The medians of a side's counts and seconds."""
    names = ("prefilled_tokens", "sampled_tokens", "num_steps", "seconds")
    return Run(*(measuring.median(reports, name) for name in names))


def _full(run: Run) -> Run:
    """The same tokens with 256 requests in every step."""
    return replace(run, steps=run.written / 256)
