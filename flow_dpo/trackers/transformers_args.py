"""The `args` that transformers' callbacks read: transformers' defaults, then the run's values, then the user's.

    made = CallbackArguments(given, defaults={"output_dir": "runs/x"}, settings={"objective": {"beta": 0.1}})
    made.logging_steps, made.metric_for_best_model, made.to_dict()

Invariant: no `TrainingArguments` object is created, since that initialises devices and accelerate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


class CallbackArguments:
    """An object with the attributes of `transformers.TrainingArguments`."""

    def __init__(self, given: object, *, defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """`given` is any object with some of the attributes (None means not given); trackers record `settings`."""
        from transformers import TrainingArguments

        for each in fields(TrainingArguments):
            value = each.default_factory() if each.default_factory is not MISSING else each.default
            setattr(self, each.name, None if value is MISSING else value)
        own = {} if given is None else dict(vars(given))
        if is_dataclass(given):
            own |= {each.name: getattr(given, each.name) for each in fields(given)}
        chosen = {**defaults, **{name: value for name, value in own.items() if value is not None}}
        for name, value in chosen.items():
            setattr(self, name, value)
        if self.greater_is_better is None:
            self.greater_is_better = not str(self.metric_for_best_model).endswith("loss")
        self._given, self._settings = given, settings

    def __getattr__(self, name: str) -> Any:
        """An attribute that is neither a field nor set: a property or method of the user's arguments."""
        given = self.__dict__.get("_given")
        if given is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(given, name)

    def to_dict(self) -> dict[str, Any]:
        """What trackers record: the user's arguments, by their own `to_dict`, and every setting of the run by name."""
        theirs = getattr(self._given, "to_dict", None)
        told: Any = theirs() if callable(theirs) else {}
        return {**{name: value for name, value in told.items() if not name.endswith("token")}, **self._settings}

    def to_sanitized_dict(self) -> dict[str, Any]:
        """The same, with all values as text or numbers."""
        plain = (str, int, float, bool)
        return {name: value if isinstance(value, plain) else str(value) for name, value in self.to_dict().items()}

    def to_json_string(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2, default=str)
