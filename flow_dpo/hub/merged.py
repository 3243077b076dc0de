"""Merged models: a run's base with one role's adapter in its weights, one whole model on disk per role.

write_merged(Path("runs/gsm8k"), adapters, folder)      # {"answer": folder/answer, "stop": folder/stop}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_dpo.core.types import Role
from flow_dpo.engines.merged_lora import save_merged
from flow_dpo.learner.policy import Policy
from flow_dpo.models.load import load_model
from flow_dpo.models.settings import LoraSettings, ModelSettings
from flow_dpo.runs.adapters import run_settings
from flow_dpo.runs.resolve import resolve


def write_merged(run: Path, adapters: Mapping[Role, Path], folder: Path) -> dict[Role, Path]:
    """Load the run's base and adapters, and write each merged model with its tokenizer and chat template.

    Raises `ModelError` if the adapters cannot be merged.
    """
    sections = _sections(run)
    loaded = load_model(sections["model"])
    policy = Policy(loaded.model, tuple(adapters), sections["lora"], seed=0)
    for role, path in adapters.items():
        policy.load_adapter(role, path)
    tokenizer = loaded.renderer.tokenizer
    if sections["model"].chat_template is not None:
        tokenizer.chat_template = loaded.renderer.template.source
    written: dict[Role, Path] = {}
    for role in adapters:
        written[role] = save_merged(policy, role, folder / role)
        tokenizer.save_pretrained(folder / role)
    return written


def _sections(run: Path) -> dict[str, Any]:
    """The run's model and adapter settings, whatever recipe and flow it was given."""
    found = run_settings(run)
    known = {name: found[name] for name in ("model", "lora") if name in found}
    sections = {"model": ModelSettings(), "lora": LoraSettings()}
    return resolve(
        "flow_dpo.push_to_hub", "", (), sections, brings=lambda _: (known, f"{run}/config.yaml"), trusted=True
    )
