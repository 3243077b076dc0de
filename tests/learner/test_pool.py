"""Does each pool hand out what it should, a role's pool leave other roles alone, and what failed stay?"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.errors import ConfigError, LearningError
from flow_dpo.core.objective import Loss
from flow_dpo.core.types import Example, Pair, Request, ScoredCompletion, by_role
from flow_dpo.learner.gradients import Gradients
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.pool import Queue, Window
from flow_dpo.learner.settings import LearnerSettings, PassSettings, ReferenceSettings, RoleSettings, RowSettings
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from tests.learner.test_learner import pairs, same
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import NO, ROLES, YES, completion, stop_pair
from tests.support.tiny_models import tiny_model

OBJECTIVE = DpoAndVerdicts()


def word(number: int, *, yes: bool, weight: float = 1.0) -> ScoredCompletion:
    """What Stop should have said of a candidate of its own."""
    said = completion((YES,), choice=0) if yes else completion((NO,), choice=1)
    request = Request(role="stop", prompt_ids=(5, 6, 7, 8 + number), choices=(YES, NO))
    return ScoredCompletion(request=request, completion=said, advantage=1.0, weight=weight, problem_id=f"p{number}")


def words(said: str) -> list[ScoredCompletion]:
    """One a letter: "yn" is a Yes, then a No."""
    return [word(number, yes=letter == "y") for number, letter in enumerate(said)]


def window(size: int, kept: int, updates: int = 1) -> Window:
    return Window(size=size, window=kept, updates=updates, seed=3)


def drawn(pool: Window) -> list[Example]:
    batch = pool.batch()
    pool.learned()
    return batch


# ---- pools alone ----------------------------------------------------------------------------------------------------


def test_a_window_draws_as_many_of_each_choice_anew_each_time() -> None:
    pool, made = window(6, 12, updates=20), words("yynnnnnyyynn")
    pool.take(made)
    batches = [drawn(pool) for _ in range(20)]
    assert pool.batch() == [], "as many updates as a call makes"
    for batch in batches:
        assert [made.index(e) for e in batch] == sorted({made.index(e) for e in batch}), "in order, none twice"
        assert sum(e.completions[0].choice == 0 for e in batch) == 3
    assert {made.index(e) for batch in batches for e in batch} == set(range(12)), "all have their turn"
    assert len({str(batch) for batch in batches}) > 10
    again = window(6, 12, updates=20)
    again.take(made)
    assert [drawn(again) for _ in range(20)] == batches


def test_a_rare_choice_weighs_as_much_as_the_other() -> None:
    pool, made = window(4, 10), words("nnnynnnnnn")
    pool.take([replace(e, weight=0.5) for e in made])
    batch = pool.batch()
    assert sorted((e.completions[0].choice, e.weight) for e in batch) == [
        (0, pytest.approx(0.5 * 2)),
        *[(1, pytest.approx(0.5 * 2 / 3))] * 3,
    ]
    assert len({e.problem_id for e in batch}) == 4


def test_a_window_of_one_batch_hands_out_all_of_it() -> None:
    pool, made = window(6, 6), words("ynnyyn")
    pool.take(made)
    assert pool.batch() == made
    pool.learned()
    pool.take(words("yy"))
    assert [e.completions[0].choice for e in pool.batch()] == [1, 0, 0, 1, 0, 0], "the last six"


def test_what_has_no_choice_keeps_its_share() -> None:
    pool = window(8, 100)
    made = [stop_pair((5, 6, n), yes=True) for n in range(10)]
    pool.take([*made, *words("ynnnynnnnn")])
    batch = pool.batch()
    assert [sum(isinstance(e, Pair) for e in batch), len(batch)] == [4, 8]
    assert {e.weight for e in batch} == {1.0}
    alone = window(8, 100)
    alone.take(made)
    assert len(alone.batch()) == 8, "pairs need no two choices"


def test_a_window_waits_for_a_batch_and_for_two_choices() -> None:
    pool = window(4, 8)
    for said, ready in [("yyyyy", False), ("", False), ("n", True), ("", True)]:
        pool.take(words(said))
        assert bool(pool.batch()) is ready
    pool.learned()
    pool.take([])
    assert pool.batch() == [], "nothing new, nothing due"
    few = window(4, 8)
    few.take(words("yny"))
    assert few.batch() == []
    few.take(words("n"))
    few.give_up()
    assert (few.batch(), len(few.examples)) == ([], 4)


@given(st.text("yn", min_size=4, max_size=40), st.integers(2, 24), st.integers(0, 40), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_batch_is_whole_balanced_and_without_repetition(said: str, size: int, extra: int, count: int) -> None:
    pool = window(size, size + extra)
    pool.num_updates = count
    pool.take(words(said))
    batch = pool.batch()
    kept = said[-(size + extra) :]
    assert bool(batch) is (len(set(kept)) == 2 and len(kept) >= size)
    if batch:
        assert len(batch) == size == len({e.problem_id for e in batch})
        by_choice = [sum(e.weight for e in batch if e.completions[0].choice == c) for c in (0, 1)]
        assert by_choice == [pytest.approx(size / 2)] * 2


def test_a_queue_hands_out_each_batch_as_often_as_told_and_starts_a_failed_one_anew() -> None:
    pool, made = Queue(size=2, updates=2), words("ynynn")
    pool.take(made)
    batches = list[list[Example]]()
    while batch := pool.batch():
        batches.append(batch)
        pool.learned()
    assert batches == [made[:2], made[:2], made[2:4], made[2:4]]
    assert (pool.examples, pool.num_updates) == (made[4:], 4)
    pool.take(made[:1])
    assert pool.batch() == [made[4], made[0]]
    pool.learned()
    pool.take([])  # the second epoch failed
    assert pool.batch() == [made[4], made[0]]
    pool.learned()
    assert pool.batch() == [made[4], made[0]]
    for minibatches, sizes in ((1, [5]), (2, [3, 2]), (4, [2, 2, 1])):  # all at once, in so many updates or more
        whole = Queue(size=16, minibatches=minibatches, short_batch="learn")
        whole.take(made)
        found = list[int]()
        while batch := whole.batch():
            found.append(len(batch))
            whole.learned()
        assert found == sizes
    everything = Queue(size=0)
    everything.take([])
    assert everything.batch() == []
    everything.take(made)
    assert everything.batch() == made


# ---- pools of a learner ---------------------------------------------------------------------------------------------

STOP_WINDOW = RoleSettings(examples_per_update=6, window=12, updates_per_batch=3, learning_rate=5e-4)


def learner(
    *, dropout: float = 0.0, stirred: int = 0, stop: RoleSettings | None = STOP_WINDOW, **values: Any
) -> Learner:
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4, lora_dropout=dropout), seed=5)
    roles = {"stop": stop} if stop else {}
    settings = {"learning_rate": 1e-3, "examples_per_update": 5, "roles": roles, **values}
    return Learner(stir(policy, stirred) if stirred else policy, LearnerSettings(**settings))


def batches() -> list[list[Example]]:
    """Of five calls: Answer's pairs and Stop's words; the third brings no words."""
    answers = by_role(pairs(num_trees=5))["answer"]
    said = ["ynn", "ynynn", "", "yyy", "nnyn"]
    return [[*answers[i * 3 : i * 3 + 3], *words(each)] for i, each in enumerate(said)]


def measured(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.endswith(("_s", "seconds"))}


def test_updates_of_a_call_and_their_versions() -> None:
    student = learner()
    rows = [student.update(OBJECTIVE, batch) for batch in batches()]
    # Stop: 3 words are too few; then 3 updates whenever there are new ones. Answer: 5 pairs of 6, 7 and 5.
    assert [row["learn/updates"] for row in rows] == [0, 3, 0, 3, 3]
    assert [row["learn/stop/window"] for row in rows] == [3, 8, 8, 11, 12]
    assert [row["learn/waiting"] for row in rows] == [3, 1, 4, 2, 0]
    assert [row.get("learn/answer/pairs") for row in rows] == [None, 5, None, 5, 5]
    assert [row.get("learn/stop/pairs") for row in rows] == [None, 18, None, 18, 18]
    assert (student.version, student.pool) == (9, [])
    assert {a.version for a in student.adapters.values()} == {9}


def test_a_queue_of_its_own() -> None:
    student = learner(stop=RoleSettings(examples_per_update=4))
    row = student.update(OBJECTIVE, [*by_role(pairs())["answer"][:4], *words("ynnyynnny")])
    assert (row["learn/updates"], row["learn/waiting"]) == (2, 4 + 1)
    assert "learn/answer/loss" not in row
    everything = learner(stop=RoleSettings(examples_per_update=0))
    row = everything.update(OBJECTIVE, words("ynn"))
    assert (row["learn/updates"], row["learn/stop/pairs"]) == (1, 3)


@pytest.mark.parametrize("stop", [STOP_WINDOW, RoleSettings(examples_per_update=2)], ids=["window", "queue"])
def test_what_a_role_learns_does_not_depend_on_the_other(stop: RoleSettings) -> None:
    """Not in a bit, with dropout, a schedule and a snapshot that moves."""
    values: dict[str, Any] = {
        "dropout": 0.3, "stop": stop, "warmup_updates": 2, "decay_after": 2,
        "reference": ReferenceSettings(kind="snapshot", every=2, lerp=0.5),
    }  # fmt: skip
    together, alone = learner(**values), {role: learner(**values) for role in ROLES}
    for batch in batches():
        row = together.update(OBJECTIVE, batch)
        for role, one in alone.items():
            own = one.update(OBJECTIVE, [e for e in batch if e.request.role == role])
            names = [name for name in measured(own) if name.startswith(f"learn/{role}/")]
            assert {name: row[name] for name in names} == {name: own[name] for name in names}
    assert alone["answer"].version == 3 < together.version
    for role, one in alone.items():
        assert one.version > 0
        for adapter in (role, f"reference_{role}"):
            assert same(one.policy.weights(adapter), together.policy.weights(adapter))


def test_a_snapshot_moves_by_its_roles_updates_and_its_version_is_known() -> None:
    student = learner(
        stop=replace(STOP_WINDOW, updates_per_batch=1, window=24), reference=ReferenceSettings(kind="snapshot", every=2)
    )
    answers = by_role(pairs(num_trees=5))["answer"]
    calls: list[list[Example]] = [*([*words("ynynnn")] for _ in range(3)), list(answers[:5]), list(answers[5:10])]
    calls += [[*answers[10:], *words("yn")], [*words("n")]]
    history = [{role: [w.clone() for w in student.policy.weights(role)] for role in ROLES}]
    versions = list[tuple[int | None, int | None]]()
    for call in calls:
        student.update(OBJECTIVE, call)
        history.append({role: [w.clone() for w in student.policy.weights(role)] for role in ROLES})
        held = student._gradients.reference_versions
        for role in ROLES:
            assert same(student.policy.weights(f"reference_{role}"), history[held[role] or 0][role])
        versions.append((held["answer"], held["stop"]))
    assert versions == [(0, 0), (0, 2), (0, 2), (0, 2), (5, 2), (5, 6), (5, 6)]


def test_a_measure_is_a_mean_over_the_examples_it_is_of() -> None:
    """Of a role's pairs and words in one update, whatever shares the two kinds have in each."""
    stops = [stop_pair((5, 6, 20 + i), yes=i % 2 == 0, problem=f"q{i}") for i in range(4)]
    said = words("ynnyn")
    mixed = [*stops[:1], *said[:4], *stops[1:], *said[4:]]  # updates of 1 pair and 4 words, of 3 pairs and 1 word
    values: dict[str, Any] = {"stop": None, "stirred": 3, "learning_rate": 1e-6}
    found = learner(**values).update(OBJECTIVE, [*mixed, by_role(pairs())["answer"][0]])
    assert (found["learn/updates"], found["learn/stop/pairs"]) == (2, 9)
    for alone, names in ((stops, ("loss", "margin", "accuracy")), (said, ("verdict_loss", "verdict_accuracy"))):
        row = learner(**values, examples_per_update=0).update(OBJECTIVE, alone)
        for name in names:
            assert found[f"learn/stop/{name}"] == pytest.approx(row[f"learn/stop/{name}"], rel=1e-2)
            assert row[f"learn/stop/{name}"] != 0


def test_a_rate_that_stays_and_one_that_falls() -> None:
    student = learner(
        stop=RoleSettings(examples_per_update=2, learning_rate=1e-2, constant_rate=True),
        examples_per_update=1,
        warmup_updates=2,
        decay_after=2,
    )
    answers = by_role(pairs())["answer"]
    rows = [student.update(OBJECTIVE, [answers[i], *words("yn")]) for i in range(4)]
    assert [row["learn/answer/learning_rate"] for row in rows] == pytest.approx([5e-4, 1e-3, 2e-3 / 3, 5e-4])
    assert [row["learn/stop/learning_rate"] for row in rows] == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2])


@pytest.mark.parametrize("done", range(1, 5))
def test_interrupted_after_any_call_it_goes_on_bit_for_bit(done: int, tmp_path: Path) -> None:
    values: dict[str, Any] = {"dropout": 0.2, "reference": ReferenceSettings(kind="snapshot", every=2)}
    whole, first, second = learner(**values), learner(**values), learner(stirred=done, **values)
    wanted = [measured(whole.update(OBJECTIVE, batch)) for batch in batches()]
    for batch in batches()[:done]:
        first.update(OBJECTIVE, batch)
    first.save(tmp_path / "state")
    second.load(tmp_path / "state")
    assert [(p.examples, p.num_updates) for p in second.pools.values()] == [
        (p.examples, p.num_updates) for p in first.pools.values()
    ]
    assert [measured(second.update(OBJECTIVE, batch)) for batch in batches()[done:]] == wanted[done:]
    for name, student in (("a", whole), ("b", second)):
        student.save(tmp_path / name)
    for file in ("learner.json", "learner.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_pool_that_was_not_there_takes_over_what_waited(tmp_path: Path) -> None:
    shared = learner(stop=None, examples_per_update=50)
    shared.update(OBJECTIVE, batches()[1])
    shared.save(tmp_path)
    student = learner()
    student.load(tmp_path)
    assert [len(pool.examples) for pool in student.pools.values()] == [3, 5]


class Broken(DpoAndVerdicts):
    """Answers with no number for Stop's examples."""

    def __call__(self, examples: Any, policy: Any, reference: Any) -> Loss:
        loss = super().__call__(examples, policy, reference)
        return Loss(loss.total * (math.nan if examples[0].request.role == "stop" else 1.0), loss.measures)


def test_a_failed_update_keeps_the_window_and_is_made_up_for() -> None:
    calls, student, other = batches(), learner(), learner()
    for one in (student, other):
        one.update(OBJECTIVE, calls[0])
    with pytest.raises(LearningError, match="the loss of role 'stop' is nan at version 0; nothing was changed"):
        student.update(Broken(), calls[1])
    assert (student.version, len(student.pool), len(student.pools["stop"].examples)) == (0, 6, 8)
    row, wanted = student.update(OBJECTIVE, []), other.update(OBJECTIVE, calls[1])
    assert measured(row) == measured(wanted)
    assert all(same(student.policy.weights(role), other.policy.weights(role)) for role in ROLES)


def test_a_batch_that_is_skipped_is_of_its_own_pool_alone() -> None:
    student, alone = learner(passes=PassSettings(skip_nonfinite=True)), learner()
    for batch in batches()[:2]:
        row = student.update(Broken(), batch)
        alone.update(OBJECTIVE, [e for e in batch if e.request.role == "answer"])
    assert (row["learn/skipped"], row["learn/updates"], row["learn/waiting"], row["learn/stop/window"]) == (1, 1, 1, 8)
    assert same(student.policy.weights("answer"), alone.policy.weights("answer"))


class All(DpoAndVerdicts):
    """Has the reference computed for every example; notes which kinds a row had, and the share with a reference."""

    seen: list[tuple[set[type], float]] = []  # noqa: RUF012

    @property
    def needs_reference(self) -> Any:
        return True

    def __call__(self, examples: Any, policy: Any, reference: Any) -> Loss:
        self.seen.append(({type(e) for e in examples}, sum(len(each) > 0 for each in reference) / len(examples)))
        return super().__call__(examples, policy, reference)


class Some(All):
    """The same, where it is read."""

    @property
    def needs_reference(self) -> Any:
        return (Pair,)


@pytest.mark.parametrize("packed", [True, False])
def test_the_reference_is_left_out_where_nothing_reads_it_and_changes_no_bit(*, packed: bool) -> None:
    policy = stir(Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5))
    rng = random.Random(0)
    made: list[Example] = [*words("ynny"), *(stop_pair((5, rng.randrange(9, 99)), yes=True, problem="q") for _ in "ab")]
    made.append(replace(word(9, yes=True), problem_id="q"))
    found = list[Any]()
    for objective, alone in ((All(), 1.0), (Some(), 0.0)):
        objective.seen.clear()
        gradients = Gradients(policy, RowSettings(packed=packed, max_tokens=6), dict.fromkeys(ROLES))
        found.append(gradients.compute(objective, "stop", made, 0))
        assert all(share == (1.0 if Pair in kinds else alone) for kinds, share in objective.seen)
        assert {ScoredCompletion} in [kinds for kinds, _ in objective.seen]
        assert ({ScoredCompletion, Pair} if packed else {Pair}) in [kinds for kinds, _ in objective.seen]
    assert same(found[0].pieces, found[1].pieces)
    assert measured(found[0].measures) == measured(found[1].measures)
    assert DpoAndVerdicts().needs_reference == (Pair,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 8}, "examples_per_update of 2 to 8, as its window needs, found None"),
        ({"window": 8, "examples_per_update": 9}, "of 2 to 8, .* found 9"),
        ({"window": 8, "examples_per_update": 1}, "of 2 to 8, .* found 1"),
        ({"window": -1}, "window of 0 or more"),
        ({"examples_per_update": -1}, "examples_per_update of 0 or more"),
        ({"updates_per_batch": 0}, "updates_per_batch of 1 or more"),
        ({"updates_per_batch": 2}, "updates_per_batch of 1 without a window, found 2"),
        ({"by_problem": True}, "by_problem to be false without a window, found True"),
        ({"learning_rate": 0.0}, "learning_rate to be a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate to be a finite number above 0"),
    ],
)
def test_values_that_no_pool_could_use(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoleSettings(**values)
