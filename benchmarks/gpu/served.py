"""vLLM part: a flow through vLLM in this process, against one-shot requests to the same engine.

    served(context)     # rates, and prompt tokens read over those that the trees demand (benchmarks.tree_demand)

One engine serves both sides, because it takes up to a minute to start. Without a given model it serves random weights
in the shape of a 0.5B, written once beside the results because vLLM loads from files. Before anything is measured,
vLLM's output is compared with the model in this process.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks import measuring, playing
from benchmarks.gpu.measure import OURS, Context, Reports, free
from benchmarks.measuring import Figure, Report
from benchmarks.vllm_server import ENVIRONMENT

BATCH = 256
"""Maximum number of requests that vLLM has in flight."""
_NO_WEIGHTS = ("config.json", "model.safetensors", "README.md", "generation_config.json")


def served(context: Context) -> None:
    """Measure the flow, and as many tokens in one-shot answers."""
    os.environ |= ENVIRONMENT
    from benchmarks.tree_demand import demanded_tokens
    from benchmarks.vllm_engines import OneShot, counted_steps, engine_of, forget, recorded_completions
    from flow_dpo.core.rollouts import RolloutRunner

    settings = _settings(context)
    loaded, preset, explore, problems = playing.parts(settings)
    flow, roles = preset.recipe.flow, preset.recipe.flow.roles
    max_tokens = flow.chunk_tokens * flow.max_chunks
    with engine_of(settings, "process", loaded, preset) as (engine, ask_all):
        runner, steps = RolloutRunner(engine, loaded.renderer), counted_steps(engine)
        texts, choices = recorded_completions(engine)
        explore(flow, runner, problems[:4], seed=1)

        def ours() -> Report:
            forget(engine, roles)
            for counted in (texts, choices, steps):
                counted.clear()
            engine.take_stats()
            started = measuring.clock()
            explore(flow, runner, problems[4:], seed=0)
            seconds = measuring.clock() - started
            written, read = sum(len(one.written) for one in texts), engine.take_stats()["prefilled_tokens"]
            return {
                "tokens_a_second": written / seconds,
                "seconds": seconds,
                "written": written,
                "read": read,
                "demanded": demanded_tokens([*texts, *choices]),
                "steps": len(steps),
            }

        def answers() -> Report:
            forget(engine, roles)
            written = sum(len(one.written) for one in texts)
            num = math.ceil(written / max_tokens / settings.batch_size) * settings.batch_size
            turns = [flow.turn(flow.start(problems[4 + i % (len(problems) - 4)])) for i in range(num)]
            asked = [OneShot("answer", loaded.renderer.render(turn).prompt_ids, max_tokens) for turn in turns]
            started = measuring.clock()
            written, read = ask_all(engine, asked)
            seconds = measuring.clock() - started
            return {"tokens_a_second": written / seconds, "read": read, "written": written, "seconds": seconds}

        sides: dict[str, Callable[[], Report]] = {OURS: ours, "answers": answers}
        context.take_turns(sides, lambda reports: figures(Path(settings.case).name, reports), most=4)


def figures(label: str, reports: Reports) -> list[Figure]:
    """Rates, and the numbers of tokens read."""
    own, peer = (measuring.median(reports[side], "tokens_a_second") for side in (OURS, "answers"))
    last, name = reports[OURS][-1], f"vLLM {label}"
    return [
        Figure(
            name=f"{name}: tokens/s over one-shot requests",
            ratio=own / peer,
            reach=">= 0.8",
            details={"runs": reports},
        ),
        Figure(
            name=f"{name}: tokens read per token written, over what the trees demand",
            ratio=last["read"] / last["demanded"],
            reach="<= 1.3",
        ),
        Figure(name=f"{name}: tokens read per token written", ratio=last["read"] / last["written"], reach=""),
        Figure(name=f"{name}: tokens sampled in a step", ratio=last["written"] / last["steps"], reach=""),
        Figure(name=f"{name}: tokens a second", ratio=own, reach=""),
    ]


def _settings(context: Context) -> argparse.Namespace:
    from flow_dpo.engines.settings import VllmSettings

    settings = playing.options().parse_args(["--tiny"] if context.rehearse else [])
    settings.case = "seed" if context.rehearse else context.model or str(random_folder(context.folder.parent))
    settings.model_name_or_path, settings.side = settings.case, OURS
    settings.partial_blocks = VllmSettings().partial_blocks
    settings.num_problems, settings.rounds, settings.batch_size = (4, 1, 8) if context.rehearse else (64, 1, BATCH)
    return settings


def random_folder(beside: Path) -> Path:
    """The folder of a model with random weights in the shape of a 0.5B and the seed's tokenizer and template."""
    from benchmarks.workloads import random_model
    from flow_dpo.models.load import SEED_FOLDER

    folder = beside / "random-0.5b"
    if not (folder / "config.json").exists():
        being_made = folder.with_suffix(".tmp")
        shutil.rmtree(being_made, ignore_errors=True)
        random_model("0.5b").save_pretrained(being_made)
        for path in SEED_FOLDER.iterdir():
            if path.name not in _NO_WEIGHTS:
                shutil.copyfile(path, being_made / path.name)
        being_made.replace(folder)
        free()
    return folder
