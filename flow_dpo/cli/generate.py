"""What do the commands do that carry a trained flow on: to traces, to files for others, to a fine-tuned model?

Like `commands`: every function takes the words behind its command, settings first, then work, then what a person wants
to know at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from flow_dpo.runs import resolve
from flow_dpo.runs.adapters import SpeakingSettings, settings_of
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.settings import defaults_of, of_its_engine
from flow_dpo.traces.generate import GenerateSettings
from flow_dpo.traces.run import generate_run
from flow_dpo.traces.trace import SelectionSettings


def parse_generate(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo generate`: with `--run` or `--adapter`, what comes with it comes first."""
    base, origin = settings_of({name: resolve.peek(argv, f"speaking.{name}", "") for name in ("run", "adapter")})
    argv, defaults = defaults_of(argv, base, origin=origin)
    base = of_its_engine(base, defaults)
    sections = {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **defaults.runtime.sections(),
        "speaking": SpeakingSettings(),
        "generate": GenerateSettings(),
        "selection": SelectionSettings(),
    }
    what = "Write verified traces of a trained flow, an untrained flow, or a single model."
    return resolve.parse("flow-dpo generate", what, sections, argv, base=base, origin=origin)


def generate(argv: Sequence[str]) -> int:
    """`flow-dpo generate`."""
    parsed, console = parse_generate(argv), Console()
    written = generate_run(parsed, report=lambda text: print_safe(console, text))
    print_safe(console, f"Written to {written}")
    return 0
