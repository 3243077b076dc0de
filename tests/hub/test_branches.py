"""Do the commands on the card of a branch load what was pushed to it, and not what lies on the main branch?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import flow_dpo
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of its client
_LOADS = re.compile(r'from_pretrained\(.*(?:repo,|"me/)|load_adapter\(|load_dataset\(|--run |hf download |serve me/')


def loading(files: dict[str, bytes]) -> list[str]:
    """The lines of the card that name the repository to load from."""
    return [line for line in files["README.md"].decode().splitlines() if _LOADS.search(line)]


def test_every_loading_line_names_the_branch(run: Path, hub: HubServer) -> None:
    what = ("adapters", "merged", "pairs")
    done = flow_dpo.push_to_hub(run, "me/flow", what=what, revision="v2")
    for one in done:
        lines = loading(hub.files(one.repo_id, one.repo_type, revision="v2"))
        assert lines, one.repo_id
        assert [line for line in lines if "v2" not in line] == []
    adapters = loading(hub.files("me/flow", revision="v2"))
    assert "flow-dpo evaluate --run me/flow@v2 --max_problems 200" in adapters
    assert any(line.startswith("hf download me/flow --revision v2 ") for line in adapters)
    # Without a branch there is none to name.
    [plain] = flow_dpo.push_to_hub(run, "me/other")
    assert [line for line in loading(hub.files(plain.repo_id)) if "revision" in line or "@" in line] == []
