"""Do explorations visit what they say, with the probability that they say, where a recipe combines their parts?

By enumeration of small worlds: VinePPO's long steps, completions of SPO and Step-DPO, later rounds of TreeRL's forks,
and MALT's three roles in a full tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from flow_dpo.core.explore import Explore, Group
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Piece, Request, TokenIds, Turn
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.full_tree import FullTree
from flow_dpo.recipes.malt.flow import GenerateVerifyRefine
from flow_dpo.recipes.single import Single
from flow_dpo.recipes.step_dpo.explore import WrongRollouts
from flow_dpo.recipes.tree_advantages.cuts import CutRollouts
from flow_dpo.recipes.tree_advantages.forks import EntropyForks
from flow_dpo.recipes.vineppo.explore import StepRollouts
from tests.core.test_explore import ANSWER_PROMPT, END, PROBLEMS, Bare, chunks, fits, next_probs
from tests.recipes.test_step_dpo import verdicts
from tests.support.graders import FunctionGrader

LENGTH = 4
ONE_PASS = Single(max_tokens=LENGTH)


def explored(settings: Explore, num: int, renderer: Bare | None = None, flow: Flow | None = None) -> list[Tree]:  # type: ignore[type-arg]
    grader = FunctionGrader(verdicts)
    runner = RolloutRunner(TabularEngine(next_probs, end_ids={END}), renderer or Bare(), grader)
    return settings(flow or ONE_PASS, runner, PROBLEMS[:num], seed=0)


def written(tree: Tree, rollout: int) -> TokenIds:
    return tuple(t for node in tree.path(tree.rollouts[rollout].leaf) for t in node.completion.token_ids)


# ---- VinePPO: long steps ---------------------------------------------------------------------------------------------


class Long(Bare):
    """Token 1 ends a line of 45 characters, token 2 is 45 characters that end with a comma."""

    def to_text(self, pieces: Sequence[Piece]) -> str:
        texts = {1: "x" * 44 + "\n", 2: "y" * 44 + ","}
        return "".join(texts.get(token, "") for ids in pieces for token in ids if isinstance(token, int))


def states(ids: TokenIds, *, limit: bool) -> list[TokenIds]:
    """What stands before each step: lines, of which one of three tokens is cut behind its first comma, one of four
    behind its second, for those are nearest to the middle."""
    ids = tuple(token for token in ids if token != END)
    lines, begun = list[tuple[int, int]](), 0
    for at, token in enumerate(ids):
        if token == 1 or at == len(ids) - 1:
            lines.append((begun, at + 1))
            begun = at + 1
    cuts = [begin + (end - begin) // 2 for begin, end in lines if end - begin > 2 and limit]
    return [ids[:at] for at in sorted({0, *(begin for begin, _ in lines), *cuts})]


def test_long_steps_are_cut_and_every_state_between_their_halves_is_visited() -> None:
    for limit in (0, 100):
        settings = StepRollouts(num_rollouts=2, num_completions=2, max_step_chars=limit)
        num_cut = 0
        for tree in explored(settings, 300, Long()):
            paths = [written(tree, rollout.id) for rollout in tree.rollouts if not rollout.probe]
            wanted = {state for path in paths for state in states(path, limit=bool(limit))}
            probed = Counter(tree.nodes[r.start].request.prompt_ids[1:] for r in tree.rollouts if r.probe)
            assert probed == dict.fromkeys(wanted, 2)
            num_cut += any(state and state[-1] == 2 for state in wanted)
        assert (num_cut > 20) is bool(limit)


# ---- completions are plain draws from their states -------------------------------------------------------------------


def drawn_from_states(trees: Sequence[Tree]) -> dict[TokenIds, Counter[TokenIds]]:
    found: dict[TokenIds, Counter[TokenIds]] = {}
    for tree in trees:
        for rollout in tree.rollouts:
            if rollout.probe:
                state = tree.nodes[rollout.start].request.prompt_ids
                found.setdefault(state, Counter())[written(tree, rollout.id)[len(state) - 1 :]] += 1
    return found


def test_completions_from_cuts_and_from_wrong_paths_follow_the_flow() -> None:
    cuts = CutRollouts(num_rollouts=2, num_completions=3, cut_below=0.6, cut_interval=1)
    for settings in (cuts, WrongRollouts(num_rollouts=2, num_completions=3)):
        found = drawn_from_states(explored(settings, 300))
        assert len(found) > 5
        for state, counts in found.items():
            assert fits(counts, dict(chunks(state, LENGTH - len(state) + 1))), state  # type: ignore[arg-type]


# ---- TreeRL: forks of forks ------------------------------------------------------------------------------------------


def forks_of(tree: Tree) -> list[tuple[int, int]]:
    """Of every rollout but the chain: which one it forks, and how many tokens precede."""
    found: list[tuple[int, int]] = []
    for rollout in tree.rollouts[1:]:
        parent = tree.nodes[rollout.start].parent
        before = 0 if parent is None else sum(len(node.completion.token_ids) for node in tree.path(parent))
        found.append((0 if parent is None else tree.nodes[parent].rollout, before))
    return found


def test_later_rounds_fork_the_least_sure_tokens_of_all_branches() -> None:
    """Each round again from the finished tree: the two least sure tokens that neither begin a fork nor were forked."""
    settings = EntropyForks(num_rollouts=1, num_forks=2, num_completions=1, fork_rounds=3, no_forks_after=())
    of_forks = 0
    for tree in explored(settings, 150):
        found, known, forked = forks_of(tree), {0: 0}, set[tuple[int, int]]()
        while len(known) < len(tree.rollouts):
            surprises: dict[tuple[int, int], float] = {}
            for branch, begun in known.items():
                ids = written(tree, branch)
                for at in range(begun + (branch > 0), len(ids)):
                    if (branch, at) not in forked:
                        surprises[branch, at] = -next_probs("answer", (ANSWER_PROMPT, *ids[:at]))[ids[at]]
            values = sorted(surprises.values())[-2:]
            mine = found[len(known) - 1 : len(known) - 1 + len(values)]
            assert sorted(surprises[place] for place in mine) == values, "the least sure of all"
            forked |= {*mine}
            of_forks += sum(branch > 0 for branch, _ in mine)
            known |= {len(known) + index: at for index, (_, at) in enumerate(mine)}
        assert len(forked) == len(found)
    assert of_forks > 50


# ---- MALT: three roles in a full tree --------------------------------------------------------------------------------


class Roles(Bare):
    """A prompt is a role's own token, and all that others wrote before."""

    def render(self, turn: Turn) -> Request:
        first = 100 + GenerateVerifyRefine.roles.index(turn.role)
        shown = (piece for message in turn.messages for piece in message.content if not isinstance(piece, str))
        ids = (first, *(token for piece in shown for token in piece))
        return Request(role=turn.role, prompt_ids=ids, max_tokens=turn.max_tokens)


def turns(before: tuple[TokenIds, ...] = ()) -> Iterator[tuple[tuple[TokenIds, ...], float]]:
    """Every rollout of solution, critique and second solution, with its probability."""
    if len(before) == 3:
        yield before, 1.0
        return
    shown = tuple(token for ids in before for token in ids if token != END)
    for ids, p in chunks((100 + len(before), *shown), 1 if len(before) == 1 else 2):
        for rest, q in turns((*before, ids)):
            yield rest, p * q


def test_malts_roles_are_each_sampled_so_often_below_what_was_written_before() -> None:
    flow = GenerateVerifyRefine(max_tokens=2, critique_tokens=1)
    trees = explored(FullTree(branch_factors=(2, 1, 3)), 500, Roles(), flow)
    every, both = dict(turns()), Counter[tuple[TokenIds, ...]]()
    for tree in trees:
        assert [len(tree.rollouts), len(tree.nodes)] == [6, 2 + 2 + 6]
        for node in tree.nodes:
            path = tree.path(node.id)
            shown = tuple(t for one in path[:-1] for t in one.completion.token_ids if t != END)
            assert node.role == flow.roles[node.depth]
            assert node.request.prompt_ids == (100 + node.depth, *shown)
            assert len(tree.children(node.id)) == (1, 3, 0)[node.depth]
        for rollout in tree.rollouts:
            last = tree.nodes[rollout.leaf].completion
            assert rollout.solution.pieces == (last.content_ids,)
        last = [node.completion.token_ids for node in tree.children(tree.trunk_nodes()[1].id)]
        both[(*(node.completion.token_ids for node in tree.trunk_nodes()[:2]), *last[:2])] += 1
    assert fits(Counter(tuple(n.completion.token_ids for n in tree.trunk_nodes()) for tree in trees), every)
    # Two second solutions below one critique are independent draws.
    after: Counter[tuple[TokenIds, ...]] = Counter()
    for path, p in every.items():
        after[path[:2]] += p  # type: ignore[assignment]
    joint = {(*a, b[2]): p * every[b] / after[a[:2]] for a, p in every.items() for b in every if a[:2] == b[:2]}
    assert fits(both, joint)
    assert Group(temperature=0.5, num_rollouts=1) == FullTree(temperature=0.5).alone(greedy=False)
