"""Model cards: what was trained, how well it did, how to load it, what it is for, and its limits.

    adapters_card(origin, figures, roles=("answer", "stop"), config=config)     # README.md of the repository

Invariant: names that come from a model, a data set or a user are escaped: in the header by the YAML writer, in the text
as plain Markdown, in code as a JSON string.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from flow_dpo.hub.figures import Figures

_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#!|~$&])")


def plain(value: object, limit: int = 300) -> str:
    """The text on one line, escaped so that Markdown shows every character as it is."""
    return _MARKS.sub(r"\\\1", " ".join(str(value).split())[:limit])


def code(value: object) -> str:
    """The text as a string for a code block: quoted, on one line, unable to end the block."""
    return json.dumps(str(value)).replace("`", "\\u0060")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run's model comes from."""

    repo_id: str
    base: str
    """The base model as named on the card."""
    base_id: str | None
    """The hub id; None for the embedded seed model, and for a folder whose id was not given."""
    folder: str
    """Where the base model is loaded from if there is no id."""
    recipe: str
    dataset: str
    facts: Mapping[str, Any]
    """The content of run.json as it is pushed."""
    revision: str = ""
    """The branch that it is pushed to; empty: the main one."""

    @property
    def source(self) -> str:
        """The argument for `--run`."""
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id

    @property
    def at(self) -> str:
        """The revision as a further argument in Python."""
        return f", revision={code(self.revision)}" if self.revision else ""

    @property
    def flag(self) -> str:
        """The same as a flag of a command."""
        return f" --revision {shlex.quote(self.revision)}" if self.revision else ""

    @property
    def loads(self) -> str:
        """The argument for `from_pretrained`."""
        return self.base_id or self.folder

    @property
    def dataset_ids(self) -> list[str] | None:
        """For the header: the data set, if it is on the hub."""
        return [self.dataset] if _DATASET.fullmatch(self.dataset) else None


def adapters_card(origin: Origin, figures: Figures, roles: Sequence[str], config: Mapping[str, Any]) -> str:
    """The card for the adapters of all roles."""
    first, name = roles[0], origin.repo_id.rpartition("/")[2]
    header = ModelCardData(
        base_model=origin.base_id,
        base_model_relation="adapter" if origin.base_id else None,
        library_name="peft",
        pipeline_tag="text-generation",
        datasets=origin.dataset_ids,
        tags=["flow-dpo", "lora", "dpo", "reasoning"],
        model_name=name,
        eval_results=_results(origin, figures),
    )
    rank = (config.get("lora") or {}).get("lora_r", 8)
    return _card(
        header, _ADAPTERS, origin=origin, figures=figures, roles=roles, first=first,
        others=[role for role in roles if role != first], rank=int(rank), name=name,
        modules=" ".join(f"{role}={name}/{role}" for role in roles),
    )  # fmt: skip


def merged_card(origin: Origin, figures: Figures, role: str) -> str:
    """The card for the whole model with one role's adapter merged into its weights."""
    header = ModelCardData(
        base_model=origin.base_id,
        base_model_relation="finetune" if origin.base_id else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        datasets=origin.dataset_ids,
        tags=["flow-dpo", "dpo", "reasoning"],
    )
    return _card(header, _MERGED, origin=origin, figures=figures, role=role, name=origin.repo_id.rpartition("/")[2])


def _card(header: ModelCardData, template: str, **values: Any) -> str:
    words = {
        "plain": plain, "code": code, "versions": _versions(values["origin"].facts), "citations": _CITATIONS,
    }  # fmt: skip
    from jinja2.sandbox import SandboxedEnvironment

    # Header and text are made separately: a data set's name cannot become part of the header.
    text = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template + _END)
    made = ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text.render(**values, **words)}")
    return str(made)


def _results(origin: Origin, figures: Figures) -> list[EvalResult] | None:
    """Evaluations for the header's model-index, whose metrics the hub shows beside the card. Only those of named data
    sets: the hub requires a name."""
    found: list[EvalResult] = []
    for one in figures.evaluations:
        if one.handed_over:
            continue
        name, _, split = one.dataset.rpartition("/")
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=name or one.dataset,
                dataset_name=name or one.dataset,
                dataset_split=split,
                metric_type="accuracy",
                metric_name=f"accuracy of {one.words}, {one.decoding}",
                metric_value=round(one.accuracy.value, 4),
            )
        )
    return found or None


def _versions(facts: Mapping[str, Any]) -> str:
    versions = facts.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


_ADAPTERS = """# {{ plain(name) }}

LoRA adapters, one per role, over one base model. The roles form a *flow* that solves problems together, trained by
online DPO on trees of rollouts ([Flow-DPO](https://arxiv.org/abs/2410.22304)) with the package flow-dpo.

| | |
|---|---|
| base model | {{ plain(origin.base) }} |
| roles | {{ plain(roles | join(", ")) }}: one folder each |
| recipe | {{ plain(origin.recipe) }}; every setting is in `config.yaml` |
| trained on | {{ plain(origin.dataset) }} |
| problems | {{ figures.problems }} |
| updates | {{ figures.updates }} |

## Load

The whole flow, as it was trained:

```
flow-dpo evaluate --run {{ origin.source }} --max_problems 200
flow-dpo generate --run {{ origin.source }} --output_dir runs/traces
```

One role with PEFT and transformers (its prompts are under `flow` in `config.yaml`):

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {{ code(origin.loads) }}
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base)
repo = "{{ origin.repo_id }}"
first = {{ code(first) }}
model = PeftModel.from_pretrained(model, repo, subfolder=first, adapter_name=first{{ origin.at }})
{% for role in others %}
model.load_adapter(repo, subfolder={{ code(role) }}, adapter_name={{ code(role) }}{{ origin.at }})
{% endfor %}
model.set_adapter(first)
```

vLLM takes adapters as folders:

```
hf download {{ origin.repo_id }}{{ origin.flag }} --local-dir {{ name }}
vllm serve {{ code(origin.loads) }} --enable-lora --max-lora-rank {{ rank }} \\
    --lora-modules {{ modules }}
```

"""
_MERGED = """# {{ plain(name) }}

The base model {{ plain(origin.base) }} with the adapter of one role, {{ plain(role) }}, merged into its weights.
It is one member of a flow that was trained by online DPO on trees of rollouts
([Flow-DPO](https://arxiv.org/abs/2410.22304)) with the package flow-dpo.

The recipe was {{ plain(origin.recipe) }}, the data {{ plain(origin.dataset) }}: {{ figures.problems }} problems,
{{ figures.updates }} updates.

## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{{ origin.repo_id }}"{{ origin.at }})
model = AutoModelForCausalLM.from_pretrained("{{ origin.repo_id }}"{{ origin.at }})
```

```
vllm serve {{ origin.repo_id }}{{ origin.flag }}
```

"""
_END = """## Results of the run

{% if figures.accuracy %}
- Progressive accuracy, on each problem *before* it was learned from: {{ figures.accuracy }}
{% endif %}
{% if figures.windowed %}
- The same over the last problems only: {{ figures.windowed }}
{% endif %}
{% for role, num in figures.pairs.items() %}
- Preference pairs of {{ plain(role) }}: {{ num }}
{% endfor %}
{% for one in figures.evaluations %}
- Evaluation on {{ plain(one.dataset) }}, {{ one.words }}, {{ one.decoding }}: {{ one.accuracy }}
{% endfor %}

These figures are of the flow{{ "" if figures.evaluations else "; no evaluation on held-out problems came with it" }}.

## Use and limits

It is meant for problems with an answer that can be checked, of the kind that it was trained on, and for research on how
models learn to solve them together. A verifier judged final answers only: a right answer can follow from a wrong step,
and accuracy outside the training data is unknown. Nothing was done for safety, truthfulness or fairness beyond what
the base model has. The licences and limits of the base model and the data set apply to it too.

## Versions

{{ plain(versions, 1000) }}

## Citation

{{ citations }}
"""
_CITATIONS = """```bibtex
@misc{deng2024flowdpo,
  title = {Flow-DPO: Improving {LLM} Mathematical Reasoning through Online Multi-Agent Learning},
  author = {Yihe Deng and Paul Mineiro},
  year = {2024},
  eprint = {2410.22304},
  archivePrefix = {arXiv},
}

@inproceedings{rafailov2023direct,
  title = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author = {Rafael Rafailov and Archit Sharma and Eric Mitchell and Christopher D. Manning and Stefano Ermon and
            Chelsea Finn},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023},
}
```"""
