"""Is a base in 4 or 8 bits computed rightly where bitsandbytes is installed, and refused with the reason elsewhere?"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from flow_dpo.cli import train as commands
from flow_dpo.cli.evaluate import evaluate
from flow_dpo.cli.main import main
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError, ModelError
from flow_dpo.core.types import Pair, Request, Sampling
from flow_dpo.engines.factory import open_engine
from flow_dpo.engines.merged_lora import can_merge, save_merged
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.models import checkpoint, quantization
from flow_dpo.models.load import load_model
from flow_dpo.models.settings import ModelSettings, QuantizationSettings
from flow_dpo.runs.files import read_jsonl
from tests.learner.test_logprobs import stir
from tests.support.chat_models import chat_model_folder
from tests.support.packed_builders import ROLES, pairs_of_tree

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_it = pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed: pip install -e '.[quantised]'")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model_folder("qwen2", tmp_path_factory.mktemp("model"))


# ---- without it -----------------------------------------------------------------------------------------------------


def test_both_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected load_in_4bit or load_in_8bit, found both"):
        QuantizationSettings(load_in_4bit=True, load_in_8bit=True)


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
def test_without_bitsandbytes_a_run_is_refused_with_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--load_in_4bit", "--max_problems", "4", "--output_dir", str(tmp_path / "run")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "--load_in_4bit needs bitsandbytes, which is not installed here; install it with: pip install -e" in line
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_device_that_it_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(ConfigError, match=r"--load_in_8bit needs a device .* found mps"):
        quantization.check_quantization(QuantizationSettings(load_in_8bit=True), torch.device("mps"))
    quantization.check_quantization(QuantizationSettings(load_in_8bit=True), torch.device("cpu"))
    quantization.check_quantization(QuantizationSettings(), torch.device("mps"))


def test_the_loader_is_given_what_the_settings_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def load(name: str, **options: Any) -> PreTrainedModel:
        given.update(options)
        raise OSError("seen")

    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(quantization, "BitsAndBytesConfig", dict)
    monkeypatch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", load)
    settings = QuantizationSettings(load_in_4bit=True, bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)
    with pytest.raises(ModelError, match="seen"):
        load_model(ModelSettings(model_name_or_path=str(folder), device="cpu", quantization=settings))
    assert given["device_map"] == {"": torch.device("cpu")}
    assert given["quantization_config"] == {
        "load_in_4bit": True, "load_in_8bit": False, "llm_int8_threshold": 0.0, "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32,
    }  # fmt: skip


def test_flags_have_trls_names(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--load_in_4bit", "--bnb_4bit_quant_type", "fp4", "--use_bnb_nested_quant"]
    found = commands.parse_train("train", words, {}).runtime.model.quantization
    assert found == QuantizationSettings(load_in_4bit=True, bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)


# ---- with it --------------------------------------------------------------------------------------------------------


def quantised(folder: Path, bits: int, **more: Any) -> Any:
    wanted = QuantizationSettings(load_in_4bit=bits == 4, load_in_8bit=bits == 8, **more)
    return load_model(ModelSettings(model_name_or_path=str(folder), device="cpu", quantization=wanted))


def unpacked(folder: Path, model: Any) -> Any:
    """A plain model with the weights that the 4-bit layers stand for."""
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore

    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    layers = {name: one for name, one in model.named_modules() if type(one).__name__ == "Linear4bit"}
    assert len(layers) == 14
    with torch.no_grad():
        for name, one in layers.items():
            plain.get_submodule(name).weight.copy_(dequantize_4bit(one.weight.data, one.weight.quant_state))
    return plain


@needs_it
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("nested", [False, True])
def test_4_bits_are_the_weights_that_they_unpack_to(folder: Path, nested: bool, tmp_path: Path) -> None:
    """Log-probabilities, gradients and saved adapters are those of a plain model with the unpacked weights."""
    loaded = quantised(folder, 4, use_bnb_nested_quant=nested)
    plain = unpacked(folder, loaded.model)
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)
        assert (loaded.model(IDS).logits - original(IDS).logits).abs().max() > 0.1
    pairs = pairs_of_tree(random.Random(3), "p", num_nodes=3)
    rows: list[list[dict[str, float]]] = []
    for model in (loaded.model, plain):
        policy = stir(Policy(model, ROLES, LoraSettings(lora_r=4)))
        learner = Learner(policy, LearnerSettings(learning_rate=1e-2, examples_per_update=0))
        learner.check()
        assert learner.way == (True, False)
        rows.append([learner.update(Dpo(), pairs) for _ in range(3)])
        policy.save_adapter("answer", tmp_path / str(len(rows)))
    for one, other in zip(*rows, strict=True):
        for name in ("learn/answer/loss", "learn/stop/loss", "learn/answer/grad_norm", "learn/stop/grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    again = PeftModel.from_pretrained(unpacked(folder, quantised(folder, 4, use_bnb_nested_quant=nested).model),
                                      str(tmp_path / "1")).eval()  # fmt: skip
    with torch.no_grad(), policy.using("answer"):
        torch.testing.assert_close(again(IDS).logits, policy.model(IDS).logits, rtol=1e-2, atol=1e-2)


@needs_it
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_engine_and_learner_pass_the_check_and_never_merge(folder: Path, bits: int, dtype: Any, tmp_path: Path) -> None:
    wanted = QuantizationSettings(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    loaded = load_model(ModelSettings(model_name_or_path=str(folder), dtype=dtype, device="cpu", quantization=wanted))
    with open_engine(LocalSettings(), loaded, num_roles=2) as access:
        policy = stir(Policy(loaded.model, ROLES, LoraSettings()), scale=0.05)
        assert not can_merge(policy)
        with pytest.raises(ModelError, match="quantised base"):
            save_merged(policy, "answer", tmp_path)
        engine: Any = access.build(policy, None)  # pyright: ignore[reportArgumentType]
        assert type(engine).__name__ == "LocalEngine"
        requests = [
            Request(role=role, prompt_ids=tuple(range(5, 5 + n)), max_tokens=6) for role in ROLES for n in (4, 9)
        ]
        together = engine.sample(requests, Sampling(), seeds=range(4))
        alone = [engine.sample([request], Sampling(), seeds=[seed])[0] for seed, request in enumerate(requests)]
        if dtype == "float32":  # in half precision a rounding may tip a token, as it may without 4 or 8 bits
            assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    # What the engine recorded is what the learner computes: the drift check of a run compares the same.
    other = engine.sample(requests[:1], Sampling(), seeds=[9])[0]
    pair = Pair(request=requests[0], chosen=together[0], rejected=other, margin=1.0)
    row = Learner(policy, LearnerSettings(examples_per_update=0)).update(Dpo(), [pair])
    assert row["learn/answer/logprob_drift"] < (1e-3 if (bits, dtype) == (4, "float32") else 0.05)
    # 14 layers of two weights a byte: the share is that of the whole model.
    whole = Policy(load_model(str(folder)).model, ROLES, LoraSettings()).targets.share
    assert policy.targets.share == pytest.approx(whole, abs=1e-3)


@needs_it
@pytest.mark.parametrize("flag", ["--load_in_4bit", "--load_in_8bit"])
def test_a_run_and_its_evaluation(flag: str, folder: Path, tmp_path: Path) -> None:
    words = ["--model_name_or_path", str(folder), "--preset", "chat", flag, "--device", "cpu", "--chunk_tokens", "6",
             "--max_chunks", "2", "--max_problems", "8", "--problems_per_batch", "4", "--examples_per_update", "4",
             "--output_dir", str(tmp_path / "run")]  # fmt: skip
    assert commands.train(words) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["problems_seen"] for row in rows] == [4, 8]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["quantization"][flag.removeprefix("--")] is True
    # Adapters over the quantised base are loaded and evaluated as any others are.
    words = ["--run", str(tmp_path / "run"), "--max_problems", "2", "--output_dir", str(tmp_path / "evaluation")]
    assert evaluate(words) == 0
