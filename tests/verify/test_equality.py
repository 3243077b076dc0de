"""Is the same pair given the same verdict, whichever way round, in any company and on any machine, and is it right?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.verify.equivalence import MAX_CHARS, for_algebra, same
from flow_dpo.verify.extract import AnswerRule
from flow_dpo.verify.verifier import Verifier
from flow_dpo.verify.worker_pool import GradingPool
from tests.verify.spellings import spellings

ANYWHERE = AnswerRule(which="anywhere")
TABLE = Path(__file__).with_name("hard_pairs.tsv")
"""Tab-separated: kind, gold, answer, and what the verdict should be."""
PAIRS = [tuple(line.split("\t")) for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]
SHOULD = {"right": "correct", "wrong": "wrong", "ungraded": "ungraded"}


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(rule=ANYWHERE, timeout_s=20) as verifier:
        yield verifier


# ---- right -----------------------------------------------------------------------------------------------------------


def test_hard_pairs_by_kind_and_both_ways_round(verifier: Verifier) -> None:
    assert len(PAIRS) >= 690
    assert sum(should == "wrong" for *_, should in PAIRS) >= 200
    there = verifier.grade_many([(gold, f"\\boxed{{{answer}}}", True) for _, gold, answer, _ in PAIRS])
    back = verifier.grade_many([(answer, f"\\boxed{{{gold}}}", True) for _, gold, answer, _ in PAIRS])
    found = [
        (pair, verdict.status, verdict.reason)
        for pair, verdict in zip(PAIRS, there, strict=True)
        if verdict.status != SHOULD[pair[3]]
    ]
    assert found == []
    # Only what cannot be read makes a difference: as a gold it is said to be ungraded.
    turned = [
        (pair, one.status, other.status)
        for pair, one, other in zip(PAIRS, there, back, strict=True)
        if one.status != other.status and "ungraded" not in (one.status, other.status)
    ]
    assert turned == []


@settings(max_examples=150, deadline=None)
@given(
    st.integers(-(10**6), 10**6),
    st.sampled_from([1, 1, 2, 3, 4, 6, 7, 8, 11, 12, 25, 99, 1000]),
    st.integers(),
    st.data(),
)
def test_no_two_rationals_are_one(top: int, bottom: int, seed: int, data: st.DataObject) -> None:
    one = Fraction(top, bottom)
    nearby = [
        one,
        one + Fraction(1, bottom),
        -one,
        one * 10,
        one / 1000,
        one + Fraction(1, 10**7),
        1 / one if one else one,
    ]
    other, random = data.draw(st.sampled_from(nearby)), Random(seed)
    for _ in range(4):
        left, right = random.choice(spellings(one, random)), random.choice(spellings(other, random))
        found = same(left, right)
        assert found is same(right, left)
        assert found is (one == other), (left, right)


def test_no_two_rationals_are_one_for_algebra_either() -> None:
    random = Random(5)
    pairs: list[tuple[str, str]] = []
    equal: list[bool] = []
    for _ in range(40):
        one = Fraction(random.randint(-300, 300), random.randint(1, 12))
        other = random.choice([one, one, -one, one + Fraction(1, 10**12), one * Fraction(10**9 + 1, 10**9)])
        left, right = random.choice(spellings(one, random, algebra=True)), random.choice(spellings(other, random))
        if same(left, right) is None:
            pairs += [(for_algebra(left), for_algebra(right)), (for_algebra(right), for_algebra(left))]
            equal += [one == other] * 2
    assert len(pairs) >= 40
    with GradingPool(num_workers=2, timeout_s=20) as pool:
        findings = pool.compare_many(pairs)
    assert [finding.found for finding in findings] == ["equal" if each else "different" for each in equal]


# ---- the same in any company -----------------------------------------------------------------------------------------


def test_a_verdict_is_the_same_in_any_batch_and_order() -> None:
    items = [(gold, f"\\boxed{{{answer}}}", True) for _, gold, answer, _ in PAIRS[::4]]
    with Verifier(rule=ANYWHERE, num_workers=2) as verifier:
        together = verifier.grade_many(items)
    shuffled = list(range(len(items)))
    Random(0).shuffle(shuffled)
    with Verifier(rule=ANYWHERE, num_workers=1) as verifier:
        apart = {at: verifier.grade(*items[at][:2], ended=True) for at in shuffled}
    assert [apart[at] for at in range(len(items))] == together


HEAVY = ("\\sum_{k=1}^{5000}\\frac{1}{k^2}", "\\sum_{j=1}^{5000}\\frac{1}{j^2}")
"""Takes a good part of a second of processor time."""


def test_a_worker_that_waits_uses_up_nothing() -> None:
    """What a busy machine does to a process, it is not let on: stopped for longer than it may compute."""
    with GradingPool(num_workers=1, timeout_s=3) as pool:
        pool.compare_many([("x+1", "1+x")])
        (pid,) = pool.pids
        held = threading.Thread(target=_hold, args=(pid, 4.0))
        held.start()
        started = time.monotonic()
        findings = pool.compare_many([HEAVY])
        took_s = time.monotonic() - started
        held.join()
        assert pool.pids == [pid]
    assert [finding.found for finding in findings] == ["equal"]
    assert took_s > 3


def _hold(pid: int, seconds: float) -> None:
    time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_busy_machine_changes_no_verdict() -> None:
    items = [(gold, f"\\boxed{{{answer}}}", True) for _, gold, answer, _ in PAIRS[::3]]
    items += [(HEAVY[0], f"\\boxed{{{HEAVY[1]}}}", True), ("x", "\\boxed{9^{9^{9^{9}}}}", True)]
    with Verifier(rule=ANYWHERE, timeout_s=2.5) as verifier:
        alone = verifier.grade_many(items)
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8 * (os.cpu_count() or 1))]
    try:
        with Verifier(rule=ANYWHERE, timeout_s=2.5) as verifier:
            busy = verifier.grade_many(items)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert busy == alone
    assert [verdict.status for verdict in busy[-2:]] == ["correct", "ungraded"]


# ---- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gold", ["5", "", "x" * 2_000, "\\sin x"])
def test_a_stored_answer_is_bounded(verifier: Verifier, gold: str) -> None:
    verdict = verifier.grade(gold, f"\\boxed{{{'5 + ' * 2_500_000}5}}", ended=True)
    assert verdict.status in ("wrong", "ungraded")
    assert len(verdict.answer or "") <= MAX_CHARS
    assert len(verdict.reason) < 200


# ---- in time ---------------------------------------------------------------------------------------------------------

LONG = [
    ("5", "\\boxed{5" + " m^2 s^2" * 30 + " + 1}"),
    ("5", "\\boxed{5" + " m^{ 2 } s^{ 2 }" * 30 + " + 1}"),
    ("5", "\\boxed{5" + "\\text{ m}^{-1} \\text{ s}^{-2}" * 14 + " = 3}"),
    ("1", f"\\boxed{{1}} or \\boxed{{{'1' * 9_000} ab}}"),
    ("1", "\\boxed{1} or \\boxed{" + "hundred " * 1_150 + "}"),
    ("GCD is 6, LCM is 36", f"\\boxed{{{'1' * 9_000} ab}}"),
]
"""Gold and text: long answers whose comparison once took seconds, or more memory than a number may have."""


@pytest.mark.parametrize(("gold", "text"), LONG, ids=[text[:40] for _, text in LONG])
def test_a_long_answer_is_graded_in_time(verifier: Verifier, gold: str, text: str) -> None:
    started = time.process_time()
    assert verifier.grade(gold, text, ended=True).status in ("wrong", "ungraded")
    assert time.process_time() - started < 5
