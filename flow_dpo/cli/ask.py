"""`flow-dpo ask`: answer a question of your own with a trained flow, shown turn by turn.

    flow-dpo ask runs/quickstart "Mia has 4 shells. She finds 3 shells. How many shells does Mia have now?"
    flow-dpo ask Qwen/Qwen2.5-0.5B-Instruct "What is 12 times 7?"        the untrained flow on a base model
    flow-dpo ask runs/quickstart - < questions.txt                       one question per line; --json for programs
    flow-dpo ask runs/quickstart                                         prompts for questions until an empty line

Invariant: nothing is graded and no file is written. Control characters in a model's text are shown as escapes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flow_dpo.cli.loading import loading
from flow_dpo.core.errors import ConfigError, FlowDpoError, visible
from flow_dpo.data.problems import DataSettings
from flow_dpo.evaluate.asked import AskSettings
from flow_dpo.runs.adapters import source_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.live import Live
from flow_dpo.runs.published import names_a_run, near_runs
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.settings import sampling_sections
from flow_dpo.workers.settings import WorkersSettings

if TYPE_CHECKING:
    from flow_dpo.core.types import Problem
    from flow_dpo.evaluate.ask import Asking
    from flow_dpo.evaluate.asked import Answered, AskedTurn

_WHAT = "Answer a question with a trained flow (RUN), or with the untrained flow on a model (its name or folder)."


@dataclass(frozen=True, kw_only=True)
class ShownSettings:
    """Where questions come from, and how answers are printed."""

    questions: str = ""
    """A file of questions, one per line."""
    json: bool = False
    """Print one line of JSON per question, with every turn, instead of text for people."""


def parse_ask(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo ask`, including the source however it was given. "questions" holds the arguments."""
    words = [_alone(word, argv[at + 1 : at + 2]) for at, word in enumerate(argv)]
    given = Given.read(words)
    named = any(given.find(name)[0] for name in ("speaking.run", "speaking.adapter", "model.model_name_or_path"))
    if given.others and not named:
        words.append(_source_flag(given.others[0]))
    elif not named and "help" not in given.layers[-1][1]:
        raise ConfigError('expected a run folder or a model, found none: flow-dpo ask RUN "question"')
    others = 'RUN ["QUESTION" ...]'
    parsed = resolve("flow-dpo ask", _WHAT, words, _sections, brings=_brought, others=others, doc=__doc__ or "")
    return parsed | {"questions": list(parsed.pop(others)[0 if named else 1 :])}


def _brought(given: Given) -> tuple[dict[str, Any], str]:
    """The settings that the source brings along, without those of its data: a question has no columns."""
    found, origin = source_settings(given)
    return {name: value for name, value in found.items() if name != "data"}, origin


def _alone(word: str, after: Sequence[str]) -> str:
    """`--json` as a switch: it can precede an argument that is not its value."""
    return "--json=true" if word == "--json" and after not in (["true"], ["false"]) else word


def _source_flag(source: str) -> str:
    """The flag that the first argument stands for: a run (in a folder or on the hub), an adapter, or a model."""
    folder = Path(source)
    if (folder / "adapter_config.json").exists():
        return f"--speaking.adapter={source}"
    if not folder.exists() and (source.startswith((".", "/", "runs/")) or " " in source or source == "-"):
        raise ConfigError(
            f'expected a run folder or a model, found {source!r}{near_runs(folder)}: flow-dpo ask RUN "question"'
        )
    if names_a_run(source):
        return f"--speaking.run={source}"
    return f"--model.model_name_or_path={source}"


def _sections(given: Given) -> Sections:
    sampled = {name: value for name, value in sampling_sections(given).items() if name not in ("data", "workers")}
    return sampled | {"ask": AskSettings(), "shown": ShownSettings()}


def ask(argv: Sequence[str]) -> int:
    """`flow-dpo ask`."""
    parsed = parse_ask(argv)
    shown: ShownSettings = parsed["shown"]
    console, asked = Console(), _questions(parsed["questions"], shown.questions)
    first = next(asked, None)
    if first is None:
        return 0
    with loading():
        from flow_dpo.evaluate.ask import asked_problem, open_to_ask  # loads torch, once there is a question

    with ExitStack() as stack:
        sections = {**parsed, "data": DataSettings(), "workers": WorkersSettings()}
        with Live(Console(stderr=True)) as live:
            opened = open_to_ask(sections, parsed["speaking"], [asked_problem(first)], doing=live.doing)
            asking = stack.enter_context(opened)
        status = 0
        for question in chain([first], asked):
            try:
                _show(asking, asked_problem(question), console, as_json=shown.json)
            except FlowDpoError as error:  # for example a question that is too long; the next can still fit
                print(f"flow-dpo: {visible(str(error))}", file=sys.stderr)
                status = 1
    return status


def _show(asking: Asking, problem: Problem, console: Console, *, as_json: bool) -> None:
    """Ask, and print every turn as it comes, or print one line of JSON."""
    if as_json:
        print(json.dumps(asdict(asking(problem)), ensure_ascii=True), flush=True)
        return
    print_safe(console, f"\nQuestion  {problem.question}")
    last = [0]

    def tell(turn: AskedTurn) -> None:
        if turn.attempt != last[0]:
            print_safe(console, f"\nAttempt {turn.attempt}")
        last[0] = turn.attempt
        print_safe(console, _turn_lines(turn))

    print_safe(console, _answer_lines(asking(problem, tell)))


def _questions(arguments: Sequence[str], file: str) -> Iterator[str]:
    """Questions from the arguments ("-" reads them from standard input, one per line), the file, or the keyboard."""
    for argument in arguments:
        if argument == "-":
            yield from (line for line in sys.stdin if line.strip())
        else:
            yield argument
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"could not read the questions in {file}: {error}") from error
        yield from (line for line in text.splitlines() if line.strip())
    if arguments or file:
        return
    if not sys.stdin.isatty():
        raise ConfigError('expected a question, found none: flow-dpo ask RUN "question", or - for standard input')
    while True:
        try:
            line = input("\nQuestion (empty to end): ")
        except EOFError:
            return
        if not line.strip():
            return
        yield line


_INDENT = 10


def _turn_lines(turn: AskedTurn) -> str:
    """A role's name, then what it wrote, or its choice with the probabilities."""
    label = visible(turn.role)
    if not turn.choices:
        body = turn.text.strip("\n") or "(end of turn)"
    else:
        most = sorted(turn.choices.items(), key=lambda item: -item[1])[:4]
        odds = most if len(turn.choices) > 2 else turn.choices.items()
        shown = ", ".join(f"P({word}) {chance:.2f}" for word, chance in odds)
        body = f"{turn.text}   {shown}"
        if turn.right is not None and abs(turn.right - next(iter(turn.choices.values()))) > 0.005:
            body += f", P(right) {turn.right:.2f}"
        if turn.threshold is not None:
            body += f"; accepted above {turn.threshold:.2f}"
    return f"{label:<{_INDENT}}" + body.replace("\n", "\n" + " " * _INDENT)


def _answer_lines(found: Answered) -> str:
    """The final answer, and where it comes from."""
    cut = "" if found.ended else "; the solution was cut off before its end"
    of = f"attempt {found.attempt} of {found.num_attempts}: " if found.num_attempts > 1 else ""
    lines = [
        f"Answer    {'none' if found.answer is None else found.answer}",
        f"          {of}{found.why}{cut}; {found.tokens} tokens",
    ]
    return "\n" + "\n".join(lines)
