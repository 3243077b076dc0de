"""Throughput of a flow's rollouts in sampled tokens a second, against transformers' `generate`.

    python -m benchmarks.playing                                   # on the embedded seed
    python -m benchmarks.playing --model_name_or_path FOLDER       # and on a real model

Three sides, all with the roles' adapters on, sampling at temperature 1 without truncation:

- ours: the flow with the local engine, explored as in training, with an alternative at every node;
- calls: the same flow, exploration and problems with one `generate` call a chunk (`plain_play`). A call batches
  everything that is due, up to the same batch size, with similar lengths together; keys and values are kept inside a
  call and not between calls;
- whole: one uninterrupted batched `generate` on the Answer role's prompts, as long as the flow may write, with no flow,
  no Stop and no alternatives; the best of several batch sizes.

The flow is the paper's, whose Stop is asked after every chunk; with `--recipe flow-dpo`, after every attempt. On a real
model, ours is also measured with weights in 8-bit integers (`--engine.int8`) where the processor supports it.

Sampled tokens are counted, without Stop's choices. The first two sides draw different tokens, so their rollouts differ
a little in length; a rate does not depend on that. Target: on a model of half a billion parameters, 5 times the rate of
the calls and 1.8 times that of the whole; on the seed, the rate of the whole.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

MODULE = "benchmarks.playing"
SEED = "seed"
PAPER = "flow-dpo-paper"


def options() -> argparse.ArgumentParser:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", help="a real model, measured after the seed")
    parser.add_argument("--only_given", action="store_true", help="leave the seed out")
    parser.add_argument(
        "--recipe",
        default=PAPER,
        choices=[PAPER, "flow-dpo"],
        help="whose flow: the paper's asks Stop after every chunk, flow-dpo's after every attempt",
    )
    parser.add_argument("--num_problems", type=int, default=32, help="problems sampled together, as in training")
    parser.add_argument("--rounds", type=int, help="how often (default: 8 on the seed, 1 on a real model)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 64, 128], help="batch sizes of the whole")
    parser.add_argument(
        "--without_calls", action="store_true", help="leave out the calls side, which takes an hour on a real model"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    settings = options().parse_args()
    if settings.tiny:
        settings.num_problems, settings.rounds, settings.batch_sizes = 4, 1, [4]
    if settings.side:
        side, _, size = settings.side.partition("-")
        run = {"ours": play, "int8": play, "calls": play, "whole": whole}[side]
        measuring.report(run(settings, int(size or 0)))
        return
    given = [settings.model_name_or_path] if settings.model_name_or_path else []
    for model in given if settings.only_given else [SEED, *given]:
        compare(model, settings)
    if not given:
        print("playing on a real model: skipped, for --model_name_or_path is not given", flush=True)


def compare(model: str, settings: argparse.Namespace) -> None:
    from flow_dpo.engines.local.int8 import why_not

    flags = ["--case", model, "--num_problems", str(settings.num_problems), *(["--tiny"] if settings.tiny else [])]
    flags += ["--recipe", settings.recipe]
    flags += ["--rounds", str(settings.rounds)] if settings.rounds else []
    wholes = [f"whole-{size}" for size in settings.batch_sizes]
    integers = ["int8"] if model != SEED and not why_not() else []
    calls = [] if settings.without_calls else ["calls"]
    sides = dict.fromkeys(["ours", *integers, *calls, *wholes], flags)
    found = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    rates = {side: measuring.median(reports, "tokens_a_second") for side, reports in found.items()}
    best = max(wholes, key=rates.__getitem__)
    name = model.rstrip("/").rpartition("/")[2] + ("" if settings.recipe == PAPER else f", recipe {settings.recipe}")
    details = {"tokens_a_second": rates, "runs": found}
    bound = ">= 1.0" if model == SEED else ">= 1.8"
    figures = [
        *(
            Figure(
                name=f"playing {name}: against a call a chunk",
                ratio=rates["ours"] / rates[side],
                reach="" if model == SEED else ">= 5",
                details=details,
            )
            for side in calls
        ),
        Figure(
            name=f"playing {name}: against an uninterrupted generate",
            ratio=rates["ours"] / rates[best],
            reach=bound,
            details={**details, "best": best},
        ),
    ]
    for side in integers:
        what = f"playing {name}, 8-bit integers"
        against = f"{what}: against an uninterrupted generate"
        figures += [
            Figure(name=against, ratio=rates[side] / rates[best], reach=bound, details={**details, "best": best}),
            Figure(
                name=f"{what}: against its own precision", ratio=rates[side] / rates["ours"], reach="", details=details
            ),
        ]
    measuring.keep(figures, settings, MODULE)


def parts(settings: argparse.Namespace) -> tuple[Any, Any, Any, list[Any]]:
    """Loaded model, preset, exploration and problems; four problems more for warming up."""
    import torch

    from benchmarks.workloads import load
    from flow_dpo.data.problems import load_problems
    from flow_dpo.recipes.presets import preset as fitted

    loaded = load(settings.case, num_threads=settings.num_threads)
    torch.manual_seed(0)
    recipe: str = getattr(settings, "recipe", PAPER)
    preset = fitted(recipe, "seed" if settings.case == SEED else "small")
    rounds = settings.rounds or (8 if settings.case == SEED else 1)
    dataset: str = getattr(settings, "dataset_name", "seed")
    problems = list(load_problems(dataset, max_problems=4 + rounds * settings.num_problems).problems)
    explore: Any = preset.recipe.explore
    return loaded, preset, replace(explore, temperature=1.0, top_p=1.0), problems


def play(settings: argparse.Namespace, _: int) -> Report:
    """The flow, with either engine."""
    from flow_dpo.core.rollouts import RolloutRunner
    from flow_dpo.engines.factory import role_model_of
    from flow_dpo.engines.kv_budget import budgeted
    from flow_dpo.engines.local.engine import LocalEngine
    from flow_dpo.engines.settings import LocalSettings
    from flow_dpo.learner.policy import Policy
    from flow_dpo.workers.shard import uncollected

    loaded, preset, explore, problems = parts(settings)
    own = getattr(settings, "engine", LocalSettings(int8=settings.side == "int8"))
    own = budgeted(own, loaded.model)
    flow, memory, size = preset.recipe.flow, measuring.PeakMemory(), own.max_batch_size
    if settings.side in ("ours", "int8"):
        policy = Policy(loaded.model, flow.roles, preset.lora)
        engine = LocalEngine(
            policy.model,
            role_model=role_model_of(policy, own),
            end_ids=loaded.end_ids,
            context_tokens=loaded.context_tokens,
            settings=own,
        )
    else:
        from benchmarks.plain_play import GenerateEngine, peer_model

        model = peer_model(loaded.model, flow.roles, rank=preset.lora.lora_r)
        engine = GenerateEngine(model, end_ids=loaded.end_ids, max_batch_size=size)
    runner = RolloutRunner(engine, loaded.renderer)
    explore(flow, runner, problems[:4], seed=1)
    engine.take_stats()
    seconds = 0.0
    for at in range(4, len(problems), settings.num_problems):
        engine.refresh({})  # as after an update: nothing is known of earlier rounds
        started = time.perf_counter()
        with uncollected():  # as workers do
            explore(flow, runner, problems[at : at + settings.num_problems], seed=0)
        seconds += time.perf_counter() - started
    stats = engine.take_stats()
    return {"tokens_a_second": stats["sampled_tokens"] / seconds, "seconds": seconds, "peak_mib": memory.mib(), **stats}


def whole(settings: argparse.Namespace, batch_size: int) -> Report:
    """One uninterrupted generate call a batch."""
    import torch

    from benchmarks.plain_play import generate, left_padded, peer_model

    loaded, preset, _, problems = parts(settings)
    flow, memory = preset.recipe.flow, measuring.PeakMemory()
    model = peer_model(loaded.model, flow.roles, rank=preset.lora.lora_r)
    turns = [flow.turn(flow.start(problem)) for problem in problems]
    prompts = [loaded.renderer.render(turn).prompt_ids for turn in turns]
    max_tokens = 8 if settings.tiny else flow.chunk_tokens * flow.max_chunks
    tokens, seconds = 0, 0.0
    with torch.inference_mode():
        generate(model, *left_padded(prompts[:4], model.device), 4)
        for at in range(2 if settings.case == SEED else 1):
            batch = [prompts[(at * batch_size + i) % len(prompts)] for i in range(batch_size)]
            started = measuring.clock()
            written = generate(model, *left_padded(batch, model.device), max_tokens)
            seconds += measuring.clock() - started
            tokens += batch_size * max_tokens
            assert written.shape[1] == max(map(len, batch)) + max_tokens, f"{written.shape} ended early"
    return {"tokens_a_second": tokens / seconds, "seconds": seconds, "peak_mib": memory.mib(), "tokens": tokens}


if __name__ == "__main__":
    main()
