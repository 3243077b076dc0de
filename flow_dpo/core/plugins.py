"""How is a flow of the user's own, in a file outside the package, found?

    load_flow("critique.py:Critique")       the class Critique of that file, with its defaults

The file is run as Python: whoever names it has been told so. What comes back is checked against the contract of
`flows.base` as far as a class can be; the rest is found out by walking it, before any model speaks (`fit`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.core.flow import Flow

log = logging.getLogger("flow_dpo")


def is_source(text: str) -> bool:
    """Whether a value of `--flow` names a file and a class."""
    return ".py:" in text


def fingerprint(source: str) -> str | None:
    """SHA-256 of the file that "path/to/file.py:Name" names; None where no file is named."""
    return hashlib.sha256(Path(source.rpartition(":")[0]).read_bytes()).hexdigest() if is_source(source) else None


def load_flow(source: str) -> Flow[Any]:
    """The flow that "path/to/file.py:Name" names. Raises `ConfigError` or, where it is no proper flow, `FlowError`."""
    place, _, name = source.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"expected path/to/file.py:Name for --flow, found no file {place!r}")
    log.warning("running the code of %s for its flow %s", path, name)
    spec = importlib.util.spec_from_file_location(f"flow_dpo_custom_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"expected a Python file for --flow, found {place!r}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by its name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, OSError) as error:
        raise ConfigError(f"{path} could not be run: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Flow)):
        flows = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Flow) and v is not Flow]
        raise ConfigError(
            f"expected a subclass of flow_dpo.core.flow.Flow, found {name} = {found!r} in {path}, which has {flows}"
        )
    settings: Any = getattr(found, "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        raise FlowError(
            f"expected {name} of {path} to be a frozen dataclass: its fields are settings, and it holds no state"
        )
    if not getattr(found, "roles", None):
        raise FlowError(f"expected {name} of {path} to declare its roles, found none")
    try:
        return found()
    except TypeError as error:
        raise FlowError(f"expected every field of {name} in {path} to have a default: {error}") from error
