"""Is a run resumed only where its first problems are still rendered to the same tokens?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import flow_dpo
from flow_dpo.cli import train as commands
from flow_dpo.core.errors import ConfigError
from flow_dpo.data.problems import load_problems
from flow_dpo.models.load import load_renderer
from flow_dpo.models.prompt_preview import first_difference, prompt_facts
from flow_dpo.models.render import Renderer
from flow_dpo.models.settings import ModelSettings
from flow_dpo.recipes.presets import preset
from flow_dpo.runs.resolve import read_settings

SEED = (
    "{% for m in messages %}{% if m['role'] != 'system' or m['content'] %}"
    "{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PINNED = "{{ strftime_now('%S%f') }}" + SEED
"""Of the moment at which it is rendered, as far as anybody can see."""
UNPINNED = "{% set form = '%f' %}{{ strftime_now(form) }}" + SEED


def train(folder: Path, *more: str) -> int:
    return commands.train(["--max_problems", "2", "--output_dir", str(folder), *more])


def test_the_clock_of_a_run_is_the_one_at_which_it_began(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "--chat_template", PINNED) == 0
    date = read_settings(run / "config.yaml")["model"]["template_date"]
    assert date
    before = (run / "trees.jsonl").read_bytes()
    (run / "trees.jsonl").write_bytes(before + b'{"torn": ')
    # By the command line the settings are the run's own; in Python they are given again.
    assert commands.train(["--output_dir", str(run), "--resume"]) == 0
    assert (run / "trees.jsonl").read_bytes() == before
    flow_dpo.train(max_problems=2, output_dir=run, settings={"chat_template": PINNED}, resume=True, quiet=True)
    assert read_settings(run / "config.yaml")["model"]["template_date"] == date


def test_prompts_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "--recipe", "flow-dpo-paper", "--chat_template", UNPINNED) == 0
    facts = json.loads((run / "run.json").read_text())
    [first, second] = facts["prompts"].values()
    assert set(first) == set(second) == {"answer", "answer (2)", "stop", "stop (2)"}
    assert first["stop"]["text"].endswith("\u27e6<end>\u27e7\u27e6<assistant>\u27e7")
    assert len(first["stop"]["sha256"]) == 64
    with pytest.raises(ConfigError, match=r"--allow prompts\n  prompts: answer of seed/train/0: .* then, answer of"):
        train(run, "--resume")
    assert train(run, "--resume", "--allow", "prompts") == 0
    # Where a template is itself another one, that is what is told.
    with pytest.raises(ConfigError, match=r"--allow model\.chat_template\n"):
        train(run, "--resume", "--chat_template", SEED)


def test_prompts_are_told_apart_by_tokens_and_place() -> None:
    _, renderer = load_renderer(ModelSettings())
    flow, problems = preset("flow-dpo", "seed").recipe.flow, load_problems("seed", max_problems=3).problems
    facts = prompt_facts(flow, renderer, problems)
    assert list(facts) == [problem.id for problem in problems[:2]]
    other = Renderer(renderer.tokenizer, chat_template=SEED.replace("<end>", "<end> "))
    now = prompt_facts(flow, other, problems)
    before, after = first_difference(facts, now)
    assert before.startswith("answer of seed/train/0: '")
    assert "\u27e6<end>\u27e7\u27e6<assistant>" in before
    assert "\u27e6<end>\u27e7 \u27e6<assistant>" in after
    assert prompt_facts(flow, Renderer(renderer.tokenizer, chat_template=SEED), problems) == facts
    assert first_difference(facts, facts) == ("", "")
