"""The errors that this package raises on purpose, as one hierarchy.

    FlowDpoError
    +- ConfigError      (ValueError)    a setting does not exist or does not fit; names it and the nearest match
    +- DataError        (ValueError)    a data set or run folder is not as expected; names file, row and field
    +- ModelError       (ValueError)    a model folder, tokenizer or chat template cannot be used for this flow
    +- FlowError        (RuntimeError)  a flow broke its contract; names the rule and the place
    +- EngineError      (RuntimeError)  an engine could not complete a request
    +- WorkerError      (RuntimeError)  workers were lost, with what they sampled; names the problems
    +- ObjectiveError   (TypeError)     an objective got examples that it does not accept
    +- StorageError     (OSError)       results could not be written; what was committed before is intact
    +- LearningError    (RuntimeError)  learning went wrong and was stopped (non-finite loss, the wrong adapter moved)

Every message says what was expected, what was found and what to do. An answer that cannot be graded is not an error
but `Verdict(status="ungraded")`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any


def visible(text: str) -> str:
    """The text made safe for a terminal: control characters, with which hostile text could move the cursor or rename
    the window, become escapes. Newlines and tabs stay."""
    return "".join(
        char if char in "\n\t" or not unicodedata.category(char).startswith("C") else repr(char)[1:-1] for char in text
    )


class FlowDpoError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(FlowDpoError, ValueError):
    """A setting does not exist, or does not fit what it is used with."""


def expect(settings: object, rule: str, holds: Callable[[Any], bool], *names: str) -> None:
    """Raise `ConfigError` for the first of the named settings for which `holds` is false: "expected NAME {rule}"."""
    for name in names:
        if not holds(value := getattr(settings, name)):
            raise ConfigError(f"expected {name} {rule}, found {value!r}")


class DataError(FlowDpoError, ValueError):
    """A data set or a run folder is not as expected."""


class ModelError(FlowDpoError, ValueError):
    """A model, tokenizer or chat template cannot be used for this flow or engine."""


class FlowError(FlowDpoError, RuntimeError):
    """A flow broke its contract."""


class EngineError(FlowDpoError, RuntimeError):
    """An engine could not complete a request."""


class WorkerError(FlowDpoError, RuntimeError):
    """Rollout workers were lost too often, or for too long."""


class ObjectiveError(FlowDpoError, TypeError):
    """An objective got a kind of example that it does not accept."""


class StorageError(FlowDpoError, OSError):
    """Results could not be written."""


class LearningError(FlowDpoError, RuntimeError):
    """An update was refused because it would have learned something wrong."""
