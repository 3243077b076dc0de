"""Starting adapters: trained adapters that a run begins with, instead of fresh ones.

    --lora.init_from runs/first                 each role begins with its newest adapter of that run, here or on the hub
    --lora.init_from runs/sft                   one adapter in PEFT's layout, for the Answer role
    --lora.init_roles.stop runs/a/adapters/stop/12    one role's adapter; overrides `init_from`

Rank, scale, kind and targets are the adapter's unless they are given. The reference policy is then the adapters as they
were at the start (`reference.kind` "snapshot"), so a method such as DPO compares with the policy that training begins
with. Invariants: an adapter of another shape is refused; a resumed run must have begun with the same adapters.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flow_dpo.core.answer_stop import ANSWER
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Role
from flow_dpo.data.strict_json import FLAG, ORDINAL, TEXT, TEXTS, Kind, check, or_null
from flow_dpo.models.settings import LoraSettings
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_object
from flow_dpo.runs.resolve import Given
from flow_dpo.runs.setting_names import leaves

if TYPE_CHECKING:
    from flow_dpo.learner.policy import Policy

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_NAMES = Kind(
    "null, a text or a list of texts, none of them empty",
    lambda value: value in (None, []) or ((TEXT.holds(value) or TEXTS.holds(value)) and value and all(value)),
)
_SHAPE_KINDS = {
    **dict.fromkeys(("r", "lora_alpha"), or_null(ORDINAL)),
    **dict.fromkeys(("use_rslora", "use_dora"), or_null(FLAG)),
    "target_modules": _NAMES,
    "target_parameters": or_null(TEXTS),
    "modules_to_save": or_null(TEXTS),
}


def adapter_shape(folder: Path) -> dict[str, Any]:
    """The settings of `lora` with which an adapter was made. Raises `DataError` if the folder holds no adapter."""
    if not (folder / ADAPTER_CONFIG).exists():
        raise DataError(f"expected an adapter in PEFT's layout in {folder}, found no {ADAPTER_CONFIG}")
    shape = read_object(folder / ADAPTER_CONFIG)
    check(shape, _SHAPE_KINDS, str(folder / ADAPTER_CONFIG))
    targets, parameters = shape.get("target_modules"), shape.get("target_parameters") or ()
    lora = {
        "lora_r": shape.get("r"),
        "lora_alpha": shape.get("lora_alpha"),
        "lora_target_modules": sorted({*targets, *parameters}) or None if isinstance(targets, list) else targets,
        **{name: shape.get(name) or None for name in ("use_rslora", "use_dora", "modules_to_save")},
    }
    return {name: value for name, value in lora.items() if value is not None}


def starting_shape(given: Given) -> dict[str, Any]:
    """The shape of the starting adapters, as defaults of `lora`; empty if there are none."""
    roles = dict[Role, str]()
    for _, values in given.layers:
        for name, value in leaves(values):
            if name in ("lora.init_roles", "init_roles"):  # as a text
                found = yaml.safe_load(str(value))
                roles |= found if isinstance(found, dict) else {}
            elif name.startswith(("lora.init_roles.", "init_roles.")) and value:
                roles[name.rpartition(".")[2]] = str(value)
    settings = LoraSettings(init_from=given.text("lora.init_from"), init_roles=roles)
    folders = starting_folders(settings, None)
    return adapter_shape(next(iter(folders.values()))) if folders else {}


def starting_folders(lora: LoraSettings, roles: tuple[Role, ...] | None) -> dict[Role, Path]:
    """The starting adapter of each role that has one, limited to `roles` unless that is None.

    Raises `ConfigError` for an unknown role, `DataError` if a folder holds neither a run nor an adapter.
    """
    found: dict[Role, Path] = {}
    if lora.init_from:
        source = Path(lora.init_from)
        if not source.exists():
            from flow_dpo.runs.published import local_run  # loads the hub's client, which a folder does not need

            source = local_run(lora.init_from)
        alone = (source / ADAPTER_CONFIG).exists()
        found = {ANSWER: source} if alone else run_folder.latest_adapters(source)
        found = {role: folder for role, folder in found.items() if roles is None or role in roles}
        if not found:
            raise ConfigError(
                f"expected adapters of the flow's roles ({', '.join(roles or ())}) in {source}, found none; name the "
                "adapter of a role with --lora.init_roles.ROLE FOLDER"
            )
    if unknown := sorted(set(lora.init_roles) - set(roles)) if roles is not None else []:
        raise ConfigError(f"expected roles of the flow ({', '.join(roles or ())}) in init_roles, found {unknown}")
    return found | {role: Path(folder) for role, folder in lora.init_roles.items()}


def start_from(policy: Policy) -> dict[Role, Path]:
    """Load the adapters that the policy's settings name, and return their folders. Call it before making a learner."""
    folders = starting_folders(policy.settings, policy.roles)
    for role, folder in folders.items():
        policy.load_adapter(role, folder)
    return folders


def starting_checksums(lora: LoraSettings, roles: tuple[Role, ...]) -> dict[Role, str] | None:
    """SHA-256 of the weights that each role begins with, as a fact of a run; None if all are fresh."""
    if not lora.starts_trained:
        return None
    checksums: dict[Role, str] = {}
    for role, folder in starting_folders(lora, roles).items():
        try:
            checksums[role] = hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"expected the weights of an adapter in {folder}, found none: {error}") from error
    return checksums
