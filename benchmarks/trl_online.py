"""TRL's OnlineDPOTrainer and GRPOTrainer as the sides of `benchmarks.whole_run`.

    trl(settings, "trl-grpo", 1e-3, seed=1)      {"problems_an_hour": ..., "seconds": ..., "accuracy": ..., ...}

Both get their prompts as text that becomes the flow's own token ids (asserted), our verifier as reward, and LoRA on the
layers that our preset reaches. Generation uses the KV cache. Training has no gradient checkpointing, which is faster,
except where `way` names it.
Invariant: accuracies are measured by this package's engine with the trainer's weights in it, as on our side.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.measuring import Report
from benchmarks.whole_run import Meter, Work, preset_explore, work

GENERATIONS = 8
"""Answers to a problem in GRPO: TRL's default, and that of our presets."""
MICRO_BATCH = 64
"""Completions of a micro-batch at most."""


def trl(settings: argparse.Namespace, system: str, rate: float, seed: int, *, way: str = "") -> Report:
    """One of TRL's trainers to the target, or to the end of the problems; its micro-batch by `way`, "4-checkpointing"
    or "2", where that is not the fastest of a small model."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    from flow_dpo.verify.verifier import Verifier

    common = work(settings, "online-dpo")
    loaded, size = common.loaded, common.preset.problems_per_batch
    texts = prompts(common)
    gold = {text: problem.gold for text, problem in zip(texts, common.problems, strict=True)}
    assert len({*gold}) == len({(t, p.gold) for t, p in zip(texts, common.problems, strict=True)}), (
        "a prompt, two answers"
    )
    with Verifier(num_workers=1) as verifier, tempfile.TemporaryDirectory() as folder:

        def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
            items: list[tuple[str, str, bool]] = []
            for text, ids in zip(prompts, completion_ids, strict=True):
                ended = bool(ids) and ids[-1] in loaded.end_ids
                content = [each for each in ids if each not in loaded.end_ids]
                items.append((gold[text], loaded.renderer.to_text([tuple(content)]), ended))
            return [verdict.right for verdict in verifier.grade_many(items)]

        evaluator = Evaluator(settings, common, verifier)
        trained: list[Any] = []
        meter = Meter(evaluate=lambda: evaluator(trained[0]), target=common.target, every=common.every)

        class Clock(TrainerCallback):
            """Looks at the clock after every update."""

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                meter.start()

            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
                meter.saw(state.global_step * size)
                control.should_training_stop = control.should_training_stop or meter.done

        trainer = {"trl-online-dpo": online_dpo, "trl-grpo": grpo}[system](
            common,
            {"output_dir": folder, "learning_rate": rate, "seed": seed, **arguments(common, way)},
            model=loaded.model,
            reward_funcs=reward,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=loaded.renderer.tokenizer,
            callbacks=[Clock()],
            peft_config=LoraConfig(
                r=common.preset.lora.lora_r,
                lora_alpha=common.preset.lora.lora_alpha,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        trained.append(trainer.model)
        trainer.train()
        return meter.report()


def arguments(common: Work, way: str) -> dict[str, Any]:
    """What both trainers are told alike."""
    import torch

    explore = common.preset.recipe.explore
    batch, _, checkpointing = way.partition("-")
    return {
        **({"per_device_train_batch_size": int(batch)} if batch else {}),
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "temperature": explore.temperature,
        "top_p": explore.top_p,
        "bf16": common.loaded.model.dtype == torch.bfloat16,
        "gradient_checkpointing": bool(checkpointing),
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def online_dpo(common: Work, told: dict[str, Any], **parts: Any) -> Any:
    """Two answers to every prompt; a batch of 8, its default and the fastest."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    size = common.preset.problems_per_batch
    batch = told.pop("per_device_train_batch_size", min(8, size))
    config = OnlineDPOConfig(
        **told,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=size // batch,
        max_new_tokens=common.flow.max_tokens,
        max_length=common.loaded.context_tokens,
    )
    return OnlineDPOTrainer(args=config, **parts)


def grpo(common: Work, told: dict[str, Any], **parts: Any) -> Any:
    """Groups of eight."""
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    completions = common.preset.problems_per_batch * GENERATIONS
    batch = told.pop("per_device_train_batch_size", min(MICRO_BATCH, completions))
    config = GRPOConfig(
        **told,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=completions // batch,
        num_generations=GENERATIONS,
        max_completion_length=common.flow.max_tokens,
    )
    return GRPOTrainer(args=config, **parts)


def prompts(common: Work) -> list[str]:
    """The prompts as text that the tokenizer turns into the flow's own token ids."""
    renderer = common.loaded.renderer
    texts: list[str] = []
    for problem in common.problems:
        ids = renderer.render(common.flow.turn(common.flow.start(problem))).prompt_ids
        texts.append(str(renderer.tokenizer.decode(list(ids), skip_special_tokens=False)))
        again = tuple(renderer.tokenizer(texts[-1], add_special_tokens=False)["input_ids"])
        assert again == ids, f"the prompt of {problem.id} reaches TRL as other token ids"
    return texts


class Evaluator:
    """The accuracy of a trainer's weights, by this package's engine on a model of its own."""

    def __init__(self, settings: argparse.Namespace, common: Work, verifier: Any) -> None:
        from flow_dpo.core.protocols import Backends
        from flow_dpo.engines.factory import role_model_of
        from flow_dpo.engines.local.engine import LocalEngine
        from flow_dpo.engines.settings import LocalSettings
        from flow_dpo.learner.policy import Policy
        from flow_dpo.verify.grader import AnswerGrader
        from flow_dpo.workers.in_process import InProcessWorkers

        self._common, self._loaded = common, work(settings, "online-dpo").loaded
        self._role = common.flow.roles[0]
        self._policy = Policy(self._loaded.model, [self._role], common.preset.lora)
        engine = LocalEngine(
            self._policy.model,
            role_model=role_model_of(self._policy, LocalSettings()),
            end_ids=self._loaded.end_ids,
            context_tokens=self._loaded.context_tokens,
        )
        self._grader = AnswerGrader(verifier, self._loaded.renderer)
        backends = Backends(engine=engine, renderer=self._loaded.renderer, grader=self._grader)
        self._workers, self._version = InProcessWorkers(backends), 0

    def __call__(self, trained: Any) -> float:
        import torch

        from flow_dpo.core.types import Adapter
        from flow_dpo.evaluate.evaluate import EvaluationSettings, evaluate

        # 1. The trainer's adapter in the policy's: by name, but for the adapter's own.
        theirs = {_bare(name): p for name, p in trained.named_parameters() if ".lora_" in name}
        names = {id(p): _bare(name) for name, p in self._policy.model.named_parameters()}
        mine = self._policy.parameters(self._role)
        assert len(theirs) == len(mine), f"{len(theirs)} tensors of TRL's adapter, {len(mine)} of ours"
        with torch.no_grad():
            for parameter, weight in zip(mine, self._policy.weights(self._role), strict=True):
                weight.copy_(theirs[names[id(parameter)]])
        self._policy.publish(self._role)
        # 2. One greedy pass.
        self._version += 1
        adapters = {self._role: Adapter(role=self._role, version=self._version)}
        held_out: Sequence[Any] = self._common.held_out
        parts = (self._workers, self._loaded.renderer, self._grader, adapters, EvaluationSettings(mode="single"))
        return evaluate(self._common.flow, preset_explore(self._common), held_out, *parts)[1]["accuracy"]


def _bare(name: str) -> str:
    """A parameter's name without what PEFT puts before it, and without the adapter's."""
    words = name.removeprefix("base_model.model.").split(".")
    at = next((i for i, word in enumerate(words) if word.startswith("lora_")), len(words))
    return ".".join([*words[: at + 1], *words[at + 2 :]])
