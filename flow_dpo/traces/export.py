"""Export of traces and pairs to JSONL files that other trainers read directly.

    messages            {"messages": [..., {"role": "assistant", ...}], ...}                  TRL's SFTTrainer
    prompt_completion   {"prompt": [...], "completion": [{"role": "assistant", ...}], ...}    TRL's SFTTrainer
    preference          {"prompt": "...", "chosen": "...", "rejected": "...", ...}            TRL's DPOTrainer
    steps               {"prompt": "...", "completions": [...], "labels": [true, ...], ...}   TRL's PRMTrainer

One row per line in `train.jsonl`, with the data set's card, `README.md`. Invariant: columns that a trainer does not
read are kept, so nothing that is known about a row is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import DatasetCard, DatasetCardData

from flow_dpo.core.errors import ConfigError, DataError, StorageError, expect
from flow_dpo.data import typed_json
from flow_dpo.runs import files, run_folder
from flow_dpo.runs.records import PairRow, read_rows
from flow_dpo.runs.writable import check_writable
from flow_dpo.traces.step_labels import step_rows
from flow_dpo.traces.trace import Trace, TraceFile, read_traces

Format = Literal["messages", "prompt_completion", "preference", "steps"]
ROWS = "train.jsonl"
CARD = "README.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an export: its source, format and folder."""

    source: str = ""
    """A folder or file of traces (`flow-dpo generate`), a run folder, or an evaluation."""
    format: Literal["auto", "messages", "prompt_completion", "preference", "steps", "inspect"] = "auto"
    """"auto" is "prompt_completion" for traces, "preference" for a run and "inspect" (a log of Inspect AI) for an
    evaluation; "steps" are the steps of a run's solutions, with labels for a process reward model, if the recipe
    sampled from the states between them."""
    output_dir: str = "runs/export"

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")


def export(settings: ExportSettings) -> tuple[Path, int]:
    """Write the folder; return its path and number of rows. Raises `ConfigError` or `DataError` before it writes."""
    source, folder = Path(settings.source), Path(settings.output_dir)
    if not settings.source or not source.exists():
        raise DataError(
            f"expected a folder of traces or a run folder, found {settings.source!r}; name one with --source"
        )
    check_writable(folder)
    if (folder / ROWS).exists() or (folder / CARD).exists():
        raise ConfigError(f"output_dir {folder} already holds an export; name another with --output_dir")
    is_run = (source / "trees.jsonl").exists() or (source / "pairs.jsonl").exists()
    if settings.format == "inspect":
        raise ConfigError(f"expected an evaluation for a log of Inspect AI, found {source}")
    wanted: Format = ("preference" if is_run else "prompt_completion") if settings.format == "auto" else settings.format
    if is_run != (wanted in ("preference", "steps")):
        what = "a run folder, which holds pairs and trees" if is_run else "traces"
        others = "preference or steps" if is_run else "messages or prompt_completion"
        raise ConfigError(f"expected --format {others} for {source} ({what}), found {wanted}")
    if is_run:
        rows, facts = step_rows(source) if wanted == "steps" else pair_rows(source), run_facts(source)
    else:
        file = read_traces(source)
        rows, facts = trace_rows(file.traces, wanted), trace_facts(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ROWS).write_bytes(b"")
        files.append_jsonl(folder / ROWS, rows)
        files.write_whole(folder / CARD, card(wanted, rows, facts))
    except OSError as error:
        for name in (ROWS, CARD):
            (folder / name).unlink(missing_ok=True)  # half an export is useless, and would block the folder
        raise StorageError(f"could not write the export to {folder}: {error}; make room, and export again") from error
    return folder, len(rows)


def trace_rows(traces: Iterable[Trace], format: Format) -> list[dict[str, Any]]:
    """The traces as conversations: whole, or split into prompt and completion."""
    rows: list[dict[str, Any]] = []
    for trace in traces:
        prompt = [dict(message) for message in trace.messages]
        answer = [{"role": "assistant", "content": trace.solution}]
        row = typed_json.write(trace)
        del row["messages"]
        if format == "messages":
            rows.append({"messages": prompt + answer, **row})
        else:
            rows.append({"prompt": prompt, "completion": answer, **row})
    return rows


def pair_rows(run: Path) -> list[dict[str, Any]]:
    """A run's pairs, with all columns.

    Raises `DataError` if there are none, and for the first row that is not a pair.
    """
    file = run / "pairs.jsonl"
    rows = [typed_json.write(row) for row in read_rows(file, PairRow)]
    if not rows:
        raise DataError(f"expected pairs in {file}, found none: the run has made no pair yet")
    return rows


def card(
    format: Format,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    *,
    repo_id: str = "",
    revision: str = "",
) -> str:
    """The data set's card: a YAML header that the hub reads, and how the rows were made. `repo_id` is its id on the
    hub, if it is to be loaded from there, and `revision` a branch other than the main one."""
    header = DatasetCardData(
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": ROWS}]}],
        task_categories=["text-generation"],
        tags=["flow-dpo", "reasoning", "trl", _TAGS.get(format, "sft")],
        size_categories=[next((name for limit, name in _SIZES if len(rows) < limit), "n>1M")],
    )
    known = {name: value for name, value in facts.items() if value not in (None, "", {})}
    columns = ", ".join(f"`{name}`" for name in rows[0])
    use = _USE[format]
    if repo_id:
        at = f", revision={json.dumps(revision)}" if revision else ""
        use = use.replace(_LOAD, f'rows = load_dataset("{repo_id}", split="train"{at})\n')
    made = DatasetCard.from_template(
        header, template_str=_CARD, title=f"{len(rows)} {_TITLES[format]}", facts=known, use=use,
        columns=columns, meaning=_COLUMNS[format],
    )  # fmt: skip
    return str(made)


_CARD = """---
{{ card_data }}
---

# {{ title }}

Made by flow-dpo (online DPO for flows, arXiv 2410.22304).
{% for name, value in facts.items() %}
- {{ name }}: {{ value | string | replace("\n", " ") }}
{%- endfor %}

## Use

{{ use }}

## Columns

{{ columns }}.

{{ meaning }}

"""
_TAGS: Mapping[Format, str] = {"preference": "preference", "steps": "process-supervision"}
_TITLES: Mapping[Format, str] = {
    "messages": "verified solutions, as conversations",
    "prompt_completion": "verified solutions, as prompt and completion",
    "preference": "preference pairs of a flow's roles",
    "steps": "solutions with a label for every step",
}
_TRACE_COLUMNS = (
    "`solution` is the attempt that produced the answer, `token_ids` are exactly the tokens that were sampled, "
    "`verdict` is the verdict on this attempt alone, `draws_used` and `tokens_spent` count all draws on the problem."
)
_COLUMNS: Mapping[Format, str] = {
    "messages": _TRACE_COLUMNS,
    "prompt_completion": _TRACE_COLUMNS,
    "preference": (
        "`prompt` is the rendered chat with its special tokens. `role` sampled the completions: train one adapter per "
        "role, on its own rows. `prompt_ids`, `chosen_ids` and `rejected_ids` are exactly the tokens of the run; a "
        "trainer that encodes the texts again and adds an end token to each, as TRL's does, trains on slightly "
        "different ones. `node`, `rejected_node` and `depth` locate the pair in the tree (`trees.jsonl` of the run)."
    ),
    "steps": (
        "`prompt` is the question, `completions` are the steps of one solution. `labels` are hard estimates "
        "(Math-Shepherd, arXiv 2312.08935): whether any completion from the state after a step ended right; `values` "
        "are soft ones, the share that did, of `num_completions`. The last step gets the verdict on the solution. A "
        "row ends before the first step about which nothing is known. Values are those of the policy of "
        "`policy_version`, which sampled everything. `step_ids` are exactly the tokens that were sampled, before "
        "spaces at the ends were stripped; `roles` sampled them; `rollout` and `nodes` locate them in `trees.jsonl`."
    ),
}
_LOAD = 'rows = load_dataset("json", data_files="train.jsonl", split="train")\n'
_USE: Mapping[Format, str] = {
    "messages": f"```python\n{_LOAD}SFTTrainer(model, train_dataset=rows)\n```\n\nThe loss is on the whole "
    "conversation; in the format prompt_completion it is on the solution only.",
    "prompt_completion": f"```python\n{_LOAD}SFTTrainer(model, train_dataset=rows)  # loss on the completion\n```",
    "preference": f'```python\n{_LOAD}rows = rows.filter(lambda row: row["role"] == "answer")\n'
    "DPOTrainer(model, train_dataset=rows)\n```",
    "steps": f"```python\n{_LOAD}PRMTrainer(model, processing_class=tokenizer, train_dataset=rows)\n```\n\n"
    "`PRMTrainer` is experimental in TRL, and not in every version. It puts a newline after each step and learns "
    "`labels` there. `values` are for trainers that take soft labels.",
}


def trace_facts(file: TraceFile) -> dict[str, Any]:
    """What a card says about traces."""
    header, cost, counts = file.header, file.header.get("cost", {}), file.header.get("counts", {})
    return {
        "written by": ", ".join(sorted({trace.source for trace in file.traces})),
        "model": header.get("model"),
        "problems": header.get("dataset"),
        "problems sampled": counts.get("num_problems_sampled"),
        "problems solved": len({trace.problem_id for trace in file.traces}),
        "selection": header.get("selection"),
        "cost": json.dumps(cost) if cost else None,
    }


def run_facts(run: Path) -> dict[str, Any]:
    """What a card says about a run's pairs."""
    facts = run_folder.read_facts(run)
    return {"model": facts.get("model"), "problems": facts.get("num_problems"), "command": facts.get("command")}
