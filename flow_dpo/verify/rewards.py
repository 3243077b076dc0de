"""Reward functions with TRL's signature, and the grader that calls them.

    def brevity(completions, **columns) -> list[float | None]:
        return [1 / (1 + len(text)) for text in completions]

    RewardFunctions.of([answer_reward, brevity], weights=[1.0, 0.1])

A function is called with those keywords that its signature takes: `prompts`, `completions`, `completion_ids`, every
column of the data set, `trainer_state`, `log_extra` and `log_metric`; with `**columns` it gets all of them. It returns
a reward, or None, for each completion; `async def` functions run concurrently. The reward of a solution is the weighted
sum of the rewards that are not None; a solution without any is ungraded.

Invariant: a reward that is not a finite number, a result of the wrong length or an exception ends the run with an error
that names the function, the problem and the input. No fault counts as a reward of 0.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import inspect
import math
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, cast

from flow_dpo.core.errors import ConfigError, DataError, FlowDpoError
from flow_dpo.core.types import Problem

RewardFunction = Callable[..., Any]
"""Called with keywords, possibly `async def`; returns a list of numbers and None."""
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""The keywords of every call besides the columns."""
_LEFT_OUT = ("prompt", "completion", "completion_ids")
"""Columns that are not passed on, as in TRL."""
_CALLING = threading.Lock()
"""One call at a time in a process, because functions need not be thread-safe."""


def answer_reward(completions: Sequence[Any], gold: Sequence[str], **_: Any) -> list[float | None]:
    """The verifier as a reward function: 1 for a correct final answer, 0 for a wrong one, None if ungraded. In a run
    the run's verifier and `grading.rule` are used instead; called directly, it opens a verifier with the defaults."""
    from flow_dpo.verify.verifier import Verifier

    texts = [one if isinstance(one, str) else str(one[-1]["content"]) for one in completions]
    with Verifier() as verifier:
        verdicts = verifier.grade_many([(right, text, True) for right, text in zip(gold, texts, strict=True)])
    return [verdict.right for verdict in verdicts]


@dataclass(frozen=True, kw_only=True)
class RewardState:
    """What a reward function gets to know about the training, as `trainer_state`."""

    global_step: int
    """Updates made so far to the adapters that sampled."""


@dataclass(frozen=True, kw_only=True)
class RewardFunctions:
    """Reward functions by their names, each with its weight."""

    functions: Mapping[str, RewardFunction]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, functions: Any, weights: Sequence[float] | None = None) -> RewardFunctions:
        """One function or several, with weight 1 each if no weights are given.

        Raises `ConfigError` for something that cannot be called, a model, or a wrong number of weights.
        """
        listed: Any = [functions] if callable(functions) or isinstance(functions, str) else functions
        if not isinstance(listed, list | tuple) or not listed:
            raise ConfigError(f"expected a reward function or a list of them, found {functions!r:.80}")
        named: dict[str, RewardFunction] = {}
        for loaded in cast("Sequence[Any]", listed):
            if not callable(loaded) or isinstance(loaded, type) or hasattr(loaded, "parameters"):
                shown = repr(loaded) if isinstance(loaded, str) else f"a {type(loaded).__name__}"
                raise ConfigError(
                    f"expected a reward function f(prompts, completions, **columns), found {shown:.80}; call a reward "
                    "model from your own function, and name a function in a file with "
                    'settings={"grading.rewards": ["file.py:name"]}'
                )
            name = _name_of(loaded)
            try:
                inspect.signature(loaded)
            except ValueError as error:  # many functions written in C have no signature
                raise ConfigError(
                    f"expected a reward function f(prompts, completions, **columns), found {name}, whose signature "
                    "Python does not know; wrap it in your own function"
                ) from error
            named[name if name not in named else f"{name}_{len(named) + 1}"] = loaded
        found = tuple(1.0 for _ in named) if weights is None or not len(weights) else tuple(map(float, weights))
        if len(found) != len(named) or not all(map(math.isfinite, found)):
            raise ConfigError(
                f"expected reward_weights to have a finite weight for each of {', '.join(named)} ({len(named)}), found "
                f"{list(found)}"
            )
        return cls(functions=named, weights=found)

    def describe(self) -> str:
        """The functions as text, for the run's record, which a resumed run must match:
        "__main__:brevity x 0.1 (3f2c81aa)": module, name, weight and the start of the source's SHA-256, if known."""
        parts = zip(self.functions.items(), self.weights, strict=True)
        return ", ".join(f"{_module_of(each)}:{name} x {weight:g}{_code_of(each)}" for (name, each), weight in parts)

    def check_columns(self, problem: Problem) -> None:
        """Raise `ConfigError` if a function needs a column that the problem does not have."""
        there = [*GIVEN, *columns_of(problem)]
        for name, function in self.functions.items():
            if missing := [each for each in _needed(function) if each not in there]:
                raise ConfigError(
                    f"expected the arguments of the reward function {name} among "
                    f"{', '.join(there)}, found {', '.join(missing)}; give it a default, or name a column of the data"
                )

    def call(self, batch: RewardBatch, known: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
        """Every function's rewards for a batch, by name. Functions in `known` are not called."""
        results: dict[str, Any] = {name: list(values) for name, values in known.items()}
        calls = {name: partial(each, **batch.arguments(each)) for name, each in self.functions.items()}
        calls = {name: call for name, call in calls.items() if name not in known}
        waiting = {name: call for name, call in calls.items() if _is_async(self.functions[name])}
        with _CALLING:
            for name, call in calls.items():
                if name not in waiting:
                    with _Named(name, batch):
                        results[name] = call()
            if waiting:
                # A notebook's thread already runs an event loop, and cannot run a second one.
                with ThreadPoolExecutor(1, thread_name_prefix="rewards") as threads:
                    results |= threads.submit(asyncio.run, _together(waiting, batch)).result()
        return {name: _numbers(name, results[name], batch) for name in self.functions}


class RewardBatch:
    """The inputs of the functions in one call, and what they log in it."""

    def __init__(
        self, problems: Sequence[Problem], texts: Sequence[str], ids: Sequence[Sequence[int]], state: RewardState
    ) -> None:
        self.problems = problems
        chats = [_chat(problem) for problem in problems]
        columns = [columns_of(problem) for problem in problems]
        names = dict.fromkeys(name for each in columns for name in each)
        self.extra: list[dict[str, Any]] = [{} for _ in problems]
        self.metrics: dict[str, list[float]] = {}
        self._every: dict[str, Any] = {
            **{name: [each.get(name) for each in columns] for name in names},
            "prompts": [
                problem.question if chat is None else chat for problem, chat in zip(problems, chats, strict=True)
            ],
            "completions": [
                text if chat is None else [{"role": "assistant", "content": text}]
                for text, chat in zip(texts, chats, strict=True)
            ],
            "completion_ids": [list(each) for each in ids],
            "trainer_state": state,
            "log_extra": self._log_extra,
            "log_metric": self._log_metric,
        }

    def arguments(self, function: RewardFunction) -> dict[str, Any]:
        """The arguments that a function's signature takes. Lists are copied, so a function that changes a list or a
        cell does not affect the next function or a later batch."""
        parameters = inspect.signature(function).parameters.values()
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
        names = list(self._every) if takes_all else [each.name for each in parameters if each.name in self._every]
        given = {name: self._every[name] for name in names}
        return {name: copy.deepcopy(value) if isinstance(value, list) else value for name, value in given.items()}

    def shown(self, at: int) -> str:
        """One solution as it was passed, shortened and escaped, for an error message."""
        return f"problem {self.problems[at].id!r}, completion {self._every['completions'][at]!r:.200}"

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        if len(values) != len(self.problems):
            raise DataError(f"expected {len(self.problems)} values in log_extra({column!r}), found {len(values)}")
        for into, value in zip(self.extra, values, strict=True):
            plain = value is None or isinstance(value, str | int | float | bool)
            into[str(column)] = value if plain else f"{value!r:.1000}"

    def _log_metric(self, name: str, value: float) -> None:
        if not math.isfinite(float(value)):
            raise DataError(f"expected a finite number in log_metric({name!r}), found {value!r:.80}")
        self.metrics.setdefault(str(name), []).append(float(value))


def columns_of(problem: Problem) -> dict[str, Any]:
    """A problem's columns as a reward function gets them: its fields, overridden by the data set's columns."""
    own = {
        "question": problem.question, "gold": problem.gold, "answer": problem.gold, "solution": problem.solution,
        "problem_id": problem.id, "source": problem.source, "level": problem.level, "subject": problem.subject,
    }  # fmt: skip
    taken = (*_LEFT_OUT, *GIVEN)
    return own | {name: value for name, value in problem.columns.items() if name not in taken}


# ---- one call --------------------------------------------------------------------------------------------------------


class _Named:
    """Turns any exception of a reward function into a `DataError` that names the function and its input."""

    def __init__(self, name: str, batch: RewardBatch) -> None:
        self._name, self._batch = name, batch

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, FlowDpoError):
            raise DataError(f"reward function {self._name}: {error}") from error
        if isinstance(error, Exception):
            raise DataError(
                f"reward function {self._name} raised {type(error).__name__}: {str(error)!r:.300}; it was given "
                f"{len(self._batch.problems)} completions, the first of {self._batch.shown(0)}"
            ) from error


async def _together(calls: Mapping[str, Callable[[], Any]], batch: RewardBatch) -> dict[str, Any]:
    async def one(name: str, call: Callable[[], Any]) -> Any:
        with _Named(name, batch):
            return await call()

    return dict(zip(calls, await asyncio.gather(*(one(*each) for each in calls.items())), strict=True))


def _numbers(name: str, found: Any, batch: RewardBatch) -> list[float | None]:
    """A function's result as rewards. Raises `DataError` if it is not a valid list of rewards."""
    listed: Any = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(listed, list | tuple):
        raise DataError(
            f"expected a list of {len(batch.problems)} rewards from the reward function {name}, found {found!r:.80}"
        )
    values = cast("Sequence[Any]", listed)
    if len(values) != len(batch.problems):
        raise DataError(
            f"expected {len(batch.problems)} rewards from the reward function {name}, one for each completion, found "
            f"{len(values)}; the first was for {batch.shown(0)}"
        )
    rewards: list[float | None] = []
    for at, value in enumerate(values):
        number: Any = value
        try:
            number = value.item() if hasattr(value, "item") else value
            fits = number is None or (isinstance(number, int | float) and math.isfinite(number))
        except (ValueError, OverflowError, RuntimeError):  # an array of several values, an int too large for a float
            fits = False
        if not fits:
            raise DataError(
                f"expected a finite number or None from the reward function {name}, found {number!r:.80} for "
                f"{batch.shown(at)}"
            )
        rewards.append(None if number is None else float(number))
    return rewards


def _chat(problem: Problem) -> list[Any] | None:
    """The messages of a conversational prompt (TRL's `prompt` column with messages); None for a text."""
    prompt: Any = problem.columns.get("prompt")
    messages = cast("list[Any]", prompt) if isinstance(prompt, list) else []
    return messages if messages and all(isinstance(each, Mapping) and "role" in each for each in messages) else None


def _is_async(function: RewardFunction) -> bool:
    inner = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004


def _name_of(function: Any) -> str:
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def _module_of(function: Any) -> str:
    inner: Any = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__module__", type(inner).__module__))


def _code_of(function: Any) -> str:
    """The start of the SHA-256 of a function's source, or of its class's; "" if the source is not available."""
    inner: Any = function.func if isinstance(function, partial) else function
    try:
        source = inspect.getsource(inner if hasattr(inner, "__name__") else type(inner))
    except (OSError, TypeError):  # typed into a Python prompt, or not written in Python
        return ""
    return f" ({hashlib.sha256(textwrap.dedent(source).encode()).hexdigest()[:8]})"


def _needed(function: RewardFunction) -> list[str]:
    """The parameters that every call must pass: those without a default."""
    kinds = Counter(VAR_KEYWORD=1, VAR_POSITIONAL=1)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind.name not in kinds]
