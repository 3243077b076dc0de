"""How many sequences does an engine decode at once? A scripted engine with a clock: a step is a token of every row.

    engine = ClockEngine(script, end_ids={0}, max_rows=256)
    ...
    engine.mean_rows        # 212.4: rows decoded in a step, in the mean over all steps

Requests join when there is a row for them and leave when they end, as in continuous batching; a choice is one step.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any

from flow_dpo.core.types import Completion
from flow_dpo.engines.scripted import ScriptedEngine


class ClockEngine(ScriptedEngine):
    def __init__(self, *args: Any, max_rows: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._max_rows, self.steps, self._row_steps = max_rows, 0, 0
        self._rows: list[tuple[int, int, Completion]] = []
        """By the step at which they end."""
        self._waiting: deque[Any] = deque()

    def poll(self) -> list[tuple[int, Completion]]:
        self._waiting, self._queue = self._waiting + self._queue, deque()
        while self._waiting and len(self._rows) < self._max_rows:
            pending = self._waiting.popleft()
            completion = self._complete(pending)
            heapq.heappush(self._rows, (self.steps + len(completion.token_ids), pending.ticket, completion))
        if not self._rows:
            return []
        until = self._rows[0][0]
        self._row_steps += len(self._rows) * (until - self.steps)
        self.steps = until
        finished: list[tuple[int, Completion]] = []
        while self._rows and self._rows[0][0] == until:
            _, ticket, completion = heapq.heappop(self._rows)
            finished.append((ticket, completion))
        return finished

    @property
    def mean_rows(self) -> float:
        return self._row_steps / self.steps
