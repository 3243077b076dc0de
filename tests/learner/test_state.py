"""Does a learner that was written down go on exactly where it stopped?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Pair, by_role
from flow_dpo.data import strict_json, typed_json
from flow_dpo.learner import state
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import ReferenceSettings
from tests.learner.test_learner import learner, pairs, same
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import tiny_model


def going_on(student: Learner, made: list[Pair]) -> list[dict[str, float]]:
    rows = [student.update(Dpo(), made[i : i + 4]) for i in range(0, len(made), 4)]
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "seconds"))} for row in rows]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "reference": ReferenceSettings(kind="snapshot", every=2, lerp=0.3),
            "warmup_updates": 5,
        },
        {"lora": LoraSettings(lora_r=4, lora_dropout=0.3)},
    ],
    ids=["base", "snapshot", "dropout"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_goes_on_bit_for_bit(values: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    def fresh(seed: int) -> Learner:
        rest = dict(values)
        policy = Policy(tiny_model("llama").to(dtype), ROLES, rest.pop("lora", LoraSettings(lora_r=4)), seed=5)
        if seed:  # whatever is in memory must not matter
            stir(policy, seed)
        return Learner(policy, LearnerSettings(learning_rate=1e-3, examples_per_update=5, **rest))

    made = pairs(num_trees=4)
    whole, first = fresh(0), fresh(0)
    wanted = going_on(whole, made)
    going_on(first, made[:12])
    assert len(first.pool) == 2
    first.save(tmp_path / "state")
    second = fresh(1)
    second.load(tmp_path / "state")
    assert second.pool == first.pool
    assert going_on(second, made[12:]) == wanted[3:]
    assert second.version == whole.version
    for adapter in whole.policy.adapters:
        assert same(whole.policy.weights(adapter), second.policy.weights(adapter))
        assert same(whole.policy.parameters(adapter), second.policy.parameters(adapter))  # pyright: ignore[reportArgumentType]
    for folder, student in (("a", whole), ("b", second)):
        student.save(tmp_path / folder)
    files = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a").rglob("*")) if p.is_file()]
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_an_example_is_put_in_words_once_as_long_as_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    made, written, texts = pairs(num_trees=4), list[Any](), state.Texts()
    write = typed_json.write

    def counted(value: Any) -> Any:
        written.append(value)
        return write(value)

    monkeypatch.setattr(typed_json, "write", counted)
    for pool, new in ((made[:6], made[:6]), (made[2:8], made[6:8]), ([], []), (made[2:4], made[2:4])):
        written.clear()
        assert [strict_json.parse_object(t.encode(), "") for t in texts(pool)] == [write(each) for each in pool]
        assert [each for each in written if isinstance(each, Pair)] == new


def test_a_saved_learner_with_untouched_roles_loads(tmp_path: Path) -> None:
    student = learner()
    student.update(Dpo(), by_role(pairs())["answer"])
    student.save(tmp_path)
    other = learner()
    other.load(tmp_path)
    assert other.update(Dpo(), pairs())["learn/updates"] == 1


def test_a_broken_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"learner\.json"):
        learner().load(tmp_path)
    student = learner()
    student.update(Dpo(), pairs())
    student.save(tmp_path)
    with pytest.raises(DataError, match="other settings"):
        learner(reference=ReferenceSettings(kind="snapshot")).load(tmp_path)
    with pytest.raises(DataError, match="has shape"):
        learner(lora=LoraSettings(lora_r=8)).load(tmp_path)
    (tmp_path / "learner.json").write_text('{"version": 1')
    with pytest.raises(DataError, match=r"learner\.json"):
        learner().load(tmp_path)
