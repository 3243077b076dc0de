"""What may a trainer be handed as model, tokenizer, adapter and data, and what is refused, and how?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import AutoTokenizer

import flow_dpo
from flow_dpo import FlowDpoError
from flow_dpo.core.errors import ConfigError
from flow_dpo.data.problems import DataSettings
from flow_dpo.models.load import SEED_FOLDER
from flow_dpo.trainer.adapters import lora_settings
from flow_dpo.trainer.data import problems
from flow_dpo.trainer.fields import FIELDS
from flow_dpo.trainer.habits import ARGUMENTS, ATTRIBUTES, FORMER
from flow_dpo.trainer.models import name_of, settings_of_tokenizer

FlowDPOConfig: Any = flow_dpo.FlowDPOConfig  # also with names that a type checker refuses
FlowDPOTrainer: Any = flow_dpo.FlowDPOTrainer
ROWS: list[dict[str, Any]] = [
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3 = ?"}], "solution": "5"},
    {"prompt": [{"role": "user", "content": "4 + 4 = ?"}], "solution": "so #### 8"},
    {"prompt": [{"role": "user", "content": "1 + 1 = ?"}], "solution": "The answer is \\boxed{2}."},
]
FOUND = [("2 + 3 = ?", "5"), ("4 + 4 = ?", "8"), ("1 + 1 = ?", "2")]


def stream() -> Iterator[dict[str, Any]]:
    yield from ROWS


@pytest.mark.parametrize("data", [ROWS, Dataset.from_list(ROWS), IterableDataset.from_generator(stream)])
def test_rows_of_any_kind_become_the_same_problems(data: Any) -> None:
    found = problems(data, DataSettings())
    assert found is not None
    assert [(problem.question, problem.gold) for problem in found] == FOUND
    assert [problem.id for problem in found] == ["given/0", "given/1", "given/2"]
    same = problems(ROWS, DataSettings())
    assert same is not None
    assert same.fingerprint == found.fingerprint


def test_a_stream_is_cut_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def rows(number: int) -> Iterator[dict[str, Any]]:
        yield from ({"prompt": f"{i} + 1 = ?", "solution": str(i + 1)} for i in range(number))

    for number, messages in ((1000, 0), (1200, 1)):
        found = problems(IterableDataset.from_generator(rows, gen_kwargs={"number": number}), DataSettings())
        assert found is not None
        assert (len(found), len(caplog.messages)) == (1000, messages)
    assert caplog.messages[0].startswith("the data set is a stream: only its first 1000 rows are taken")


def test_columns_of_other_names_are_found_or_named() -> None:
    texts = [{"prompt": "2 + 3 = ?", "ground_truth": 5, "style": "short"}, {"prompt": "?", "ground_truth": None}]
    found = problems(texts, DataSettings())
    assert found is not None
    assert [(problem.question, problem.gold) for problem in found] == [("2 + 3 = ?", "5")]  # the other is skipped
    with pytest.raises(FlowDpoError, match="row 1: expected"):
        problems(texts, DataSettings(bad_rows="refuse"))
    odd = [{"a": "2 + 3 = ?", "b": {"c": "5"}}]
    with pytest.raises(FlowDpoError, match=r"the given rows: expected the columns of a known data set.*found a, b.c"):
        problems(odd, DataSettings())
    found = problems(odd, DataSettings(question_column="a", answer_column="b.c"))
    assert found is not None
    assert found.problems[0].gold == "5"


def test_problems_are_chosen_by_settings_and_share() -> None:
    every = flow_dpo.load_problems("seed", max_problems=8).problems
    found = problems(every, DataSettings(shuffle_seed=1, max_problems=6), share=0.5)
    assert found is not None
    assert len(found) == 3
    assert set(found) < set(every)
    assert list(found) != list(every[:3])
    assert problems("seed", DataSettings()) is None
    assert problems("seed", DataSettings(max_problems=8), share=0.5) == flow_dpo.load_problems("seed", max_problems=4)
    with pytest.raises(FlowDpoError, match=r"expected max_problems with num_train_epochs=0.5"):
        problems("seed", DataSettings(), share=0.5)
    with pytest.raises(FlowDpoError, match="num_train_epochs=2 has no meaning here: every problem is answered before"):
        FlowDPOTrainer("seed", args=FlowDPOConfig(num_train_epochs=2), train_dataset=every).train()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (5, "expected the name of a data set"),
        ({"train": ROWS}, r"several by name \(train\)"),
        (["2 + 3"], "expected rows with columns"),
        (
            [flow_dpo.Problem(id="a", question="?", gold="1"), ROWS[0]],
            "expected rows with columns|Problem objects alone",
        ),
        ([], "expected problems in the given problems"),
        ([{"prompt": "2 + 3 = ?"}], r"a gold answer beside the question in 'prompt'.*or pass reward_funcs"),
    ],
)
def test_what_are_no_problems_is_refused(data: Any, words: str) -> None:
    with pytest.raises(FlowDpoError, match=words):
        problems(data, DataSettings())


def test_a_model_in_memory_is_refused_with_what_to_pass() -> None:
    class Loaded:
        name_or_path = "me/mine"

    assert name_of(SEED_FOLDER) == str(SEED_FOLDER)
    with pytest.raises(
        FlowDpoError, match=r"found a Loaded in memory: .*save_pretrained.*or 'me/mine', if its weights"
    ):
        FlowDPOTrainer(Loaded())


def test_a_tokenizer_may_bring_a_chat_template_and_an_end_token_and_nothing_else() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SEED_FOLDER)
    assert settings_of_tokenizer("seed", tokenizer, FlowDPOConfig()) == {}
    own, tokenizer.chat_template = tokenizer.chat_template, tokenizer.chat_template + "{# mine #}"
    found = settings_of_tokenizer("seed", tokenizer, FlowDPOConfig())
    assert found == {"model.chat_template": own + "{# mine #}"}
    tokenizer.chat_template = own
    tokenizer.add_tokens(["<more>"])
    with pytest.raises(FlowDpoError, match="found one with other tokens"):
        settings_of_tokenizer("seed", tokenizer, FlowDPOConfig())
    with pytest.raises(FlowDpoError, match="expected processing_class to be the model's tokenizer, found int"):
        FlowDPOTrainer("seed", processing_class=5)


def test_a_lora_config_becomes_settings_or_is_refused_by_the_field() -> None:
    config = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.1, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM"
    )
    assert lora_settings(config) == {
        "lora.lora_r": 16, "lora.lora_alpha": 32, "lora.lora_dropout": 0.1,
        "lora.lora_target_modules": ("q_proj", "v_proj"),
    }  # fmt: skip
    more = lora_settings(LoraConfig(use_rslora=True, use_dora=True, modules_to_save=["lm_head"]))
    assert more["lora.use_rslora"] is True
    assert more["lora.use_dora"] is True
    assert more["lora.modules_to_save"] == ("lm_head",)
    assert "lora.lora_target_modules" not in more
    with pytest.raises(FlowDpoError, match=r"peft_config.rank_pattern=\{'a': 1\} has no place here"):
        lora_settings(LoraConfig(rank_pattern={"a": 1}))
    with pytest.raises(FlowDpoError, match=r"expected peft_config to be a peft.LoraConfig, found dict"):
        FlowDPOTrainer("seed", peft_config={"r": 8})


def test_a_config_of_another_kind_and_an_evaluation_without_data_are_refused() -> None:
    with pytest.raises(FlowDpoError, match="expected args to be a FlowDPOConfig"):
        FlowDPOTrainer("seed", args={"seed": 1})
    with pytest.raises(FlowDpoError, match="expected an eval_dataset with eval_strategy='steps'"):
        FlowDPOTrainer("seed", args=FlowDPOConfig(eval_strategy="steps", eval_steps=1))
    with pytest.raises(FlowDpoError, match="expected eval_steps with"):
        FlowDPOConfig(eval_strategy="steps")
    with pytest.raises(FlowDpoError, match="expected eval_strategy 'steps' or 'epoch' with eval_on_start, found 'no'"):
        FlowDPOConfig(eval_on_start=True)
    with pytest.raises(FlowDpoError, match="found none; call train"):
        FlowDPOTrainer("seed", args=FlowDPOConfig(output_dir="no/such/run")).train(resume_from_checkpoint=True)


def test_arguments_of_trls_trainers_are_refused_with_what_to_use() -> None:
    with pytest.raises(FlowDpoError, match="FlowDPOTrainer takes no data_collator: rows are packed by the learner"):
        FlowDPOTrainer("seed", data_collator=print)
    with pytest.raises(FlowDpoError, match="takes no argument 'learning_rate'; it is a field of FlowDPOConfig"):
        FlowDPOTrainer("seed", learning_rate=1e-3)
    FlowDPOTrainer("seed", data_collator=None, callbacks=None)


def test_what_is_typed_from_habit_is_answered() -> None:
    class Counts:
        def on_batch(self, row: Any, trees: Any, examples: Any) -> None: ...

    assert FlowDPOConfig("runs/mine").run_folder == Path("runs/mine")
    with pytest.raises(FlowDpoError, match="takes output_dir alone"):
        FlowDPOConfig("runs/mine", 3)
    for name, words in FORMER.items():
        assert name not in FIELDS
        with pytest.raises(FlowDpoError, match=re.escape(f"FlowDPOConfig has no field {name!r}: {words}")):
            FlowDPOConfig(**{name: 1})
    trainer = FlowDPOTrainer("seed", callbacks=[Counts])
    for name, words in ATTRIBUTES.items():
        with pytest.raises(AttributeError, match=re.escape(f"FlowDPOTrainer has no {name}: {words}")):
            getattr(trainer, name)
    for name, words in ARGUMENTS.items():
        with pytest.raises(FlowDpoError, match=re.escape(f"FlowDPOTrainer takes no argument {name!r}; {words}")):
            FlowDPOTrainer("seed", **{name: 1})
    trainer.add_callback(Counts())
    assert [type(each) for each in trainer.callbacks] == [Counts, Counts]
    with pytest.raises(FlowDpoError, match="expected a list of callbacks"):
        FlowDPOTrainer("seed", callbacks=Counts())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"settings": {"evaluation.gredy": True}}, "evaluation.gredy.*evaluation.greedy"),
        ({"settings": {"evaluation.num_samples": "four"}}, "evaluation.num_samples.*four"),
        ({"settings": {"generate.num_sample": 3}}, "generate.num_sample"),
        ({"settings": {"evaluation.draws": 4}}, r"found evaluation.draws=4; .*evaluate_flow\(draws="),
        ({"settings": {"evaluation.exclude_overlap": True}}, "expected trained_on with exclude_overlap, found none"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "hub_model_id, with push_to_hub: expected a repository"),
        ({"push_to_hub": True, "output_dir": "runs/a b"}, "hub_model_id, with push_to_hub: expected a repository"),
    ],
)
def test_what_would_fail_after_the_first_batches_is_refused_by_name_before(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FlowDPOTrainer("seed", args=FlowDPOConfig(**given))


def test_numbers_of_an_evaluation_may_be_texts_as_on_the_command_line() -> None:
    made = FlowDPOTrainer("seed", args=FlowDPOConfig(settings={"evaluation.batch_problems": "4"}))
    assert made._evaluation.batch_problems == 4


def test_an_evaluation_refuses_settings_of_which_it_makes_nothing_and_reads_those_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opened(Exception):
        """Carries the problems."""

    def opened(*_: Any, problems: Any, **__: Any) -> Any:
        raise Opened([problem.question for problem in problems])

    monkeypatch.setattr("flow_dpo.trainer.trainer.open_runtime", opened)
    trainer = FlowDPOTrainer("seed", args=FlowDPOConfig(output_dir=tmp_path / "run"), eval_dataset=ROWS)
    for more in ({"draws": 2}, {"candidates": "x"}, {"mode": "single"}, {"output_dir": "x"}, {"evaluation.draws": 2}):
        [name] = [each.removeprefix("evaluation.") for each in more]
        with pytest.raises(FlowDpoError, match=rf"found evaluation.{name}=.*evaluate_flow"):
            trainer.evaluate(**more)
    with pytest.raises(FlowDpoError, match="expected trained_on with exclude_overlap"):
        trainer.evaluate(exclude_overlap=True)
    with pytest.raises(Opened) as found:
        trainer.evaluate(skip_problems=1, max_problems=1)
    assert found.value.args[0] == ["4 + 4 = ?"]
