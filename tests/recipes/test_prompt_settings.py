"""Do a system prompt, the template's arguments and stop strings reach the model, and what becomes of a thought?"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli.main import main
from flow_dpo.cli.prompt import parse_prompt
from flow_dpo.cli.train import parse_train
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import TurnSampling, single_rollout
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps, SampleRequest, sample
from flow_dpo.core.types import Completion, Problem, Sampling, TokenIds
from flow_dpo.engines.scripted import ScriptedEngine
from flow_dpo.models.render import Renderer
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsState
from flow_dpo.recipes.presets import RECIPES, preset
from flow_dpo.recipes.single import Single
from flow_dpo.verify.extract import AnswerRule, extract_answer
from tests.models.test_chat_template import OPENS, SWITCHED, text_of, with_words
from tests.support.chat_models import chat_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model_folder("qwen3", tmp_path_factory.mktemp("model"))


def shown(capsys: pytest.CaptureFixture[str], model: Path, *words: str) -> str:
    assert main(["prompt", "--model_name_or_path", str(model), *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_system_prompt_of_every_chat_recipe_is_a_flag(
    recipe: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = preset(recipe, "chat").recipe.flow.prompts
    names = [each.name for each in fields(prompts) if each.name.endswith("system")]
    assert names
    words = [word for name in names for word in (f"--{name}", f"Be {name[:-7]} and brief.")]
    found = parse_prompt(["--recipe", recipe, "--preset", "chat", *words])["flow"].prompts
    assert [getattr(found, name) for name in names] == [f"Be {name[:-7]} and brief." for name in names]
    out = shown(capsys, model, "--recipe", recipe, "--preset", "chat", *words)
    for name in names:
        if name.startswith(preset(recipe, "chat").recipe.flow.roles):
            assert f"\u27e6<|start|>\u27e7system\n    Be {name[:-7]} and brief." in out, name


def test_an_argument_of_the_chat_template_is_seen_in_the_prompt(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = shown(capsys, model)
    assert "<think>\n    \n    </think>" in closed.partition("answer: ")[2].partition("  Tokens")[0]
    for words in (
        ["--template_kwargs.enable_thinking", "true"],
        ["--model.template_kwargs", "{enable_thinking: true}"],
    ):
        assert "think>" not in shown(capsys, model, *words).partition("answer: ")[2].partition("  Tokens")[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_stop_strings_are_a_flag_of_every_recipe(recipe: str) -> None:
    words = ["--recipe", recipe, "--stop_strings", r'["\n\nQuestion:", "</answer>"]']
    explore = parse_train("train", words, {}).recipe.explore
    assert explore.stop_strings == ("\n\nQuestion:", "</answer>")
    # Evaluation samples as the recipe does.
    assert explore.alone(greedy=True).stop_strings == explore.stop_strings
    turn = Single().turn(Single().start(PROBLEM))
    assert turn is not None
    assert explore.for_turn(turn, trunk=True).stop_strings == explore.stop_strings
    assert explore.for_turn(replace(turn, choices=("Yes", "No")), trunk=True).stop_strings == ()


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected stop_strings to be texts that are not empty"):
        TurnSampling(stop_strings=("",))
    assert single_rollout(TurnSampling(stop_strings=("x",)), greedy=False).stop_strings == ("x",)


@pytest.mark.parametrize("string", ["\n\nQ:", "</answer>", "###", "\u3002\u3002", "9."])
def test_a_stop_string_is_no_part_of_the_solution(string: str) -> None:
    """Stop and the verifier read what stands before it; its own tokens are sampled, and so learned."""
    renderer = Renderer(with_words(SWITCHED, "<think>", "</think>"))
    text = "7 + 12 is caf\u00e9\nAnswer: 19"
    ids = renderer.encode(text + string + "Q")
    flow = Single()

    def asked() -> RolloutSteps:
        turn = flow.turn(flow.start(PROBLEM))
        assert turn is not None
        sampled = yield from sample(SampleRequest(turn=turn, sampling=Sampling(stop_strings=(string,)), seed=0))
        found.append(sampled.completion)

    found: list[Completion] = []
    engine = ScriptedEngine(lambda *_: (*ids, 2), end_ids={2}, context_tokens=2048)
    RolloutRunner(engine, renderer).run([asked()])
    [one] = found
    assert one.finish_reason == "stop_string"
    assert one.token_ids == ids[: len(one.token_ids)]
    assert string in renderer.to_text((one.token_ids,))
    assert string not in renderer.to_text((one.token_ids[:-1],))
    solution = flow.solution(flow.advance(flow.start(PROBLEM), one))
    assert solution.ended
    kept = renderer.to_text(solution.pieces)
    assert kept == (text + string).partition(string)[0]
    if string != "9.":
        assert extract_answer(kept, ended=True, rule=AnswerRule()) == "19"


# ---- thoughts -------------------------------------------------------------------------------------------------------

PROBLEM = Problem(id="p", question="7 + 12 = ?", gold="19")
THOUGHT = "7 + 12 = 18. Answer: 18\n"
ANSWER = "\n\n7 + 12 = 19.\nAnswer: 19"


def chunk(ids: TokenIds, *, ended: bool) -> Completion:
    zeros = (-0.1,) * len(ids)
    return Completion(
        token_ids=ids,
        logprobs=zeros,
        sampled_logprobs=zeros,
        finish_reason="stop" if ended else "length",
        policy_version=0,
    )


def no(state: AttemptsState) -> Completion:
    """Stop's choice, which is No."""
    return Completion(
        token_ids=(9,), logprobs=(-0.1,), sampled_logprobs=(-0.1,), finish_reason="choice", policy_version=0, choice=1,
        choice_logprobs=(-2.4, -0.1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("template", "variables", "opened"),
    [(SWITCHED, {"enable_thinking": True}, ""), (OPENS, {}, "<think>\n")],
)
def test_a_thought_is_part_of_an_attempt_and_no_answer(template: str, variables: dict[str, Any], opened: str) -> None:
    """The verifier reads what stands behind it; Answer's next chunk and Stop are shown it as it was sampled."""
    renderer = Renderer(with_words(template, "<think>", "</think>"), template_kwargs=variables)
    open_, close = (renderer.tokenizer.convert_tokens_to_ids(word) for word in ("<think>", "</think>"))
    thought = (*(() if opened else (open_,)), *renderer.encode(THOUGHT))
    rest = (close, *renderer.encode(ANSWER))
    flow = Attempts(max_chunks=2, max_attempts=2)
    state = flow.start(PROBLEM)
    first = flow.turn(state)
    assert first is not None
    assert (
        text_of(renderer, renderer.render(first).prompt_ids).endswith(f"assistant{opened and '<|end|>'}{opened}"[-20:])
        or not opened
    )
    # 1. The first chunk is the thought alone: it goes on, as sampled, and nothing in it is an answer yet.
    state = flow.advance(state, chunk(thought, ended=False))
    second = flow.turn(state)
    assert second is not None
    assert renderer.render(second).prompt_ids == renderer.render(first).prompt_ids + thought
    # 2. The second closes it and answers. Behind the last </think> the verifier finds the answer.
    state = flow.advance(state, chunk((*rest, 0), ended=True))
    solution = flow.solution(state)
    text = renderer.to_text(solution.pieces)
    assert THOUGHT in text
    assert extract_answer(text, ended=solution.ended, rule=AnswerRule()) == "19"
    assert extract_answer(THOUGHT + "</think>", ended=True, rule=AnswerRule()) is None
    # 3. Stop reads the attempt with its thought.
    asked = flow.turn(state)
    assert asked is not None
    prompt = renderer.render(asked).prompt_ids
    whole = thought + rest
    assert any(prompt[at : at + len(whole)] == whole for at in range(len(prompt)))
    # 4. A refused attempt is gone from a fresh one, and shown with its thought where it is shown.
    again, shown = flow.turn(flow.advance(state, no(state))), replace(flow, retry="shown")
    assert again is not None
    assert renderer.render(again).prompt_ids == renderer.render(first).prompt_ids
    told = shown.turn(shown.advance(state, no(state)))
    assert told is not None
    assert whole[-len(rest) :] == rest
    prompt = renderer.render(told).prompt_ids
    assert any(prompt[at : at + len(whole)] == whole for at in range(len(prompt)))
