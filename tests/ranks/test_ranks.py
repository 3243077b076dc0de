"""Do several processes learn what one does, to the byte, and does none of them hang when something goes wrong?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import ConfigError
from flow_dpo.ranks.environment import Place, place, refuse_ranks
from flow_dpo.ranks.group import LostRank, joined
from tests.support.once import Once

PACKED, PLAIN = "packed", "plain, dropout, bfloat16"


@pytest.fixture(scope="module")
def ran(once: Once) -> Path:
    return once("ranks", run_all)


def run_all(folder: Path) -> None:
    """All scenarios, in processes forked from one that has loaded the libraries: each process anew would take longer
    than all of them."""
    command = [sys.executable, "-m", "tests.support.rank_runs", str(folder), "equal", "sharded", "wrong"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", [PACKED, PLAIN])
@pytest.mark.parametrize("num", [2, 3])
def test_ranks_of_any_number_learn_the_same_bytes(ran: Path, num: int, name: str) -> None:
    alone, ranks = (ran / "equal" / str(each) / name for each in (1, num))
    files = [path.relative_to(alone) for path in sorted(alone.rglob("*")) if path.is_file()]
    assert len(files) == 2 * 6 + 2, "two checkpoints, rows, and who computed them"
    for file in files:
        if file.name != "ranks.json":
            assert (alone / file).read_bytes() == (ranks / file).read_bytes(), file
    assert len(read(alone / "rows.json")) == 5


@pytest.mark.parametrize("name", [PACKED, PLAIN])
@pytest.mark.parametrize("num", [1, 2])
def test_a_checkpoint_of_three_ranks_goes_on_with_fewer(ran: Path, num: int, name: str) -> None:
    whole, rest = ran / "equal" / "3" / name, ran / "equal" / str(num) / f"{name}, gone on"
    for file in ("learner.json", "learner.safetensors"):
        assert (whole / "end" / file).read_bytes() == (rest / "end" / file).read_bytes()
    assert read(rest / "rows.json") == read(whole / "rows.json")[2:]


def test_rows_tell_who_computed_how_much(ran: Path) -> None:
    rows, alone = (read(ran / "equal" / num / PLAIN / "ranks.json") for num in ("3", "1"))
    learned = read(ran / "equal" / "3" / PLAIN / "rows.json")
    assert alone == [{}] * 5
    for row, learn in zip(rows, learned, strict=True):
        assert row["ranks/num"] == 3
        for what in ("rows", "tokens"):
            assert sum(row[f"ranks/{rank}/{what}"] for rank in range(3)) == sum(
                learn.get(f"learn/{role}/{what}", 0) for role in ("answer", "stop")
            )
        assert all((row[f"ranks/{rank}/seconds"] > 0) == (row[f"ranks/{rank}/rows"] > 0) for rank in range(3))
        assert row["ranks/wait_seconds"] > 0
    assert [rows[-1][f"ranks/{rank}/rows"] for rank in range(3)] == [1, 0, 0], "a single pair"
    assert max(rows[0][f"ranks/{rank}/tokens"] for rank in range(3)) < 1.5 * min(
        rows[0][f"ranks/{rank}/tokens"] for rank in range(3)
    )


def test_whoever_follows_prints_nothing(ran: Path) -> None:
    for num in (2, 3):
        for rank in range(1, num):
            assert (ran / "equal" / str(num) / f"output-{rank}.txt").read_text() == ""


def test_an_error_in_a_row_is_every_ranks_and_nothing_moves(ran: Path) -> None:
    nan, own, memory, version = read(ran / "wrong" / "refused" / "said.json")
    assert nan[0] == "LearningError"
    assert "the loss of role 'answer' is nan at version 0; nothing was changed" in nan[1]
    assert "OwnError" in own[0] + own[1]
    assert "of one's own" in own[1]
    assert memory == ["OutOfMemoryError", "no room"]
    assert version == ["version", "1"], "and they go on"


def test_an_error_within_a_shared_layer_ends_the_run(ran: Path) -> None:
    """A loss that is no number is told as with a whole base; an error in a row leaves the others in the layers."""
    nan, version = read(ran / "wrong" / "refused, sharded" / "said.json")
    assert "the loss of role 'answer' is nan at version 0; nothing was changed" in nan[1]
    assert version == ["version", "1"], "and they go on"
    assert re.search(
        r"LostRank: rank [01]: OwnError: of one's own",
        (ran / "wrong" / "refused, sharded" / "output-0.txt").read_text(),
    )


@pytest.mark.parametrize("case", range(4))
def test_a_shared_base_gives_the_bits_of_a_whole_one(ran: Path, case: int) -> None:
    """Llama and Qwen 2, float32 and bfloat16, packed and plain, with dropout and gradient checkpointing."""
    whole, shared = (ran / "sharded" / f"{case}-{shard}" for shard in (False, True))
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert len(files) == 14
    for file in files:
        if file.name != "ranks.json":
            assert (whole / file).read_bytes() == (shared / file).read_bytes(), file
    (before, alike), (_, held) = read(ran / "sharded" / "held.json")[2 * case : 2 * case + 2]
    # Of two layers of about 10,000 numbers each that are shared by three; embeddings and adapters stay whole.
    assert alike == before
    assert held < 0.7 * before


def test_ranks_that_differ_are_found(ran: Path) -> None:
    said = read(ran / "wrong" / "differing" / "said.json")
    assert "rank 1 and rank 0 differ in 1 of 10 values, such as 'stop/weights'" in said


def test_nobody_hangs_whoever_dies(ran: Path) -> None:
    found = read(ran / "wrong" / "statuses.json")
    assert found == {
        "refused": [0, 0, 0],
        "refused, sharded": [1, 1],
        "differing": [0, 0],
        "by itself": [1, 0, 1],
        "follower killed in a row": [1, -9, 0],
        "follower killed while rank 0 samples": [1, -9, 0],
        "leader killed": [-9, 1, 1],
        "leader interrupted": [1, 0, 0],
        "leader killed, its store alive": [-9, 1, 1],
    }
    for name in ("in a row", "while rank 0 samples"):
        told = (ran / "wrong" / f"follower killed {name}" / "output-0.txt").read_text()
        assert "rank 1 does not answer: dead, cut off, or busy with a row. Committed batches are whole: resume" in told
    for rank in (0, 2):
        told = (ran / "wrong" / "by itself" / f"output-{rank}.txt").read_text()
        assert "LostRank: rank 1 failed by itself: OutOfMemoryError: no room" in told
    for name in ("leader killed", "leader killed, its store alive"):
        assert "Rank0Lost" in (ran / "wrong" / name / "output-2.txt").read_text()


def test_ranks_that_do_not_meet_end_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(LostRank, match=r"expected 2 ranks to connect.*MASTER_ADDR.*one process with WORLD_SIZE unset"):
        joined()


# ---- the environment ------------------------------------------------------------------------------------------------


def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert place() == Place()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"expected RANK to be a number, as torchrun.*nothing with WORLD_SIZE=4"):
        refuse_ranks("report")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match=r"expected LOCAL_RANK to be a number.*unset WORLD_SIZE if the clus"):
        place()
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert place() == Place(rank=3, num=4, local_rank=1, local_num=2)
    assert place().follows
    with pytest.raises(ConfigError, match=r"evaluate does not learn over ranks, but 4 processes.*--workers"):
        refuse_ranks("evaluate")
    refuse_ranks("train")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="ACCELERATE_USE_FSDP set by accelerate's config"):
        place()
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ConfigError, match="expected RANK from 0 to 3, found 4"):
        place()
