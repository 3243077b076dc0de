"""Is every guideline tried, are hints given only where they are needed, and is the path alone learned?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import chisquare

from flow_dpo.core.answer_stop import AnswerStopPrompts, WorkedExample
from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.core.prompts import fill
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Message, Problem, Request, Solution, Status, Turn, Verdict
from flow_dpo.models.context_window import fitting_problems, longest_requests
from flow_dpo.recipes.regenesis.credit import CorrectFinals
from flow_dpo.recipes.regenesis.explore import GuidelineRollouts, advice
from flow_dpo.recipes.regenesis.flow import GUIDELINES, Checked, Guided
from flow_dpo.recipes.regenesis.kept import PathFilter, first_step, kept_from, kept_tag
from flow_dpo.recipes.scored import ELSEWHERE
from flow_dpo.recipes.single import Single
from flow_dpo.verify.extract import AnswerRule
from tests.support import char_renderer
from tests.support.graders import FunctionGrader
from tests.support.tree_builders import completion, graded, problem, request

PROMPTS = AnswerStopPrompts(answer_system="S", examples=(WorkedExample(question="q", solution="s"),))
PLAIN = Single(max_tokens=64, prompts=PROMPTS)
ASKED = Problem(id="p", question="1 + {gold} = ?", gold="2")


def steps(answer: int) -> str:
    return f"Sure:\n\n1. That is\n{answer}.\n\n2. So \\boxed{{{answer}}}"


def script(right: str, agrees: int = 0) -> Callable[[Request, str, int], str | int]:
    """Adapts to A, structures to B, and reasons to 2 after prompts that hold `right`, to 3 after others."""

    def say(request: Request, prompt: str, _seed: int) -> str | int:
        if request.choices:
            return agrees
        if "General advice" in prompt:
            return "A:" + prompt.partition("General advice:\n")[2].partition("\n\nRewrite")[0]
        if "Advice:" in prompt:
            return "B:" + prompt.partition("Advice:\n")[2].partition("\n\nTurn")[0]
        return steps(2 if re.search(right, prompt) else 3)

    return say


def test_words_are_filled_once_and_hostile_braces_are_text() -> None:
    assert fill("a {x} b {y}{z}", {"x": ("{y}",), "y": ((1, 2), "t")}) == ("a ", "{y}", " b ", (1, 2), "t", "{z}")


def test_three_turns_from_advice_to_path() -> None:
    plain = PLAIN.turn(PLAIN.start(ASKED))
    assert plain is not None
    flow = Guided(plain=plain, guidelines=GUIDELINES[3:5], hinted=True, plan_tokens=7)
    state = flow.start(ASKED)
    turns: list[Turn] = []
    for said in ((1, 2), (3,), (4, 5)):
        turn = flow.turn(state)
        assert turn is not None
        turns.append(turn)
        state = flow.advance(state, completion(*said))
    assert flow.turn(state) is None
    assert flow.solution(state).pieces == ((4, 5),)
    assert [turn.max_tokens for turn in turns] == [7, 7, 64]
    adapt, structure, path = (turn.messages[-1].content for turn in turns)
    # The hint stands in all three, behind what is asked without it.
    free = replace(flow, hinted=False)
    state = free.start(ASKED)
    for hinted, said in zip(turns, ((1, 2), (3,), (4, 5)), strict=True):
        turn = free.turn(state)
        assert turn is not None
        without, whole = ("".join(map(str, one.messages[-1].content)) for one in (turn, hinted))
        assert whole.startswith(without)
        assert whole.removeprefix(without).startswith("\n\nThe final answer is 2.")
        state = free.advance(state, completion(*said))
    assert f"{GUIDELINES[3]}\n{GUIDELINES[4]}" in adapt
    assert (1, 2) in structure
    # The plain prompt, then the structure's very tokens, then the hint.
    assert turns[2].messages[:-1] == plain.messages[:-1]
    assert path[0] == "1 + {gold} = ?"
    assert (3,) in path
    assert "2" in path


def test_25_guidelines_and_20_groups_the_same_for_all_problems() -> None:
    ways = advice(5)
    assert len(ways) == len(set(ways)) == 45
    assert ways[:25] == tuple((one,) for one in GUIDELINES)
    assert {len(way) for way in ways[25:]} == {2, 3}
    assert advice(5) == ways != advice(6)
    assert len(set(GUIDELINES)) == 25


def test_each_way_is_tried_once_and_the_trunk_is_plain() -> None:
    (tree,) = GuidelineRollouts(plan_tokens=4096)(PLAIN, char_renderer.runner(script("B:")), [ASKED], seed=0)
    assert (
        char_renderer.Letters().to_text([tree.nodes[0].request.prompt_ids]).endswith("<user>1 + {gold} = ?<assistant>")
    )
    assert len(tree.trunk_nodes()) == 1
    assert [len(tree.path(rollout.leaf)) for rollout in tree.rollouts] == [1] + [3] * 45
    tried = Counter(tree.nodes[rollout.start].tags for rollout in tree.rollouts[1:])
    assert tried == Counter(("adapt", f"way {way}") for way in range(45))
    # What is adapted is what the way says, and it reaches the path.
    for rollout in tree.rollouts[1:]:
        way = advice(0)[int(tree.nodes[rollout.start].tags[-1].split()[1])]
        said = char_renderer.Letters().to_text([tree.nodes[rollout.leaf].request.prompt_ids])
        assert "B:A:" + "\n".join(way) in said.replace(chr(char_renderer.END), "")


def test_fewer_plays_try_every_way_equally_often() -> None:
    problems = [Problem(id=f"p{i}", question="?", gold="2") for i in range(600)]
    trees = GuidelineRollouts(num_rollouts=3)(PLAIN, char_renderer.runner(script("B:")), problems, seed=1)
    tried = [[tree.nodes[rollout.start].tags[-1] for rollout in tree.rollouts[1:]] for tree in trees]
    assert all(len(set(ways)) == 3 for ways in tried)
    for place in (0, 2):  # whichever are kept first prefer none
        counts = Counter(ways[place] for ways in tried)
        assert chisquare([counts[f"way {way}"] for way in range(45)]).pvalue > 1e-6


def test_hints_only_where_no_path_was_kept() -> None:
    unsolved = Problem(id="u", question="hard", gold="2")
    say = script(r"easy[\s\S]*B:|final answer is 2")
    explore = GuidelineRollouts(num_rollouts=4, num_hinted=3)
    trees = explore(
        PLAIN, char_renderer.runner(say), [unsolved, Problem(id="e", question="easy", gold="2")], seed=0
    )  # fmt: skip
    hinted = [["hinted" in tree.nodes[rollout.leaf].tags for rollout in tree.rollouts] for tree in trees]
    assert hinted == [[False] * 5 + [True] * 3, [False] * 5]
    # They are of groups: with as many as there are, of each once.
    (every,) = replace(explore, num_hinted=20)(PLAIN, char_renderer.runner(say), [unsolved], seed=0)
    ways = [tag for rollout in every.rollouts[5:] for tag in every.nodes[rollout.start].tags if tag.startswith("way ")]
    assert sorted(ways) == [f"way {way}" for way in range(25, 45)]
    again = explore(PLAIN, char_renderer.runner(say), [unsolved], seed=0)
    assert again == trees[:1]  # whatever it is batched with


@pytest.mark.parametrize(("rule", "num_hinted"), [(AnswerRule(), 3), (AnswerRule(which="anywhere"), 0)])
def test_hints_follow_the_rule_that_the_run_is_graded_with(rule: AnswerRule, num_hinted: int) -> None:
    """The right answer is stated, but not on the last line."""

    def say(_request: Request, _prompt: str, _seed: int) -> str:
        return f"{steps(2)}\nThat was easy."

    explore = GuidelineRollouts(num_rollouts=4, num_hinted=3)
    (found,) = explore(PLAIN, char_renderer.runner(say, rule=rule), [ASKED], seed=0)
    assert len(found.rollouts) == 1 + 4 + num_hinted


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Answer: There are 83 bottles.", None),
        ("\\boxed{83}", None),
        ("1. 80 + 3 = 83\n\n2. Answer: 83", None),  # no box
        ("2. 80 + 3\n\n1. \\boxed{83}", None),  # no step behind the first
        ("1.5 and 2.5 make \\boxed{4}", None),  # no steps
        ("I add 1. and 2. \\boxed{3}", None),
        ("\\boxed{83}\n\n1. 80 + 3\n\n2. Done.", None),  # the box stands before what would be kept
        ("1. 80 + 3 = 83\n\n2. \\boxed{83}", "1. 80 + 3 = 83\n\n2. \\boxed{83}"),
        ("Sure!\n\n1. a\n\n2. \\boxed{83}", "1. a\n\n2. \\boxed{83}"),
        ("**Plan**\n**Step 1.** a\n### Step 2. \\boxed{83}", "**Step 1.** a\n### Step 2. \\boxed{83}"),
        ("Plan:\n1. x\n2. y\n\nNow:\n\n1. a\n\n2. \\boxed{83} end", "1. a\n\n2. \\boxed{83} end"),
    ],
)
def test_only_numbered_steps_with_a_boxed_answer_are_kept_from_their_first(said: str, kept: str | None) -> None:
    start = first_step(said)
    assert (None if start is None else said[start:]) == kept
    letters, path = char_renderer.Letters(), replace(completion(*char_renderer.ids(said), 0), finish_reason="stop")
    start = kept_from(path, PathFilter(), lambda ids: letters.to_text((ids,)))
    assert (None if start is None else said[start:]) == kept
    assert kept_from(path, PathFilter(numbered_steps=False), lambda ids: "") == 0
    assert kept_from(path, PathFilter(numbered_steps=False, max_path_tokens=len(said)), lambda ids: "") == 0
    assert kept_from(path, PathFilter(numbered_steps=False, max_path_tokens=len(said) - 1), lambda ids: "") is None


def learned(
    explore: GuidelineRollouts, say: char_renderer.Script, num_problems: int = 1
) -> tuple[list[Tree], list[str]]:
    """The trees, graded, and the texts of what is learned of them."""
    runner = char_renderer.runner(say)
    problems = [replace(ASKED, id=f"p{i}") for i in range(num_problems)]
    trees = explore(PLAIN, runner, problems, seed=0)
    assert runner.grader is not None
    runner.grader.grade(trees)
    examples = CorrectFinals(max_per_problem=0)(trees)
    for example in examples:
        tree = next(one for one in trees if one.problem.id == example.problem_id)
        assert example.request == tree.nodes[0].request, "learned for the plain question"
        assert (example.completion.policy_version, example.advantage, example.depth) == (ELSEWHERE, 1.0, 0)
        # The tokens that were sampled, and no others but the opening's.
        own = tree.nodes[example.node].completion
        kept = example.completion.token_ids
        assert own.token_ids[len(own.token_ids) - len(kept) + len(OPENING) :] == kept[len(OPENING) :]
        assert len(example.completion.logprobs) == len(example.completion.sampled_logprobs) == len(kept)
    return trees, [char_renderer.Letters().to_text((one.completion.content_ids,)) for one in examples]


OPENING = "Let's think step by step.\n\n"
SHORT = GuidelineRollouts(num_rollouts=4, num_hinted=3)


def test_what_stands_before_the_first_step_is_cut_and_the_opening_put_in_front() -> None:
    (tree,), texts = learned(SHORT, script("B:"))
    assert texts == [OPENING + steps(2).partition("\n\n")[2]], "four equal paths are learned once"
    assert len(tree.rollouts) == 5
    assert all(tree.nodes[rollout.leaf].tags[-1].startswith("kept from 7 after 76 101 ")
               for rollout in tree.rollouts[1:])  # fmt: skip
    assert not any("kept" in tag for node in tree.trunk_nodes() for tag in node.tags)


def test_an_answer_without_reasoning_is_right_and_dropped() -> None:
    """What the study's model learned: with a hint it says the answer alone."""

    def say(request: Request, prompt: str, seed: int) -> str | int:
        words = script("never")(request, prompt, seed)
        return "Answer: 2" if isinstance(words, str) and words.startswith("Sure") else words

    (tree,), texts = learned(SHORT, say)
    assert len(tree.rollouts) == 1 + 4 + 3, "it is hinted, though there were right paths"
    assert all(rollout.verdict is not None and rollout.verdict.status == "correct" for rollout in tree.rollouts)
    assert texts == []
    whole = learned(replace(SHORT, keep=PathFilter(numbered_steps=False)), say)[0]
    assert [len(one.rollouts) for one in whole] == [5]
    assert len(CorrectFinals()(whole)) == 1


def test_the_model_is_asked_about_what_is_kept_where_it_is_to_be() -> None:
    explore = replace(SHORT, keep=PathFilter(self_check=True))
    asked = "Solution:\n" + steps(2) + "\n\nThe correct answer is 2. Is"
    for agrees, num_rollouts in ((0, 5), (1, 8)):
        (tree,), texts = learned(explore, script("B:", agrees))
        assert len(tree.rollouts) == num_rollouts, "where it agrees to none, hints are given"
        assert texts == ([] if agrees else [OPENING + steps(2).partition("\n\n")[2]])
        for rollout in tree.rollouts[1:]:
            leaf = tree.nodes[rollout.leaf]
            assert (leaf.tags, leaf.completion.choice, leaf.role) == (("check",), agrees, "answer")
            assert asked in char_renderer.Letters().to_text((leaf.request.prompt_ids,))
            assert rollout.solution.pieces == (tree.nodes[leaf.id - 1].completion.content_ids,)


def test_hinted_paths_are_learned_where_no_other_is_kept() -> None:
    _, texts = learned(SHORT, script("final answer is 2"), 3)
    assert texts == [OPENING + steps(2).partition("\n\n")[2]] * 3
    assert learned(SHORT, script("never"), 2)[1] == []


@pytest.mark.parametrize("status", ["correct", "wrong"])
def test_without_an_accepted_answer_none_is_named(status: Status) -> None:
    """As where a reward function grades: no hinted path, and no question whether this is the correct answer."""
    asked, runner = replace(ASKED, gold=""), char_renderer.runner(script("never"))
    runner.grader = FunctionGrader(lambda items: [Verdict(status=status)] * len(items))
    explore = GuidelineRollouts(num_rollouts=3, plan_tokens=4096, keep=PathFilter(self_check=True))
    (tree,) = explore(PLAIN, runner, [asked], seed=0)
    prompts = [char_renderer.Letters().to_text((node.request.prompt_ids,)) for node in tree.nodes]
    assert len(tree.rollouts) == 1 + 3
    assert not any("inal answer is" in prompt or "correct answer is" in prompt for prompt in prompts)


def test_at_most_five_paths_a_question_and_the_trunk_never() -> None:
    drawn = Tree(problem=problem())
    asked, solution = request("answer", 5), Solution(pieces=(), ended=True)
    drawn.add_rollout(None, [(asked, completion(1), ())], solution)
    for token in (9, 8, 7, 6, 5, 4, 9):
        path = (request("answer", 7), completion(token, 3), ("path", kept_tag(0, ())))
        drawn.add_rollout(None, [(request("answer", 6), completion(8), ("adapt",)), path], solution)
    right: list[Status] = ["correct"] * 8
    graded(drawn, *right)
    assert [e.completion.token_ids[0] for e in CorrectFinals()([drawn])] == [9, 8, 7, 6, 5]
    assert len(CorrectFinals(max_per_problem=0)([drawn])) == 6
    graded(drawn, "correct", "wrong", "ungraded", *right[3:])
    assert [e.completion.token_ids[0] for e in CorrectFinals()([drawn])] == [7, 6, 5, 4, 9]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_rollouts from 1"):
        GuidelineRollouts(num_rollouts=46)
    with pytest.raises(ConfigError, match="max_per_problem"):
        CorrectFinals(max_per_problem=-1)

    class Choosing(Single):
        def turn(self, state: object) -> Turn | None:
            return Turn(role="answer", messages=(Message(role="user", content=("?",)),), choices=("Y", "N"))

    with pytest.raises(FlowError, match="first turn is Answer's own"):
        GuidelineRollouts()(Choosing(), char_renderer.runner(script("")), [ASKED], seed=0)


@pytest.mark.parametrize("check", [False, True])
def test_a_window_that_takes_a_problem_takes_every_prompt_of_its_paths(check: bool) -> None:
    """Completions of full length everywhere, in the smallest window that the problem is let through with."""
    explore = GuidelineRollouts(num_rollouts=45, num_hinted=20, plan_tokens=70, keep=PathFilter(self_check=check))
    problems = [ASKED, replace(ASKED, id="q", question="What is 1 + 1, in words?", gold="two hundred")]
    renderer = char_renderer.Letters()
    window = next(
        tokens for tokens in range(100, 5_000) if _takes(PLAIN, renderer, problems, tokens, besides=explore.besides)
    )
    longest = 0
    for one in problems:
        for hinted in (False, True):
            for way in advice(3):
                plain = PLAIN.turn(PLAIN.start(one))
                assert plain is not None
                flow = Checked(plain=plain, guidelines=way, hinted=hinted, plan_tokens=70)
                for found in longest_requests(flow, renderer, one):
                    asked = found.choices and not check
                    longest = max(longest, 0 if asked else len(found.prompt_ids) + found.max_tokens)
    assert longest <= window
    assert not _takes(PLAIN, renderer, problems, longest - 40, besides=explore.besides), "none is left out for nothing"
    assert _takes(PLAIN, renderer, problems, 300), "the plain flow alone needs far less"


def _takes(flow: Single, renderer: char_renderer.Letters, problems: list[Problem], tokens: int, **more: Any) -> bool:
    try:
        return len(fitting_problems(flow, renderer, problems, tokens, **more)) == len(problems)
    except ConfigError:
        return False
