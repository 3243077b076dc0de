"""Does the verifier say right, wrong or "I cannot say", in bounded time, whatever it is given?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate.grade_file import verify_file
from flow_dpo.verify import worker_pool
from flow_dpo.verify.canonical import canonical
from flow_dpo.verify.closed_form import closed_form
from flow_dpo.verify.equivalence import same
from flow_dpo.verify.extract import AnswerRule
from flow_dpo.verify.verifier import Verifier
from flow_dpo.verify.worker_pool import GradingPool

DATA = Path(os.environ.get("FLOW_DPO_SAMPLE_DATA", Path(__file__).parent.parent.parent.parent / "shared" / "data"))
ANYWHERE = AnswerRule(which="anywhere")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(rule=ANYWHERE, timeout_s=20) as verifier:
        yield verifier


# ---- equal and different ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("14", "14.0", True),
        ("1000", "$1,000.00", True),
        ("7", "007", True),
        (".5", "\\frac12", True),
        ("1/2", "\\dfrac{2}{4}", True),
        ("-\\frac{1}{2}", "\\frac{-1}{2}", True),
        ("3", "x = 3", True),
        ("x = 3", "3", True),
        ("15", "2 + 13 = 15", True),
        ("18", "18 apples", True),
        ("72 degrees", "72", True),
        ("90^\\circ", "90", True),
        ("10\\text{ units}", "10", True),
        ("1 hour", "60 minutes", True),
        ("10 cm", "10 m", False),
        ("1.8", "1.8 billion", False),
        ("5\\%", "5", True),
        ("5\\%", "0.05", True),
        ("5\\%", "500", False),
        ("10%", "20%", False),
        ("1/3", "0.333333", True),
        ("1/3", "0.33", False),
        ("\\pi", "3.14", False),
        ("\\pi", "3.14159265", True),
        ("0.0000001", "0.0000002", False),
        ("119.7", "119.69999999999999", True),
        ("5", "5.1", False),
        ("14", "15", False),
        ("2\\sqrt{3}", "\\sqrt{12}", None),
        ("2\\sqrt{3}", "\\sqrt{13}", False),
        ("-9", "-3^2", True),
        ("3/2", "1 1/2", True),
        ("11/2", "1 1/2", False),
        ("(1, 2)", "(1.0,\\frac{4}{2})", True),
        ("(1,2)", "(2,1)", False),
        ("(1,2)", "[1,2]", False),
        ("1,2", "2 \\text{ and } 1", True),
        ("1,2", "1,2,3", False),
        ("204_5", "204_{5}", True),
        ("204_5", "204_6", False),
        ("204_5", "204", True),
        ("12:00", "1:00", False),
        ("11:21", "22:42", False),  # both may be times of day
        ("2:1", "4:2", True),
        ("\\text{Evelyn}", "evelyn", True),
        ("Evelyn", "Briana", False),
        ("(C)", "C", True),
        ("A", "a", False),
        ("ab", "ba", True),
        ("x+1", "1+x", None),
        ("14", "yellow", False),
        ("5", "(5, 6)", False),
        ("3", "2x", False),
        ("4", "4t", False),  # not a unit
        ("4t", "4", False),
        ("4", "4m", False),
        ("4", "4 m", True),
        ("4", "4\\text{ m}^2", True),
        ("4", "4km", True),
        ("x^2", "y^2", False),
        ("2x\\text{ cm}", "2x", True),
        ("x+1", "x+2", False),
        ("e^2", "e^3", None),
        ("x_1", "x_2", False),
        ("\\frac{12}{5,\\!525}", "12/5525", True),
        ("5", "", None),
        ("9^9^9^9", "5", None),
    ],
)
def test_what_needs_no_algebra(gold: str, answer: str, equal: bool | None) -> None:
    assert same(gold, answer) is equal


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        ("x+1", "1+x", "correct"),
        ("(x-1)(x+1)", "x^2-1", "correct"),
        ("2\\sqrt{3}", "\\sqrt{12}", "correct"),
        ("2x\\text{ cm}^2", "x+x", "correct"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}", "correct"),
        ("x \\ge 5", "5 \\le x", "correct"),
        ("x > 5", "x \\ge 5", "wrong"),
        ("(-\\infty, 2)", "x < 2", "correct"),
        ("x < 2", "(-\\infty, 2)", "correct"),
    ],
)
def test_what_does(verifier: Verifier, gold: str, answer: str, status: str) -> None:
    verdict = verifier.grade(gold, f"\\boxed{{{answer}}}", ended=True)
    assert (verdict.status, verdict.reason) == (status, "algebra")


def test_the_three_values(verifier: Verifier) -> None:
    assert verifier.grade("4", "nothing here", ended=True).reason == "no answer"
    assert verifier.grade("4", "nothing here", ended=True).reward == 0.0
    assert verifier.grade("4", "Answer: 4", ended=True).reward == 1.0
    for gold, reason in (
        ("", "the gold answer is empty"),
        ("\\boxed{}", "the gold"),
        ("\\frac{x", "the gold answer cannot"),
    ):
        verdict = verifier.grade(gold, "Answer: 4x", ended=True)
        assert verdict.reward is None
        assert verdict.reason.startswith(reason)


def test_a_gold_answer_in_words_is_read_or_ungraded(verifier: Verifier) -> None:
    for gold, answer, status in (
        ("She adds 5 and 3.\nSo she has 8 apples.", "8", "correct"),
        ("She adds 5 and 3.\nSo she has 8 apples.", "5", "wrong"),
        ("He has 72 clips.", "72", "correct"),
        ("Roses are red\nViolets are blue", "5", "ungraded"),
        ("Tom ate 5 apples", "5", "ungraded"),
        ("x = 3\nx = 5", "5", "ungraded"),
        ("x = 3\nx = 5", "x = 3\nx = 5", "correct"),  # the field itself
        ("1. 5\n2. 7", "7", "ungraded"),
        ("It is 3:30 p.m.", "3:30 pm", "correct"),
        ("It is 3:30 p.m.", "3:30 am", "wrong"),
        ("(1, 2),\n(3, 4)", "(1, 2), (3, 4)", "correct"),
        ("(1, 2),\n(3, 4)", "(3, 4)", "wrong"),
        ("x < 3 or\nx > 5", "x > 5", "wrong"),
    ):
        assert verifier.grade(gold, f"\\boxed{{{answer}}}", ended=True).status == status, gold


def test_a_cut_answer_is_no_answer() -> None:
    with Verifier() as verifier:
        assert verifier.grade("1", "Sum: 15\nAnswer: 1", ended=False).reason == "no answer"
        assert verifier.grade("15", "Sum: 15\nAnswer: 15\n", ended=False).status == "correct"
        assert verifier.grade("15", "Answer: 15\nWait, no", ended=False).status == "wrong"
        assert verifier.worker_pids == []  # none of this needs a child process


@settings(max_examples=300, deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_spellings_of_a_number(top: int, bottom: int) -> None:
    spellings = [f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"$\\dfrac{{{2 * top}}}{{{2 * bottom}}}$"]
    assert all(same(a, b) for a in spellings for b in spellings)
    assert same(f"{top}", f"{top:,}.00")
    assert same(f"{top}", f"{top + bottom}") is False
    product = closed_form(f"({top})*{bottom}")
    assert product == (top * bottom, True, False)


@example("0", "\u00b9")  # a digit to some, and no number
@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("0123456789+-*/^(){}[]\\.,% xyabc=!_$<:;"), max_size=40), st.text(max_size=20))
def test_comparing_never_raises(gold: str, answer: str) -> None:
    assert same(gold, answer) in (True, False, None)
    assert same(gold, gold) in (True, None)
    assert canonical(canonical(gold)) is not None


# ---- the labelled cases ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="no sample data: set FLOW_DPO_SAMPLE_DATA to a folder that holds it")
def test_no_wrong_verdict_on_the_labelled_cases(tmp_path: Path) -> None:
    summary = verify_file(DATA / "verification" / "cases.jsonl", tmp_path / "out", timeout_s=20)
    rows = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    binding = [row for row in rows if not row.get("policy") and not row.get("disputed")]
    assert len(binding) >= 600
    assert [row["id"] for row in binding if row["status"] != ("correct" if row["is_correct"] else "wrong")] == []
    assert summary["against_labels"]["agreed"] == {"num_agree": len(binding)}
    assert summary["num_rows"] == len(rows)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


# ---- hostile answers -------------------------------------------------------------------------------------------------

NEEDS_KILLING = [
    "9**9**9**9", "10^{10^{10}}", "9^{9^{9^{9}}}", "1000000!", "((((10!)!)!)!)!", "2^{1000000000}x", "(x+y+z)^{300}",
    "\\prod_{k=1}^{1000000} k", "\\binom{10^9}{5\\cdot 10^8}",
]  # fmt: skip
HOSTILE = [
    "2" + "^{2" * 50 + "}" * 50, "{" * 20_000 + "1" + "}" * 20_000, "(" * 50_000 + "1" + ")" * 50_000,
    "\\frac{1}{" * 500 + "1" + "}" * 500, "x\\frac{1}{" * 40 + "1" + "}" * 40, "9" * 2_000_000, "a" * 100_000 + "!",
    "$" * 100_001, "\x001\x005\x00", "\\boxed{1}" * 5_000 + "\\boxed{7}", "\\boxed{1}, " * 5_000, "\\boxed{" * 5_000,
    "\u202e\u0645\u0631\u062d\u0628\u0627 \u0663\u0664", "\\boxed{\\frac{1}{2", "\ud800\udfff 5 \udc00",
    "\\boxed{\ud800}", "1+" * 100_000 + "1", "\\text{" * 50_000, "\\begin{pmatrix}" * 20_000,
    "\\sqrt{" * 45 + "x" + "}" * 45, "\\boxed{__import__('os').system('exit 1')}", "x_{" * 30 + "1" + "}" * 30,
    "1 and " * 100_000,
]  # fmt: skip


def test_hostile_answers_end_and_the_rest_goes_on() -> None:
    timeout_s = 1.5
    texts = [*NEEDS_KILLING[:4], *HOSTILE]
    ordinary = [("x+1", "\\boxed{1+x}", True), ("14", "Answer: 14", True), ("e+2", "\\boxed{2e}", True)]
    with Verifier(rule=ANYWHERE, timeout_s=timeout_s) as verifier:
        started = time.monotonic()
        verdicts = verifier.grade_many([*(("14", text, True) for text in texts), *ordinary])
        took_s = time.monotonic() - started
        assert [verdict.status for verdict in verdicts[-3:]] == ["correct", "correct", "wrong"]
        assert {verdict.status for verdict in verdicts[:-3]} <= {"wrong", "ungraded"}
        timeouts = [verdict for verdict in verdicts if verdict.reason.startswith("timeout")]
        assert len(timeouts) >= 3
        assert all(verdict.reward is None for verdict in timeouts)
        assert took_s < (timeout_s + 3) * len(texts)
        assert verifier.grade("x+3", "\\boxed{3+x}", ended=True).status == "correct"
        assert len(verifier.worker_pids) <= 2


def test_a_hanging_answer_costs_its_own_worker_only() -> None:
    with GradingPool(num_workers=2, timeout_s=1.5) as pool:
        pool.compare_many([("x+1", "1+x"), ("x+2", "2+x")])
        pairs = [("1", NEEDS_KILLING[2]), *((f"x+{k}", f"{k}+x") for k in range(3, 43))]
        started = time.monotonic()
        findings = pool.compare_many(pairs)
        assert time.monotonic() - started < 20
    assert findings[0].found == "timeout"
    assert {finding.found for finding in findings[1:]} == {"equal"}


def test_gold_answers_may_be_hostile_too(verifier: Verifier) -> None:
    for gold in ("9" * 5_000, "(" * 500 + "x" + ")" * 500, "\\boxed{" * 100):
        verdict = verifier.grade(gold, "\\boxed{x}", ended=True)
        assert verdict.status in ("ungraded", "wrong")
    assert verifier.grade("9" * 5_000, "9" * 5_000, ended=True).status == "correct"


@pytest.mark.slow
def test_ten_thousand_hostile_answers() -> None:
    parts = [text[:300] for text in HOSTILE]
    texts = [f"{parts[k % len(parts)]} {parts[k // len(parts) % len(parts)]} {k % 19}" for k in range(10_000)]
    texts[::50] = [f"{NEEDS_KILLING[k % len(NEEDS_KILLING)]} + {k}" for k in range(200)]
    with Verifier(rule=ANYWHERE, timeout_s=1) as verifier:
        verdicts = verifier.grade_many([("x^2+1", text, True) for text in texts])
        assert len(verdicts) == len(texts)
        assert {verdict.status for verdict in verdicts} <= {"wrong", "ungraded"}
        assert verifier.grade("x+1", "\\boxed{1+x}", ended=True).status == "correct"


# ---- the child processes ---------------------------------------------------------------------------------------------


def gone(pid: int, within_s: float = 30) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # ended; its new parent has not looked yet
            return True
        time.sleep(0.05)
    return False


def test_a_killed_worker_is_replaced() -> None:
    with Verifier(rule=ANYWHERE, num_workers=1, timeout_s=20) as verifier:
        assert verifier.grade("x+1", "\\boxed{1+x}", ended=True).status == "correct"
        for again in (2, 3):
            (pid,) = verifier.worker_pids
            os.kill(pid, signal.SIGKILL)
            assert verifier.grade(f"x+{again}", f"\\boxed{{{again}+x}}", ended=True).status == "correct"
            assert verifier.worker_pids != [pid]


def test_closing_ends_the_workers() -> None:
    verifier = Verifier(rule=ANYWHERE, timeout_s=20)
    verifier.grade("x+1", "\\boxed{1+x}", ended=True)
    pids = verifier.worker_pids
    assert pids
    verifier.close()
    assert verifier.worker_pids == []
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("busy", [False, True])
def test_the_workers_end_with_a_killed_parent(busy: bool) -> None:
    program = """
import sys
from flow_dpo.verify.worker_pool import GradingPool
pool = GradingPool(num_workers=1, timeout_s=1.0 if sys.argv[1] == "True" else 20.0)
pool.compare_many([("x+1", "1+x")])
print(*pool.pids, flush=True)
pool.timeout_s = 600
worker = pool._workers[0]
if sys.argv[1] == "True":
    worker.send(0, "1", "9^{9^{9^{9}}}", 1.0)
    print("busy", flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if busy:
        assert parent.stdout.readline() == "busy\n"
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    ended = gone(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    assert ended


def test_no_torch_in_the_workers() -> None:
    program = (
        "import sys, flow_dpo.verify.verifier, flow_dpo.verify.math_verify_worker\n"
        "print([name for name in ('torch', 'sympy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool.sys, "executable", "/bin/false")
    with GradingPool(num_workers=1, timeout_s=1) as pool, pytest.raises(ConfigError, match="grading process to start"):
        pool.compare_many([("x", "y")])
    with pytest.raises(ConfigError, match="at least one worker"):
        GradingPool(num_workers=0, timeout_s=1)


# ---- throughput ------------------------------------------------------------------------------------------------------


def test_a_thousand_ordinary_answers_a_second(verifier: Verifier) -> None:
    items = [(str(k), f"So he has {k} * 2 / 2 = {k} apples.\nAnswer: {k + (k % 3 == 0)}\n", True) for k in range(3_000)]
    started = time.process_time()
    verdicts = verifier.grade_many(items)
    assert time.process_time() - started < 3.0
    assert sum(verdict.status == "correct" for verdict in verdicts) == 2_000
