"""Throughput of whole-answer online DPO, against TRL's experimental OnlineDPOTrainer.

    python -m benchmarks.online_dpo                                # a model of the seed's size
    python -m benchmarks.online_dpo --model_name_or_path FOLDER    # and a real model

Each prompt gets two completions; a cheap deterministic rule (`score`) says which is preferred. DPO has beta 0.1, LoRA
rank 8. Ours is the recipe `online-dpo` except for that rule: our loop, engine and learner on the flow `Single`, two
rollouts a prompt (`Group`). TRL's is `OnlineDPOTrainer`, first with its defaults (gradient checkpointing, which
switches the KV cache off), then with the cache on. The work is the same: the same model, prompts in the same token ids
(asserted), every answer exactly as long (the end token is not allowed), as many prompts an update, and a pair from
every prompt. TRL makes a pair of two equal answers too, and we do not, so there must be next to none: the seed, whose
answers are often equal, samples at temperature 1.5.

TRL's batch size is the fastest of those given (`--batch_sizes`), each with gradients accumulated to the same update.
Our rows are the fastest too (`--row_tokens`: on the seed 2,048 take a few per cent less than 4,096). A bf16 model runs
under bf16 autocast (TRL's default; with the cache on, the faster of with and without), a float32 model without. The
first update of each side is not timed.
TRL 1.16 with vLLM 0.32 does not run on a CPU. In one process (colocate) it fails when it first loads weights, because
vLLM's CPU layers have replaced their parameters ('Parameter' object has no attribute 'weight_loader'); its client for a
server asks torch for an accelerator, which is None.
Target: 5 times as many prompts a second as the defaults, 2 times as many as with the cache on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

MODULE = "benchmarks.online_dpo"
SEED = "seed"
RANK, BETA, RATE = 8, 0.1, 2e-4


def options() -> argparse.ArgumentParser:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", help="a real model, measured after the seed")
    parser.add_argument("--only_given", action="store_true", help="leave the seed out")
    parser.add_argument("--prompts_per_update", type=int, default=32)
    parser.add_argument("--updates", type=int, help="timed updates (default: 4 on the seed, 1 on a real model)")
    parser.add_argument("--max_tokens", type=int, default=64, help="length of every answer; 64 is TRL's default")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 32], help="TRL batch sizes; its default is 8")
    parser.add_argument("--row_tokens", type=int, default=2048, help="tokens of one forward of our learner")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    settings = options().parse_args()
    if settings.tiny:
        settings.prompts_per_update, settings.max_tokens, settings.batch_sizes = 4, 6, [2]
        settings.updates = 1
    if settings.side:
        kind, _, size = settings.side.partition("-")
        measuring.report(ours(settings) if kind == "ours" else trl(settings, int(size), kind))
        return
    given = [settings.model_name_or_path] if settings.model_name_or_path else []
    for model in given if settings.only_given else [SEED, *given]:
        compare(model, settings)
    if not given:
        print("online DPO on a real model: skipped, for --model_name_or_path is not given", flush=True)


def compare(model: str, settings: argparse.Namespace) -> None:
    flags = ["--case", model, *(["--tiny"] if settings.tiny else [])]
    for name in ("prompts_per_update", "updates", "max_tokens", "row_tokens"):
        flags += [f"--{name}", str(getattr(settings, name))] if getattr(settings, name) else []
    kinds = {"defaults": ("defaults",), "cached": ("cached",) if model == SEED else ("cached", "uncast")}
    peers = {
        name: [f"{kind}-{size}" for kind in several for size in settings.batch_sizes] for name, several in kinds.items()
    }
    sides = dict.fromkeys(["ours", *peers["defaults"], *peers["cached"]], flags)
    found = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    rates = {side: measuring.median(reports, "prompts_a_second") for side, reports in found.items()}
    name = model.rstrip("/").rpartition("/")[2]
    figures: list[Figure] = []
    for kind, words, bound in (("defaults", "TRL's defaults", ">= 5"), ("cached", "TRL with its cache", ">= 2")):
        best = max(peers[kind], key=rates.__getitem__)
        details = {"prompts_a_second": rates, "best": best, "runs": found}
        ratio = rates["ours"] / rates[best]
        turns = measuring.by_turn(found["ours"], found[best], "prompts_a_second")
        case = f"online DPO {name}: against {words}"
        figures.append(Figure(name=case, ratio=ratio, reach=bound, details=details, repeats=turns))
    measuring.keep(figures, settings, MODULE)


def score(token_ids: Sequence[int]) -> int:
    """The rule that decides which of two completions is better."""
    return sum((i + 1) * token for i, token in enumerate(token_ids)) % 10_007


def temperature(settings: argparse.Namespace) -> float:
    return 1.5 if settings.case == SEED else 1.0


def num_updates(settings: argparse.Namespace) -> int:
    """Those that are timed, and one before them that is not."""
    return 1 + (settings.updates or (4 if settings.case == SEED else 1))


def _parts(settings: argparse.Namespace) -> tuple[Any, Any, list[Any]]:
    """Loaded model, flow and problems."""
    from flow_dpo.core.answer_stop import AnswerStop
    from flow_dpo.data.problems import load_problems
    from flow_dpo.models.load import ModelSettings, load_model
    from flow_dpo.recipes.presets import preset
    from flow_dpo.recipes.single import Single

    loaded = load_model(ModelSettings(model_name_or_path=settings.case, num_threads=settings.num_threads))
    trained = preset("flow-dpo-paper", "seed" if settings.case == SEED else "chat").recipe.flow
    assert isinstance(trained, AnswerStop)
    flow = Single(max_tokens=settings.max_tokens, prompts=trained.prompts)
    count = num_updates(settings) * settings.prompts_per_update
    return loaded, flow, list(load_problems("seed", max_problems=count).problems)


def ours(settings: argparse.Namespace) -> Report:
    """Our own loop."""
    from benchmarks.preferring import Better, NoVerdicts
    from flow_dpo.core.dpo import Dpo
    from flow_dpo.core.explore import Group
    from flow_dpo.core.loop import learn
    from flow_dpo.core.protocols import Backends
    from flow_dpo.core.recipe import Recipe
    from flow_dpo.engines.factory import role_model_of
    from flow_dpo.engines.local.engine import LocalEngine
    from flow_dpo.engines.settings import LocalSettings
    from flow_dpo.learner.gradients import RowSettings
    from flow_dpo.learner.learner import Learner, LearnerSettings
    from flow_dpo.learner.policy import LoraSettings, Policy
    from flow_dpo.verify.grader import AnswerGrader
    from flow_dpo.workers.in_process import InProcessWorkers

    loaded, flow, problems = _parts(settings)
    memory, size = measuring.PeakMemory(), settings.prompts_per_update
    policy = Policy(loaded.model, flow.roles, LoraSettings(lora_r=RANK, lora_alpha=RANK))
    engine = LocalEngine(
        policy.model,
        role_model=role_model_of(policy, LocalSettings()),
        end_ids=(),
        context_tokens=loaded.context_tokens,
    )
    grader = AnswerGrader(NoVerdicts(), loaded.renderer)
    workers = InProcessWorkers(Backends(engine=engine, renderer=loaded.renderer, grader=grader))
    rows = RowSettings(max_tokens=settings.row_tokens)
    learner = Learner(policy, LearnerSettings(learning_rate=RATE, examples_per_update=size, rows=rows))

    class Clock:
        """A recorder that keeps each update's row and the time at its end."""

        def __init__(self) -> None:
            self.times, self.rows, self.pairs = [time.perf_counter()], list[dict[str, Any]](), 0

        def on_batch(self, row: dict[str, Any], trees: Sequence[Any], examples: Sequence[Any]) -> None:
            self.times.append(time.perf_counter())
            self.rows.append(row)
            self.pairs += len(examples)

    clock = Clock()
    learn(
        Recipe(
            flow=flow,
            explore=Group(num_rollouts=2, temperature=temperature(settings)),
            credit=Better(score=score),
            objective=Dpo(beta=BETA),
        ),
        problems,
        workers,
        learner,
        callbacks=[clock],
        problems_per_batch=size,
    )
    assert settings.tiny or clock.pairs >= 0.97 * len(problems), f"{clock.pairs} pairs of {len(problems)} prompts"
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)][1:]
    parts = ("rollout/seconds", "learn/seconds", "rollout/sampled_tokens")
    return {
        "prompts_a_second": size / statistics.mean(seconds),
        "peak_mib": memory.mib(),
        "pairs_a_prompt": clock.pairs / len(problems),
        **{name: statistics.mean(row[name] for row in clock.rows[1:]) for name in parts},
    }


def trl(settings: argparse.Namespace, batch_size: int, kind: str) -> Report:
    """TRL's trainer: "defaults"; "cached", without gradient checkpointing, which switches the cache on; "uncast", the
    same without autocast."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    loaded, flow, problems = _parts(settings)
    tokenizer = loaded.renderer.tokenizer
    texts: list[str] = []
    for problem in problems:
        ids = loaded.renderer.render(flow.turn(flow.start(problem))).prompt_ids
        texts.append(str(tokenizer.decode(list(ids), skip_special_tokens=False)))
        again = tuple(tokenizer(texts[-1], add_special_tokens=False)["input_ids"])
        assert again == ids, f"the prompt of {problem.id} reaches TRL as other token ids"
    step_s: list[float] = []
    lengths: set[int] = set()

    class Clock(TrainerCallback):
        """Times every update with all its micro-batches."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_s.append(time.perf_counter() - self.started)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        lengths.update(map(len, completion_ids))
        return [float(score(ids)) for ids in completion_ids]

    memory = measuring.PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        size = settings.prompts_per_update
        arguments = OnlineDPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=size // batch_size,
            num_train_epochs=1,
            learning_rate=RATE,
            beta=[BETA],
            temperature=temperature(settings),
            max_new_tokens=settings.max_tokens,
            max_length=loaded.context_tokens,
            # The end token is not allowed, so that all answers are as long as ours.
            generation_kwargs={"min_new_tokens": settings.max_tokens},
            bf16=loaded.model.dtype == torch.bfloat16 and kind != "uncast",
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            dataloader_pin_memory=False,
            gradient_checkpointing=kind == "defaults",
        )
        trainer = OnlineDPOTrainer(
            model=loaded.model,
            args=arguments,
            reward_funcs=reward,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=tokenizer,
            callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.train()
    assert len(step_s) == num_updates(settings), f"{len(step_s)} updates"
    assert lengths == {settings.max_tokens}, f"answers of {lengths} tokens"
    assert trainer.generation_config.use_cache is (kind != "defaults")
    return {"prompts_a_second": size / statistics.mean(step_s[1:]), "peak_mib": memory.mib(), "step_s": step_s}


if __name__ == "__main__":
    main()
