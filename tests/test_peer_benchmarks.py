"""Do the benchmarks against TRL try what they say, choose the best of it, and stop the clock where they say?"""

from __future__ import annotations

import pytest

from benchmarks import learner_vs_trl, measuring, trl_dpo, whole_run


def test_every_way_of_trl_is_tried_and_none_twice() -> None:
    ways = trl_dpo.ways(6, trl_dpo.BATCH_SIZES, half=False)
    assert len(ways) == len({*ways}) == 4 * 2 * 2 * 2
    assert {way[1] for way in ways} == {"1", "2", "4", "6"}  # no more than the pairs of an update
    parsed = [learner_vs_trl.options().parse_args(way) for way in ways]
    seen = {(p.batch_size, p.precompute, p.checkpointing, p.autocast) for p in parsed}
    assert len(seen) == 32
    assert not any(p.no_autocast for p in parsed)
    half = [learner_vs_trl.options().parse_args(way) for way in trl_dpo.ways(6, [1], half=True)]
    assert {p.no_autocast for p in half} == {True, False}
    assert all("--no_autocast" in way for way in trl_dpo.ways(6, [1], half=True, autocast=False))


def test_the_fastest_of_each_precision_and_the_smallest_are_repeated() -> None:
    found = {
        ("--batch_size", "1"): {"seconds": 9.0, "peak_mib": 50.0},
        ("--batch_size", "2"): {"seconds": 8.0, "peak_mib": 70.0},
        ("--batch_size", "2", "--autocast"): {"seconds": 5.0, "peak_mib": 60.0},
        ("--batch_size", "1", "--checkpointing"): {"seconds": 12.0, "peak_mib": 20.0},
    }
    chosen = learner_vs_trl.choose(found, half=False, finalists=1)
    assert chosen["fast"] == [("--batch_size", "2", "--autocast"), ("--batch_size", "2")]
    assert chosen["least"] == [("--batch_size", "1", "--checkpointing")]


def test_a_peers_figures_are_against_its_fastest_and_its_smallest() -> None:
    def side(seconds: float, peak: float) -> list[measuring.Report]:
        return [{"seconds": seconds * each, "peak_mib": peak} for each in (1.0, 1.1, 0.9)]

    cast, plain = ("--batch_size", "2", "--autocast"), ("--batch_size", "2")
    fast = {cast: side(20.0, 100.0), plain: side(30.0, 200.0)}
    reports = {"ours": side(5.0, 40.0), "ours, least memory": side(8.0, 10.0), "least": side(1.0, 50.0)}
    found = {each.name: each for each in learner_vs_trl.figures("long", reports, fast, "least", half=False)}
    assert {name: each.ratio for name, each in found.items()} == {
        "time": pytest.approx(4.0),
        "time, TRL without autocast": pytest.approx(6.0),
        "memory": pytest.approx(0.4),
        "least memory": pytest.approx(0.2),
    }
    assert found["time"].spread == [4.0, 4.0, 4.0]
    short = learner_vs_trl.figures("short", reports, {plain: fast[plain]}, "least", half=False)
    assert [each.name for each in short] == ["time"]


def test_losses_that_differ_end_a_comparison() -> None:
    ours = {"losses": {"answer": [0.7], "stop": [0.69]}, "dtype": "float32"}
    near = {"losses": {"answer": [0.7001], "stop": [0.69]}, "dtype": "float32"}
    far = {"losses": {"answer": [0.71], "stop": [0.69]}, "dtype": "float32"}
    assert learner_vs_trl.check_losses(ours, near) == pytest.approx(1e-4)
    assert learner_vs_trl.check_losses(ours, {**far, "dtype": "bfloat16"}) == pytest.approx(0.01)
    with pytest.raises(SystemExit, match="the work does"):
        learner_vs_trl.check_losses(ours, far)


def test_evaluations_are_not_in_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(measuring, "clock", lambda: now[0])
    accuracies = iter([0.5, 0.9])

    def evaluate() -> float:
        now[0] += 100.0
        return next(accuracies)

    meter = whole_run.Meter(evaluate=evaluate, target=0.85, every=64)
    meter.start()
    for problems in (32, 64, 96, 128):
        assert not meter.done
        now[0] += 2.0
        meter.saw(problems)
    assert meter.done
    found = meter.report()
    assert (found["seconds"], found["problems"], found["hit"], found["accuracy"]) == (8.0, 128, True, 0.9)
    assert found["problems_an_hour"] == 3600 * 128 / 8
    assert [(problems, seconds) for problems, seconds, _ in found["history"]] == [(64, 4.0), (128, 8.0)]


def test_without_a_target_a_run_is_evaluated_at_its_end() -> None:
    meter = whole_run.Meter(evaluate=lambda: 0.25, target=None, every=1)
    meter.start()
    meter.saw(16)
    assert meter.history == []
    assert meter.report()["accuracy"] == 0.25
    assert meter.report()["hit"] is False


def test_a_rate_that_reaches_the_target_goes_before_one_that_does_not() -> None:
    reports = {
        "slow": {"hit": True, "seconds": 90.0, "accuracy": 0.85},
        "fast": {"hit": True, "seconds": 40.0, "accuracy": 0.86},
        "near": {"hit": False, "seconds": 10.0, "accuracy": 0.84},
        "far": {"hit": False, "seconds": 5.0, "accuracy": 0.5},
    }
    assert sorted(reports, key=lambda name: whole_run.rank(reports[name])) == ["fast", "slow", "near", "far"]


def test_seconds_of_a_side_that_missed_are_no_ratio() -> None:
    hit = [{"hit": True, "seconds": 10.0, "problems_an_hour": 100.0}]
    missed = [{"hit": False, "seconds": 50.0, "problems_an_hour": 20.0}]
    names = {
        each.name: each.ratio
        for each in whole_run.figures("run", {"grpo": missed, "online-dpo": hit, "trl-grpo": missed}, "seconds to 85%")
    }
    assert names == {
        "run, grpo over TRL's GRPO: problems an hour": 1.0,
        "run, TRL's GRPO over online-dpo: seconds to 85%": 5.0,
    }
