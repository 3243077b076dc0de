"""Graders of workers: the grader by final answers, or the caller's own, one for each worker that needs one.

    with open_grader(GradingSettings(), None, renderer) as grader: ...          compares final answers
    with open_grader(GradingSettings(), MyGrader, renderer) as grader: ...      MyGrader(renderer)

Invariant: no renderer, verifier or grader of anybody's is used by two threads at once: each thread has its own, and an
object that a caller handed over is behind a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flow_dpo.core.grader import Grader
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, Verdict
from flow_dpo.models.render import Renderer
from flow_dpo.verify.grader import AnswerGrader, GradingSettings
from flow_dpo.verify.verifier import Verifier

GraderSource = Grader | Callable[[Renderer], Grader]
"""A grader, or what makes one from the renderer that turns sampled ids into text, such as its class."""


@contextmanager
def open_grader(settings: GradingSettings, source: GraderSource | None, renderer: Renderer) -> Iterator[Grader]:
    """The grader by final answers, or one of the caller's own."""
    if source is None:
        with Verifier(rule=settings.rule, timeout_s=settings.timeout_s) as verifier:
            yield AnswerGrader(verifier, renderer, settings)
    elif is_object(source):
        yield source  # pyright: ignore[reportReturnType]
    else:
        yield source(renderer)  # pyright: ignore[reportCallIssue]


def is_object(source: GraderSource) -> bool:
    """Whether this is a grader, and not what makes one."""
    return not isinstance(source, type) and hasattr(source, "check_texts")


def shared(source: GraderSource | None) -> GraderSource | None:
    """The same for several threads: an object takes one call at a time."""
    return OneAtATime(source) if source is not None and is_object(source) else source  # pyright: ignore


class OneAtATime:
    """A grader whose calls wait for one another (`core.grader.Grader`)."""

    def __init__(self, grader: Grader) -> None:
        self._grader, self._lock = grader, threading.Lock()

    def begin(self, problem: Problem, solution: Solution) -> None:
        with self._lock:
            self._grader.begin(problem, solution)

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        with self._lock:
            return self._grader.check(items)

    def grade(self, trees: Sequence[Tree]) -> None:
        with self._lock:
            self._grader.grade(trees)

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        with self._lock:
            return self._grader.check_texts(items)
