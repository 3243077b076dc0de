"""`flow-dpo prompt`: print each role's prompt for the first problem, as text and tokens, without loading weights.

    flow-dpo prompt --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name openai/gsm8k --dataset_config main
    flow-dpo prompt --run runs/train                with the settings of a run

Invariant: the prompt shown is the one that a rollout would use. Control tokens are shown in double brackets; text of
the data that merely spells one is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flow_dpo.core.errors import DataError, visible
from flow_dpo.runs.adapters import source_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.settings import sampling_sections

if TYPE_CHECKING:
    from flow_dpo.models.prompt_preview import PromptPreview
    from flow_dpo.models.render import Renderer

_WIDTH = 110


def parse_prompt(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo prompt`; those of `--run` or `--adapter` are the defaults."""
    what = "Print each role's prompt for the first problem, as text and tokens. Reads only config and tokenizer."
    return resolve("flow-dpo prompt", what, argv, _sections, brings=source_settings, doc=__doc__ or "")


def _sections(given: Given) -> Sections:
    return sampling_sections(given)


def prompt(argv: Sequence[str]) -> int:
    """`flow-dpo prompt`."""
    parsed, console = parse_prompt(argv), Console()
    from flow_dpo.data.problems import load
    from flow_dpo.models import load as models  # loads torch, once the arguments are parsed
    from flow_dpo.models.checkpoint import check_rows
    from flow_dpo.models.prompt_preview import preview

    data = parsed["data"]
    first = data.max_problems is None and data.shuffle_seed is None
    problems = load(replace(data, max_problems=1) if first else data).problems
    if not problems:
        raise DataError("expected at least one problem, found none; see --dataset_split and --skip_problems")
    config, renderer = models.load_renderer(parsed["model"])
    if rows := getattr(config.get_text_config(), "vocab_size", None):
        check_rows(renderer, rows, parsed["model"].model_name_or_path)
    ends = models.end_ids(renderer, models.load_generation_config(parsed["model"], config), parsed["model"])
    name = parsed["model"].model_name_or_path
    print_safe(
        console, f"Model     {name}, context window of {models.context_window(config, renderer.tokenizer)} tokens"
    )
    print_safe(console, f"Problem   {problems[0].id}")
    for line in _habits(renderer, sorted(ends)):
        print_safe(console, line)
    for one in preview(parsed["flow"], renderer, problems[0]):
        print_safe(console, "\n".join(_shown(one, renderer)))
    return 0


def _habits(renderer: Renderer, ends: Sequence[int]) -> Iterator[str]:
    """What the tokenizer and the chat template do at the beginning and the end of a prompt."""
    from flow_dpo.models.chat_template import added_in_front

    template = renderer.template
    system = "is put in front of the first question" if template.folds_system else "is a message of its own"
    clock = f"; the template reads the clock and gets {template.date}" if template.reads_clock else ""
    yield f"Template  a system message {system}{clock}"
    first = added_in_front(renderer.tokenizer)
    opening = template.apply([{"role": "user", "content": "USER"}])
    written = list(renderer.encoder.encode(opening, shown={}, after="nothing")[: len(first)]) == first
    by = "written by the template" if written else "NOT written by the template, so prompts lack it"
    yield f"Begins    {f'{_named(renderer, first)}, {by}' if first else 'the tokenizer adds no token in front'}"
    closing = _named(renderer, renderer.closing_ids(ends))
    yield f"Ends      {_named(renderer, ends)}; the template writes {closing} after an answer"
    if template.opens_thought:
        yield f"Thought   opened by the template ({template.opens_thought}); choices are read after an empty one"


def _shown(one: PromptPreview, renderer: Renderer) -> Iterator[str]:
    request = one.request
    what = "one of these" if request.choices else f"at most {request.max_tokens} more"
    yield f"\n{one.name}: {len(request.prompt_ids)} tokens, then {what}"
    yield from (f"    {line}" for line in one.text().split("\n"))
    if request.choices:
        yield f"  Choices {_named(renderer, request.choices)}"
    line = "  Tokens "
    for token in one.tokens:
        word = (
            f" \u27e6{token.text}\u27e7{token.id}" if token.kind == "control" else f" {_quoted(token.text)}{token.id}"
        )
        word += "*" * (token.kind == "sampled")
        if len(line) + len(word) > _WIDTH:
            yield line
            line = "         "
        line += word
    yield line


def _named(renderer: Renderer, ids: Sequence[int]) -> str:
    from flow_dpo.models.prompt_preview import token_text

    return " ".join(f"{_quoted(token_text(renderer, id))} ({id})" for id in ids) or "nothing"


def _quoted(text: str) -> str:
    """A token's text in quotes, with control characters, newlines and tabs as escapes."""
    return '"' + visible(text).replace("\n", "\\n").replace("\t", "\\t") + '"'
