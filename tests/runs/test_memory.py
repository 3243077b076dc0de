"""Is what a run will take of memory estimated, told, made to fit where it may be, and refused where it may not?"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.engines.settings import default_settings as default_engine
from flow_dpo.models.load import load_model
from flow_dpo.models.settings import ModelSettings, QuantizationSettings
from flow_dpo.runs import memory
from flow_dpo.runs.memory import GIB, planned, sizes_of
from flow_dpo.runs.settings import TrainSettings, default_settings
from flow_dpo.workers.settings import WorkersSettings

MIB = 2**20


def settings_of(engine: str = "local", *, model: str = "seed", rows: Any = (), kv: Any = "auto") -> TrainSettings:
    made = default_settings("flow-dpo", "seed")
    chosen: Any = default_engine(engine)
    chosen = replace(chosen, kv_budget_gib=kv) if hasattr(chosen, "kv_budget_gib") else chosen
    runtime = replace(made.runtime, engine=chosen, model=ModelSettings(model_name_or_path=model))
    learner = replace(made.learner, rows=replace(made.learner.rows, **dict(rows)))
    return replace(made, runtime=runtime, learner=learner)


def of(settings: TrainSettings) -> tuple[Any, Any, Any]:
    rows, engine = settings.learner.rows, settings.runtime.engine
    return rows.max_tokens, rows.gradient_checkpointing, getattr(engine, "kv_budget_gib", None)


@pytest.fixture(autouse=True)
def _one_row_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_of", lambda model: torch.device("cuda", 0))


def test_on_a_cpu_of_the_usual_size_everything_is_as_ever() -> None:
    settings, line = planned(settings_of(), memory=8 * GIB)
    assert of(settings) == (1024, False, 1.0), "an eighth of less than 16 GiB"
    settings, line = planned(settings_of(), memory=16 * GIB)
    assert of(settings) == (1024, False, 2.0)
    assert line.startswith("Memory: about 3.6 of the 16 GiB of cpu at most: libraries 1.5, a row of 1,024 tokens 0.1")


def test_rows_that_are_computed_at_once_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    totals: list[float] = []
    for threads, words in (("1", "a row"), ("4", "4 rows"), ("", "8 rows")):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        settings, line = planned(settings_of(), memory=16 * GIB)
        assert of(settings) == (1024, False, 2.0)
        assert f"libraries 1.5, {words} of 1,024 tokens" in line
        totals.append(float(line.split()[2]))
    assert totals[2] - totals[0] == pytest.approx(7 * 1.4 * sizes_of_row(1024, False) / GIB, abs=0.1)
    # Dropout's masks come from one generator, and the rows of a larger model have all threads to themselves.
    made = settings_of()
    dropout = replace(made, runtime=replace(made.runtime, lora=replace(made.runtime.lora, lora_dropout=0.1)))
    assert "a row of 1,024 tokens" in planned(dropout, memory=16 * GIB)[1]
    monkeypatch.setattr(memory, "MOST_WEIGHTS", 100_000)
    assert "a row of 4,096 tokens" in planned(made, memory=16 * GIB)[1]


def test_merged_weights_in_8_bit_integers_are_counted_for_each_role() -> None:
    sizes = memory.Sizes(weights=4000, adapters=0, row=0, merged=2 * 3600, kv_token=1, context_tokens=1)
    engine = LocalSettings(int8=True)
    assert memory._copies(engine, replace(sizes, merged=0), 1000, 2) == 1000
    assert memory._copies(engine, sizes, 1000, 2) == 1000 + 900


def test_rows_of_a_larger_model_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_WEIGHTS", 100_000)
    settings, line = planned(settings_of(), memory=16 * GIB)
    assert of(settings) == (4096, False, 2.0)
    assert line.startswith("Memory: about 3.8 of the 16 GiB of cpu at most: libraries 1.5, a row of 4,096 tokens 0.3")


def test_rows_of_a_small_model_depend_on_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = planned(settings_of(), memory=16 * GIB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert planned(settings_of(), memory=16 * GIB)[0] == first


def test_it_depends_on_what_is_there_and_not_on_what_is_free() -> None:
    first, second = (planned(settings_of()) for _ in range(2))
    assert first == second
    assert memory.device_memory(torch.device("cpu")) > 100 * MIB


def test_what_is_fixed_stays() -> None:
    fixed = settings_of(rows={"max_tokens": 700, "gradient_checkpointing": True}, kv=0.5)
    settings, line = planned(fixed, memory=16 * GIB)
    assert settings == fixed
    assert "keys and values 0.5" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("auto", "auto", "auto")),
        (["--gradient_checkpointing"], ("auto", True, "auto")),
        (["--gradient_checkpointing", "false", "--learner.rows.max_tokens", "512"], (512, False, "auto")),
        (["--gradient_checkpointing", "auto", "--kv_budget_gib", "3.5"], ("auto", "auto", 3.5)),
    ],
)
def test_flags_fix_or_leave_to_the_device(words: list[str], expected: tuple[Any, Any, Any]) -> None:
    assert of(train.parse_train("flow-dpo train", words, {})) == expected


def test_an_engine_elsewhere_has_its_memory_elsewhere() -> None:
    for engine in ("vllm_server", "plain"):
        settings, line = planned(settings_of(engine), memory=16 * GIB)
        assert of(settings) == (1024, False, None)
        assert "keys and values" not in line


def test_worker_processes_are_counted_where_they_share_the_memory() -> None:
    """Weights, their copies, and keys and values: as many as they can use, a sixteenth of the memory each at most."""

    def parts(**workers: Any) -> dict[str, int]:
        settings = settings_of()
        settings = replace(settings, runtime=replace(settings.runtime, workers=WorkersSettings(**workers)))
        return memory._plan(settings, 1024, False, torch.device("cpu"), 16 * GIB).parts

    here, two = parts(), parts(kind="processes", num=2)
    assert two["keys and values"] == two["merged weights"] == two["copies of weights"] == 0
    own = here["weights"] + here["merged weights"] + here["copies of weights"]
    assert two["2 workers"] == 2 * (own + GIB // 4 + GIB // 2)
    assert parts(kind="processes", num=8)["8 workers"] == 4 * two["2 workers"]
    assert "0 workers" not in here
    assert parts(kind="processes", num=2, num_gpus=1).keys() == parts(kind="ray", num=2).keys() == here.keys()
    settings = settings_of()
    workers = WorkersSettings(kind="processes", num=2)
    settings = replace(settings, runtime=replace(settings.runtime, workers=workers))
    _, line = planned(settings, memory=16 * GIB)
    assert "2 workers 1.5" in line
    with pytest.raises(ConfigError, match=r"fewer workers \(--workers.num\)"):
        planned(settings, memory=GIB)


def test_rows_are_checkpointed_and_then_shortened_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {way: sizes_of_row(*way) for way in ((4096, False), (2048, False), (4096, True), (512, True))}
    assert row[4096, False] > row[2048, False] > row[4096, True] > row[512, True]
    monkeypatch.setattr(memory, "MOST_WEIGHTS", 0)
    monkeypatch.setattr(memory, "_LIBRARIES", {})
    monkeypatch.setattr(memory, "_KEPT", {})
    others = sum(memory._plan(settings_of(kv=0.001), 4096, False, torch.device("cpu"), GIB).parts.values())
    others -= row[4096, False]
    for way, size in row.items():
        settings, line = planned(settings_of(kv=0.001), memory=others + size + 1)
        assert of(settings)[:2] == way
        assert ("otherwise" in line) == (way != (4096, False))
    with pytest.raises(ConfigError, match=r"expected a run that fits into .* GiB of cpu, found one that takes about"):
        planned(settings_of(kv=0.001), memory=others + row[512, True] - 1)
    # Of two that are left to the device the fixed one stays.
    settings, _ = planned(settings_of(rows={"max_tokens": 4096}, kv=0.001), memory=others + row[4096, True] + 1)
    assert of(settings)[:2] == (4096, True)
    rows = {"gradient_checkpointing": False}
    settings, _ = planned(settings_of(rows=rows, kv=0.001), memory=others + row[2048, False] + 1)
    assert of(settings)[:2] == (2048, False)


def sizes_of_row(tokens: int, checkpointing: bool) -> int:
    made = settings_of()
    return sizes_of(made.runtime.model, made.runtime.lora, ("answer", "stop"), tokens, checkpointing).row


def test_what_the_user_fixed_is_refused_with_what_to_change() -> None:
    fixed = settings_of(rows={"max_tokens": 1 << 16, "gradient_checkpointing": False}, kv=2.0)
    with pytest.raises(ConfigError) as refused:
        planned(fixed, memory=2 * GIB)
    for flag in ("max_tokens auto", "gradient_checkpointing auto", "kv_budget_gib auto", "--load_in_4bit", "workers"):
        assert flag in str(refused.value)
    assert "a row of 65,536 tokens" in str(refused.value)


def test_a_gpu_gives_keys_and_values_what_the_learner_leaves(gpu: None) -> None:
    settings, line = planned(settings_of("vllm"), memory=80 * GIB)
    tokens, checkpointing, kv = of(settings)
    assert (tokens, checkpointing) == (4096, False)
    assert "of the 80 GiB of cuda:0" in line
    # As much as 256 requests of the whole window can use, and as much that is cached.
    sizes = sizes_of(settings.runtime.model, settings.runtime.lora, ("answer", "stop"), 1, False)
    assert kv == pytest.approx(2 * 256 * sizes.context_tokens * sizes.kv_token / GIB, abs=0.25)
    _, _, small = of(planned(settings_of("vllm"), memory=int(4.6 * GIB))[0])
    assert 0 < small < kv


def test_a_model_that_nobody_finds_is_refused_where_it_is_loaded() -> None:
    settings, line = planned(settings_of(model="/nowhere/at/all"))
    assert of(settings) == (4096, False, 2.0)
    assert line.startswith("Memory: not known before work starts (ModelError: could not load /nowhere")


def test_weights_in_few_bits_are_counted_in_few_bits() -> None:
    made = settings_of()
    whole, eight, four, nested = (
        sizes_of(replace(made.runtime.model, quantization=bits), made.runtime.lora, ("answer",), 8, False).weights
        for bits in (
            QuantizationSettings(),
            QuantizationSettings(load_in_8bit=True),
            QuantizationSettings(load_in_4bit=True),
            QuantizationSettings(load_in_4bit=True, use_bnb_nested_quant=True),
        )
    )
    assert whole > eight > four > nested


@pytest.mark.parametrize(("machine", "budget"), [(64, 16.0), (24, 6.0), (12, 3.0), (8, 2.0)])
def test_keys_and_values_take_up_to_a_quarter_of_a_cpus_memory(
    machine: int, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of(planned(settings_of(), memory=machine * GIB)[0])[2] == min(2.0, machine / 8), "all that the seed can use"
    monkeypatch.setattr(memory, "_most_kv", lambda engine, sizes: 1 << 40)
    assert of(planned(settings_of(), memory=machine * GIB)[0])[2] == budget


def test_copies_of_weights_are_counted() -> None:
    """Those that a CPU's products read: as many as are allowed, in 8-bit integers a byte a weight and none merged."""
    parts: list[dict[str, int]] = []
    for change in ({}, {"packed_gib": 0.001}, {"int8": True}):
        settings = settings_of()
        engine = LocalSettings(**change)
        settings = replace(settings, runtime=replace(settings.runtime, engine=engine))
        parts.append(memory._plan(settings, 1024, False, torch.device("cpu"), 16 * GIB).parts)
    usual, few, integers = parts
    num_weights = load_model(ModelSettings(model_name_or_path="seed")).model.num_parameters()
    assert usual["copies of weights"] == max(usual["weights"], usual["merged weights"]) > 0
    assert few["copies of weights"] == int(0.001 * GIB)
    assert integers["copies of weights"] == num_weights
    assert integers["merged weights"] == 0 < usual["merged weights"]
