"""Arguments of a trainer: reads the config and the callbacks, and refuses unsupported arguments by name.

    config_of(GRPOConfig(learning_rate=1e-4))       a `FlowDPOConfig` with what was set there
    refuse({"data_collator": print})                `ConfigError`: rows are packed by the learner: leave it out

Invariant: an argument that TRL's trainers take and this one does not is refused with what to use instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.hub.settings import PushSettings
from flow_dpo.trainer.config import FlowDPOConfig
from flow_dpo.trainer.fields import FIELDS
from flow_dpo.trainer.habits import ARGUMENTS


def refuse(others: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for arguments that the trainer does not have; for TRL's, say what to use instead."""
    for name, value in others.items():
        known = FIELDS.get(name)
        if known is not None and known.fate == "refused" and value is None:
            continue
        if known is not None and known.fate == "refused":
            raise ConfigError(f"FlowDPOTrainer takes no {name}: {known.words}")
        hint = ARGUMENTS.get(name, "it is a field of FlowDPOConfig" if known is not None else "see its docstring")
        raise ConfigError(f"FlowDPOTrainer takes no argument {name!r}; {hint}")


def made(callbacks: Any) -> list[Any]:
    """The callbacks of a list; a class is instantiated, as in transformers. Raises `ConfigError` for another type."""
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        raise ConfigError(f"expected a list of callbacks, found {callbacks!r:.80}; pass a list")
    return [each() if isinstance(each, type) else each for each in callbacks or ()]


def config_of(args: Any) -> FlowDPOConfig:
    """`args` as a `FlowDPOConfig`. Raises `ConfigError` if it is no config."""
    if args is None:
        return FlowDPOConfig()
    if isinstance(args, FlowDPOConfig):
        return args
    if hasattr(args, "__dataclass_fields__") and hasattr(args, "per_device_train_batch_size"):
        return FlowDPOConfig.from_trl(args)
    raise ConfigError(f"expected args to be a FlowDPOConfig or one of TRL's configs, found {args!r:.80}")


def refuse_repository(config: FlowDPOConfig) -> None:
    """Raise `ConfigError` now for a repository name that the push at the end of the run would refuse."""
    if not config.push_to_hub:
        return
    try:
        PushSettings(repo_id=config.hub_model_id or config.run_folder.name)
    except ConfigError as error:
        raise ConfigError(f"hub_model_id, with push_to_hub: {error}") from error
