"""The model card of the seed model, filled with measured figures.

Invariant: every figure on the card was measured by the run that writes it, and every rate is the one that was planted.
One of its lines: "| with 'lends' | 0.109 | 0.241 | 0.314 |".
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import corpus

from flow_dpo.data.seed import MAX_CHUNKS, NUM_CHUNK_TOKENS, REOPEN_WORDS, STOP_PREFIX, STOP_SUFFIX

_TEMPLATE = Path(__file__).parent / "model_card.md"


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write README.md beside the model."""
    stop, num = figures["stop"], figures["num_problems"]
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        num_parameters=figures["num_parameters"],
        num_tokens=figures["num_tokens"],
        num_documents=figures["num_documents"],
        minutes=figures["train_s"] / 60,
        verdict_weight=corpus.VERDICT_WEIGHT,
        answer_share=1 - corpus.STOP_SHARE,
        stop_share=corpus.STOP_SHARE,
        redo_wrong=corpus.REDO_RATES[False],
        redo_right=corpus.REDO_RATES[True],
        reopen=REOPEN_WORDS,
        prefix=STOP_PREFIX.replace("\n", "\\n").format(question="QUESTION"),
        suffix=STOP_SUFFIX.replace("\n", "\\n"),
        cut=corpus.CUT_SHARE,
        yes_right=corpus.YES_RATES["right"],
        yes_wrong=corpus.YES_RATES["wrong"],
        yes_cut=corpus.YES_RATES["cut"],
        misconception=corpus.MISCONCEPTION_RATE,
        misreading=corpus.MISREADING_RATE,
        wants=corpus.DISTRACTOR_RATES["wants"],
        has=corpus.DISTRACTOR_RATES["has"],
        early=corpus.EARLY_STOP_RATE,
        slip=corpus.SLIP_RATE,
        conclusion=corpus.CONCLUSION_RATE,
        care=corpus.REDO_CARE,
        num_problems=num,
        num_hard=num // 2,
        interval=1.96 * math.sqrt(0.25 / num),
        table=_write_table(figures),
        chunk=NUM_CHUNK_TOKENS,
        chunks=MAX_CHUNKS,
        flow_greedy=figures["flow greedy"]["all"],
        flow_sampled=figures["flow T 1.0"]["all"],
        stop_right=stop["yes at right"],
        stop_wrong=stop["yes at wrong"],
        stop_cut=stop["yes at cut"],
        area_right=stop["area right over wrong"],
        area_cut=stop["area finished over cut"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_table(figures: dict[str, Any]) -> str:
    columns = ("greedy", "T 0.7", "T 1.0")
    lines = ["| single pass | greedy | T 0.7 | T 1 |", "|---|---|---|---|"]
    for row in figures["single greedy"]:
        values = [f"{figures[f'single {column}'][row]:.3f}" for column in columns]
        lines.append(f"| {row} | {' | '.join(values)} |")
    for row in figures["hard greedy"]:
        values = [f"{figures[f'hard {column}'][row]:.3f}" for column in columns]
        lines.append(f"| hard: {row} | {' | '.join(values)} |")
    return "\n".join(lines)
