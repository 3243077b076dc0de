"""Throughput of a flow's rollouts through vLLM, against one-shot requests to the same vLLM.

    .venv-vllm/bin/python -m benchmarks.serving --model_name_or_path FOLDER       # or make bench-vllm

Each side has a process of its own, and runs with vLLM in process and over HTTP with a server started for it:

- flow: the flow explored as the preset does, an alternative at every node, adapters of both roles loaded;
- answers: the same vLLM with the same adapter, writing as many tokens or a few more in one-shot requests on the Answer
  role's prompts, in whole batches of as many as the flow may have under way, without log-probabilities. The flow's rate
  is compared with theirs: target 0.8;
- same: the flow's own requests to vLLM as plain one-shot requests, none of which waits for another, without
  log-probabilities: this shows what the flow's order and our side of it cost. Other text is written, so a chunk that is
  read later is not the chunk that was written, and some more tokens are computed than in the flow. No target.

Each side also reports how many tokens a second go through the model, read ones included: a flow reads what it wrote
(Stop reads each chunk, in its own prompt), while one-shot answers only write. The tokens read are compared with those
that the structure of the trees demands (`tree_demand`): target 1.3. `serving_costs` says what the seconds are made of.

A rate counts the tokens of completions, without Stop's choices. Of the prompt tokens of all requests to vLLM, those
that came from its prefix cache are compared with what the trees allow: every prefix that was prompted or sampled
before, in order of the answers, except the last token of each prompt, which must be computed; target 0.95. A cache of
whole blocks cannot reach all of it; the details say what the blocks allow. Three more parts follow: a run of `flow-dpo
train` with an update every 32 pairs, of which refreshing the adapters should take 5 % at most; the same run over HTTP
with a server that is killed and restarted five times; and, for recipes of one role, what merged weights (`--engine.sync
merged`) gain and cost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report
from benchmarks.serving_costs import cost_figures, cost_runs
from benchmarks.tree_demand import demanded_tokens, reusable_tokens
from benchmarks.vllm_engines import (
    OneShot,
    counted_steps,
    engine_of,
    forget,
    recorded_completions,
    recorded_requests,
    served_to,
    versions,
    window,
)
from benchmarks.vllm_server import BLOCK, ENVIRONMENT, Server

MODULE = "benchmarks.serving"
KINDS = {"process": "in process", "http": "over HTTP"}
PARTS = ("speed", "cost", "refresh", "killed", "merged")
SYNCS = ("adapters", "merged")
PASSED_ON = ("model_name_or_path", "dataset_name", "num_problems", "batch_size", "num_trained", "num_kills")
PASSED_ON += ("partial_blocks",)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", default="seed", help="a folder, or the embedded seed")
    parser.add_argument("--dataset_name", default="seed", help="data set for the speed part")
    parser.add_argument("--num_problems", type=int, default=32, help="problems sampled together, as in training")
    parser.add_argument("--batch_size", type=int, default=128, help="requests under way at once, on every side")
    parser.add_argument("--num_trained", type=int, default=64, help="problems of the training run")
    parser.add_argument("--num_kills", type=int, default=5, help="kills of the server during a run")
    parser.add_argument("--partial_blocks", choices=("always", "never"), default="always")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all; cost needs speed")
    parser.add_argument("--tokens", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--questions", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.tiny:
        settings.num_problems, settings.batch_size, settings.num_trained, settings.num_kills = 4, 8, 16, 1
    if settings.side:
        what, _, kind = settings.side.partition("-")
        os.environ |= ENVIRONMENT
        sides = {"flow": play, "same": same, "answers": answers, "cost": cost_runs, "train": train, "killed": killed}
        sides["sync"] = sync
        measuring.report(sides[what](settings, kind))
        return
    compare(settings)


def compare(settings: argparse.Namespace) -> None:
    flags = [word for name in PASSED_ON for word in (f"--{name}", str(getattr(settings, name)))]
    flags += ["--tiny"] if settings.tiny else []

    def side(name: str, *more: str) -> Report:
        return measuring.run_side(MODULE, name, [*flags, *more], num_threads=settings.num_threads)

    name = settings.model_name_or_path.rstrip("/").rpartition("/")[2]
    on = "" if settings.dataset_name == "seed" else f", {settings.dataset_name.rstrip('/').rpartition('/')[2]},"
    for kind, words in KINDS.items():
        if "speed" in settings.parts:
            sides: dict[str, list[Report]] = {"flow": [], "same": [], "answers": []}
            for _ in range(settings.repeats):
                with tempfile.TemporaryDirectory() as folder:
                    questions = ["--questions", str(Path(folder) / "questions.json")]
                    sides["flow"].append(side(f"flow-{kind}", *questions))
                    tokens = ["--tokens", str(int(sides["flow"][-1]["tokens"]))]
                    sides["same"].append(side(f"same-{kind}", *questions, *tokens))
                    sides["answers"].append(side(f"answers-{kind}", *tokens))
            measuring.keep(_speed(sides, f"serving {name}{on} {words}"), settings, MODULE)
            if "cost" in settings.parts and kind == "process":
                costs = cost_figures(side("cost-process")["runs"], sides, f"serving {name}{on} {words}")
                measuring.keep(costs, settings, MODULE)
        if "refresh" in settings.parts:
            measuring.keep([_refreshing(side(f"train-{kind}"), f"serving {name} {words}")], settings, MODULE)
    if "killed" in settings.parts:
        measuring.keep(_survives(side("killed"), f"serving {name} over HTTP"), settings, MODULE)
    if "merged" in settings.parts:
        found = [side(f"sync-{what}") for what in SYNCS]
        measuring.keep(_merging(found, f"serving {name} in process"), settings, MODULE)


def _speed(found: Mapping[str, Sequence[Report]], name: str) -> list[Figure]:
    rates, computed = (
        {side: measuring.median(reports, what) for side, reports in found.items()}
        for what in ("tokens_a_second", "computed_a_second")
    )
    return [
        Figure(
            name=f"{name}: tokens/s against one-shot requests",
            ratio=rates["flow"] / rates["answers"],
            reach=">= 0.8",
            details=found,
        ),
        Figure(
            name=f"{name}: tokens/s against the same questions, none waiting for another",
            ratio=rates["flow"] / rates["same"],
            reach="",
            details={"tokens_a_second": rates},
        ),
        Figure(
            name=f"{name}: tokens through the model a second, against one-shot requests",
            ratio=computed["flow"] / computed["answers"],
            reach="",
            details={"computed_a_second": computed},
        ),
        *(
            Figure(name=f"{name}: {words}", ratio=measuring.median(found["flow"], key), reach=reach)
            for words, key, reach in (
                ("tokens read per token written, over what the trees demand", "read_over_demanded", "<= 1.3"),
                ("prompt tokens from the cache, of those the trees allow", "reused_share_of_allowed", ">= 0.95"),
            )
        ),
    ]


def _refreshing(run: Report, name: str) -> Figure:
    what = f"{name}: adapter refreshes, share of a run's time"
    return Figure(name=what, ratio=run["refresh_s"] / run["seconds"], reach="<= 0.05", details=run)


def _survives(found: Report, name: str) -> list[Figure]:
    name = f"{name}, server killed {found['num_kills']} times"
    return [
        Figure(name=f"{name}: problems sampled exactly once", ratio=found["once"], reach=">= 1", details=found),
        Figure(name=f"{name}: trees as without", ratio=found["alike"], reach=">= 1", details=found),
    ]


def _merging(found: Sequence[Report], name: str) -> list[Figure]:
    """What merging one role's adapter into vLLM's weights gains and costs; there is nothing to reach."""
    beside, merged = found
    return [
        Figure(
            name=f"{name}: merged weights over adapters, {words}",
            ratio=merged[key] / beside[key],
            reach="",
            details={"adapters": beside, "merged": merged},
        )
        for key, words in (("tokens_a_second", "tokens/s"), ("refresh_s", "seconds a refresh"))
    ]


# ---- the sides ------------------------------------------------------------------------------------------------------


def play(settings: argparse.Namespace, kind: str) -> Report:
    """The flow."""
    from benchmarks.playing import parts
    from flow_dpo.core.rollouts import RolloutRunner

    settings.case, settings.rounds = settings.model_name_or_path, 1
    loaded, preset, _, problems = parts(settings)
    flow, explore = preset.recipe.flow, preset.recipe.explore
    with recorded_requests() as requests, engine_of(settings, kind, loaded, preset) as (engine, _):
        runner = RolloutRunner(engine, loaded.renderer)
        explore(flow, runner, problems[:4], seed=1)
        forget(engine, flow.roles)
        engine.take_stats()
        requests.clear()
        (texts, choices), steps = recorded_completions(engine), counted_steps(engine)
        started = time.perf_counter()
        trees = explore(flow, runner, problems[4:], seed=0)
        seconds = time.perf_counter() - started
        stats = engine.take_stats()
    if settings.questions:
        rows = [[one.role, one.prompt_ids, len(one.written)] for one in requests]
        settings.questions.write_text(json.dumps(rows), encoding="utf-8")
    prompts = stats["reused_tokens"] + stats["prefilled_tokens"]
    allowed, in_blocks = (reusable_tokens(requests, block) for block in (1, BLOCK))
    tokens = sum(len(one.written) for one in texts)
    return {
        "tokens_a_second": tokens / seconds,
        "computed_a_second": (stats["prefilled_tokens"] + stats["sampled_tokens"]) / seconds,
        "seconds": seconds,
        "num_questions": len(requests),
        "tokens": tokens,
        "choices": len(choices),
        "num_trees": len(trees),
        "num_steps": len(steps),
        "prompt_tokens": prompts,
        "demanded_tokens": (demanded := demanded_tokens([*texts, *choices])),
        "read_over_demanded": stats["prefilled_tokens"] / demanded,
        "read_in_whole_blocks": prompts - in_blocks,
        "read_with_every_token_kept": prompts - allowed,
        "reused_share_of_allowed": stats["reused_tokens"] / allowed,
        "reused_share_of_allowed_in_blocks": stats["reused_tokens"] / in_blocks,
        **stats,
    }


def same(settings: argparse.Namespace, kind: str) -> Report:
    """The flow's own questions, none of which waits for another."""
    from benchmarks.playing import parts

    settings.case, settings.rounds = settings.model_name_or_path, 1
    loaded, preset, _, _ = parts(settings)
    rows = json.loads(settings.questions.read_text(encoding="utf-8"))
    requests = [OneShot(role, tuple(ids), num) for role, ids, num in rows]
    return _one_shot(settings, kind, loaded, preset, requests, settings.tokens)


def answers(settings: argparse.Namespace, kind: str) -> Report:
    """As many tokens in one-shot answers."""
    from benchmarks.playing import parts

    settings.case, settings.rounds = settings.model_name_or_path, 1
    loaded, preset, _, problems = parts(settings)
    flow = preset.recipe.flow
    max_tokens = flow.chunk_tokens * flow.max_chunks
    num = math.ceil(settings.tokens / max_tokens / settings.batch_size) * settings.batch_size
    turns = [flow.turn(flow.start(problems[4 + i % (len(problems) - 4)])) for i in range(num)]
    requests = [OneShot("answer", loaded.renderer.render(turn).prompt_ids, max_tokens) for turn in turns]
    return _one_shot(settings, kind, loaded, preset, requests, num * max_tokens)


def _one_shot(
    settings: argparse.Namespace, kind: str, loaded: Any, preset: Any, requests: Sequence[OneShot], num_counted: int
) -> Report:
    """Plain requests to vLLM, around our engine. Of the tokens that they write so many are what the flow counts."""
    with engine_of(settings, kind, loaded, preset) as (engine, ask_all):
        ask_all(engine, requests[:32])
        forget(engine, preset.recipe.flow.roles)
        steps = counted_steps(engine)
        started = time.perf_counter()
        written, read = ask_all(engine, requests)
        seconds = time.perf_counter() - started
    if written != sum(one.num_tokens for one in requests):
        raise SystemExit(f"expected {sum(one.num_tokens for one in requests)} tokens, found {written}")
    return {
        "tokens_a_second": num_counted / seconds,
        "computed_a_second": (read + written) / seconds,
        "seconds": seconds,
        "tokens": num_counted,
        "sampled_tokens": written,
        "prefilled_tokens": read,
        "num_steps": len(steps),
    }


def train(settings: argparse.Namespace, kind: str) -> Report:
    """`flow-dpo train` with an update every 32 pairs."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "process":
            flags = ["--engine", "vllm", "--engine.block_tokens", str(BLOCK)]
            flags += [
                "--engine.engine_args",
                f"{{max_model_len: {window(settings)}}}",
                "--max_batch_size",
                str(settings.batch_size),
            ]
            rows = _trained(settings, flags, Path(folder) / "run")
        else:
            with served_to(settings) as server:
                rows = _trained(settings, _over_http(settings, server), Path(folder) / "run")
    seconds = sum(row[f"{part}/seconds"] for row in rows for part in ("rollout", "grade", "learn"))
    updates = sum(row["learn/updates"] for row in rows)
    return {"refresh_s": sum(row["rollout/refresh_s"] for row in rows), "seconds": seconds, "updates": updates}


def killed(settings: argparse.Namespace, _: str) -> Report:
    """The same run over HTTP twice: left alone, and with a server that is killed and started again five times."""
    from flow_dpo.runs.files import read_jsonl

    found: list[list[dict[str, Any]]] = []
    rows: list[dict[str, Any]] = []
    kills: list[int] = []
    with tempfile.TemporaryDirectory() as folder, served_to(settings) as server:
        for name in ("whole", "killed"):
            path, done = Path(folder) / name, threading.Event()
            killer = threading.Thread(
                target=_kill, args=(server, path / "metrics.jsonl", done, settings.num_kills, kills)
            )
            if name == "killed":
                killer.start()
            try:
                rows = _trained(settings, _over_http(settings, server), path)
            finally:
                done.set()
                if name == "killed":
                    killer.join()
            found.append(read_jsonl(path / "trees.jsonl"))
    if len(kills) < settings.num_kills:
        raise SystemExit(f"expected {settings.num_kills} kills before the end, found {len(kills)}: more --num_trained")
    ids = [[tree["problem"]["id"] for tree in trees] for trees in found]
    whole, broken = ([[node["token_ids"] for node in tree["nodes"]] for tree in trees] for trees in found)
    return {
        "num_problems": len(ids[0]),
        "once": sum(ids[1].count(one) == 1 for one in ids[0]) / len(ids[0]),
        "alike": sum(one == other for one, other in zip(whole, broken, strict=True)) / len(ids[0]),
        "num_kills": len(kills),
        "num_retries": sum(row["rollout/num_retries"] for row in rows),
    }


def _kill(server: Server, metrics: Path, done: threading.Event, num_kills: int, kills: list[int]) -> None:
    """Kill the server in the midst of one batch of rollouts after the other."""
    for number in range(num_kills):
        while not done.is_set() and (not metrics.exists() or metrics.read_bytes().count(b"\n") <= number):
            time.sleep(0.05)
        if done.wait(1.0):
            return
        server.kill()
        server.start()
        kills.append(number)


def sync(settings: argparse.Namespace, what: Any) -> Report:
    """One role in one-shot requests through our engine in process: its adapter beside the weights, or merged in."""
    import torch

    from benchmarks.playing import parts
    from flow_dpo.core.types import Request, Sampling

    settings.case, settings.rounds = settings.model_name_or_path, 1
    loaded, preset, _, problems = parts(settings)
    flow = preset.recipe.flow
    prompts = [loaded.renderer.render(flow.turn(flow.start(problem))).prompt_ids for problem in problems]
    max_tokens = flow.chunk_tokens * flow.max_chunks
    requests = [Request(role="answer", prompt_ids=tuple(ids), max_tokens=max_tokens) for ids in prompts]
    with engine_of(settings, "process", loaded, preset, sync=what, roles=("answer",)) as (engine, _):
        engine.sample(requests[:4], Sampling(), seeds=range(4))
        engine.take_stats()
        for version in range(1, 4):
            with torch.no_grad():
                for weight in engine.policy.weights("answer"):
                    weight.add_(1e-3)
            engine.policy.publish("answer")
            engine.refresh(versions(["answer"], version))
        refresh_s = engine.take_stats()["refresh_s"] / 3
        started = time.perf_counter()
        completions = engine.sample(requests, Sampling(), seeds=range(len(requests)))
        seconds = time.perf_counter() - started
    tokens = sum(len(one.token_ids) for one in completions)
    return {"refresh_s": refresh_s, "tokens_a_second": tokens / seconds, "tokens": tokens, "seconds": seconds}


def _over_http(settings: argparse.Namespace, server: Server) -> list[str]:
    return ["--engine", "vllm_server", "--base_url", server.url, "--concurrency", str(settings.batch_size)]


def _trained(settings: argparse.Namespace, flags: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a run."""
    from flow_dpo.cli import train as commands
    from flow_dpo.runs.files import read_jsonl

    seed = settings.model_name_or_path == "seed"
    words = ["--model_name_or_path", settings.model_name_or_path, "--dataset_name", "seed"]
    words += ["--max_problems", str(settings.num_trained), "--recipe", "flow-dpo-paper"]
    words += ["--preset", "seed" if seed else "small"]
    words += ["--num_threads", str(settings.num_threads), "--examples_per_update", "32", "--problems_per_batch", "8"]
    with contextlib.redirect_stdout(sys.stderr):
        commands.train([*words, *flags, "--output_dir", str(folder)])
    return read_jsonl(folder / "metrics.jsonl")


if __name__ == "__main__":
    main()
