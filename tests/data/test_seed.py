"""Do the embedded problems and the embedded model keep their promises?"""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem
from flow_dpo.data.seed import (
    MAX_CHUNKS,
    MODEL_FOLDER,
    NUM_CHUNK_TOKENS,
    REOPEN_WORDS,
    SEED_SPLITS,
    STOP_CHOICES,
    STOP_PREFIX,
    STOP_SUFFIX,
    is_sound,
    iter_seed_problems,
    judge_steps,
    seed_problems,
)
from flow_dpo.data.seed.family import BUCKETS, bucket, skeleton

STORY = Problem(
    id="seed/test/x",
    question="Anna has 12 apples. She buys 7 apples. She sees 9 apples. She lends 5 apples. Does Anna have more than 50"
    " apples now?",
    gold="no",
    solution="She buys 7: 12 + 7 = 19\nShe lends 5: 19 - 5 = 14\nAnswer: no",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


def faults(solution: str) -> list[str]:
    return [verdict.fault for verdict in judge_steps(STORY, solution)]


def test_splits_share_no_text_and_no_skeleton():
    skeletons = {split: {skeleton(p.question) for p in seed_problems(split, 2000)} for split in BUCKETS}
    for first in skeletons:
        for second in skeletons:
            assert first == second or not skeletons[first] & skeletons[second]
    claimed = [number for buckets in BUCKETS.values() for number in buckets]
    assert sorted(claimed) == list(range(16))


def test_a_renamed_problem_stays_in_its_split():
    renamed = STORY.question.replace("Anna", "Tom").replace("She", "He").replace("apples", "stones")
    assert renamed != STORY.question
    assert bucket(renamed) == bucket(STORY.question)


@pytest.mark.parametrize("split", SEED_SPLITS)
def test_problems_depend_on_split_and_number_alone(split: str):
    problems = seed_problems(split, 50)
    assert problems[20:30] == seed_problems(split, 10, start=20) == list(islice(iter_seed_problems(split, 20), 10))
    assert problems[7].id == f"seed/{split}/7"
    assert problems[7].source == f"seed/{split}"
    assert len({problem.question for problem in problems}) == 50


def test_problems_never_change():
    # A checkpoint's data cursor and every published figure rest on this very text.
    first = seed_problems("train", 1)[0]
    assert first.question == (
        "Mia has 46 shells. Tom has 40 shells. She loses 17 shells. She gets 11 shells. She donates 18 shells. "
        "Does Mia have more shells than Tom now?"
    )
    assert first.solution == (
        "She loses 17: 46 - 17 = 29\nShe gets 11: 29 + 11 = 40\nShe donates 18: 40 - 18 = 22\n"
        "She has 22, he has 40\nAnswer: no"
    )


def test_kinds_and_levels():
    train, hard = seed_problems("train", 1000), seed_problems("hard", 200)
    assert {problem.level for problem in train} == {"2", "3", "4"}
    assert {problem.level for problem in hard} == {"5", "6"}
    kinds = [problem.subject for problem in train]
    assert set(kinds) == {"total", "compare", "over", "boxes"}
    assert 0.68 < kinds.count("total") / 1000 < 0.78
    for kind in ("over", "compare"):
        yes = [problem.gold for problem in train if problem.subject == kind]
        assert set(yes) == {"yes", "no"}
        assert 0.35 < yes.count("yes") / len(yes) < 0.65


def test_refuses_what_does_not_exist():
    with pytest.raises(DataError, match="train, test, hard"):
        seed_problems("validation", 1)
    with pytest.raises(DataError, match=r"did you mean --dataset_split test\?"):
        seed_problems("tset", 1)
    with pytest.raises(DataError, match="start=-1"):
        seed_problems("train", 1, start=-1)


def test_right_solutions_are_sound():
    for split in SEED_SPLITS:
        for problem in seed_problems(split, 500):
            assert is_sound(problem, problem.solution)
            assert problem.solution.endswith(f"\nAnswer: {problem.gold}")
            num_lines = int(problem.level) + 1 + (problem.subject == "compare")
            assert len(problem.solution.splitlines()) == num_lines


def test_a_right_answer_by_wrong_steps_is_found():
    wrong = "She buys 7: 12 + 7 = 18\nShe lends 5: 18 - 5 = 13\nAnswer: no"
    assert faults(wrong) == ["arithmetic", "total", "missing"]
    assert not is_sound(STORY, wrong)


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("She buys 7: 7 + 12 = 19\nShe lends 5: 19 - 5 = 14\nAnswer: no", ["", "", ""]),
        ("She buys 7: 12 - 7 = 5\nShe lends 5: 5 - 5 = 0\nAnswer: no", ["operation", "total", "missing"]),
        ("She buys 7: 12 + 7 = 19\nShe sees 9: 19 + 9 = 28\nAnswer: yes", ["", "foreign", "answer"]),
        ("She buys 7: 12 + 7 = 19\nShe lends 5: 19 - 6 = 13\nAnswer: no", ["", "amount", "missing"]),
        ("She buys 7: 12 + 7 = 19\nShe buys 7: 12 + 7 = 19\nAnswer: no", ["", "order", "missing"]),
        ("She buys 7: 12 + 7 = 19\nAnswer: no", ["", "missing"]),
        ("She buys 7: 12 + 7 = 19\nShe lends", ["", "form"]),
        (f"She buys 7: 12 + 7 = 18{REOPEN_WORDS}{STORY.solution}", ["", "", ""]),
        ("", ["form"]),
    ],
)
def test_faults(solution: str, expected: list[str]):
    assert faults(solution) == expected
    assert is_sound(STORY, solution) == (set(expected) == {""})


def test_tokens_give_the_text_back(tokenizer):
    for split in ("train", "test", "hard", "pretrain"):
        for problem in seed_problems(split, 500):
            for text in (problem.question, problem.solution, STOP_PREFIX.format(question=problem.question)):
                token_ids = tokenizer.encode(text, add_special_tokens=False)
                assert tokenizer.unk_token_id not in token_ids
                assert tokenizer.decode(token_ids) == text


def test_fragments_are_encoded_as_the_whole(tokenizer):
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    problem = seed_problems("test", 1)[0]
    before, after = STOP_PREFIX.format(question=problem.question), STOP_SUFFIX
    for text in (problem.solution, problem.solution + REOPEN_WORDS + problem.solution):
        ids = encode(text)
        assert encode(before + text + after) == encode(before) + ids + encode(after)
        for cut in range(len(ids) + 1):
            # Wherever a chunk ends, inside a number too, splicing equals encoding the whole.
            shown = tokenizer.decode(ids[:cut])
            assert encode(before + shown + after) == encode(before) + ids[:cut] + encode(after)
    assert encode("<assistant>" + problem.solution)[1:] == encode(problem.solution)
    for word in STOP_CHOICES:
        assert encode("<assistant>" + word + "<end>")[1:-1] == encode(word)
        assert len(encode(word)) == 1


def test_chat_template(tokenizer):
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "Who has more pens now?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<user>Who has more pens now?<end><assistant>"
    messages[0]["content"] = "Say No."
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<system>Say No.<end><user>Who has more pens now?<end>"
    assert tokenizer.eos_token == "<end>"


def test_a_solution_and_its_redo_fit_the_flow(tokenizer):
    lengths = sorted(len(tokenizer.encode(problem.solution)) + 1 for problem in seed_problems("train", 500))
    reopen, room = len(tokenizer.encode(REOPEN_WORDS)), NUM_CHUNK_TOKENS * MAX_CHUNKS
    assert 2 * lengths[450] + reopen <= room
    assert max(len(tokenizer.encode(problem.solution)) + 1 for problem in seed_problems("hard", 500)) <= room


def test_the_embedded_model_errs_yet_is_not_lost(tokenizer):
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) <= 4_000_000
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    problems = seed_problems("test", 60)
    batch = tokenizer(
        [f"<user>{problem.question}<end><assistant>" for problem in problems], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=64, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :])
    right = [
        text.replace("<pad>", "").endswith(f"\nAnswer: {problem.gold}<end>")
        for problem, text in zip(problems, texts, strict=True)
    ]
    assert 0.35 < sum(right) / len(right) < 0.85
