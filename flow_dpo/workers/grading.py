"""Graders of workers: the grader by final answers, or the caller's own; one for each worker that needs one.

    with open_grader(GradingSettings(), None, renderer) as grader: ...          compares final answers
    with open_grader(GradingSettings(), MyGrader, renderer) as grader: ...      MyGrader(renderer)

Invariant: no renderer, verifier or grader is used by two threads at once: each thread has its own, and an object that
the caller passed in is behind a lock.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.grader import Grader
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, Verdict
from flow_dpo.models.render import Renderer
from flow_dpo.plugins.load import fingerprint, load_object
from flow_dpo.verify.grader import AnswerGrader, GradingSettings
from flow_dpo.verify.reward_grader import RewardGrader
from flow_dpo.verify.rewards import RewardFunctions, answer_reward
from flow_dpo.verify.verifier import Verifier

GraderSource = Grader | RewardFunctions | Callable[[Renderer], Grader]
"""A grader, reward functions, or a callable (such as a grader's class) that makes a grader from the renderer that turns
sampled ids into text."""


@contextmanager
def open_grader(settings: GradingSettings, source: GraderSource | None, renderer: Renderer) -> Iterator[Grader]:
    """The grader by final answers, by reward functions, or the caller's own."""
    rewards = reward_functions(settings, source)
    if source is None or rewards is not None:
        with Verifier(rule=settings.rule, timeout_s=settings.timeout_s) as verifier:
            answers = AnswerGrader(verifier, renderer, settings)
            yield answers if rewards is None else RewardGrader(rewards, answers, renderer, settings)
    elif is_object(source):
        yield source  # pyright: ignore[reportReturnType]
    else:
        yield source(renderer)  # pyright: ignore[reportCallIssue]


def reward_functions(settings: GradingSettings, source: GraderSource | None) -> RewardFunctions | None:
    """The reward functions that grade, passed in or named by the settings; None if there are none."""
    if isinstance(source, RewardFunctions):
        return source
    if not settings.rewards:
        return None
    return RewardFunctions.of([load_reward(each) for each in settings.rewards], settings.reward_weights)


def grades_by_rewards(settings: GradingSettings, source: GraderSource | None) -> bool:
    """Whether reward functions grade. Problems then need the functions' columns, and no gold answer."""
    return bool(settings.rewards) or isinstance(source, RewardFunctions)


def reward_files(settings: GradingSettings) -> dict[str, str | None]:
    """The checksum of each reward function that the settings name, for the record."""
    return {source: None if source == "answer" else fingerprint(source, "reward") for source in settings.rewards}


def for_elsewhere(settings: GradingSettings) -> GradingSettings:
    """The settings with absolute paths of the reward functions' files, for a process in another folder."""
    whole = [f"{Path(file).absolute()}:{name}" if _is_file(source) else source
             for source in settings.rewards for file, _, name in [source.rpartition(":")]]  # fmt: skip
    return replace(settings, rewards=tuple(whole))


def check_reward_files(settings: GradingSettings, expected: Mapping[str, str | None]) -> None:
    """Raise `ConfigError` if a reward function's code is missing on this machine, or differs from `expected`: what
    `reward_files` found in the process that started this one."""
    where = platform.node()
    for source, checksum in expected.items():
        file = source.rpartition(":")[0]
        if _is_file(source) and not Path(file).is_file():
            raise ConfigError(
                f"expected the reward function's file {file} on {where}, found none; put it under the same path on "
                "every machine (a shared folder, or a copy)"
            )
        if (found := reward_files(replace(settings, rewards=(source,)))[source]) != checksum:
            raise ConfigError(
                f"expected the code of the reward function {source} on {where} to be that of this command "
                f"({checksum!s:.64}), found {found!s:.64}; put the same file or package on every machine"
            )


def _is_file(source: str) -> bool:
    return source.rpartition(":")[0].endswith(".py")


def load_reward(source: str) -> Any:
    """The function that a source, the name of an installed plug-in, or "answer" stands for."""
    return answer_reward if source == "answer" else load_object(source, kind="reward")


def named_grader(settings: GradingSettings) -> GraderSource | None:
    """The grader that the settings name; None if they name none. Raises `ConfigError` for any other object."""
    if not settings.grader:
        return None
    found = load_object(settings.grader, kind="grader")
    if not (callable(found) or hasattr(found, "check_texts")):
        raise ConfigError(
            f"expected a grader (begin, check, grade, check_texts) in {settings.grader}, or a callable that makes one "
            f"from a renderer, found {found!r:.80}"
        )
    return found  # pyright: ignore[reportReturnType]


def is_object(source: GraderSource) -> bool:
    """Whether this is a grader, and not a callable that makes one."""
    return not isinstance(source, type) and hasattr(source, "check_texts")


def shared(source: GraderSource | None) -> GraderSource | None:
    """The same for use by several threads: a grader object takes one call at a time."""
    return OneAtATime(source) if source is not None and is_object(source) else source  # pyright: ignore


class OneAtATime:
    """A grader that runs one call at a time, behind a lock (`core.grader.Grader`)."""

    def __init__(self, grader: Grader) -> None:
        self._grader, self._lock = grader, threading.Lock()

    def begin(self, problem: Problem, solution: Solution) -> Verdict | None:
        with self._lock:
            return self._grader.begin(problem, solution)

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        with self._lock:
            return self._grader.check(items)

    def grade(self, trees: Sequence[Tree]) -> None:
        with self._lock:
            self._grader.grade(trees)

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        with self._lock:
            return self._grader.check_texts(items)
