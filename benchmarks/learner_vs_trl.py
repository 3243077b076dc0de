"""Time and memory of a learner's update, against TRL's DPOTrainer on the same pairs.

    python -m benchmarks.learner_vs_trl
    python -m benchmarks.learner_vs_trl --model_name_or_path FOLDER        # a real model in place of the random 0.5B

Ours is `Learner.update` on both roles' pairs of one tree. TRL's is one `DPOTrainer` a role, LoRA as ours, whose
optimisation steps are timed by a callback and summed. Both start with the same adapter, drawn by name and not zero, see
the same pairs as the same token ids, take the same Adam steps, and do one untimed update on a small tree first. The
work is the same if the losses agree, update by update: asserted.

TRL gets its fastest of: every per-device batch size that divides the pairs, reference log-probabilities on the way or
precomputed (their forward passes are then counted, for an online learner sees every pair once), gradient checkpointing
off. Pairs of like length are neighbours already, so that grouping by length has nothing to do. Of a model after the
first, the fastest few of the first model are tried (`--shortlist`), of one in bf16 each with autocast (TRL's default)
and without; `--batch_sizes` names the only ones to try. Padding-free is switched off in TRL itself; dropout is zero; a
float32 model has no autocast.

Target: prompt 150, chunks of 160, 6 nodes: 4 times as fast, half the memory; chunks of 24, 10 nodes: 6 times as fast.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import tempfile
import zlib
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

MODULE = "benchmarks.learner_vs_trl"
ROLES = ("answer", "stop")
RANK, ALPHA, BETA, RATE = 8, 8, 0.1, 1e-4
SHAPES = {"long": (150, 160, 6), "short": (150, 24, 10)}
TINY_SHAPES = {"long": (20, 8, 6), "short": (20, 4, 10)}
FLOAT32 = ("tiny", "50m")
"""Models without a choice of autocast."""
TIMES = {"long": ">= 4", "short": ">= 6"}
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.05}
"""Of the difference between losses, in nats. Half precision rounds differently in rows of other shapes."""


def options() -> argparse.ArgumentParser:
    parser = measuring.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["50m", "0.5b"])
    parser.add_argument("--model_name_or_path", help="takes the place of 0.5b")
    parser.add_argument("--shapes", nargs="+", default=["long", "short"], choices=list(SHAPES))
    parser.add_argument("--updates", type=int, default=1, help="timed updates of each run")
    parser.add_argument("--shortlist", type=int, default=2, help="settings of TRL tried on later models")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", help="of TRL to try; all that divide the pairs unless named"
    )
    parser.add_argument("--row_tokens", type=int, default=4096, help="of ours: tokens of one forward")
    parser.add_argument("--case", nargs=2, metavar=("MODEL", "SHAPE"), help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--precompute", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no_autocast", action="store_true", help="of TRL, in bf16: do not try autocast")
    return parser


def main() -> None:
    settings = options().parse_args()
    if settings.side:
        measuring.report(ours(settings) if settings.side == "ours" else trl(settings))
        return
    models = ["tiny"] if settings.tiny else settings.models
    if settings.model_name_or_path:
        models = [settings.model_name_or_path if model == "0.5b" else model for model in models]
    tried: dict[str, list[list[str]]] = {}
    for model in models:
        for shape in settings.shapes:
            compare(model, shape, settings, tried)


def compare(model: str, shape: str, settings: argparse.Namespace, tried: dict[str, list[list[str]]]) -> None:
    """Find TRL's best settings, and let it take turns with ours."""
    flags = ["--case", model, shape, "--updates", str(settings.updates), *(["--tiny"] if settings.tiny else [])]
    flags += ["--row_tokens", str(settings.row_tokens)]
    num_pairs = sizes(settings)[shape][2]
    candidates = tried.get(shape, [])[: settings.shortlist] or [
        ["--batch_size", str(size), *precompute]
        for size in settings.batch_sizes or range(1, num_pairs + 1)
        if num_pairs % size == 0
        for precompute in ([], ["--precompute"])
    ]
    if model not in FLOAT32:
        casts = [["--no_autocast"]] if settings.no_autocast else [[], ["--no_autocast"]]
        candidates = [[*c, *cast] for c in candidates for cast in casts]
    print(f"{model}, {shape}: looking for TRL's best settings", flush=True)
    found = [measuring.run_side(MODULE, "trl", [*flags, *c], num_threads=settings.num_threads) for c in candidates]
    order = sorted(range(len(candidates)), key=lambda i: found[i]["seconds"])
    tried[shape] = [candidates[i] for i in order]
    sides = {"ours": flags, "trl": [*flags, *candidates[order[0]]]}
    reports = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    gap = check_losses(reports["ours"][0], reports["trl"][0])
    mine, theirs = ({n: measuring.median(r, n) for n in ("seconds", "peak_mib")} for r in reports.values())
    details: Report = {
        "ours": mine,
        "trl": theirs,
        "trl_settings": " ".join(candidates[order[0]]),
        "trl_tried": {" ".join(c): {n: f[n] for n in mine} for c, f in zip(candidates, found, strict=True)},
        "losses": reports["ours"][0]["losses"],
        "largest_difference_of_losses": gap,
    }
    case = f"learner {model_name(model)}, {shape_name(*sizes(settings)[shape])}"
    figures = [
        Figure(name=f"{case}: time", ratio=theirs["seconds"] / mine["seconds"], reach=TIMES[shape], details=details)
    ]
    if shape == "long":
        ratio = mine["peak_mib"] / theirs["peak_mib"]
        figures.append(Figure(name=f"{case}: memory", ratio=ratio, reach="<= 0.5", details=details))
    measuring.keep(figures, settings, MODULE)


def sizes(settings: argparse.Namespace) -> dict[str, tuple[int, int, int]]:
    return TINY_SHAPES if settings.tiny else SHAPES


def shape_name(prompt_tokens: int, chunk_tokens: int, num_nodes: int) -> str:
    return f"{prompt_tokens} + {chunk_tokens} x {num_nodes}"


def model_name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]


def check_losses(mine: Report, theirs: Report) -> float:
    """The largest difference between the losses of the two sides. Exits where it shows that the work differs."""
    gaps = [abs(a - b) for role in ROLES for a, b in zip(mine["losses"][role], theirs["losses"][role], strict=True)]
    if max(gaps) > TOLERANCE[mine["dtype"]]:
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


def adapter_weights(name: str, like: Any) -> Any:
    """The values that this parameter begins with on both sides: drawn by name, without the adapter's own name."""
    import torch

    words = [word for word in name.removeprefix("base_model.model.").split(".") if word not in (*ROLES, "default")]
    generator = torch.Generator().manual_seed(zlib.crc32(".".join(words).encode()))
    return (0.02 * torch.randn(like.shape, generator=generator)).to(like.dtype)


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
                weight.copy_(adapter_weights(names[id(parameter)], weight))
        policy.publish(role)
    rows = RowSettings(max_tokens=settings.row_tokens)
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
    reports = [trl_role(role, settings) for role in ROLES]
    return {
        "seconds": sum(r["seconds"] for r in reports),
        "peak_mib": max(r["peak_mib"] for r in reports),
        "losses": {role: r["losses"] for role, r in zip(ROLES, reports, strict=True)},
        "dtype": reports[0]["dtype"],
    }


def trl_role(role: str, settings: argparse.Namespace) -> Report:
    """The updates of one role."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from benchmarks.workloads import random_model

    torch.set_num_threads(settings.num_threads)
    model = random_model(settings.case[0])
    half = model.dtype == torch.bfloat16
    batches = [[p for p in pairs if p.request.role == role] for pairs in updates(settings, model.config.vocab_size)]
    rows = [
        {"prompt_ids": p.request.prompt_ids, "chosen_ids": p.chosen.token_ids, "rejected_ids": p.rejected.token_ids}
        for pairs in batches
        for p in pairs
    ]
    num_pairs, size = len(batches[0]), settings.batch_size
    reference_s: list[float] = []
    step_s: list[float] = []

    class Trainer(DPOTrainer):
        """Takes token ids as they are, and times the reference passes made before training."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            started = measuring.clock()
            found = super().compute_ref_log_probs(model, inputs)
            reference_s.append(measuring.clock() - started)
            return found

    class Clock(TrainerCallback):
        """Times every optimisation step with all its micro-batches."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = measuring.clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_s.append(measuring.clock() - self.started)

    memory = measuring.PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=num_pairs // size,
            num_train_epochs=1,
            beta=BETA,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_length=None,
            precompute_ref_log_probs=settings.precompute,
            gradient_checkpointing=False,
            bf16=half and not settings.no_autocast,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=word_tokenizer(),
            callbacks=[Clock()],
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        precomputed = reference_s[num_pairs // size :] if settings.precompute else []
        trained: Any = trainer.model
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter.copy_(adapter_weights(name, parameter))
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    dtype, peak = str(model.dtype).removeprefix("torch."), memory.mib()
    assert len(step_s) == len(losses) == len(batches), f"{len(step_s)} steps, {len(losses)} losses, {len(batches)}"
    assert all(map(math.isfinite, losses)), losses
    del trainer, model
    gc.collect()
    return {"seconds": statistics.mean(step_s[1:]) + sum(precomputed) / (len(step_s) - 1), "peak_mib": peak} | {
        "losses": losses,
        "dtype": dtype,
    }


def word_tokenizer() -> Any:
    """A tokenizer for a trainer that insists on one; nothing is encoded with it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{i}": i for i in range(8)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", bos_token="t1", eos_token="t2")


if __name__ == "__main__":
    main()
