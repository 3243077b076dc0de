"""`flow-dpo judge`: which of two sets of traces reasons better, according to a judge that reads them blind.

    flow-dpo judge --traces_a runs/flow --traces_b runs/self --model_name_or_path Qwen/Qwen2.5-7B-Instruct
    flow-dpo judge --traces_a runs/flow --traces_b runs/self --base_url http://127.0.0.1:8000/v1 --served_model NAME

writes a folder: judgements.jsonl (one row per problem and order, with the judge's own text), judge.json (the question
and the judge) and summary.json. Invariants: an answer in judgements.jsonl is never requested again. A folder holds the
judgements of one question: other traces, other prompts or another judge are refused by name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError, EngineError, StorageError
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.evaluate.headers import JudgeHeader, JudgeSummary
from flow_dpo.evaluate.judge.protocol import (
    Judge,
    JudgePrompts,
    JudgeQuestion,
    JudgeReply,
    JudgeSettings,
    TracePair,
    pairs_of,
    questions,
    row,
)
from flow_dpo.evaluate.judge.results import ROWS, Key, read_judgements, summarise
from flow_dpo.models.chat_client import ChatEndpoint, EndpointSettings
from flow_dpo.models.settings import ModelSettings
from flow_dpo.runs import headers, run_folder
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.live import Live
from flow_dpo.runs.records import Judgement, append_rows
from flow_dpo.runs.resolve import command_line, resolve
from flow_dpo.traces.trace import TraceFile, read_traces

log = logging.getLogger("flow_dpo")

HEADER = "judge.json"
SUMMARY = "summary.json"
_OFTEN = 0.2
"""The share of unparsed pairs from which the user is warned."""
_QUESTION_SECTIONS = ("judge", "prompts")
"""Sections whose settings decide the prompts, for every judge."""
_MODEL_SETTINGS = (
    "model_name_or_path", "model_revision", "dtype", "chat_template", "template_kwargs", "template_date",
    "end_tokens",
)  # fmt: skip
"""Model settings that can change the judge's text; device and threads change only its speed."""


def parse_judge(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo judge`. Raises `ConfigError` if they do not fit together."""
    sections = {
        "judge": JudgeSettings(),
        "prompts": JudgePrompts(),
        "endpoint": EndpointSettings(),
        "model": ModelSettings(),
        "engine": LocalSettings(),
    }
    what = "Compare two sets of traces, problem by problem, with a judge that reads them blind and in both orders."
    parsed = resolve("flow-dpo judge", what, argv, sections, doc=__doc__ or "")
    settings: JudgeSettings = parsed["judge"]
    endpoint: EndpointSettings = parsed["endpoint"]
    for name in ("traces_a", "traces_b"):
        if not getattr(settings, name):
            raise ConfigError(f"expected two folders of traces, found no --{name}; make them with flow-dpo generate")
    if not endpoint.base_url:
        if endpoint.served_model:
            raise ConfigError(f"expected --base_url with --served_model {endpoint.served_model}, found none")
        if parsed["model"].model_name_or_path == "seed":
            raise ConfigError(
                "expected a judge, found none: name a model with --model_name_or_path, or an OpenAI-compatible address "
                "with --base_url (the embedded seed model can read only its own problems)"
            )
    elif parsed["model"] != ModelSettings():
        raise ConfigError("expected one judge, found both a --base_url and settings of a local model; choose one")
    elif settings.verdict_format == "choices":
        raise ConfigError(
            "--verdict_format choices reads log-odds and needs a model in this process (--model_name_or_path); leave "
            "it out with --base_url"
        )
    return parsed


def judge(argv: Sequence[str]) -> int:
    """`flow-dpo judge`."""
    parsed = parse_judge(argv)
    settings: JudgeSettings = parsed["judge"]
    sides = (read_traces(Path(settings.traces_a)), read_traces(Path(settings.traces_b)))
    pairs = pairs_of(*sides, settings)
    path, console = Path(settings.output_dir), Console()
    with run_folder.locked(path), Live(console) as live:
        header = _header(path, parsed, sides, pairs)
        requests = questions(pairs)
        known = read_judgements(path / ROWS, requests)
        left = [one for one in requests if one.key not in known]
        print_safe(
            console, f"{len(pairs)} pairs, {len(requests)} questions, {len(left)} of them unanswered; writing to {path}"
        )
        if left:
            live.doing(f"reaching the judge {parsed['endpoint'].base_url or parsed['model'].model_name_or_path}")
            with judging(parsed) as (name, who):
                _same_judge(path, header, name)
                live.doing(f"asking {name}")
                live.begin(len(requests), "answers", len(known))
                try:
                    who.ask_all(left, _Keeper(path / ROWS, known, live))
                except KeyboardInterrupt:
                    print_safe(console, f"{len(known)} answers are kept in {path}; repeat the command to continue")
                    raise
        _write_header(path / HEADER, header)
        found = summarise(pairs, known)
        headers.write_header(path / SUMMARY, JudgeSummary, _described(found, sides, header))
    print_safe(console, summary_text(found))
    print_safe(console, f"Written to {path}")
    check_parsed(found, settings)
    return 0


class _Keeper:
    """Writes each answer to the file as it arrives."""

    def __init__(self, file: Path, known: dict[Key, Judgement], live: Live) -> None:
        self._file, self._known, self._live = file, known, live

    def __call__(self, question: JudgeQuestion, reply: JudgeReply, /) -> None:
        made = row(question, reply)
        try:
            append_rows(self._file, [made])
        except OSError as error:
            raise StorageError(
                f"could not write to {self._file}: {error}; earlier answers are kept: free some space and repeat the "
                "command"
            ) from error
        self._known[question.key] = made
        self._live.advance(len(self._known))


@contextmanager
def judging(parsed: Mapping[str, Any]) -> Iterator[tuple[str, Judge]]:
    """The name of the judge and the judge itself. Raises if it cannot be reached or loaded."""
    from flow_dpo.engines.factory import local_window, open_base  # loads torch, once the arguments are parsed
    from flow_dpo.evaluate.judge.backends import EndpointJudge, LocalJudge
    from flow_dpo.models.load import load_model

    settings, prompts = parsed["judge"], parsed["prompts"]
    endpoint: EndpointSettings = parsed["endpoint"]
    if endpoint.base_url:
        address = ChatEndpoint(endpoint, api_key=os.environ.get("OPENAI_API_KEY", ""))
        address.check()
        yield (
            f"{address.model} at {endpoint.base_url}",
            EndpointJudge(address, prompts=prompts, settings=settings, concurrency=endpoint.concurrency),
        )
        return
    loaded = load_model(parsed["model"])
    with open_base(parsed["engine"], loaded) as engine:
        yield (
            loaded.name,
            LocalJudge(
                engine, loaded.renderer, prompts=prompts, settings=settings, context_tokens=local_window(loaded)
            ),
        )


def _header(
    path: Path, parsed: Mapping[str, Any], sides: Sequence[TraceFile], pairs: Sequence[TracePair]
) -> dict[str, Any]:
    """The folder's header: the existing one if it asks the same question of no more pairs than now (a larger draw
    contains the smaller one), otherwise a new one, not yet written.

    Raises `ConfigError` if the folder holds something else, `DataError` if its header is broken.
    """
    endpoint: EndpointSettings = parsed["endpoint"]
    of_judge = {"base_url": endpoint.base_url, "served_model": endpoint.served_model, "body": endpoint.body}
    question = {name: run_folder.plain(parsed[name]) for name in _QUESTION_SECTIONS}
    for name in ("output_dir", "traces_a", "traces_b"):
        del question["judge"][name]  # what matters is the traces' content, not their path
    of_model = {name: getattr(parsed["model"], name) for name in _MODEL_SETTINGS}
    of_model |= {"int8": True} if parsed["engine"].int8 else {}
    question |= {"endpoint": of_judge} if endpoint.base_url else {"model": run_folder.plain(of_model)}
    for name, side in zip(("traces_a", "traces_b"), sides, strict=True):
        question[name] = hashlib.sha256(side.path.read_bytes()).hexdigest()
    file = path / HEADER
    if file.exists():
        known = headers.read_header(file, JudgeHeader)
        differing = run_folder.differences(known["question"], json.loads(json.dumps(question)))
        if "judge.max_pairs" in differing and len(pairs) >= known["num_pairs"]:
            known |= {"question": question, "num_pairs": len(pairs), "command": command_line()}
            del differing["judge.max_pairs"]
        if differing:
            shown = "; ".join(f"{name} was {old!r:.60}, is {new!r:.60}" for name, (old, new) in differing.items())
            raise ConfigError(
                f"output_dir {path} holds judgements with other settings ({shown}); name another with --output_dir"
            )
        return known
    if (path / ROWS).exists():
        raise ConfigError(f"output_dir {path} holds {ROWS} without {HEADER}; name another with --output_dir")
    return {
        "question": question,
        "traces": [{"path": str(side.path), "source": side.header.get("source")} for side in sides],
        "num_traces": [len(side.traces) for side in sides],
        "num_pairs": len(pairs),
        "command": command_line(),
        **run_folder.environment(),
    }


def _same_judge(path: Path, header: dict[str, Any], name: str) -> None:
    """Record the judge's name in the header. Raises `ConfigError` if the folder has another judge's answers."""
    if header.setdefault("judge", name) != name:
        raise ConfigError(
            f"output_dir {path} holds judgements by {header['judge']}, found {name}; name another with --output_dir"
        )
    _write_header(path / HEADER, header)


def _write_header(file: Path, header: Mapping[str, Any]) -> None:
    headers.write_header(file, JudgeHeader, header)


def _described(found: Mapping[str, Any], sides: Sequence[TraceFile], header: Mapping[str, Any]) -> dict[str, Any]:
    """The content of summary.json: the judge and the sides, then the numbers."""
    named = zip(("a", "b"), sides, strict=True)
    compared = {
        name: {"path": str(side.path), "source": side.header.get("source"), "num_traces": len(side.traces)}
        for name, side in named
    }
    return {
        "judge": header.get("judge"),
        "verdict_format": header["question"]["judge"]["verdict_format"],
        **compared,
        **found,
    }


def summary_text(found: Mapping[str, Any]) -> str:
    """The findings in two or three lines."""
    pairs, win, decided = found["pairs"], found["win_rate"], found["decided"]
    lines = [f"a wins {pairs['a']}, b wins {pairs['b']}, ties {pairs['tie']}, unparsed {pairs['unparsed']}"]
    if win["rate"] is not None:
        low, high = win["interval"]
        lines[0] += f": a's win rate {100 * win['rate']:.1f} % ({100 * low:.1f} to {100 * high:.1f}), ties count half"
        if decided["p"] is not None:
            share = f"{100 * decided['rate']:.1f} %, sign test p {decided['p']:.3g}"
            lines.append(f"Of {decided['num']} decided pairs, a wins {share}")
    agreed, place = found["agreement"], found["position"]
    if agreed["num"]:
        kappa = "undefined" if agreed["kappa"] is None else f"{agreed['kappa']:.2f}"
        line = f"The two orders agree on {100 * agreed['rate']:.1f} % (kappa {kappa})"
        if place["first_rate"] is not None:
            line += f"; the first solution wins {100 * place['first_rate']:.1f} % of {place['num_picks']} picks"
        lines.append(line)
    return "\n".join(lines)


def check_parsed(found: Mapping[str, Any], settings: JudgeSettings) -> None:
    """Raise `EngineError` if no pair shown to the judge has a verdict in both orders; warn if many lack one."""
    num_unparsed = found["pairs"]["unparsed"]
    num_judged = found["num_pairs"] - found["ties"]["identical"]
    if not num_unparsed:
        return
    reasons = ", ".join(f"{name}: {count}" for name, count in found["unparsed"].items())
    todo = (
        "use --verdict_format choices for a small model, a larger --max_tokens if it was cut off, a shorter "
        "--prompts.user or a model with a larger context window if a pair was too long, or another judge; with "
        "another --output_dir"
    )
    what = f"{num_unparsed} of {num_judged} pairs have no verdict in both orders ({reasons})"
    if num_unparsed == num_judged:
        raise EngineError(f"expected verdicts, but {what}; its text is in {settings.output_dir}/{ROWS}; {todo}")
    if num_unparsed >= _OFTEN * num_judged:
        log.warning("%s and count in no rate; %s", what, todo)
