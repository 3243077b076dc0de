"""Is an adapter whose weights are a pickle with code refused in plain words, and its code not run?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from flow_dpo.core.errors import ModelError
from flow_dpo.models.adapter_files import read


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self._path,))


@pytest.mark.parametrize("broken", [None, b"", b"no pickle"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, broken: bytes | None) -> None:
    LoraConfig(r=2).save_pretrained(str(tmp_path))
    weights = tmp_path / "adapter_model.bin"
    if broken is None:
        torch.save({"weight": Code(tmp_path / "ran")}, weights)
    else:
        weights.write_bytes(broken)
    with pytest.raises(ModelError, match=r"PEFT cannot read it: \w+") as error:
        read(tmp_path, LoraConfig(r=2), {})
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()
