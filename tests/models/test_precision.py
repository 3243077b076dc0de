"""Is a model loaded in a precision that its processor has, and said so where that is not its own?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from flow_dpo.core.errors import ModelError
from flow_dpo.models import precision
from flow_dpo.models.load import SEED_FOLDER, dtype_of, load_model
from flow_dpo.models.precision import choose_dtype, cpu_prefers
from flow_dpo.models.settings import ModelSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_auto_is_the_checkpoints_own_where_the_processor_has_it(half: torch.dtype) -> None:
    for has in (True, False):
        assert choose_dtype("auto", half, CPU, prefers=lambda _, has=has: has) == (half if has else torch.float32)
        assert choose_dtype("auto", half, CUDA, prefers=lambda _, has=has: has) == half
        assert choose_dtype("auto", torch.float32, CPU, prefers=lambda _, has=has: has) == torch.float32
        assert choose_dtype("auto", None, CPU, prefers=lambda _, has=has: has) is None
        assert choose_dtype("bfloat16", torch.float32, CPU, prefers=lambda _, has=has: has) == torch.bfloat16
        assert choose_dtype("float32", half, CPU, prefers=lambda _, has=has: has) == torch.float32


@pytest.mark.parametrize(
    ("capabilities", "bf16", "fp16"),
    [
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False, "avx512_fp16": False}, "timed", "no"),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False, "avx512_fp16": False}, "no", "no"),
        ({"avx512_bf16": False, "amx_bf16": True, "amx_fp16": True}, "yes", "yes"),
        ({"avx512_bf16": True, "amx_bf16": True, "avx512_fp16": True, "amx_fp16": False}, "yes", "timed"),
        ({"neon": True, "bf16": True, "fp16_arith": True}, "timed", "timed"),
        ({"neon": True, "bf16": False, "fp16_arith": True}, "no", "timed"),
        ({"avx2": True}, "timed", "timed"),
    ],
)
def test_the_processor_is_asked_and_timed_where_that_does_not_settle_it(
    capabilities: dict[str, bool], bf16: str, fp16: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for half, way in zip(HALVES, (bf16, fp16), strict=True):
        for ratio, wins in ((0.57, False), (0.9, True), (1.9, True)):
            monkeypatch.setattr(precision, "products_over_float32", lambda _, ratio=ratio: ratio)
            assert cpu_prefers(half, capabilities) is {"yes": True, "no": False, "timed": wins}[way]


def test_a_process_keeps_to_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    precision.products_over_float32.cache_clear()
    speeds = {torch.bfloat16: 30.0, torch.float16: 90.0, torch.float32: 60.0}
    monkeypatch.setattr(precision, "products_per_second", speeds.__getitem__)
    assert [precision.products_over_float32(half) for half in HALVES] == [0.5, 1.5]
    monkeypatch.setattr(precision, "products_per_second", lambda dtype: 100.0 - speeds[dtype])
    assert [precision.products_over_float32(half) for half in HALVES] == [0.5, 1.5]
    precision.products_over_float32.cache_clear()


def test_products_are_timed_on_one_thread_so_that_a_busy_machine_does_not_decide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    precision.products_over_float32.cache_clear()
    found = list[int]()

    def timed(dtype: torch.dtype) -> float:
        found.append(torch.get_num_threads())
        if dtype == torch.float32:
            raise RuntimeError("interrupted")
        return 1.0

    monkeypatch.setattr(precision, "products_per_second", timed)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(RuntimeError, match="interrupted"):
            precision.products_over_float32(torch.bfloat16)
        assert (found, torch.get_num_threads()) == ([1, 1], 3)
    finally:
        torch.set_num_threads(before)


def test_products_are_timed_for_no_longer_than_said() -> None:
    assert precision.products_per_second(torch.float32) > 1


def half_checkpoint(folder: Path, *, declared: bool) -> str:
    """The seed in bfloat16, in a folder whose config says so or does not."""
    model = load_model("seed").model.bfloat16()
    shutil.copytree(SEED_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(folder)
    if not declared:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    return str(folder)


@pytest.mark.parametrize("declared", [True, False])
def test_a_half_precision_checkpoint_on_a_processor_without_it(
    declared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = half_checkpoint(tmp_path / "half", declared=declared)
    settings = ModelSettings(model_name_or_path=name, device="cpu")
    monkeypatch.setattr(precision, "cpu_prefers", lambda _: True)
    assert load_model(settings).model.dtype == torch.bfloat16
    assert dtype_of(settings) == ("bfloat16" if declared else "auto")
    monkeypatch.setattr(precision, "cpu_prefers", lambda _: False)
    with pytest.warns(UserWarning, match=r"in float32, in which .* faster.*bfloat16.*--dtype bfloat16"):
        loaded = load_model(settings).model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert dtype_of(settings) == ("float32" if declared else "auto")
    # Weights are read exactly: rounding them again changes nothing.
    assert all(torch.equal(p, p.bfloat16().float()) for p in loaded.parameters())
    kept = ModelSettings(model_name_or_path=name, device="cpu", dtype="bfloat16")
    assert (load_model(kept).model.dtype, dtype_of(kept)) == (torch.bfloat16, "bfloat16")
    assert dtype_of(ModelSettings()) == "float32"


@pytest.mark.parametrize("with_model", [True, False])
def test_a_base_that_carries_an_adapter_is_refused_by_that_word(with_model: bool, tmp_path: Path) -> None:
    if with_model:
        shutil.copytree(SEED_FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "made/base"}')
    with pytest.raises(ModelError, match=r"found an adapter in .*its base \(made/base\).*--adapter; .* merge"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"its base \(the model it was trained on\)"):
        load_model(str(tmp_path))
