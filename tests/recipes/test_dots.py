"""Are all ways tried as often as it says, is the best one found and taught, and are programs off unless asked for?"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from flow_dpo.core.errors import ConfigError, EngineError, FlowError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Request, Solution, Status
from flow_dpo.recipes.dots.credit import BestTrajectory
from flow_dpo.recipes.dots.explainer import explain
from flow_dpo.recipes.dots.explore import TrajectorySearch, _Search
from flow_dpo.recipes.dots.flow import TRAJECTORIES, Planned, PlannedState
from flow_dpo.recipes.dots.lesson import TAUGHT
from flow_dpo.recipes.scored import ELSEWHERE
from flow_dpo.recipes.single import Single
from flow_dpo.verify.extract import AnswerRule, extract_answer
from tests.support import char_renderer
from tests.support.judge_server import Address, serving
from tests.support.tree_builders import completion, graded, problem, request

NAMES = [way.name for way in TRAJECTORIES]
ASKED = Problem(id="p", question="6 * 7 = ?", gold="42")
FLOW = Planned(max_tokens=400, explanation_tokens=200)
ROLES = Planned.roles


def module(prompt: str) -> str:
    """Which module a prompt belongs to."""
    marks = {
        "did best": "hindsight", "Which way is taken": "choose", "These ways": "plan", "Write this problem": "rewrite",
        "List the smaller": "decompose", "Python program": "pot", "Suppose that its": "verify",
        "Is the proposed": "verdict", "problem again, step": "again",
    }  # fmt: skip
    return next((name for mark, name in marks.items() if mark in prompt), "cot")


def script(right: str, chosen: int = 0, verdict: int = 0) -> char_renderer.Script:
    """Answers 42 where the prompt holds `right`, and 41 elsewhere; programs print 6 * 7."""

    def say(_request: Request, prompt: str, _seed: int) -> str | int:
        name = module(prompt)
        if name == "choose":
            return chosen
        if name == "verdict":
            return verdict
        if name == "pot":
            return "Here:\n```python\nprint(6 * 7)\n```"
        if name in ("cot", "again"):
            return f"Answer: {42 if right in prompt else 41}"
        return name.upper()

    return say


def text(pieces: tuple[str | tuple[int, ...], ...]) -> str:
    return char_renderer.Letters().to_text(pieces)


def prompts(tree: Tree, rollout: int) -> list[str]:
    """Modules of a rollout's turns."""
    return [module(text((node.request.prompt_ids,))) for node in tree.path(tree.rollouts[rollout].leaf)]


def test_twelve_ways_of_which_six_need_no_program() -> None:
    assert len(set(NAMES)) == 12
    assert NAMES[:3] == ["cot", "cot+verify", "rewrite+cot"]
    assert [way.program for way in TRAJECTORIES] == [False] * 6 + [True] * 6
    assert FLOW.trajectories == TRAJECTORIES[:6]
    assert Planned(programs=True).trajectories == TRAJECTORIES


@pytest.mark.parametrize("index", range(12))
def test_a_way_is_carried_out_module_by_module(index: int) -> None:
    flow = Planned(programs=True, max_tokens=400, explanation_tokens=200)
    explore = TrajectorySearch(num_rounds=0)
    (tree,) = explore(flow, char_renderer.runner(script("42", index), ROLES), [ASKED], seed=0)
    way = TRAJECTORIES[index]
    modules = (*way.modules, *(["verdict"] if way.verify else []))
    assert prompts(tree, 0) == ["plan", "choose", *modules]
    assert [node.role for node in tree.nodes] == ["plan", "plan", *["answer"] * len(modules)]
    assert [node.tags for node in tree.nodes] == [(), (), *[(way.name,)] * len(modules)]
    said = text(tree.trunk.solution.pieces)
    assert ("Answer: 42\n" in said) is way.program
    asked = [text((node.request.prompt_ids,)) for node in tree.nodes]
    # What was written before is spliced in: the explanation, the analysis, the draft with what its program printed.
    assert "PLAN" in asked[1]
    if way.analysis != "none":
        assert way.analysis.upper() in asked[3]
    if way.verify:
        assert all(("print(6 * 7)" if way.program else "Answer: 41") in prompt for prompt in asked[-2:])
        assert all(("Answer: 42" in prompt) is way.program for prompt in asked[-2:])
        assert "VERIFY" in asked[-1]
        # Found correct, the draft stands as it is.
        assert (tree.trunk.solution.attempt_start, tree.trunk.solution.ended) == (0, not way.program)


@pytest.mark.parametrize("program", [False, True])
def test_only_what_was_found_incorrect_is_answered_again_and_at_most_so_often(program: bool) -> None:
    """By the authors: once, in words. Verdicts are "incorrect" as long as the draft has no 42 in it."""
    way = "pot+verify" if program else "cot+verify"
    told = iter(["40", "41", "42", "43"])

    def say(_request: Request, prompt: str, _seed: int) -> str | int:
        name = module(prompt)
        if name == "verdict":
            return 0 if "Answer: 42" in prompt.partition("Proposed solution:")[2] else 1
        return f"Answer: {next(told)}" if name in ("cot", "again") else "print(7)" if name == "pot" else "CHECK"

    wanted = {1: "41", 2: "42", 3: "42"} if not program else {1: "40", 2: "41", 3: "42"}
    for most, last in wanted.items():
        told = iter(["40", "41", "42", "43"])
        flow = Planned(fixed=way, programs=True, max_again=most, max_tokens=400, explanation_tokens=200)
        (tree,) = TrajectorySearch(num_rounds=0)(flow, char_renderer.runner(say, ROLES), [ASKED], seed=0)
        solution, num_drafts = tree.trunk.solution, int(last) - 39 + program
        assert text(solution.attempt) == f"Answer: {last}"
        assert text(solution.pieces).count("Answer: ") == num_drafts
        assert solution.ended, "what is written anew is in words, and ends as they do"
        # Draft, check, verdict; then again, and where another is allowed a check and a verdict of it.
        checked = num_drafts if num_drafts <= most else most
        assert prompts(tree, 0).count("verify") == prompts(tree, 0).count("verdict") == checked
        assert prompts(tree, 0).count("again") == num_drafts - 1
        for node in tree.nodes:
            prompt = text((node.request.prompt_ids,))
            if module(prompt) == "again":
                assert "CHECK" in prompt
                assert ("Answer: 7" if program and "print(7)" in prompt else "Answer: 4") in prompt


def test_programs_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr("flow_dpo.recipes.dots.explore.run_program", never)
    (tree,) = TrajectorySearch(num_rollouts=1)(FLOW, char_renderer.runner(script("42"), ROLES), [ASKED], seed=0)
    assert not any("pot" in tag for node in tree.nodes for tag in node.tags)
    with pytest.raises(ConfigError, match="runs programs that the model writes; ask for that with --programs"):
        Planned(fixed="pot")
    with pytest.raises(AssertionError, match="a program was run"):
        TrajectorySearch()(Planned(programs=True), char_renderer.runner(script("42"), ROLES), [ASKED], seed=0)


def test_a_program_without_an_answer_has_none() -> None:
    flow = Planned(programs=True, fixed="pot")
    state = flow.advance(flow.start(ASKED), completion(*char_renderer.ids("print(1)")))
    assert text(flow.awaiting(state)) == "print(1)"
    failed = flow.with_output(state, output="", reason="ValueError: x")
    assert text(flow.solution(failed).pieces) == "print(1)\n\nThe program failed."
    for reason in ("it took more than 2 s", "", "invalid literal for int() with base 10: '3'"):
        told = text(flow.solution(flow.with_output(state, output="", reason=reason)).pieces)
        assert extract_answer(told, ended=True, rule=AnswerRule()) is None
    assert flow.awaiting(failed) == ()
    printed = flow.with_output(state, output="a\n 7 \n", reason="")
    assert text(flow.solution(printed).pieces).endswith("\nAnswer: 7\n")


def test_every_way_is_played_and_the_kept_ones_again() -> None:
    # Right where the problem was decomposed; what is found incorrect is answered anew without seeing that, so is wrong.
    explore = TrajectorySearch(num_rollouts=3, num_rounds=3, num_kept=2, num_best=1)
    trees = explore(FLOW, char_renderer.runner(script("DECOMPOSE", verdict=1), ROLES), [ASKED], seed=0)
    (tree,) = trees
    taught = tree.rollouts[-1]
    plays = Counter(tree.nodes[rollout.start].tags[0] for rollout in tree.rollouts[1:-1])
    # Rates 0 but for decompose+cot; of those that are never right the shortest is kept.
    assert plays == Counter(dict.fromkeys(NAMES[:6], 3) | {"decompose+cot": 9, "cot": 9})
    for rollout in tree.rollouts[1:-1]:
        modules = tree.nodes[rollout.start].tags[0].split("+")
        assert prompts(tree, rollout.id) == [*modules, *(["verdict", "again"] if "verify" in modules else [])]
    why, which = tree.path(taught.leaf)
    assert module(text((why.request.prompt_ids,))) == "hindsight"
    assert why.tags == which.tags == (TAUGHT, "decompose+cot")
    # The name is what the planner would say behind this very explanation.
    assert "HINDSIGHT" in text((which.request.prompt_ids,))
    assert (which.completion.choice, which.completion.token_ids) == (4, (ord("E"),))
    assert len(which.request.choices) == 6
    again = explore(
        FLOW, char_renderer.runner(script("DECOMPOSE", verdict=1), ROLES),
        [Problem(id="q", question="?", gold="1"), ASKED], seed=0
    )  # fmt: skip
    assert again[1] == tree


@pytest.mark.parametrize(
    ("statuses", "best", "decides"),
    [
        ({"cot": "wwc", "rewrite+cot": "cuu", "decompose+cot": "uuu"}, ["rewrite+cot", "cot"], True),
        ({"cot": "wuu", "rewrite+cot": "uuu", "decompose+cot": "wwc"}, ["decompose+cot", "cot"], True),
        ({"cot": "cuu", "rewrite+cot": "uuu", "decompose+cot": "uuu"}, ["cot", "rewrite+cot"], False),
        ({"cot": "uuu", "rewrite+cot": "wuw", "decompose+cot": "uuu"}, ["rewrite+cot", "cot"], False),
    ],
)
def test_what_could_not_be_graded_is_neither_right_nor_wrong(
    statuses: dict[str, str], best: list[str], decides: bool
) -> None:
    """A way's rate is of its graded rollouts; one of which none could be graded comes last."""
    verdicts: dict[str, Status] = {"c": "correct", "w": "wrong", "u": "ungraded"}
    search = _Search(TrajectorySearch(num_best=2), FLOW, ASKED, char_renderer.runner(script(""), ROLES), 0)
    search.ways = [*statuses]
    for way, each in statuses.items():
        for status in each:
            chain = search._chain(FLOW, way)
            chain.status = verdicts[status]
            search.running.append((way, chain))
    search.end_round(last=True)
    assert (search.ways, search.decides) == (best, decides)


def test_the_best_way_is_that_of_brute_force() -> None:
    def say(_request: Request, prompt: str, seed: int) -> str | int:
        name = module(prompt)
        if name in ("cot", "again"):
            chance = 3 if "REWRITE" in prompt else 5
            return f"Answer: {42 if seed % chance == 0 else 41}"
        return 0 if name == "choose" else seed % 2 if name == "verdict" else name.upper()

    problems = [Problem(id=f"p{i}", question="?", gold="42") for i in range(40)]
    trees = TrajectorySearch(num_rounds=1)(FLOW, char_renderer.runner(say, ROLES), problems, seed=0)
    found = 0
    for tree in trees:
        plays = [r for r in tree.rollouts[1:] if TAUGHT not in tree.nodes[r.start].tags]
        rates = Counter[str]()
        for rollout in plays:
            rates[tree.nodes[rollout.start].tags[0]] += text(rollout.solution.attempt).endswith("42")
        mixed = 0 < sum(rates.values()) < len(plays) == 24
        taught = [tree.nodes[r.start].tags[1] for r in tree.rollouts if TAUGHT in tree.nodes[r.start].tags]
        best = max(NAMES[:6], key=lambda name: (rates[name], -name.count("+"), -NAMES.index(name)))
        assert taught == ([best] if mixed else [])
        found += mixed
    assert found > 30


@pytest.mark.parametrize(("rule", "best"), [(AnswerRule(), []), (AnswerRule(which="anywhere"), ["decompose+cot"])])
def test_the_search_follows_the_rule_that_the_run_is_graded_with(rule: AnswerRule, best: list[str]) -> None:
    """What is right is never stated on the last line: by the strict rule no way is right, by the loose one some are."""

    def say(request: Request, prompt: str, seed: int) -> str | int:
        said = script("DECOMPOSE", verdict=1)(request, prompt, seed)
        return f"{said}\nDone." if isinstance(said, str) and said.startswith("Answer") else said

    runner = char_renderer.runner(say, ROLES, rule=rule)
    (tree,) = TrajectorySearch(num_rounds=1)(FLOW, runner, [ASKED], seed=0)
    assert [node.tags[1] for node in tree.nodes if TAUGHT in node.tags and node.role == "plan"] == best


@pytest.mark.parametrize("right", ["", "never"], ids=["all right", "none right"])
def test_a_problem_that_all_or_no_ways_solve_is_explained_to_nobody(right: str) -> None:
    (tree,) = TrajectorySearch()(FLOW, char_renderer.runner(script(right), ROLES), [ASKED], seed=0)
    assert len(tree.rollouts) == 1 + 6 * 4 * 2
    assert not any(TAUGHT in node.tags for node in tree.nodes)


def test_evaluation_plays_the_planner_alone() -> None:
    (tree,) = TrajectorySearch().alone(greedy=True)(FLOW, char_renderer.runner(script("", 3), ROLES), [ASKED], seed=0)
    found = [prompts(tree, rollout.id) for rollout in tree.rollouts]
    assert found == [["plan", "choose", "rewrite", "cot", "verify", "verdict"]]


# ---- another model explains ------------------------------------------------------------------------------------------


def explained(replies: dict[str, object], **words: object) -> tuple[list[Tree], Address]:
    """Trees of problems p and q, explained behind an address that replies by question."""
    problems = [replace(ASKED, id="p", question="6 * 7 = ?"), replace(ASKED, id="q", question="42 = ?")]
    with serving(lambda asked, _: replies[asked.partition("\n")[0]]) as address:
        explore = TrajectorySearch(num_rounds=1, explainer_url=address.url, **words)  # type: ignore[arg-type]
        trees = explore(FLOW, char_renderer.runner(script("DECOMPOSE", verdict=1), ROLES), problems, seed=0)
    return trees, address


def test_another_model_explains_and_the_planner_is_taught_its_words() -> None:
    trees, address = explained({"6 * 7 = ?": " Two numbers. ", "42 = ?": "x" * 300})
    assert {asked["max_tokens"] for asked in address.requests} == {200}
    assert all("this one did best: decompose, then cot." in asked["messages"][0]["content"]
               for asked in address.requests)  # fmt: skip
    p, q = (tree.path(tree.rollouts[-1].leaf) for tree in trees)
    # In this model's tokens, with its own end token behind them; what is too long is cut, and does not end.
    why, which = p
    assert why.completion.token_ids == (*char_renderer.ids("Two numbers."), char_renderer.END)
    assert (why.completion.finish_reason, why.completion.policy_version) == ("stop", ELSEWHERE)
    assert text((why.request.prompt_ids,)).startswith("<user>6 * 7 = ?")
    assert "Two numbers." in text((which.request.prompt_ids,))
    assert (len(q[0].completion.token_ids), q[0].completion.finish_reason) == (200, "length")
    # All else is as it is without.
    mine = TrajectorySearch(num_rounds=1)(
        FLOW, char_renderer.runner(script("DECOMPOSE", verdict=1), ROLES), [ASKED], seed=0
    )
    assert [node.completion for node in trees[0].nodes[:-2]] == [node.completion for node in mine[0].nodes[:-2]]
    statuses: list[Status] = ["wrong", "correct"] * 13
    learned = BestTrajectory()([graded(trees[0], *statuses[: len(trees[0].rollouts)])])
    assert len(learned) == 2
    assert all(example.completion.policy_version == ELSEWHERE for example in learned)


def test_what_the_address_refuses_or_leaves_empty_teaches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    trees, _ = explained({"6 * 7 = ?": (400, b"too long"), "42 = ?": " \n"})
    assert not any(TAUGHT in node.tags for tree in trees for node in tree.nodes)
    assert "gave no explanation: too long" in caplog.text
    with serving(lambda *_: (404, b"gone")) as address:
        with pytest.raises(EngineError, match="expected a chat completion"):
            explain(["?"], url=address.url, model="tiny", max_tokens=4)
        address.models = ["one", "two"]
        with pytest.raises(ConfigError, match="expected the name of a model"):
            explain(["?"], url=address.url, model="", max_tokens=4)
    assert explain([], url="http://127.0.0.1:1/v1", model="", max_tokens=4) == [], "nobody is asked for nothing"
    with pytest.raises(ConfigError, match="expected base_url such as"):
        TrajectorySearch(explainer_url="file:///etc/passwd")

    # Nobody there: nothing is sampled first.
    def say(*_: object) -> str:
        raise AssertionError

    alone = TrajectorySearch(explainer_url="http://127.0.0.1:1/v1")
    with pytest.raises(ConfigError, match=r"or give another --explore\.explainer_url"):
        alone(FLOW, char_renderer.runner(say, ROLES), [ASKED], seed=0)


def test_evaluation_asks_no_other_model() -> None:
    explore = TrajectorySearch(explainer_url="http://127.0.0.1:1/v1").alone(greedy=True)
    (tree,) = explore(FLOW, char_renderer.runner(script("", 3), ROLES), [ASKED], seed=0)
    assert len(tree.rollouts) == 1


# ---- credit ----------------------------------------------------------------------------------------------------------


def drawn(*statuses: Status) -> Tree:
    """A trunk; plays of the ways a (two turns) and b, twice a; and what is taught: b... and why."""
    tree = Tree(problem=problem())
    end = Solution(pieces=(), ended=True)
    tree.add_rollout(None, [(request("plan", 5), completion(1), ()), (request("answer", 6), completion(2), ())], end)
    for way, tokens in (("a", (10, 11)), ("b", (12,)), ("a", (13, 14))):
        tree.add_rollout(None, [(request("answer", 7, t), completion(t), (way,)) for t in tokens], end)
    said = [(request("answer", 8), completion(20), (TAUGHT, "a")), (request("plan", 9), completion(21), (TAUGHT, "a"))]
    tree.add_rollout(None, said, end)
    return graded(tree, *statuses, "correct")


def test_the_planner_learns_why_and_which() -> None:
    why, which = BestTrajectory()([drawn("wrong", "wrong", "wrong", "correct")])
    # The explanation answers the planner's own question, not the one asked in hindsight.
    assert (why.request.role, why.request.prompt_ids, why.completion.token_ids) == ("plan", (5,), (20,))
    assert why.completion.policy_version == ELSEWHERE
    assert (which.request.prompt_ids, which.completion.token_ids) == ((9,), (21,))
    assert why.advantage == which.advantage == 1.0


def test_the_reasoning_is_learned_where_asked_for() -> None:
    examples = BestTrajectory(keep_reasoning=True)([drawn("wrong", "correct", "wrong", "correct")])
    assert [(e.request.role, e.completion.token_ids, e.completion.policy_version) for e in examples[2:]] == [
        ("answer", (10,), 0), ("answer", (11,), 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "statuses",
    [
        ("wrong", "correct", "correct", "correct"),
        ("correct", "wrong", "wrong", "wrong"),
        ("correct", "correct", "ungraded", "correct"),
        ("wrong", "wrong", "correct", "ungraded"),
    ],
    ids=["all right", "none right", "all graded right", "best never right"],
)
def test_nothing_is_learned_where_nothing_is_decided(statuses: tuple[Status, ...]) -> None:
    assert BestTrajectory()([drawn(*statuses)]) == []


def test_a_tree_without_a_search_teaches_nothing() -> None:
    tree = Tree(problem=problem())
    tree.add_rollout(None, [(request("plan", 5), completion(1), ())], Solution(pieces=(), ended=True))
    assert BestTrajectory()([graded(tree, "correct")]) == []


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="12 different labels"):
        Planned(programs=True, labels=tuple("ABCDEF"))
    with pytest.raises(ConfigError, match="6 different labels"):
        Planned(labels=tuple("AABCDEF"))
    with pytest.raises(ConfigError, match="fixed to name a way"):
        Planned(fixed="guess")
    with pytest.raises(ConfigError, match="num_best <= num_kept"):
        TrajectorySearch(num_kept=2)
    with pytest.raises(FlowError, match="needs the flow Planned"):
        TrajectorySearch()(Single(), char_renderer.runner(script("")), [ASKED], seed=0)
    assert Planned().turn(PlannedState(problem=ASKED)) is not None
