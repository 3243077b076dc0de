"""Are workers named as people name them, and does a resumed run compare of them what its result depends on?"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flow_dpo.cli import compare, train
from flow_dpo.cli.evaluate import parse_evaluate
from flow_dpo.cli.generate import parse_generate
from flow_dpo.core.errors import ConfigError
from flow_dpo.engines.settings import VllmServerSettings
from flow_dpo.runs.files import read_jsonl
from flow_dpo.runs.given_objects import GivenObjects, train_settings
from flow_dpo.runs.resolve import read_settings
from flow_dpo.runs.settings import TrainSettings
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.setup import starting


def parse(*words: str) -> TrainSettings:
    return train.parse_train("t", list(words), {})


def test_a_kind_of_workers_is_a_word(tmp_path: Path) -> None:
    assert parse().runtime.workers == WorkersSettings()
    found = parse("--workers", "ray", "--workers.num", "4", "--workers.address", "auto").runtime.workers
    assert found == WorkersSettings(kind="ray", num=4, address="auto")
    file = tmp_path / "settings.yaml"
    for text in ("workers: ray\nworkers.num: 4\n", "workers:\n  kind: ray\n  num: 4\n"):
        file.write_text(text)
        assert parse("--config", str(file)).runtime.workers == WorkersSettings(kind="ray", num=4)
    found = train_settings({"workers": "ray", "workers.num": 4}, GivenObjects()).runtime.workers
    assert found == WorkersSettings(kind="ray", num=4)
    for words in (parse_evaluate, parse_generate):
        assert words(["--workers", "ray", "--workers.shard", "4"])["workers"] == WorkersSettings(kind="ray", shard=4)
    with pytest.raises(ConfigError, match=r"--workers.*rya"):
        parse("--workers", "rya")
    with pytest.raises(ConfigError, match=r"--workers.num: expected num of 1 or more, found 0"):
        parse("--workers.num", "0")


def test_servers_are_their_own_engine() -> None:
    urls = "http://a:8000,http://b:8000/v1"
    found = parse("--workers", "servers", "--base_url", urls).runtime
    assert found.engine == VllmServerSettings(base_url=urls)
    assert VllmServerSettings(base_url=urls).base_urls == urls.split(",")
    given = train_settings({"workers": "servers", "base_url": urls}, GivenObjects()).runtime
    assert given == found
    with pytest.raises(ConfigError, match="expected base_url"):
        parse("--workers", "servers", "--base_url", "http://a:8000,b")


def test_what_takes_a_while_at_the_start_is_told() -> None:
    local, servers = parse().runtime.engine, VllmServerSettings(base_url="http://a:1,http://b:1")
    assert starting(WorkersSettings(), servers) == ""
    assert starting(WorkersSettings(kind="servers"), servers) == "connecting to 2 servers"
    ray = WorkersSettings(kind="ray")
    assert starting(ray, local) == "starting 1 worker on a private Ray cluster"
    ray = WorkersSettings(kind="ray", num=4, address="auto")
    assert starting(ray, local) == "starting 4 workers on the Ray cluster at auto"


def test_every_command_of_a_comparison_has_its_workers_and_others_may_go_on_with_it(tmp_path: Path) -> None:
    words = ["--max_problems", "8", "--compare.tests.harder_split", "harder"]
    urls = ["--base_url", "http://a:1,http://b:1"]
    for more in (["--workers", "ray", "--workers.num", "3"], ["--workers", "servers", *urls]):
        parsed = compare.parse([*words, *more])
        compare._write_configs(tmp_path, parsed)
        for name in ("pool", "held_out", "harder", "fixed"):
            for command, base in ((parse_evaluate, name), (parse_evaluate, f"base-{name}"), (parse, "train")):
                config = read_settings(tmp_path / f"{base}.yaml")
                if command is parse_evaluate:
                    config.pop("generate", None)
                file = tmp_path / "one.yaml"
                file.write_text(yaml.safe_dump(config))
                found = command(["--config", str(file)]) if command is parse_evaluate else parse("--config", str(file))
                sections = found if isinstance(found, dict) else found.runtime.sections()
                assert sections["workers"] == parsed["workers"]
                assert sections["engine"] == parsed["engine"]
    parsed = compare.parse([*words, "--workers", "ray", "--workers.shard", "8", "--num_threads", "1"])
    compare._begin(tmp_path, parsed)
    for more in (["--workers", "ray", "--workers.num", "9"], []):
        compare._begin(tmp_path, compare.parse([*words, "--workers.shard", "8", "--num_threads", "1", *more]))
    with pytest.raises(ConfigError, match=r"workers\.shard: 8 then, 4 now"):
        compare._begin(tmp_path, compare.parse([*words, "--workers.shard", "4", "--num_threads", "1"]))


def test_short_names_are_never_of_workers() -> None:
    """A run's threads, and a server's deadlines, are as they were."""
    found = parse("--engine", "vllm_server", "--num_threads", "3", "--deadline_s", "5", "--patience_s", "6").runtime
    assert found.model.num_threads == 3
    assert isinstance(found.engine, VllmServerSettings)
    assert (found.engine.deadline_s, found.engine.patience_s) == (5, 6)
    assert found.workers == WorkersSettings()
    with pytest.raises(ConfigError, match=r"did you mean .*--workers\.tries"):
        parse("--tries", "3")


def test_shards_are_of_the_method_and_numbers_of_workers_are_not() -> None:
    assert WorkersSettings().problems_of_shard == 0
    assert (
        WorkersSettings(kind="ray").problems_of_shard == WorkersSettings(kind="servers", num=9).problems_of_shard == 16
    )
    assert WorkersSettings(kind="ray", shard=4).problems_of_shard == WorkersSettings(shard=4).problems_of_shard == 4


def test_a_resumed_run_compares_how_batches_are_cut_and_nothing_else_of_the_workers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--output_dir", str(folder), "--num_threads", "1"]
    limits = ["--budget_verdicts", "1", "--max_problems", "4", "--problems_per_batch", "2", "--workers.shard", "1"]
    assert train.train([*words, *limits]) == 0
    before = len(read_jsonl(folder / "metrics.jsonl"))
    for more, name in ((["--workers.shard", "2"], "workers.shard: 1 then, 2 now"), (["--workers.shard", "0"], "shard")):
        with pytest.raises(ConfigError, match=f"(?s)started with other settings.*{name}") as raised:
            train.train([*words, "--resume", *more])
        assert "--allow workers.shard" in str(raised.value)
    more = ["--workers.num", "7", "--workers.tries", "9", "--workers.patience_s", "1", "--workers.num_gpus", "0.5"]
    assert train.train([*words, "--resume", *more, "--workers.num_threads", "3"]) == 0
    assert len(read_jsonl(folder / "metrics.jsonl")) >= before
