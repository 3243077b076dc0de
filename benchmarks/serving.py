"""How much of vLLM's speed is left when a flow plays through it?

    .venv-vllm/bin/python -m benchmarks.serving --model_name_or_path FOLDER       # or make bench-vllm

Each side in a process of its own, in process and over HTTP with a server started for it:

- flow: the flow explored as in training, an alternative at every node, adapters of both roles loaded;
- plain: the same vLLM with the same adapter, given as many tokens as one-shot requests on the Answer role's prompts, as
  many at once, without log-probabilities. Their rate is what the flow's is compared with: reach 0.8.

Counted are the tokens that were sampled, Stop's choices not. Of the flow's prompt tokens, those that came from vLLM's
prefix cache are compared with what the trees allow: every prefix that was prompted or sampled before, in order of
submission, but for the last token of each prompt, which must be computed; reach 0.95. A cache of whole blocks cannot
give all of it; what the blocks allow is among the details. Then a run of `flow-dpo train` with an update every 32
pairs, of which refreshing the adapters should take 5 % at most.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

MODULE = "benchmarks.serving"
KINDS = {"process": "in process", "http": "over HTTP"}
BLOCK = 32
"""Tokens in a block of the prefix cache: the least that the CPU build takes."""
STARTED_WITHIN_S = 600.0
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", default="seed", help="a folder, or the embedded seed")
    parser.add_argument("--num_problems", type=int, default=32, help="played together, as in training")
    parser.add_argument("--batch_size", type=int, default=128, help="requests under way at once, on every side")
    parser.add_argument("--num_trained", type=int, default=64, help="problems of the run that refreshes")
    parser.add_argument("--tokens", type=int, default=0, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.tiny:
        settings.num_problems, settings.batch_size, settings.num_trained = 4, 8, 8
    if settings.side:
        what, _, kind = settings.side.partition("-")
        os.environ |= ENVIRONMENT
        measuring.report({"flow": play, "plain": plain, "train": train}[what](settings, kind))
        return
    compare(settings)


def compare(settings: argparse.Namespace) -> None:
    flags = ["--model_name_or_path", settings.model_name_or_path, "--num_problems", str(settings.num_problems)]
    flags += ["--batch_size", str(settings.batch_size), "--num_trained", str(settings.num_trained)]
    flags += ["--tiny"] if settings.tiny else []

    def side(name: str, *more: str) -> Report:
        return measuring.run_side(MODULE, name, [*flags, *more], num_threads=settings.num_threads)

    name = settings.model_name_or_path.rstrip("/").rpartition("/")[2]
    figures: list[Figure] = []
    for kind, words in KINDS.items():
        flows: list[Report] = []
        plains: list[Report] = []
        for _ in range(settings.repeats):
            flows.append(side(f"flow-{kind}"))
            plains.append(side(f"plain-{kind}", "--tokens", str(int(flows[-1]["tokens"]))))
        rates = [measuring.median(found, "tokens_a_second") for found in (flows, plains)]
        figures.append(
            Figure(
                name=f"serving {name} {words}: tokens/s against one-shot requests",
                ratio=rates[0] / rates[1],
                reach=">= 0.8",
                details={"flow": flows, "plain": plains},
            )
        )
        figures.append(
            Figure(
                name=f"serving {name} {words}: prompt tokens from the cache, of those the trees allow",
                ratio=measuring.median(flows, "reused_share_of_allowed"),
                reach=">= 0.95",
                details={"flow": flows},
            )
        )
        run = side(f"train-{kind}")
        figures.append(
            Figure(
                name=f"serving {name} {words}: adapter refreshes, share of a run's time",
                ratio=run["refresh_s"] / run["seconds"],
                reach="<= 0.05",
                details=run,
            )
        )
    measuring.keep(figures, settings, MODULE)


# ---- the sides ------------------------------------------------------------------------------------------------------


def play(settings: argparse.Namespace, kind: str) -> Report:
    """The flow."""
    from benchmarks.playing import parts
    from flow_dpo.speaker import Speaker

    settings.case, settings.rounds = settings.model_name_or_path, 1
    loaded, preset, explore, problems = parts(settings)
    flow = preset.recipe.flow
    with engine_of(settings, kind, loaded, preset) as (engine, _):
        speaker = Speaker(engine, loaded.renderer)
        explore(flow, speaker, problems[:4], seed=1)
        engine.refresh(versions(flow.roles, 1))  # nothing is known of the warming up
        engine.take_stats()
        engine.asked.clear()
        started = time.perf_counter()
        trees = explore(flow, speaker, problems[4:], seed=0)
        seconds = time.perf_counter() - started
        stats = engine.take_stats()
        choices = sum(bool(request.choices) for request, _, _ in engine.asked)
        prompts = stats["reused_tokens"] + stats["prefilled_tokens"]
        allowed, in_blocks = (reusable(engine.asked, block) for block in (1, BLOCK))
    tokens = stats["sampled_tokens"] - choices
    return {
        "tokens_a_second": tokens / seconds,
        "seconds": seconds,
        "tokens": tokens,
        "num_choices": choices,
        "num_trees": len(trees),
        "prompt_tokens": prompts,
        "reused_share_of_allowed": stats["reused_tokens"] / allowed,
        "reused_share_of_allowed_in_blocks": stats["reused_tokens"] / in_blocks,
        **stats,
    }


def plain(settings: argparse.Namespace, kind: str) -> Report:
    """As many tokens in one-shot requests."""
    from benchmarks.playing import parts

    settings.case, settings.rounds = settings.model_name_or_path, 1
    loaded, preset, _, problems = parts(settings)
    flow = preset.recipe.flow
    max_tokens = flow.chunk_tokens * flow.max_chunks
    num = max(1, round(settings.tokens / max_tokens))
    turns = [flow.turn(flow.start(problems[4 + i % (len(problems) - 4)])) for i in range(num)]
    prompts = [list(loaded.renderer.render(turn).prompt_ids) for turn in turns]
    with engine_of(settings, kind, loaded, preset) as (engine, ask_all):
        ask_all(engine, prompts[:2], 8)
        engine.refresh(versions(flow.roles, 1))
        started = time.perf_counter()
        written = ask_all(engine, prompts, max_tokens)
        seconds = time.perf_counter() - started
    if written != num * max_tokens:
        raise SystemExit(f"expected {num} answers of {max_tokens} tokens, found {written} tokens in all")
    return {"tokens_a_second": written / seconds, "seconds": seconds, "tokens": written}


def train(settings: argparse.Namespace, kind: str) -> Report:
    """`flow-dpo train` with an update every 32 pairs."""
    from flow_dpo import commands, runs

    model = model_folder(settings)
    words = ["--model_name_or_path", model, "--dataset_name", "seed", "--max_problems", str(settings.num_trained)]
    words += ["--preset", "seed" if settings.model_name_or_path == "seed" else "small", "--pairs_per_update", "32"]
    words += ["--num_threads", str(settings.num_threads), "--explore_ahead", "16"]
    with tempfile.TemporaryDirectory() as folder, playing_flags(settings, kind, model) as flags:
        commands.train([*words, *flags, "--output_dir", f"{folder}/run"])
        rows = runs.read_jsonl(Path(folder) / "run" / "metrics.jsonl")
    seconds = sum(row[f"{part}/seconds"] for row in rows for part in ("play", "grade", "learn"))
    updates = sum(row["learn/updates"] for row in rows)
    return {"refresh_s": sum(row["play/refresh_s"] for row in rows), "seconds": seconds, "updates": updates}


# ---- the engines ----------------------------------------------------------------------------------------------------

AskAll = Callable[[Any, Sequence[list[int]], int], int]


@contextmanager
def engine_of(settings: argparse.Namespace, kind: str, loaded: Any, preset: Any) -> Iterator[tuple[Any, AskAll]]:
    """The engine that listens to what it is asked, and a way around it to plain vLLM."""
    from flow_dpo.engine_kinds import Shelf, reached
    from flow_dpo.engines.vllm_client import VllmServerSettings
    from flow_dpo.engines.vllm_local import VllmSettings
    from flow_dpo.policy import Policy

    roles = preset.recipe.flow.roles
    with tempfile.TemporaryDirectory() as folder:
        if kind == "process":
            played: Any = VllmSettings(max_batch_size=settings.batch_size, block_tokens=BLOCK)
            served, ask_all = None, _ask_in_process
        else:
            served = serve(settings, model_folder(settings))
            ask_all = _ask_over_http
        with served or _nothing() as url:
            if url:
                played = VllmServerSettings(base_url=url, concurrency=settings.batch_size)
            with reached(played, loaded, num_roles=len(roles)) as reach:
                policy = Policy(loaded.model, roles, preset.lora)
                engine = listening(reach.build(policy, Shelf(policy, Path(folder) / "served")))
                engine.refresh(versions(roles, 0))
                engine.url, engine.batch_size = url, settings.batch_size
                try:
                    yield engine, ask_all
                finally:
                    engine.close()


def versions(roles: Sequence[str], version: int) -> dict[str, Any]:
    from flow_dpo.types import Adapter

    return {role: Adapter(role=role, version=version) for role in roles}


def listening(engine: Any) -> Any:
    """The engine, and in `asked` what it is asked: request, excluded first tokens, completion."""
    engine.asked = []
    pending: dict[int, tuple[Any, Any]] = {}
    submit, poll = engine.submit, engine.poll

    def submitted(request: Any, sampling: Any, *, seed: int, excluded: Any = ()) -> int:
        ticket = submit(request, sampling, seed=seed, excluded=excluded)
        pending[ticket] = (request, excluded)
        return ticket

    def polled() -> list[tuple[int, Any]]:
        found = poll()
        for ticket, completion in found:
            engine.asked.append((*pending.pop(ticket), completion))
        return found

    engine.submit, engine.poll = submitted, polled
    return engine


def reusable(asked: Sequence[tuple[Any, Any, Any]], block: int) -> int:
    """Prompt tokens that a cache of such blocks can hold before they are asked for, in the order of the answers."""
    known: set[int] = set()
    total = 0
    for request, excluded, completion in asked:
        ids = [*request.prompt_ids, *completion.token_ids[:-1]]
        prefixes, chain = list[int](), hash(request.role)
        for token in ids:
            chain = hash((chain, token))
            prefixes.append(chain)
        lengths = [len(request.prompt_ids)]
        if excluded and not request.choices and len(completion.token_ids) > 1:
            lengths.append(len(request.prompt_ids) + 1)  # the first token is a question of its own
        for length in lengths:
            room = (length - 1) // block * block
            at = block
            while at <= room and prefixes[at - 1] in known:
                at += block
            total += at - block
            known.update(prefixes[:length])
        known.update(prefixes)
    return total


def _ask_in_process(engine: Any, prompts: Sequence[list[int]], max_tokens: int) -> int:
    from vllm import SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    vllm, voice = engine._vllm, engine._voices["answer"]
    for number, prompt in enumerate(prompts):
        params = SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, seed=number, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        vllm.add_request(f"plain{number}", TokensPrompt(prompt_token_ids=prompt), params, lora_request=voice)
    left, tokens = len(prompts), 0
    while left:
        for said in vllm.step():
            left -= said.finished
            tokens += len(said.outputs[0].token_ids) if said.finished else 0
    return tokens


def _ask_over_http(engine: Any, prompts: Sequence[list[int]], max_tokens: int) -> int:
    import json

    from flow_dpo.address import Address

    address = Address(f"{engine.url}/v1", api_key="", deadline_s=3600.0)
    name = engine._voices["answer"].name

    def ask(numbered: tuple[int, list[int]]) -> int:
        body = {"model": name, "prompt": numbered[1], "max_tokens": max_tokens, "ignore_eos": True}
        body |= {"temperature": 1.0, "seed": numbered[0], "return_token_ids": True}
        answer = address.exchange("POST", "/completions", json.dumps(body).encode())
        if answer.status != 200:
            raise SystemExit(f"expected an answer, found {answer.status}: {answer.text[:500]}")
        return len(json.loads(answer.text)["choices"][0]["token_ids"])

    with ThreadPoolExecutor(engine.batch_size) as threads:
        return sum(threads.map(ask, enumerate(prompts)))


# ---- the server -----------------------------------------------------------------------------------------------------


def model_folder(settings: argparse.Namespace) -> str:
    """Where vLLM finds the model."""
    from flow_dpo.models import ModelSettings, load_model

    return str(load_model(ModelSettings(model_name_or_path=settings.model_name_or_path)).model.name_or_path)


@contextmanager
def playing_flags(settings: argparse.Namespace, kind: str, model: str) -> Iterator[list[str]]:
    """How `flow-dpo train` is told to play through vLLM."""
    if kind == "process":
        yield ["--engine", "vllm", "--engine.block_tokens", str(BLOCK), "--max_batch_size", str(settings.batch_size)]
        return
    with serve(settings, model) as url:
        yield ["--engine", "vllm_server", "--base_url", url, "--concurrency", str(settings.batch_size)]


@contextmanager
def _nothing() -> Iterator[str]:
    yield ""


@contextmanager
def serve(settings: argparse.Namespace, model: str) -> Iterator[str]:
    """A `vllm serve` of its own: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", model, "--enable-lora", "--max-loras", "4",
        "--max-lora-rank", "8", "--max-logprobs", "-1", "--enforce-eager", "--block-size", str(BLOCK),
        "--enable-prompt-tokens-details", "--max-num-seqs", str(settings.batch_size), "--host", "127.0.0.1",
        "--port", str(port), "--disable-log-requests" if settings.tiny else "--disable-uvicorn-access-log",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=_environment(settings), start_new_session=True)
        try:
            _await(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _environment(settings: argparse.Namespace) -> Mapping[str, str]:
    return {**measuring.environment(settings.num_threads), **ENVIRONMENT}


def _await(server: subprocess.Popen[bytes], url: str, log: Any) -> None:
    end = time.monotonic() + STARTED_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if server.poll() is not None or time.monotonic() > end:
            log.seek(0)
            raise SystemExit(f"vllm serve did not start: {log.read()[-3000:].decode(errors='replace')}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
