"""Are settings given as people expect, and is every other name refused before anything loads?"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flow_dpo.cli import compare
from flow_dpo.cli.train import parse_train
from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.settings import KINDS, LocalSettings, VllmServerSettings
from flow_dpo.learner.settings import RoleSettings
from flow_dpo.recipes.presets import PRESET_NAMES
from flow_dpo.runs.resolve import Given, resolve
from flow_dpo.runs.run_folder import plain
from flow_dpo.runs.settings import TrainSettings, default_settings, named_settings


def parse(*argv: str) -> TrainSettings:
    return parse_train("flow-dpo train", argv, {})


def test_short_names_reach_nested_fields() -> None:
    settings = parse("--beta", "0.5", "--max_problems=7", "--temperature", "0.7", "--lora_r", "4", "--seed", "3",
                     "--dataset_split", "hard", "--output_dir", "x", "--explore.num_alternatives", "2")  # fmt: skip
    assert settings.recipe.objective.beta == 0.5
    assert settings.runtime.data.max_problems == 7
    assert settings.runtime.data.dataset_split == "hard"
    assert settings.recipe.explore.temperature == 0.7
    assert settings.recipe.explore.num_alternatives == 2
    assert settings.runtime.lora.lora_r == 4
    assert settings.run.seed == 3
    assert settings.run.output_dir == "x"


def test_nested_names_and_prompts() -> None:
    settings = parse("--flow.prompts.yes", "Right", "--flow.prompts.examples", '[{"question": "q", "solution": "s"}]')
    assert settings.recipe.flow.prompts.yes == "Right"
    assert settings.recipe.flow.prompts.examples[0].solution == "s"


@pytest.mark.parametrize(
    "text", ["{question} \U0001f916", "{question} \\ud83d\\ude00", "{question} \x80\\\u00e9", "{question}\u2028"]
)
def test_any_text_of_a_file_arrives(tmp_path: Path, text: str) -> None:
    """Beyond 16 bits, escaped twice, and what YAML holds for unprintable."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"recipe": "flow-dpo-paper", "flow": {"prompts": {"answer_user": text}}}))
    flow: Any = parse_train("flow-dpo train", ["--config", str(path)], {}).recipe.flow
    assert flow.prompts.answer_user == text


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--betta", "1"], "--beta"),
        (["--explore.num_alternative", "2"], "--explore.num_alternatives"),
        (["--explore.alternatives", "2"], "--explore"),
        (["--model_name", "x"], "--model_name_or_path"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(words: list[str], near: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        parse(*words)
    assert near in str(caught.value)


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_refused_end"):
        parse("--recipe", "flow-dpo-paper", "--on_refused_end", "maybe")
    with pytest.raises(ConfigError, match="chunk_tokens"):
        parse("--chunk_tokens", "many")


def test_a_file_overrides_the_preset_and_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("objective: {beta: 0.2}\nflow: {chunk_tokens: 9}\nmax_problems: 5\nlora_r: 2\n")
    settings = parse("--config", str(file), "--chunk_tokens", "11")
    assert settings.recipe.objective.beta == 0.2
    assert settings.recipe.flow.chunk_tokens == 11
    assert settings.runtime.data.max_problems == 5
    assert settings.runtime.lora.lora_r == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flow: {chunk_token: 9}\n", "flow.chunk_token.*flow.chunk_tokens"),
        ("bogus: 1\n", "unknown setting bogus"),
        ("- 1\n", "names and values"),
        ("a: [\n", "expected YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse("--config", str(file))
    with pytest.raises(ConfigError, match="could not read"):
        parse("--config", str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize("recipe", ["flow-dpo", "flow-dpo-paper"])
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_every_preset_round_trips_through_its_file(tmp_path: Path, preset: str, recipe: str) -> None:
    settings = default_settings(recipe, preset)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(settings.sections())))
    assert parse("--config", str(file), "--preset", preset) == settings
    if (recipe, preset) == ("flow-dpo", "paper"):
        return  # of another flow than its other presets
    # And over another preset, so that the file is seen to carry every value.
    other = "chat" if recipe == "flow-dpo" else "paper"
    other = other if preset != other else "seed"
    assert parse("--config", str(file), "--preset", other) == replace(settings, preset=other)


def test_the_paper_preset_has_the_papers_values() -> None:
    """arXiv 2410.22304, table of hyper-parameters and section 3.1."""
    settings = parse("--preset", "paper")
    assert settings.recipe.flow.chunk_tokens == 160
    assert settings.recipe.flow.max_chunks == 6
    assert settings.recipe.explore.num_alternatives == 1
    assert settings.recipe.objective.beta == 1.0
    assert settings.learner.learning_rate == 5e-6
    assert settings.learner.examples_per_update == 32
    assert settings.learner.max_grad_norm == 1.0
    assert (settings.runtime.lora.lora_r, settings.runtime.lora.lora_alpha, settings.runtime.lora.lora_dropout) == (
        8,
        8,
        0.05,
    )
    assert settings.runtime.lora.lora_target_modules == "all-linear"


def test_unknown_presets_and_recipes_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'papper'"):
        parse("--preset", "papper")
    with pytest.raises(ConfigError, match="unknown recipe"):
        parse("--recipe", "grpoo")


def test_the_embedded_model_brings_its_preset() -> None:
    assert parse().recipe.flow.chunk_tokens == 16
    assert parse("--model_name_or_path", "some/model").recipe.flow.chunk_tokens == 160


def test_an_engine_is_chosen_by_its_name_and_has_its_own_settings(tmp_path: Path) -> None:
    assert parse().runtime.engine == LocalSettings()
    given = parse("--engine", "vllm_server", "--base_url", "http://h:8000", "--engine.concurrency", "7")
    assert given.runtime.engine == VllmServerSettings(base_url="http://h:8000", concurrency=7)
    assert parse("--engine=vllm_server").names()["engine_kind"] == "vllm_server"
    file = tmp_path / "given.yaml"
    file.write_text("engine: vllm_server\nbase_url: http://h:8000\n")
    assert parse("--config", str(file)).runtime.engine == VllmServerSettings(base_url="http://h:8000")
    file.write_text(yaml.safe_dump(plain(given.sections())))
    assert parse("--config", str(file)) == given
    with pytest.raises(ConfigError, match=r"unknown engine 'vlm'; there are local, plain, vllm, vllm_server"):
        parse("--engine", "vlm")
    with pytest.raises(ConfigError, match="unknown setting --base_url"):
        parse("--base_url", "http://h:8000")
    with pytest.raises(ConfigError, match=r"unknown setting --engine\.reuse"):
        parse("--engine", "vllm_server", "--engine.reuse", "false")


def test_another_engine_leaves_the_settings_of_the_first_behind() -> None:
    """A run that was trained behind a server is evaluated in this process, and the other way round."""
    trained = plain(parse("--engine", "vllm_server", "--top_logprobs", "9").sections())

    def over(base: dict[str, Any], *argv: str) -> TrainSettings:
        sections = resolve("t", "t", argv, lambda given: named_settings(given).sections(), brings=lambda _: (base, "x"))
        return TrainSettings.from_sections(sections)

    assert over(trained).runtime.engine == VllmServerSettings(top_logprobs=9)
    assert over(trained, "--engine", "local").runtime.engine == LocalSettings()
    assert over(trained, "--engine", "local").names()["engine_kind"] == "local"
    older = {
        name: value for name, value in plain(parse("--reuse", "false").sections()).items() if name != "engine_kind"
    }
    assert over(older).runtime.engine == LocalSettings(reuse=False)
    assert over(older, "--engine=vllm_server").runtime.engine == VllmServerSettings()


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("flw: {chunk_tokens: 9}", "flow"),
        ("flow: {prompts: {anwser_user: x}}", "flow.prompts.answer_user"),
        ("learner: {reference: {kid: base}}", "learner.reference.kind"),
        ("learner: {rates: {warmup_updates: 3}}", "learner.warmup_updates"),
        ("grading: {rule: {wich: anywhere}}", "grading.rule.which"),
        ("run.window_: 3", "run.window"),
        ("presett: paper", "preset"),
        ("preset: papper", "paper"),
        ("recipe: grpoo", "grpo"),
        ("engine: vllm_serve", "vllm_server"),
    ],
)
def test_a_misspelled_name_in_a_file_is_refused_with_the_nearest(tmp_path: Path, text: str, near: str) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"given\.yaml") as caught:
        parse("--config", str(file))
    assert near in str(caught.value)


def test_whatever_chooses_defaults_is_found_wherever_it_is_said(tmp_path: Path) -> None:
    """In full or by its last part, in a file or by a flag: the preset goes by the model, and flags by no place."""
    file = tmp_path / "given.yaml"
    for text in ("model_name_or_path: some/model", "model: {model_name_or_path: some/model}",
                 "model.model_name_or_path: some/model"):  # fmt: skip
        file.write_text(text)
        assert parse("--config", str(file)).preset == "chat"
        assert parse("--model_name_or_path", "seed", "--config", str(file)).preset == "seed"
    file.write_text("preset: paper\nbeta: 0.2\n")
    found = parse("--beta", "0.7", "--preset=small", "--config", str(file))
    assert (found.preset, found.recipe.objective.beta) == ("small", 0.7)
    (tmp_path / "more.yaml").write_text("preset: chat\n")
    assert parse("--config", str(file), "--config", str(tmp_path / "more.yaml")).preset == "chat"


def test_a_recipe_of_a_file_is_asked_for_and_never_brought_along() -> None:
    brought = {"recipe": "mine.py:MINE"}
    with pytest.raises(ConfigError, match=r"x/config.yaml asks for recipe = 'mine.py:MINE', which runs code"):
        Given.read([]).over(brought, "x/config.yaml").refuse_unasked()
    with pytest.raises(ConfigError, match="asks for flow_source"):
        Given.read(["--recipe", "grpo"]).over({"flow": "mine.py:Mine"}, "x/config.yaml").refuse_unasked()
    for name, value, others in (
        ("explore_source", "mine.py:Mine", {"explore": "mine.py:Mine"}),
        ("grading.grader", "mine", {"grading": {"grader": "mine"}}),
        ("data.schema", "mine", {"data": {"schema": "mine"}}),
    ):
        with pytest.raises(ConfigError, match=rf"asks for {name} = '{value}', which runs code .* add --{name} {value}"):
            Given.read([]).over(others, "x/config.yaml").refuse_unasked()
        Given.read([f"--{name.rpartition('.')[2]}", value]).over(others, "x/config.yaml").refuse_unasked()
    Given.read([]).over({"grading": {"grader": ""}, "data": {"schema": ""}}, "x/config.yaml").refuse_unasked()
    Given.read(["--recipe", "mine.py:MINE"]).over(brought, "x/config.yaml").refuse_unasked()
    Given.read([]).over({"recipe": "grpo"}, "x/config.yaml").refuse_unasked()


def test_dataclasses_stay_small() -> None:
    settings = [
        *(default_settings("flow-dpo", "paper", engine=kind).sections() for kind in KINDS),
        *(default_settings("flow-dpo", preset).sections() for preset in ("paper", "seed")),
        compare.sections(default_settings("flow-dpo", "paper")),
    ]

    def check(name: str, part: Any) -> None:
        if is_dataclass(part):
            assert len(fields(part)) <= 12, f"{name} has more than twelve settings"
            for field in fields(part):
                check(f"{name}.{field.name}", getattr(part, field.name))

    for sections in settings:
        for name, part in sections.items():
            check(name, part)


def test_null_is_a_value_only_where_there_may_be_none(tmp_path: Path) -> None:
    """Of every setting there is, by file and by flag: kept where its type says so, refused by name elsewhere."""
    kept: list[str] = []
    for name in leaves(default_settings("flow-dpo", "seed").sections()):
        file = tmp_path / "given.yaml"
        *groups, last = name.split(".")
        given: Any = {last: None}
        for group in reversed(groups):
            given = {group: given}
        file.write_text(yaml.safe_dump(given))
        if "None" in str(_field_type(name)):
            parse("--config", str(file))
            kept.append(name)
        else:
            with pytest.raises(ConfigError, match=rf"expected a value for {name} in .*given\.yaml, found null"):
                parse("--config", str(file))
    assert "data.max_problems" in kept
    with pytest.raises(ConfigError, match="expected a number for --learning_rate, found 'null'"):
        parse("--learning_rate", "null")
    for inner, name in [
        ("recipe: flow-dpo-paper\ncredit: {tag_weights: {finished: null}}", "credit.tag_weights"),
        ("learner: {roles: {stop: null}}", "learner.roles.stop"),
        ("learner: {roles: {stop: {window: null}}}", "learner.roles.stop.window"),
    ]:
        (tmp_path / "inner.yaml").write_text(inner)
        with pytest.raises(ConfigError, match=rf"expected a value for {name} in"):
            parse("--config", str(tmp_path / "inner.yaml"))
    (tmp_path / "inner.yaml").write_text("learner: {roles: {stop: {learning_rate: null}}}")
    assert parse("--config", str(tmp_path / "inner.yaml")).learner.roles["stop"].learning_rate is None


def leaves(sections: dict[str, Any]) -> list[str]:
    """The dotted names of all settings below the sections."""
    found: list[str] = []
    for name, value in sections.items():
        if is_dataclass(value):
            inner = {f"{name}.{field.name}": getattr(value, field.name) for field in fields(value)}
            found += [each for each, item in inner.items() if not is_dataclass(item)] + leaves(inner)
    return found


def _field_type(name: str) -> Any:
    part: Any = default_settings("flow-dpo", "seed").sections()[name.split(".")[0]]
    *groups, last = name.split(".")[1:]
    for group in groups:
        part = getattr(part, group)
    return {field.name: field.type for field in fields(part)}[last]


def test_what_one_role_has_of_its_own_is_set_piece_by_piece(tmp_path: Path) -> None:
    """Over a preset's mapping: by flags over a file over what the preset says, and no short name is lost by it."""
    sections = default_settings("flow-dpo", "seed").sections()
    stop = RoleSettings(learning_rate=1e-3, examples_per_update=64, window=2048)
    sections["learner"] = replace(sections["learner"], roles={"stop": stop})
    (tmp_path / "roles.yaml").write_text("learner: {roles: {stop: {window: 99, learning_rate: null}}}")
    words = ["--config", str(tmp_path / "roles.yaml"), "--learner.roles.stop.examples_per_update", "32",
             "--learner.roles.answer.constant_rate", "--learning_rate", "5e-3"]  # fmt: skip
    learner = resolve("x", "", words, sections)["learner"]
    assert learner.roles == {
        "stop": RoleSettings(learning_rate=None, examples_per_update=32, window=99),
        "answer": RoleSettings(constant_rate=True),
    }
    assert (learner.learning_rate, resolve("x", "", [], sections)["learner"].roles) == (5e-3, {"stop": stop})
    for flag, value, message in [
        ("stop.windos", "3", r"unknown setting --learner\.roles\.stop\.windos; did you mean --learner\.roles\.stop\."),
        ("stop.window", "x", r"expected a whole number for --learner\.roles\.stop\.window, found 'x'"),
        ("stop.window", "63", r"^--learner\.roles\.stop\.window: expected examples_per_update of 2 to 63, .* found 64"),
    ]:
        with pytest.raises(ConfigError, match=message):
            resolve("x", "", [f"--learner.roles.{flag}", value], sections)
    with pytest.raises(ConfigError, match=r"settings one by one, --learner\.roles\.NAME\.SETTING"):
        resolve("x", "", ["--learner.roles", "{stop: {window: 3}}"], sections)
