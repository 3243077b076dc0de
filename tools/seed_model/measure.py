"""Measurement of the seed model before any learning: its accuracy, and the rates of its Stop role.

    python -m tools.seed_model.measure --model_name_or_path flow_dpo/data/seed/model

Invariants: neither pretraining nor the split "train" can contain the measured problems. An answer counts only if it is
on the last line and the end token follows ("Answer: 14", end). One figure: accuracy .567 greedy, .513 at T = 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from flow_dpo.core.types import Problem
from flow_dpo.data.seed import (
    MAX_CHUNKS,
    NUM_CHUNK_TOKENS,
    REOPEN_WORDS,
    STOP_CHOICES,
    STOP_PREFIX,
    STOP_SUFFIX,
    is_sound,
    seed_problems,
)
from flow_dpo.data.seed.family import DISTRACTORS, MISCONCEPTION_VERBS, iter_stories
from tools.seed_model.tokenizer import END_ID, PAD_ID

BATCH_SIZE = 125
Figures = dict[str, Any]


class Reader:
    """The model with its tokenizer: samples and scores in token ids. `temperature` 0 means greedy."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.end = END_ID
        self.choices = [tokenizer.convert_tokens_to_ids(word) for word in STOP_CHOICES]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def write(self, prompts: Sequence[list[int]], max_tokens: int, temperature: float) -> list[list[int]]:
        """Up to `max_tokens` tokens for each prompt, including the end token if it was reached."""
        written: list[list[int]] = []
        for ids, mask in self._batches(prompts):
            scaled = {"temperature": temperature, "top_k": 0} if temperature else {}
            with torch.inference_mode():
                output: Any = self.model.generate(  # pyright: ignore[reportCallIssue]
                    ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=temperature > 0, **scaled
                )
            for row in output[:, ids.shape[1] :].tolist():
                written.append(row[: row.index(self.end) + 1] if self.end in row else row)
        return written

    def yes_rates(self, questions: Sequence[str], candidates: Sequence[list[int]]) -> list[float]:
        """P(Yes) of Stop, renormalised over its two words."""
        suffix = self.encode(STOP_SUFFIX + "<end><assistant>")
        prompts = [
            self.encode("<user>" + STOP_PREFIX.format(question=question)) + candidate + suffix
            for question, candidate in zip(questions, candidates, strict=True)
        ]
        rates: list[float] = []
        for ids, mask in self._batches(prompts):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1
                ).logits[:, -1, self.choices]
            rates += logits.float().softmax(-1)[:, 0].tolist()
        return rates

    def _batches(self, prompts: Sequence[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batches = []
        for first in range(0, len(prompts), BATCH_SIZE):
            batch = prompts[first : first + BATCH_SIZE]
            length = max(len(prompt) for prompt in batch)
            ids = [[PAD_ID] * (length - len(prompt)) + prompt for prompt in batch]
            mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in batch]
            batches.append((torch.tensor(ids), torch.tensor(mask)))
        return batches


def read_answer(text: str, ended: bool) -> str | None:
    """The answer on the last line, if the end token follows it."""
    last = text.rpartition("\n")[2]
    return last.removeprefix("Answer: ") if ended and last.startswith("Answer: ") else None


def play_single(reader: Reader, problems: Sequence[Problem], temperature: float) -> list[list[int]]:
    """Direct inference: one solution per problem."""
    prompts = [reader.encode(f"<user>{problem.question}<end><assistant>") for problem in problems]
    return reader.write(prompts, NUM_CHUNK_TOKENS * MAX_CHUNKS, temperature)


def play_flow(reader: Reader, problems: Sequence[Problem], temperature: float, rng: Random) -> list[list[int]]:
    """The untrained Answer and Stop flow, in chunks, without alternatives."""
    candidates: list[list[int]] = [[] for _ in problems]
    unfinished = list(range(len(problems)))
    reopen = reader.encode(REOPEN_WORDS)
    for chunk in range(MAX_CHUNKS):
        for index in unfinished:
            if candidates[index][-1:] == [reader.end]:
                candidates[index] = candidates[index][:-1] + reopen
        prompts = [
            reader.encode(f"<user>{problems[index].question}<end><assistant>") + candidates[index]
            for index in unfinished
        ]
        for index, written in zip(unfinished, reader.write(prompts, NUM_CHUNK_TOKENS, temperature), strict=True):
            candidates[index] += written
        if chunk == MAX_CHUNKS - 1:
            break
        shown = [[token for token in candidates[index] if token != reader.end] for index in unfinished]
        rates = reader.yes_rates([problems[index].question for index in unfinished], shown)
        unfinished = [
            index
            for index, rate in zip(unfinished, rates, strict=True)
            if (rng.random() if temperature else 0.5) >= rate
        ]
        if not unfinished:
            break
    return candidates


def grade(reader: Reader, problems: Sequence[Problem], candidates: Sequence[list[int]]) -> list[bool]:
    return [
        read_answer(_text(reader, candidate), candidate[-1:] == [reader.end]) == problem.gold
        for problem, candidate in zip(problems, candidates, strict=True)
    ]


def _text(reader: Reader, candidate: list[int]) -> str:
    return str(reader.tokenizer.decode([token for token in candidate if token != reader.end]))


def _mean(values: Sequence[float | bool]) -> float:
    return round(sum(values) / len(values), 3) if values else float("nan")


def _area(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Area under the ROC curve: how often one of `higher` exceeds one of `lower`."""
    wins = (torch.tensor(higher)[:, None] > torch.tensor(lower)).double().mean()
    ties = (torch.tensor(higher)[:, None] == torch.tensor(lower)).double().mean()
    return round(float(wins + ties / 2), 3)


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, num: int, seed: int = 0) -> Figures:
    """All figures of the model card, on `num` problems of "test" (the flow: on half) and half as many of "hard"."""
    torch.manual_seed(seed)
    reader = Reader(model, tokenizer)
    test, hard = seed_problems("test", num), seed_problems("hard", num // 2)
    stories = list(islice(iter_stories("test"), num))
    figures: Figures = {"num_problems": num}
    for temperature in (0.0, 0.7, 1.0):
        name = f"T {temperature}" if temperature else "greedy"
        solutions = play_single(reader, test, temperature)
        verdicts = grade(reader, test, solutions)
        right = [(p, s) for p, s, verdict in zip(test, solutions, verdicts, strict=True) if verdict]
        groups = {kind: [p.subject == kind for p in test] for kind in ("total", "compare", "over", "boxes")}
        for verb in MISCONCEPTION_VERBS:
            groups[f"with {verb!r}"] = [any(step.verb == verb for step in story.steps) for story in stories]
        for verb in DISTRACTORS:
            groups[f"with the distractor {verb!r}"] = [
                story.distractor is not None and story.distractor.verb == verb for story in stories
            ]
        groups["with none of these"] = [
            not any(member[k] for name, member in groups.items() if name.startswith("with")) for k in range(len(test))
        ]
        groups |= {f"{level} steps": [p.level == level for p in test] for level in ("2", "3", "4")}
        figures[f"single {name}"] = {
            "all": _mean(verdicts),
            **{key: _mean([v for v, m in zip(verdicts, member, strict=True) if m]) for key, member in groups.items()},
            "unsound among right": _mean([not is_sound(p, _text(reader, s)) for p, s in right]),
        }
        verdicts = grade(reader, hard, play_single(reader, hard, temperature))
        figures[f"hard {name}"] = {
            "all": _mean(verdicts),
            **{
                f"{level} steps": _mean([v for v, p in zip(verdicts, hard, strict=True) if p.level == level])
                for level in ("5", "6")
            },
        }
        if temperature != 0.7:
            flow = play_flow(reader, test[: num // 2], temperature, Random(f"flow {seed}"))
            figures[f"flow {name}"] = {"all": _mean(grade(reader, test[: num // 2], flow))}
    figures["stop"] = measure_stop(reader, test, solutions)
    return figures


def measure_stop(reader: Reader, problems: Sequence[Problem], solutions: Sequence[list[int]]) -> Figures:
    """P(Yes) for the model's own solutions: right, wrong, and cut at each end of a chunk."""
    groups: dict[str, list[tuple[str, list[int]]]] = {"right": [], "wrong": [], "cut": []}
    for problem, solution, verdict in zip(problems, solutions, grade(reader, problems, solutions), strict=True):
        if solution[-1:] != [reader.end]:
            continue
        groups["right" if verdict else "wrong"].append((problem.question, solution[:-1]))
        for length in range(NUM_CHUNK_TOKENS, len(solution) - 1, NUM_CHUNK_TOKENS):
            groups["cut"].append((problem.question, solution[:length]))
    rates = {name: reader.yes_rates(*zip(*rows, strict=True)) for name, rows in groups.items()}  # type: ignore[arg-type]
    return {
        **{f"yes at {name}": _mean(values) for name, values in rates.items()},
        "area right over wrong": _area(rates["right"], rates["wrong"]),
        "area finished over cut": _area(rates["right"] + rates["wrong"], rates["cut"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the embedded seed before learning.")
    parser.add_argument("--model_name_or_path", type=Path, required=True)
    parser.add_argument("--num_problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.model_name_or_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    print(json.dumps(measure(model, tokenizer, arguments.num_problems, arguments.seed), indent=2))


if __name__ == "__main__":
    main()
