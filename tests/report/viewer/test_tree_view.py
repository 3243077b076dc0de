"""Is a tree shown as it was recorded, is what follows from it right, and does a damaged field cost itself alone?"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.recipes.cpl.credit import node_values
from flow_dpo.report.viewer.tree_view import tree_view
from flow_dpo.report.viewer.wrong_steps import places_of_parts
from flow_dpo.runs import records
from flow_dpo.runs.tree_records import tree_row
from flow_dpo.runs.tree_rows import TreeRow
from tests.support.record_examples import LEARNED, PAIR, SCORED
from tests.support.tree_builders import IdTexts, two_chunk_tree

STATUSES = ("wrong", "correct", "wrong", "correct", "ungraded")


def recorded(*statuses: Any) -> dict[str, Any]:
    """The tree of five rollouts (`two_chunk_tree`) as a row of trees.jsonl."""
    return records.to_json(tree_row(two_chunk_tree(*statuses or STATUSES), IdTexts()))


def written(*texts: str, role: str = "answer", **more: Any) -> dict[str, Any]:
    """A trunk of one node for each text, as a row of trees.jsonl with a solution that is all of them."""
    nodes = [
        {"id": at, "parent": at - 1 if at else None, "rollout": 0, "depth": at, "role": role, "policy_version": 3,
         "token_ids": [at], "text": text, "logprobs": [-0.25], "finish_reason": "length", "choice": None,
         "choice_logprobs": [], "tags": []}
        for at, text in enumerate(texts)
    ]  # fmt: skip
    rollout = {"id": 0, "start": 0, "leaf": len(nodes) - 1, "ended": True, "probe": False, "value": None,
               "text": "".join(texts), "verdict": {"status": "wrong", "answer": "39", "reason": ""}}  # fmt: skip
    problem = {"id": "p", "question": "?", "gold": "29"}
    return {"schema": "tree/2", "problem": problem, "nodes": nodes, "rollouts": [rollout], "skipped": {}, **more}


# ---- what is recorded ------------------------------------------------------------------------------------------------


def test_nodes_and_rollouts_are_those_of_the_record():
    found = tree_view(recorded(), [], [], {})
    assert found["kind"] == "tree"
    assert found["roles"] == ["answer", "stop"]
    assert found["problem"]["gold"] == "2"
    assert [(node["id"], node["parent"], node["rollout"], node["depth"]) for node in found["nodes"]] == [
        (0, None, 0, 0), (1, 0, 0, 1), (2, 1, 0, 2), (3, 2, 0, 3), (4, None, 1, 0), (5, 4, 1, 1), (6, 0, 2, 1),
        (7, 1, 3, 2), (8, 7, 3, 3), (9, 2, 4, 3), (10, 9, 4, 4),
    ]  # fmt: skip
    assert [(rollout["start"], rollout["leaf"], rollout["parent"]) for rollout in found["rollouts"]] == [
        (0, 3, None), (4, 5, None), (6, 6, 0), (7, 8, 1), (9, 10, 2),
    ]  # fmt: skip
    assert [rollout["status"] for rollout in found["rollouts"]] == list(STATUSES)
    assert found["notes"] == []


def test_a_rollout_counts_the_tokens_of_its_whole_path():
    # Rollout 3: A0 (2 tokens), S1 (1), A7 (1), S8 (1), each token at -0.5.
    found = tree_view(recorded(), [], [], {})["rollouts"][3]
    assert (found["tokens"], found["logprob"]) == (5, -2.5)


def test_a_choice_has_its_probabilities_and_words():
    row = recorded()
    row["choices"] = {"stop": ["Yes", "No"]}
    found = tree_view(row, [], [], {})
    assert found["nodes"][1]["choices"] == pytest.approx([math.exp(-0.5), math.exp(-0.9)])
    assert found["nodes"][1]["yes"] == pytest.approx(0.6065, abs=1e-4)
    assert found["nodes"][0]["yes"] is None
    assert found["words"] == {"stop": ["Yes", "No"]}


def test_words_of_an_older_row_are_those_that_were_taken():
    row: dict[str, Any] = recorded() | {"schema": "tree/1", "choices": {}}
    for node in row["nodes"]:
        if node["role"] == "stop":
            node["text"] = ("Yes", "No")[node["choice"]]
    assert tree_view(row, [], [], {})["words"] == {"stop": ["Yes", "No"]}


def test_pieces_are_the_tokens_texts_and_special_ones_have_none():
    row = written("She loses")
    row["nodes"][0] |= {"token_ids": [7, 8, 5], "logprobs": [-1, -2, -3]}
    tokens = {7: ("She", False), 8: (" loses", False), 5: ("<end>", True), 6: ("<other>", True)}
    found = tree_view(row, [], [], tokens)
    assert found["nodes"][0]["pieces"] == ["She", " loses", ""]
    assert found["special"] == {"5": "<end>"}
    # Texts that do not make up the node's, or are missing, are not shown as if they did.
    assert tree_view(row, [], [], tokens | {8: (" gets", False)})["nodes"][0]["pieces"] is None
    assert tree_view(row, [], [], {})["nodes"][0]["pieces"] is None


def test_pieces_by_length_count_where_they_are_recorded():
    row = written("She loses")
    row["nodes"][0] |= {"token_ids": [7, 8, 5], "piece_lengths": [4, 5, 0]}
    assert tree_view(row, [], [], {})["nodes"][0]["pieces"] == ["She ", "loses", ""]
    row["nodes"][0]["piece_lengths"] = [4, 4, 0]
    found = tree_view(row, [], [], {})
    assert found["nodes"][0]["pieces"] is None
    assert "piece_lengths" in found["notes"][0]


def test_a_prompt_is_what_it_adds_to_an_earlier_one():
    row = written("a", "b")
    row["nodes"][0]["prompt"] = {"kept": 0, "token_ids": [1, 2]}
    row["nodes"][1]["prompt"] = {"after": 0, "kept": 3, "token_ids": [9]}
    prompts = [node["prompt"] for node in tree_view(row, [], [], {1: ("<s>", True), 2: ("Q", False)})["nodes"]]
    assert prompts[0] == {"after": None, "kept": 0, "ids": [1, 2], "pieces": ["", "Q"]}
    assert prompts[1] == {"after": 0, "kept": 3, "ids": [9], "pieces": [None]}


# ---- what follows from it --------------------------------------------------------------------------------------------


def test_siblings_differ_from_the_trunks_at_their_first_other_token():
    differs = {node["id"]: node["differs"] for node in tree_view(recorded(), [], [], {})["nodes"]}
    # A4 is 5 8 and A0 is 5 6; S6 flips S1, A7 is another chunk than A2, S9 flips S3. The others have no sibling.
    assert {id: at for id, at in differs.items() if at is not None} == {4: 1, 6: 0, 7: 0, 9: 0}


def test_a_completion_that_is_the_beginning_of_another_differs_where_it_ends():
    row = written("a", "b")
    row["nodes"][0]["token_ids"], row["nodes"][1]["token_ids"] = [1, 2, 3], [1, 2]
    row["nodes"][1] |= {"parent": None, "depth": 0}
    assert tree_view(row, [], [], {})["nodes"][1]["differs"] == 2


@pytest.mark.parametrize(("kept", "ids", "expected"), [(2, [], 0), (1, [4], None), (2, [4], None)])
def test_only_answers_to_one_request_are_compared(kept: int, ids: list[int], expected: int | None):
    row = written("a", "b")
    row["nodes"][0]["prompt"] = {"kept": 0, "token_ids": [1, 2]}
    row["nodes"][1] |= {"parent": None, "depth": 0, "prompt": {"after": 0, "kept": kept, "token_ids": ids}}
    assert tree_view(row, [], [], {})["nodes"][1]["differs"] == expected


def test_visits_and_values_are_those_of_the_search():
    tree = two_chunk_tree(*STATUSES)
    found = tree_view(recorded(), [], [], {})["nodes"]
    assert {node["id"]: node["value"] for node in found if node["value"] is not None} == node_values(tree)
    # Through A0 go rollouts 0, 2, 3 and 4: wrong, wrong, correct, ungraded.
    assert (found[0]["visits"], found[0]["value"]) == (4, pytest.approx(-1 / 3))
    assert (found[10]["visits"], found[10]["value"]) == (1, None)


def test_probes_are_no_visits_and_estimates_are_values():
    row = recorded()
    row["rollouts"][1]["probe"] = True
    row["rollouts"][2] |= {"verdict": None, "value": 0.5}
    found = tree_view(row, [], [], {})
    assert (found["nodes"][4]["visits"], found["nodes"][4]["value"]) == (0, None)
    assert (found["nodes"][6]["visits"], found["nodes"][6]["value"]) == (1, 0.5)
    assert found["rollouts"][2]["status"] == "stopped"


def test_rewards_count_as_the_search_counts_them():
    row = written("a")
    row["rollouts"][0]["verdict"] |= {"value": 0.75, "measures": {"rewards/brevity": 0.5, "broken": "x"}}
    found = tree_view(row, [], [], {})
    assert found["nodes"][0]["value"] == 0.5  # 2 * 0.75 - 1
    assert (found["rollouts"][0]["reward"], found["rollouts"][0]["measures"]) == (0.75, {"rewards/brevity": 0.5})


def test_examples_mark_the_sides_of_their_nodes():
    pair = PAIR | {"node": 0, "rejected_node": 4, "margin": 1.5, "prompt": "<user>1 + 1 = ?"}
    other = PAIR | {"node": 4, "rejected_node": 7}
    scored = SCORED | {
        "role": "stop",
        "node": 3,
        "advantage": -0.5,
        "completion_ids": recorded()["nodes"][3]["token_ids"],
    }
    learned = [
        LEARNED | {"role": "answer", "node": 0, "rejected_node": 4, "version": version, "policy": [[-1.0], [-2.0]],
                   "reference": reference}
        for version, reference in ((1, []), (2, [[-1.5], [-1.5]]))
    ]  # fmt: skip
    row = recorded()
    del row["nodes"][0]["prompt"]  # as in older rows: then the pair has its text
    found = tree_view(row, [pair, other, scored], learned, {})
    assert [node["side"] for node in found["nodes"][:5]] == ["chosen", "", "", "", "both"]
    assert found["nodes"][7]["side"] == "rejected"
    assert [node["advantage"] for node in found["nodes"][2:5]] == [None, -0.5, None]
    assert [node["prompt_text"] for node in found["nodes"][:5]] == ["<user>1 + 1 = ?", None, None, None, None]
    first = found["examples"][0]
    assert (first["kind"], first["chosen"], first["rejected"], first["margin"]) == ("pair", 0, 4, 1.5)
    assert first["statuses"] == ["correct", "wrong"]
    assert [(row["version"], row["policy"], row["reference"]) for row in first["learned"]] == [
        (1, [[-1.0], [-2.0]], None), (2, [[-1.0], [-2.0]], [[-1.5], [-1.5]]),
    ]  # fmt: skip
    assert [example["learned"] for example in found["examples"][1:]] == [[], []]


def test_what_was_learned_is_told_where_it_is_not_what_was_sampled():
    """A judge learns the right word beside the wrong one; a recipe learns without the prompt of its guideline."""
    row = recorded()
    prompts = records.from_json(TreeRow, row, "row")
    for at, node in enumerate(row["nodes"]):
        same = {"node": at, "prompt_ids": list(prompts.prompt_ids(at)), "completion_ids": node["token_ids"]}
        same |= {"role": node["role"], "completion": "No", "prompt": "<user>?"}
        found = tree_view(row, [SCORED | same], [], {})["examples"][0]
        assert (found["completion"], found["prompt"]) == (None, None), at
        word = tree_view(row, [SCORED | same | {"completion_ids": [99]}], [], {})["examples"][0]
        assert (word["completion"], word["prompt"]) == ("No", None)
        under = tree_view(row, [SCORED | same | {"prompt_ids": [98, 99]}], [], {})["examples"][0]
        assert (under["completion"], under["prompt"]) == (None, "<user>?")
    del row["nodes"][0]["prompt"]  # as in older rows: nothing can be compared
    assert tree_view(row, [SCORED | {"node": 0, "prompt_ids": [1]}], [], {})["examples"][0]["prompt"] is None


def test_a_completion_that_begins_before_its_node_tells_where_the_node_begins():
    row = recorded()
    own, other = row["nodes"][0]["token_ids"], row["nodes"][4]["token_ids"]
    pair = PAIR | {"node": 0, "rejected_node": 4, "chosen_ids": [8, 9, *own], "rejected_ids": [*other, 9]}
    assert tree_view(row, [pair], [], {})["examples"][0]["before"] == [2, None]


def test_an_example_of_other_nodes_is_left_out_with_a_note():
    found = tree_view(recorded(), [PAIR | {"node": 0, "rejected_node": 99}], [], {})
    assert found["examples"] == []
    assert "nodes of this tree" in found["notes"][0]


# ---- wrong steps -----------------------------------------------------------------------------------------------------


def test_a_wrong_line_is_marked_in_the_solution_and_in_both_nodes_that_wrote_it():
    found = tree_view(written("46 - 17 ", "= 39\nAnswer: 39"), [], [], {})
    why = "not true: 46 - 17 = 39"
    assert found["rollouts"][0]["faults"] == [{"from": 0, "to": 12, "why": why}]
    assert found["nodes"][0]["faults"] == [{"from": 0, "to": 8, "why": why, "continues": True}]
    assert found["nodes"][1]["faults"] == [{"from": 0, "to": 4, "why": why}]


def test_an_attempt_that_was_given_up_is_checked_apart():
    row = written("1 + 1 = 3\n", "1 + 1 = 2\n")
    row["nodes"][0]["tags"], row["nodes"][1]["tags"] = ["attempt 1"], ["attempt 2"]
    row["rollouts"][0]["text"] = "1 + 1 = 2\n"
    found = tree_view(row, [], [], {})
    assert found["rollouts"][0]["faults"] == []
    assert [fault["why"] for fault in found["nodes"][0]["faults"]] == ["not true: 1 + 1 = 3"]
    assert found["nodes"][1]["faults"] == []


@pytest.mark.parametrize("other", [{"role": "plan"}, {"tags": ["structure"]}])
def test_what_is_no_solution_has_no_steps(other: dict[str, Any]):
    row = written("1 + 1 = 3\n", "1 + 1 = 2\n")
    row["nodes"][0] |= other
    row["rollouts"][0]["text"] = "1 + 1 = 2\n"
    assert tree_view(row, [], [], {})["nodes"][0]["faults"] == []


def test_ranges_count_as_strings_of_a_page_do():
    # The page's strings count U+1F600 as two.
    found = tree_view(written("\U0001f600 first\n2 + 2 = 5"), [], [], {})["nodes"][0]["faults"]
    assert (found[0]["from"], found[0]["to"]) == (9, 18)


@pytest.mark.parametrize(
    ("text", "parts", "places"),
    [
        ("abcd", ["ab", "cd"], [0, 2]),
        ("ab\ncd", ["xx", "ab", "cd"], [None, 0, 3]),
        ("ab\ncd", ["ab", "cd", "yy"], [0, 3, None]),
        ("ab", ["ab", "ab"], [None, 0]),
        ("", ["ab"], [None]),
    ],
)
def test_parts_are_found_in_a_text_from_its_end(text: str, parts: list[str], places: list[int | None]):
    assert places_of_parts(text, parts) == places


# ---- damaged and hostile rows ----------------------------------------------------------------------------------------

WRONG: list[Any] = [None, True, -1, 3.5, 10**400, "x", [], [None, "x"], {}, {"status": 5}, float("nan"), float("-inf")]


@pytest.mark.parametrize("part", ["", "problem", "nodes", "rollouts", "prompt", "verdict"])
def test_a_wrong_type_in_any_field_costs_that_field_alone(part: str):
    for value in WRONG:
        row = json.loads(json.dumps(recorded()))
        row["nodes"][1]["prompt"] = {"after": 0, "kept": 1, "token_ids": [4]}
        places = {"": row, "problem": row["problem"], "nodes": row["nodes"][1], "rollouts": row["rollouts"][1]}
        places |= {"prompt": row["nodes"][1]["prompt"], "verdict": row["rollouts"][1]["verdict"]}
        for name in list(places[part]):
            if part or name not in ("schema", "nodes", "rollouts"):
                kept, places[part][name] = places[part][name], value
                found = tree_view(row, [PAIR], [LEARNED], {})
                json.dumps(found, allow_nan=False)
                assert (len(found["nodes"]), len(found["rollouts"])) == (11, 5)
                assert found["nodes"][2]["ids"] == [7]
                places[part][name] = kept


def test_nodes_that_are_no_objects_or_name_others_wrongly_are_kept_in_their_places():
    row = recorded()
    row["nodes"][2] = "broken"
    row["nodes"][5]["parent"] = 9
    row["rollouts"][4] |= {"start": None, "leaf": 99}
    found = tree_view(row, [], [], {})
    assert found["nodes"][2]["role"] == "unknown"
    assert found["nodes"][5]["parent"] is None
    assert (found["rollouts"][4]["start"], found["rollouts"][4]["leaf"]) == (9, 10)
    assert len(found["notes"]) == 4


def test_examples_of_any_shape_are_read_as_far_as_they_go():
    for value in WRONG:
        for row in (PAIR, SCORED):
            for name in row:
                json.dumps(tree_view(recorded(), [row | {name: value}], [], {}), allow_nan=False)
        for name in LEARNED:
            json.dumps(tree_view(recorded(), [PAIR], [LEARNED | {name: value}], {}), allow_nan=False)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], "expected a row of trees.jsonl, found none"),
        (PAIR, "found the schema 'pair/1'"),
        ({"schema": "tree/2", "nodes": [], "rollouts": [{}]}, "expected a tree with nodes"),
        ({"schema": "tree/2", "nodes": [{}], "rollouts": "x"}, "expected a tree with rollouts"),
    ],
)
def test_what_is_no_tree_is_refused(row: Any, words: str):
    with pytest.raises(DataError, match=words):
        tree_view(row, [], [], {})


def test_a_row_of_a_later_version_is_read_as_far_as_it_is_known():
    found = tree_view(recorded() | {"schema": "tree/9", "new": 1}, [], [], {})
    assert len(found["nodes"]) == 11
    assert "tree/9" in found["notes"][0]
