"""`flow-dpo evaluate`: measure a model, or a run's adapters, on a data set.

flow-dpo evaluate --run runs/train --dataset_split test --max_problems 500
flow-dpo evaluate --run runs/train --draws 4        four attempts per problem: majority, best by P(Yes), thresholds
flow-dpo evaluate --run runs/train --candidates runs/fixed      the run's Stop on the draws of another evaluation
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from flow_dpo.cli.loading import loading
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.evaluate.headers import AREA_WORDS
from flow_dpo.evaluate.statistics import ungraded_words
from flow_dpo.evaluate.votes import RULE_WORDS
from flow_dpo.runs.adapters import source_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.run_folder import free_folder
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings, named_settings


def parse_evaluate(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo evaluate`; those of `--run` or `--adapter` are the defaults."""
    what = "Measure a model, or a run's adapters."
    return resolve("flow-dpo evaluate", what, argv, _sections, brings=source_settings, doc=__doc__ or "")


def evaluate(argv: Sequence[str]) -> int:
    """`flow-dpo evaluate`."""
    parsed = parse_evaluate(argv)
    settings: EvaluationSettings = parsed["evaluation"]
    if settings.output_dir == EvaluationSettings.output_dir:
        settings = replace(settings, output_dir=free_folder(settings.output_dir, "summary.json"))
    with loading():
        from flow_dpo.evaluate.run import measure_run  # loads torch, once the arguments are parsed

    runtime = RuntimeSettings.from_sections(parsed)
    console = Console()
    result = measure_run(runtime, parsed["flow"], parsed["explore"], parsed["speaking"], settings, console=console)
    print_safe(console, "\n".join([*_lines(result), f"Written to {settings.output_dir}"]))
    return 0


def _lines(result: Mapping[str, Any]) -> list[str]:
    """The result as lines of text."""
    if result.get("candidates"):
        return _candidates_lines(result["candidates"])
    low, high = result["interval"]
    ungraded = ungraded_words(result)
    accuracy = "no problem" if result["accuracy"] is None else f"accuracy {result['accuracy']:.1%}"
    lines = [
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_draws']} "
        f"correct{f'; {ungraded}' if ungraded else ''}"
    ]
    if (overlap := result.get("overlap") or {}).get("num_overlapping"):
        lines.append(f"{overlap['num_overlapping']} of these problems are among the training problems of --trained_on")
    return lines + (_votes_lines(result["votes"]) if result.get("votes") else [])


def _candidates_lines(found: Mapping[str, Any]) -> list[str]:
    """The results of Stop on a fixed set of candidates."""
    num = ", ".join(f"{count} {kind}" for kind, count in found["num"].items())
    lines = [f"Stop on the candidates of {found['file']} (sha256 {found['sha256'][:12]}): {num}"]
    for name, words in AREA_WORDS.items():
        area, bounds = found[name]["area"], found[name]["interval"]
        between = "" if bounds is None else f" (95 % interval {bounds[0]:.3f} to {bounds[1]:.3f})"
        lines.append(f"{words}: " + ("not measured" if area is None else f"area {area:.3f}{between}"))
    lines += _calibration_lines(found)
    if judgement := found.get("judgement"):
        area = judgement["right_over_wrong"]["area"]
        shown = "not measured" if area is None else f"area {area:.3f}"
        lines += [f"The flow's judgement: right over wrong: {shown}", *_calibration_lines(judgement)]
    return lines


def _calibration_lines(found: Mapping[str, Any]) -> list[str]:
    if found["brier"] is None:
        return []
    return [
        f"Brier score {found['brier']:.3f} ({found['brier_of_share']:.3f} for always predicting the share of right "
        f"ones), expected calibration error {found['calibration_error']:.3f}"
    ]


def _votes_lines(votes: Mapping[str, Any]) -> list[str]:
    """The accuracies for each number of attempts, one line each, with 95 % intervals."""
    names = [name for name in RULE_WORDS if any(name in at_k for at_k in votes["by_k"].values())]
    lines = [f"{'attempts':>8} {'tokens':>7}" + "".join(f"  {RULE_WORDS[name]:<21}" for name in names)]
    for k, at_k in votes["by_k"].items():
        cells = [_measured(at_k[name]) for name in names]
        lines.append(f"{k:>8} {at_k['tokens'] or 0:>7.1f}" + "".join(f"  {cell:<21}" for cell in cells))
    return [line.rstrip() for line in lines]


def _measured(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return "no problem" if found["accuracy"] is None else f"{found['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def _sections(given: Given) -> Sections:
    defaults = named_settings(given)
    runtime = replace(defaults.runtime, data=replace(defaults.runtime.data, dataset_split="test"))
    return {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **runtime.sections(),
        "speaking": SpeakingSettings(),
        "evaluation": EvaluationSettings(),
    }
