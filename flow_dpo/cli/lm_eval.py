"""`flow-dpo lm-eval`: run lm-evaluation-harness on a flow, or on a single pass of its Answer role.

flow-dpo lm-eval --run runs/gsm8k --tasks gsm8k --limit 100 --output_dir runs/lm-eval
flow-dpo lm-eval --run runs/gsm8k --mode single --tasks my_task --include_path tasks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate.lm_eval_settings import LmEvalSettings
from flow_dpo.runs.adapters import source_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.settings import sampling_sections


def parse_lm_eval(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo lm-eval`; those of `--run` or `--adapter` are the defaults."""
    what = "Run tasks of lm-evaluation-harness on a flow."
    return resolve("flow-dpo lm-eval", what, argv, _sections, brings=source_settings)


def lm_eval(argv: Sequence[str]) -> int:
    """`flow-dpo lm-eval`."""
    parsed, console = parse_lm_eval(argv), Console()
    if not parsed["lm_eval"].names:
        raise ConfigError("expected tasks of lm-eval, found none; name them with --tasks, as in --tasks gsm8k")
    from flow_dpo.evaluate.lm_eval import measure_tasks  # loads torch, once the arguments are parsed

    found = measure_tasks(parsed, console=console)
    print_safe(console, "\n".join([*_lines(found["results"]), f"Written to {parsed['lm_eval'].output_dir}"]))
    return 0


def _lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line per metric: "gsm8k exact_match,strict-match: 0.41 +- 0.02"."""
    lines: list[str] = []
    for task, metrics in results.items():
        for name, value in metrics.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or "_stderr" in name:
                continue
            if name in ("sample_len", "samples"):
                continue
            metric, _, filtered = name.partition(",")
            error = metrics.get(f"{metric}_stderr,{filtered}")
            around = f" +- {error:.4g}" if isinstance(error, int | float) else ""
            lines.append(f"{task} {name}: {value:.4g}{around}")
    return lines


def _sections(given: Given) -> Sections:
    return sampling_sections(given) | {"lm_eval": LmEvalSettings()}
