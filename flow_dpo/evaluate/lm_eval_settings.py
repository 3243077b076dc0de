"""Settings of `flow-dpo lm-eval`, in a module without heavy imports: help and typos need no torch.

LmEvalSettings(tasks="gsm8k,mmlu_*", limit=100).names       # ["gsm8k", "mmlu_*"]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flow_dpo.core.errors import expect


@dataclass(frozen=True, kw_only=True)
class LmEvalSettings:
    """The tasks of lm-evaluation-harness, and how the flow answers them."""

    tasks: str = ""
    """Names of tasks, groups or patterns ("mmlu_*"), separated by commas."""
    include_path: str = ""
    """A folder with your own task files. Code that they name (`!function`) is run."""
    limit: float | None = None
    """Examples of each task; below 1, a share of them. All if not given."""
    num_fewshot: int | None = None
    """Worked examples before each context; the task's own number if not given."""
    mode: Literal["flow", "single"] = "flow"
    """"single" is one pass of the Answer role."""
    greedy: bool = True
    """Take the likeliest token; otherwise sample with the exploration's temperature and top-p."""
    batch_problems: int = 64
    """Contexts under way at once. Changes timing only."""
    seed: int = 0
    confirm_run_unsafe_code: bool = False
    """Allow tasks that run code written by the model. It runs in this process: lm-eval has no sandbox."""
    output_dir: str = "runs/lm-eval"

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")
        expect(self, "of 1 at least", lambda value: value >= 1, "batch_problems")
        expect(self, "above 0", lambda value: value is None or value > 0, "limit")
        expect(self, "of 0 or more", lambda value: value is None or value >= 0, "num_fewshot")

    @property
    def names(self) -> list[str]:
        """The task names, one by one."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]
