"""Can an engine join from outside, and is what is no engine named?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, cast

import pytest

from flow_dpo.cli.train import parse_train
from flow_dpo.core.errors import ConfigError
from flow_dpo.engines import factory, settings
from flow_dpo.engines.factory import EngineAccess, open_engine
from flow_dpo.engines.settings import (
    EngineKind,
    LocalSettings,
    PlainSettings,
    default_settings,
    kind_of,
    register_engine,
)
from flow_dpo.models.load import LoadedModel, load_model
from tests.support.tiny_models import tiny_model


@dataclass(frozen=True, kw_only=True)
class MirrorSettings:
    """Of an engine that is not this package's."""

    context_tokens: int = 7
    """The most tokens of a request."""


@contextmanager
def open_mirror(settings: MirrorSettings, loaded: LoadedModel, *, num_roles: int) -> Iterator[EngineAccess]:
    def build(policy: Any, store: Any) -> Any:
        return (settings, loaded, num_roles, policy, store)

    yield EngineAccess(settings.context_tokens, build)


MIRROR = EngineKind(settings=MirrorSettings, open=open_mirror)
LOADED = replace(load_model("seed"), context_tokens=64)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines as they are, for one test."""
    monkeypatch.setattr(settings, "KINDS", known := dict(settings.KINDS))
    monkeypatch.setattr(factory, "KINDS", known)


def test_a_registered_engine_is_chosen_by_its_name_and_opened() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'mirror'; there are local, plain, vllm, vllm_server"):
        default_settings("mirror")
    with pytest.raises(ConfigError, match=r"one of the engines local, .*, found MirrorSettings; call register_engine"):
        kind_of(MirrorSettings())
    register_engine("mirror", MirrorSettings, open_mirror)
    register_engine("mirror", MirrorSettings, open_mirror)
    assert default_settings("mirror") == MirrorSettings()
    assert kind_of(MirrorSettings()) == "mirror"
    assert kind_of(LocalSettings()) == "local"
    settings = MirrorSettings(context_tokens=9)
    with open_engine(settings, LOADED, num_roles=2) as access:
        assert access.context_tokens == 9
        assert access.build(cast(Any, "policy"), cast(Any, "store")) == (settings, LOADED, 2, "policy", "store")
    with open_engine(LocalSettings(), LOADED, num_roles=2) as access:
        assert access.context_tokens == 64


@pytest.mark.parametrize("settings", [LocalSettings(), PlainSettings()], ids=["local", "plain"])
def test_the_window_is_that_up_to_which_a_cache_is_exact(settings: Any) -> None:
    """Problems are left out by this number; with a larger one, the engine would refuse a prompt during a run."""
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 24}
    with open_engine(settings, replace(LOADED, model=model), num_roles=2) as access:
        assert access.context_tokens == 24


def test_a_name_and_settings_are_one_engines() -> None:
    with pytest.raises(ConfigError, match="new name and settings for the engine 'local', found those of 'local'"):
        register_engine("local", MirrorSettings, open_mirror)
    with pytest.raises(ConfigError, match="new name and settings for the engine 'mirror', found those of 'local'"):
        register_engine("mirror", LocalSettings, open_mirror)


def test_an_installed_engine_joins_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint(name="mirror", value=f"{__name__}:MIRROR", group="flow_dpo.engines"),
            EntryPoint(name="broken", value=f"{__name__}:LOADED", group="flow_dpo.engines"),
        ]
    )
    monkeypatch.setattr("flow_dpo.plugins.load.entry_points", lambda **words: points.select(**words))
    assert "mirror" not in settings.KINDS
    # As a command does: its settings are flags like any other engine's.
    parsed = parse_train("flow-dpo train", ["--engine", "mirror", "--engine.context_tokens", "11"], {})
    assert parsed.runtime.engine == MirrorSettings(context_tokens=11)
    assert parsed.names()["engine_kind"] == "mirror"
    with pytest.raises(ConfigError, match="expected an EngineKind from the plug-in of engine 'broken', found"):
        default_settings("broken")
    with pytest.raises(ConfigError, match=r"unknown engine 'mirrored'; there are local, .*, mirror, broken"):
        default_settings("mirrored")
