"""Does a window that draws problem by problem take whole problems, and does every example have its turn?"""

from __future__ import annotations

from dataclasses import replace

from flow_dpo.learner.pool import Window
from tests.learner.test_pool import drawn, words


def test_a_window_may_draw_problem_by_problem() -> None:
    """Six examples of each of eight problems, four Yes and two No, of which half an update each is drawn."""
    made = [replace(e, problem_id=f"q{i // 6}") for i, e in enumerate(words("yynyyn" * 8))]
    pool, same_again = (Window(size=16, window=48, updates=40, seed=3, by_problem=True) for _ in range(2))
    for one in (pool, same_again):
        one.take(made)
    batches = [drawn(pool) for _ in range(40)]
    assert [drawn(same_again) for _ in range(40)] == batches
    for batch in batches:
        assert [made.index(e) for e in batch] == sorted({made.index(e) for e in batch}), "in order, none twice"
        sides = [[e.problem_id for e in batch if e.completions[0].choice == choice] for choice in (0, 1)]
        assert [len(side) for side in sides] == [8, 8]
        assert sorted(map(sides[0].count, set(sides[0]))) == [4, 4], "all Yes of two problems"
        assert sorted(map(sides[1].count, set(sides[1]))) == [2, 2, 2, 2], "all No of four"
        assert set(sides[0]) < set(sides[1])
    assert {made.index(e) for batch in batches for e in batch} == set(range(48)), "all have their turn"


def test_a_problem_of_which_a_part_is_drawn_has_any_part_of_it() -> None:
    pool, made = Window(size=4, window=40, updates=60, seed=3, by_problem=True), words("yn" * 10)
    pool.take([replace(e, problem_id="q") for e in made])
    found = [[made[int(e.request.prompt_ids[-1]) - 8] for e in drawn(pool)] for _ in range(60)]
    assert {made.index(e) for batch in found for e in batch} == set(range(20))
    assert len({str(batch) for batch in found}) > 40
