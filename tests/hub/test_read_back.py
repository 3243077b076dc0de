"""Is a run that was pushed the run that is evaluated? Does a stranger's run stay data?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import flow_dpo
from flow_dpo.cli.main import main
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.runs.adapters import run_settings
from flow_dpo.runs.published import is_published, local_run
from flow_dpo.runs.run_folder import latest_adapters
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of its client


@pytest.fixture
def calibrated(run: Path, tmp_path: Path) -> Path:
    """The run, with a threshold that its last batch was sampled with."""
    import shutil

    folder = tmp_path / "calibrated"
    shutil.copytree(run, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) | {"flow/threshold": 0.625}
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    return folder


def test_what_was_pushed_is_evaluated_to_the_same_rollouts(calibrated: Path, hub: HubServer, tmp_path: Path) -> None:
    flow_dpo.push_to_hub(calibrated, "me/flow")
    for name, source in (("here", str(calibrated)), ("there", "me/flow")):
        words = ["--run", source, "--max_problems", "6", "--output_dir", str(tmp_path / name)]
        assert main(["evaluate", *words]) == 0
    here, there = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("here", "there"))
    assert here == there
    summary = json.loads((tmp_path / "there" / "summary.json").read_text())
    assert summary["played"]["flow"]["threshold"] == 0.625
    assert {Path(path).name for path in summary["adapters"].values()} == {"answer", "stop"}
    result = flow_dpo.evaluate_flow("me/flow", max_problems=6)
    assert result["accuracy"] == summary["accuracy"]
    assert flow_dpo.generate_traces("me/flow", output_dir=tmp_path / "traces", max_problems=3, num_samples=4).traces


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT, of transformers
def test_peft_loads_a_role_from_its_folder(run: Path, hub: HubServer) -> None:
    import torch
    from peft import PeftModel

    from flow_dpo.learner.policy import Policy

    flow_dpo.push_to_hub(run, "me/flow")
    base = flow_dpo.load_model("seed")
    policy = Policy(base.model, ("answer",), flow_dpo.LoraSettings(), seed=0)
    policy.load_adapter("answer", latest_adapters(run)["answer"])
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), policy.using("answer") as model:
        ours = model(input_ids=ids).logits
        plain = PeftModel.from_pretrained(flow_dpo.load_model("seed").model, "me/flow", subfolder="answer")
        theirs = plain(input_ids=ids).logits
    assert torch.equal(ours, theirs)


def test_a_merged_model_is_the_flows_answer(run: Path, hub: HubServer, tmp_path: Path) -> None:
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM

    from flow_dpo.learner.policy import Policy

    done = flow_dpo.push_to_hub(run, "me/flow", what="merged")
    assert [one.repo_id for one in done] == ["me/flow-answer", "me/flow-stop"]
    files = hub.files("me/flow-answer")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert b"/data/seed/model" not in b"".join(files.values())
    merged = AutoModelForCausalLM.from_pretrained(snapshot_download("me/flow-answer"))
    base = flow_dpo.load_model("seed")
    policy = Policy(base.model, ("answer",), flow_dpo.LoraSettings(), seed=0)
    policy.load_adapter("answer", latest_adapters(run)["answer"])
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), policy.using("answer") as model:
        torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("", "flow_source", "evil.py:Flow"),
        ("", "recipe", "evil.py:recipe"),
        ("model", "trust_remote_code", True),
        ("flow", "programs", True),
        ("grading", "rewards", ["evil.py:Flow"]),
        ("grading", "grader", "evil.py:Flow"),
        ("data", "schema", "evil.py:Flow"),
        ("", "explore_source", "evil.py:Flow"),
    ],
)
def test_a_strangers_run_runs_no_code(
    run: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    group: str, name: str, value: object,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")  # as if it had been fetched, too
    flow_dpo.push_to_hub(run, "me/flow")
    files = dict(hub.files("me/flow"))
    config = yaml.safe_load(files["config.yaml"])
    (config[group] if group else config)[name] = value
    files |= {"config.yaml": yaml.safe_dump(config).encode(), "evil.py": b"raise SystemExit"}
    hub.make("evil/flow", files)
    for command in ("evaluate", "generate"):
        assert main([command, "--run", "evil/flow", "--output_dir", "out"]) == 1
        assert "runs code from outside this package" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="runs code from outside this package"):
        flow_dpo.evaluate_flow("evil/flow")
    assert not Path("ran").exists()
    assert not (local_run("evil/flow") / "evil.py").exists(), "only settings and adapters are fetched"


def test_what_the_user_asks_for_in_python_is_allowed(run: Path, hub: HubServer) -> None:
    flow_dpo.push_to_hub(run, "me/flow")
    config = yaml.safe_load(hub.files("me/flow")["config.yaml"])
    config["model"]["trust_remote_code"] = True
    hub.make("evil/flow", {**hub.files("me/flow"), "config.yaml": yaml.safe_dump(config).encode()})
    with pytest.raises(ConfigError, match="trust_remote_code = True"):
        flow_dpo.generate_traces("evil/flow", max_problems=2)
    assert flow_dpo.evaluate_flow("evil/flow", max_problems=2, trust_remote_code=True)["num_problems"] == 2


def test_a_strangers_run_names_no_server(run: Path, hub: HubServer) -> None:
    flow_dpo.push_to_hub(run, "me/flow")
    config = yaml.safe_load(hub.files("me/flow")["config.yaml"])
    config |= {"engine_kind": "vllm_server", "engine": {"base_url": "http://evil.example"}}
    facts = json.loads(hub.files("me/flow")["run.json"])
    hub.make(
        "evil/flow",
        {
            **hub.files("me/flow"),
            "config.yaml": yaml.safe_dump(config).encode(),
            "run.json": json.dumps(facts).encode(),
        },
    )
    found = run_settings(local_run("evil/flow"), of_hub=True)
    assert not {"engine", "engine_kind", "workers"} & set(found)


def test_roles_of_a_stranger_stay_in_the_repository(run: Path, hub: HubServer, tmp_path: Path) -> None:
    flow_dpo.push_to_hub(run, "me/flow")
    facts = json.loads(hub.files("me/flow")["run.json"])
    facts["published"] = {"roles": ["../../answer", "/etc", 7, "answer"]}
    hub.make("evil/flow", {**hub.files("me/flow"), "run.json": json.dumps(facts).encode()})
    assert set(latest_adapters(local_run("evil/flow"))) == {"answer"}


def test_a_name_that_leads_out_of_the_cache_is_refused(run: Path, hub: HubServer, tmp_path: Path) -> None:
    flow_dpo.push_to_hub(run, "me/flow")
    hub.make("evil/flow", {**hub.files("me/flow"), "../../out/adapter_config.json": b"{}"})
    with pytest.raises(DataError, match="could not download the run evil/flow"):
        local_run("evil/flow")
    assert not list(tmp_path.rglob("out"))


def test_revisions_are_read(run: Path, hub: HubServer) -> None:
    flow_dpo.push_to_hub(run, "me/flow", revision="v1")
    assert (local_run("me/flow@v1") / "config.yaml").is_file()
    assert local_run("me/flow", "v1") == local_run("me/flow@v1")
    with pytest.raises(DataError, match=r"no config\.yaml"):
        local_run("me/flow")  # the main branch is empty
    with pytest.raises(DataError, match="no v2 in it"):
        local_run("me/flow@v2")
    with pytest.raises(ConfigError, match="one revision"):
        local_run("me/flow@v1", "v2")


def test_what_is_no_run_is_refused_in_one_sentence(
    run: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no repository of that name"):
        local_run("me/nothing")
    hub.make("me/model", {"config.json": b"{}"})
    with pytest.raises(DataError, match="expected a run that flow-dpo push made"):
        local_run("me/model")
    # A misspelled folder is not looked for on the hub.
    calls = len(hub.calls)
    monkeypatch.chdir(run.parent.parent)
    with pytest.raises(DataError, match=f"did you mean {run.parent.name}/flow"):
        run_settings(local_run(f"{run.parent.name}/flwo"))
    assert len(hub.calls) == calls
    assert not is_published(str(run))
    assert local_run(run) == run


def test_a_downloaded_run_needs_no_connection(run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from flow_dpo.runs import published

    flow_dpo.push_to_hub(run, "me/flow")
    folder = local_run("me/flow")
    published._downloaded.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_run("me/flow") == folder
    with pytest.raises(DataError, match="could not be reached"):
        local_run("me/other")
