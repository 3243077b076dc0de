"""Is every guideline tried, are hints given only where they are needed, and is the path alone learned?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
from scipy.stats import chisquare

from flow_dpo.core.answer_stop import AnswerStopPrompts, WorkedExample
from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.core.prompts import fill
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Message, Problem, Request, Solution, Status, Turn
from flow_dpo.recipes.regenesis.credit import CorrectFinals
from flow_dpo.recipes.regenesis.explore import GuidelineRollouts, advice
from flow_dpo.recipes.regenesis.flow import GUIDELINES, Guided
from flow_dpo.recipes.scored import ELSEWHERE
from flow_dpo.recipes.single import Single
from flow_dpo.verify.extract import AnswerRule
from tests.support import char_renderer
from tests.support.tree_builders import completion, graded, problem, request

PROMPTS = AnswerStopPrompts(answer_system="S", examples=(WorkedExample(question="q", solution="s"),))
PLAIN = Single(max_tokens=64, prompts=PROMPTS)
ASKED = Problem(id="p", question="1 + {gold} = ?", gold="2")


def script(right: str) -> Callable[[Request, str, int], str]:
    """Adapts to A, structures to B, and answers 2 to prompts that hold `right`, 3 to others."""

    def say(_request: Request, prompt: str, _seed: int) -> str:
        if "General advice" in prompt:
            return "A:" + prompt.partition("General advice:\n")[2].partition("\n\nRewrite")[0]
        if "Advice:" in prompt:
            return "B:" + prompt.partition("Advice:\n")[2].partition("\n\nTurn")[0]
        return f"Answer: {2 if re.search(right, prompt) else 3}"

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
        way = advice(0)[int(tree.nodes[rollout.leaf].tags[-1].split()[1])]
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


def test_hints_only_where_no_path_was_right() -> None:
    unsolved = Problem(id="u", question="hard", gold="2")
    say = script(r"easy[\s\S]*B:|final answer is 2")
    explore = GuidelineRollouts(num_rollouts=4, num_hinted=3)
    trees = explore(
        PLAIN, char_renderer.runner(say), [unsolved, Problem(id="e", question="easy", gold="2")], seed=0
    )  # fmt: skip
    hinted = [["hinted" in tree.nodes[rollout.leaf].tags for rollout in tree.rollouts] for tree in trees]
    assert hinted == [[False] * 5 + [True] * 3, [False] * 5]
    again = explore(PLAIN, char_renderer.runner(say), [unsolved], seed=0)
    assert again == trees[:1]  # whatever it is batched with


@pytest.mark.parametrize(("rule", "num_hinted"), [(AnswerRule(), 3), (AnswerRule(which="anywhere"), 0)])
def test_hints_follow_the_rule_that_the_run_is_graded_with(rule: AnswerRule, num_hinted: int) -> None:
    """The right answer is stated, but not on the last line."""

    def say(_request: Request, _prompt: str, _seed: int) -> str:
        return "Answer: 2\nThat was easy."

    explore = GuidelineRollouts(num_rollouts=4, num_hinted=3)
    (found,) = explore(PLAIN, char_renderer.runner(say, rule=rule), [ASKED], seed=0)
    assert len(found.rollouts) == 1 + 4 + num_hinted


def tree(*plays: tuple[str, int, Status]) -> Tree:
    """A trunk that says 1, then plays of one adapting token and a path of one token."""
    made = Tree(problem=problem())
    asked, solution = request("answer", 5), Solution(pieces=(), ended=True)
    made.add_rollout(None, [(asked, completion(1), ())], solution)
    for tag, token, _ in plays:
        path = (request("answer", 7, 8), completion(token), ("path", tag))
        made.add_rollout(None, [(request("answer", 6), completion(8), ("adapt",)), path], solution)
    statuses: list[Status] = [status for _, _, status in plays]
    return graded(made, "correct", *statuses)


def test_right_paths_are_learned_for_the_plain_question() -> None:
    drawn = tree(("a", 2, "wrong"), ("b", 3, "correct"), ("c", 3, "correct"), ("hinted", 4, "correct"))
    (kept,) = CorrectFinals()([drawn])
    assert (kept.request.prompt_ids, kept.completion.token_ids, kept.node) == ((5,), (3,), 4)
    # Said to another request: its log-probabilities are compared with none.
    assert (kept.completion.policy_version, kept.advantage, kept.depth) == (ELSEWHERE, 1.0, 0)


def test_hinted_paths_count_where_no_other_is_right_and_the_trunk_never_does() -> None:
    drawn = tree(("a", 2, "wrong"), ("b", 3, "ungraded"), ("hinted", 4, "correct"), ("hinted", 5, "wrong"))
    assert [e.completion.token_ids for e in CorrectFinals()([drawn])] == [(4,)]
    assert CorrectFinals()([tree(("a", 2, "wrong"))]) == []


def test_at_most_five_paths_a_question() -> None:
    plays: list[tuple[str, int, Status]] = [(str(i), i, "correct") for i in (9, 8, 7, 6, 5, 4, 9)]
    drawn = tree(*plays)
    assert [e.completion.token_ids[0] for e in CorrectFinals()([drawn])] == [9, 8, 7, 6, 5]
    assert len(CorrectFinals(max_per_problem=0)([drawn])) == 6


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
