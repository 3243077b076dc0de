"""Supervised fine-tuning of a model on traces, with TRL's stable `SFTTrainer` and LoRA.

The token ids are made here, and the loss is on the solution and its end token:

    input_ids   <chat of `evaluate --mode single`> 4 5 6 E
    labels      -100 ...                      -100 4 5 6 E

Invariant: the prompt's ids are those of the evaluation's request, and the solution's ids are those that were sampled.
The text of a trace is encoded only if the trace comes from another vocabulary.
"""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel, PrinterCallback

from flow_dpo.core.answer_stop import ANSWER
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.flow import Flow
from flow_dpo.core.types import Problem, TokenIds
from flow_dpo.learner.settings import LoraSettings
from flow_dpo.models import adapter_files
from flow_dpo.models.adapter_targets import targets_of
from flow_dpo.models.load import LoadedModel
from flow_dpo.models.render import Renderer
from flow_dpo.runs import headers, run_folder
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.records import FineTuningLog, append_rows
from flow_dpo.runs.starting_adapters import starting_folders
from flow_dpo.runs.trends import Trend, trend
from flow_dpo.traces.settings import SftSettings, SftTrainingSettings
from flow_dpo.traces.trace import Trace, TraceFile

IGNORED = -100
"""The label of a token that is not learned."""


def check_trl() -> None:
    """Raise `ConfigError` if TRL is not installed."""
    try:
        import trl.trainer.sft_trainer  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"flow-dpo sft needs TRL, which cannot be imported ({error}); install it with pip install -e '.[trl]'"
        ) from error


def choose(file: TraceFile, settings: SftSettings) -> tuple[Trace, ...]:
    """The traces to learn from. Raises `DataError` if there are fewer than `num_traces`."""
    wanted = settings.num_traces
    if wanted is None:
        return file.traces
    if not 0 < wanted <= len(file.traces):
        raise DataError(
            f"expected {wanted} traces in {file.path}, found {len(file.traces)}; generate more, with more "
            f"--num_samples or --max_problems, or lower --num_traces"
        )
    return file.traces[:wanted]


def example_ids(
    trace: Trace, flow: Flow[Any], renderer: Renderer, *, end_id: int, sampled: bool
) -> dict[str, TokenIds]:
    """One trace as `input_ids` and `labels`. `flow` makes the prompt; `sampled`: its ids are of this vocabulary.

    Otherwise its text is encoded as the chat template writes an answer: with what comes before it and its end token.
    """
    problem = Problem(id=trace.problem_id, question=trace.question, gold=trace.gold)
    turn = flow.turn(flow.start(problem))
    assert turn is not None, "a flow has at least one turn"
    prompt = renderer.render(turn).prompt_ids
    if sampled:
        learned = (*trace.token_ids, end_id)
    else:
        closing = renderer.closing_ids((end_id,))[:-1]
        learned = (*renderer.answer_ids(trace.solution), *closing, end_id)
    return {"input_ids": (*prompt, *learned), "labels": (*(IGNORED,) * len(prompt), *learned)}


def examples(
    traces: Sequence[Trace], header: Mapping[str, Any], flow: Flow[Any], loaded: LoadedModel
) -> list[dict[str, TokenIds]]:
    """Training examples, one row per trace.

    Raises `DataError` for a trace that exceeds the context window, or has token ids that the model does not know.
    """
    sampled = header.get("tokenizer") == loaded.renderer.fingerprint()
    closing = loaded.renderer.closing_ids(loaded.end_ids)
    end_id = closing[-1] if closing else min(loaded.end_ids)
    rows = [example_ids(trace, flow, loaded.renderer, end_id=end_id, sampled=sampled) for trace in traces]
    known = loaded.model.get_input_embeddings().num_embeddings
    for trace, row in zip(traces, rows, strict=True):
        if max(row["input_ids"]) >= known:  # pyright: ignore[reportOperatorIssue]
            raise DataError(
                f"expected token ids that the model knows (below {known}), found {max(row['input_ids'])} in the trace "
                f"of {trace.problem_id}; its 'token_ids' were not sampled with this tokenizer: generate them again"
            )
        if len(row["input_ids"]) > loaded.context_tokens:
            raise DataError(
                f"expected traces that fit into the context window of {loaded.context_tokens} tokens, found "
                f"{len(row['input_ids'])} for {trace.problem_id}; leave it out, or use a model with a longer window"
            )
    return rows


def fine_tune(
    rows: Sequence[Mapping[str, TokenIds]],
    loaded: LoadedModel,
    lora: LoraSettings,
    training: SftTrainingSettings,
    settings: SftSettings,
) -> tuple[PeftModel, list[dict[str, Any]]]:
    """The model with its trained adapter, and TRL's log. `rows` are those of `examples`; if `lora` names an adapter to
    begin with, that one is trained further."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    config = targets_of(loaded.model, lora).config(lora)
    model, fresh = loaded.model, dict[str, Any](peft_config=config)
    for folder in starting_folders(lora, (ANSWER,)).values():
        adapted = get_peft_model(loaded.model, config)
        own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        set_peft_model_state_dict(adapted, adapter_files.read(folder, config, own))
        model, fresh = cast(PreTrainedModel, adapted), {}
    with warnings.catch_warnings(), _no_telemetry():
        # PEFT 0.21 and TRL 1.16 know transformers 5's settings by their old names.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**_arguments(loaded, training, settings)),
            train_dataset=Dataset.from_list([{name: list(ids) for name, ids in row.items()} for row in rows]),
            processing_class=loaded.renderer.tokenizer,
            **fresh,
        )
        trainer.remove_callback(PrinterCallback)  # every update's row goes to metrics.jsonl instead
        trainer.train()
    assert isinstance(trainer.model, PeftModel)
    return trainer.model, [dict(row) for row in trainer.state.log_history]


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """TRL's trainers report their creation to the hub; here they do not, whatever the environment sets."""
    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def _arguments(loaded: LoadedModel, training: SftTrainingSettings, settings: SftSettings) -> dict[str, Any]:
    """TRL's settings: the values of the updates, with nothing truncated, saved or reported during training."""
    values = {field.name: getattr(training, field.name) for field in fields(training)}
    # transformers 5 takes a share below 1 there, and 1 as a single update.
    values["warmup_steps"] = min(values.pop("warmup_ratio"), 1 - 1e-9)
    return values | {
        "output_dir": settings.output_dir,
        "seed": settings.seed,
        "max_length": None,
        "bf16": loaded.model.dtype == torch.bfloat16,
        "fp16": loaded.model.dtype == torch.float16,
        "use_cpu": loaded.model.device.type == "cpu",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
    }


def write(model: PeftModel, loaded: LoadedModel, folder: Path, *, chat_template: str | None, merge: bool) -> None:
    """Write the adapter in PEFT's layout and the tokenizer and, with `merge`, the merged model in `merged/`."""
    tokenizer = loaded.renderer.tokenizer
    if chat_template is not None:
        tokenizer.chat_template = loaded.renderer.template.source
    model.save_pretrained(str(folder), save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    if merge:
        merged = model.merge_and_unload()  # pyright: ignore[reportCallIssue]
        assert isinstance(merged, PreTrainedModel)
        merged.save_pretrained(folder / "merged")
        tokenizer.save_pretrained(folder / "merged")


def summarise(
    traces: Sequence[Trace],
    rows: Sequence[Mapping[str, TokenIds]],
    training: SftTrainingSettings,
    log: Sequence[Mapping[str, Any]],
    started: float,
) -> dict[str, Any]:
    """Facts of a fine-tuning run: its examples, cost and losses, each a mean over the same number of tokens."""
    learned = sum(label != IGNORED for row in rows for label in row["labels"])
    losses = loss_trend(log)
    return {
        "num_traces": len(traces),
        "num_problems": len({trace.problem_id for trace in traces}),
        "sources": sorted({trace.source for trace in traces}),
        "cost": {
            "tokens_learned": int(learned * training.num_train_epochs),
            "tokens_read": int(sum(len(row["input_ids"]) for row in rows) * training.num_train_epochs),
            "seconds": round(time.perf_counter() - started, 3),
        },
        "first_loss": None if losses is None else round(losses.first, 6),
        "last_loss": None if losses is None else round(losses.last, 6),
        "loss_change": None if losses is None or losses.low is None else [losses.low, losses.high],
        "num_updates": 0 if losses is None else losses.num,
    }


def loss_trend(log: Sequence[Mapping[str, Any]]) -> Trend | None:
    """The loss over the first and the last third of the tokens, from TRL's log; None if nothing was learned."""
    found = [row for row in log if "loss" in row]
    read = [float(row["num_tokens"]) for row in found if row.get("num_tokens") is not None]  # cumulative
    weights = [now - before for before, now in pairwise([0.0, *read])] if len(read) == len(found) else None
    return trend([row["loss"] for row in found], weights)


def loss_words(facts: Mapping[str, Any]) -> str:
    """How the loss changed, in one sentence, without single updates, whose losses are mostly noise."""
    first, last, change = facts["first_loss"], facts["last_loss"], facts.get("loss_change")
    num = facts.get("num_updates") or 0
    if first is None:
        return "no update was made"
    if change is None:
        return f"loss {first:.4g} to {last:.4g} over {num} updates: too few to tell a change"
    low, high = change
    told = f"changed by {low:+.3g} to {high:+.3g}" if not low <= 0 <= high else (
        f"no change can be shown ({low:+.3g} to {high:+.3g})"
    )  # fmt: skip
    return f"loss {first:.4g} over the first third of {num} updates' tokens, {last:.4g} over the last: {told}, 95 %"


def card(base: str, facts: Mapping[str, Any], header: Mapping[str, Any], folder: Path, *, merged: bool) -> str:
    """The model's card: a YAML header that the hub reads, and how the model was made."""
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["flow-dpo", "lora", "sft", "trl", "reasoning"],
    )
    made = ModelCard.from_template(
        data, template_str=_CARD, facts=facts, sources=", ".join(facts["sources"]), folder=folder, merged=merged,
        quoted=shlex.quote(str(folder)),
        selection=header.get("selection", "not known"), dataset=header.get("dataset", "not known"),
        loss=loss_words(facts),
    )  # fmt: skip
    return str(made)


_CARD = """---
{{ card_data }}
---

# A model fine-tuned on verified traces

Made by flow-dpo (online DPO for flows, arXiv 2410.22304); every setting is in `config.yaml`.

- traces: {{ facts.num_traces }} on {{ facts.num_problems }} problems, by {{ sources }}
- selection: {{ selection | string | replace("\n", " ") }}
- problems: {{ dataset | string | replace("\n", " ") }}
- {{ loss }}; on the solutions' tokens only
- cost: {{ facts.cost.tokens_learned }} tokens learned, {{ facts.cost.seconds }} seconds

```
flow-dpo evaluate --mode single --adapter {{ quoted }}
{%- if merged %}
# merged into its base: {{ folder }}/merged
{%- endif %}
```

"""


def record(folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> None:
    """Write config.yaml, run.json and metrics.jsonl of a fine-tuning run."""
    write_whole(folder / "config.yaml", yaml.safe_dump(run_folder.plain(config), sort_keys=False, allow_unicode=True))
    headers.write_header(folder / "run.json", headers.RunFacts, {**run_folder.environment(), **facts})
    (folder / "metrics.jsonl").write_bytes(b"")
    append_rows(folder / "metrics.jsonl", [FineTuningLog(numbers=row) for row in log])
