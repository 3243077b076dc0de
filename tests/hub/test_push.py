"""Does what is pushed arrive whole, and nothing else? Does a failing hub leave the run as it is?"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants

import flow_dpo
from flow_dpo.cli.main import main
from flow_dpo.core.errors import ConfigError, DataError, StorageError
from flow_dpo.hub import push as pushing
from flow_dpo.runs.published import one_line
from flow_dpo.runs.records import read_metrics
from tests.support.hub_server import TOKEN, HubServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of its client
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def state(folder: Path) -> dict[str, str]:
    """Every file with what it holds."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def adapter(run: Path, role: str) -> bytes:
    [path] = run.glob(f"adapters/{role}/*/adapter_model.safetensors")
    return path.read_bytes()


def test_adapters_arrive_with_card_and_settings_and_nothing_else(run: Path, hub: HubServer) -> None:
    before = state(run)
    [pushed] = flow_dpo.push_to_hub(run, "me/flow")
    files = hub.files("me/flow")
    assert set(files) == {
        "README.md", "config.yaml", "run.json",
        *(f"{role}/{name}" for role in ("answer", "stop") for name in ADAPTER),
    }  # fmt: skip
    assert set(pushed.files) == set(files)
    for role in ("answer", "stop"):
        assert files[f"{role}/adapter_model.safetensors"] == adapter(run, role)
    assert hub.repositories[("model", "me/flow")].private
    assert state(run) == before
    everything = b"\n".join(files.values())
    for secret in (str(run), str(run.parent), str(Path(flow_dpo.__file__).parent), TOKEN, "pytest"):
        assert secret.encode() not in everything, secret
    config = yaml.safe_load(files["config.yaml"])
    assert "engine" not in config
    assert "output_dir" not in config["run"]
    facts = json.loads(files["run.json"])
    [folder] = (run / "adapters" / "answer").iterdir()
    assert facts["published"] == {"roles": ["answer", "stop"], "version": int(folder.name)}
    assert not {"command", "prompts", "platform"} & set(facts)


def test_the_card_has_the_runs_own_figures(run: Path, hub: HubServer, tmp_path: Path) -> None:
    measured = tmp_path / "measured"
    result = flow_dpo.evaluate_flow(run, max_problems=4, output_dir=measured)
    flow_dpo.push_to_hub(run, "me/flow", evaluations=[measured])
    card = ModelCard(hub.files("me/flow")["README.md"].decode())
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert f"{last['progressive/accuracy']:.1%}" in card.text
    assert f"{last['progressive/low']:.1%} to {last['progressive/high']:.1%}" in card.text
    assert "| problems | 12 |" in card.text
    assert card.data.library_name == "peft"
    assert {"flow-dpo", "lora"} <= set(card.data.tags or ())
    [found] = card.data.eval_results or ()
    assert found.metric_value == round(result["accuracy"], 4)
    assert (found.dataset_type, found.dataset_name, found.dataset_split) == ("seed", "seed", "test")
    assert 'first = "answer"\nmodel = PeftModel.from_pretrained(model, repo, subfolder=first' in card.text
    assert "--lora-modules answer=flow/answer stop=flow/stop" in card.text
    summary = json.loads((measured / "summary.json").read_text())
    # Problems that were handed over are no data set of the hub, and not the one that was trained on.
    (measured / "summary.json").write_text(json.dumps({**summary, "dataset": "handed over", "handed_over": True}))
    flow_dpo.push_to_hub(run, "me/flow", evaluations=[measured])
    card = ModelCard(hub.files("me/flow")["README.md"].decode())
    assert not card.data.eval_results
    assert "- Evaluation on problems that were passed from Python, the flow" in card.text
    summary["adapters"] = {"answer": "elsewhere/answer/1"}
    (measured / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="newest adapters"):
        flow_dpo.push_to_hub(run, "me/flow", evaluations=[measured])


def test_pairs_and_traces_arrive_as_data_sets(run: Path, hub: HubServer, tmp_path: Path) -> None:
    from datasets import load_dataset

    traces = tmp_path / "traces"
    flow_dpo.generate_traces(run, output_dir=traces, max_problems=4, num_samples=4)
    done = flow_dpo.push_to_hub(run, "me/flow", what="pairs,traces", traces=traces)
    assert [(one.repo_type, one.repo_id) for one in done] == [
        ("dataset", "me/flow-traces"),
        ("dataset", "me/flow-pairs"),
    ]
    for name, sent in (("traces", traces / "traces.jsonl"), ("pairs", run / "pairs.jsonl")):
        files = hub.files(f"me/flow-{name}", "dataset")
        assert set(files) == {"train.jsonl", "README.md"}
        assert len(files["train.jsonl"].splitlines()) == len(sent.read_bytes().splitlines())
        assert f'load_dataset("me/flow-{name}", split="train")' in files["README.md"].decode()
        assert str(tmp_path).encode() not in b"".join(files.values())
        problems = "seed/train" if name == "traces" else "12"
        assert f"- problems: {problems}\n" in files["README.md"].decode()
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "train.jsonl").write_bytes(files["train.jsonl"])
        rows = load_dataset(
            "json", data_files=str(tmp_path / name / "train.jsonl"), split="train", cache_dir=str(tmp_path)
        )
        assert "prompt" in rows.column_names
    # Traces of a model in a folder, made from the folder above it.
    header = json.loads((traces / "traces.json").read_text()) | {"model": "models/llama"}
    header["settings"]["generate"]["output_dir"] = "traces"
    (traces / "traces.json").write_text(json.dumps(header))
    (tmp_path / "models" / "llama").mkdir(parents=True)
    flow_dpo.push_to_hub(traces, "me/moved", what="traces")
    assert "- model: llama\n" in hub.files("me/moved-traces", "dataset")["README.md"].decode()
    # A folder of traces can be pushed by itself.
    [alone] = flow_dpo.push_to_hub(traces, "me/own-traces", what="traces")
    assert alone.repo_id == "me/own-traces"
    with pytest.raises(ConfigError, match="--traces"):
        flow_dpo.push_to_hub(run, "me/flow", what="traces")


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        ("PUT", "/lfs/", "status"), ("PUT", "/lfs/", "drop"), ("POST", "/commit/", "status"),
        ("POST", "/preupload/", "drop"), ("POST", "/objects/batch", "status"),
    ],
)  # fmt: skip
def test_a_failure_that_passes_is_repeated(run: Path, hub: HubServer, method: str, path: str, how: str) -> None:
    hub.fail(method, path, times=2, how=how)
    flow_dpo.push_to_hub(run, "me/flow")
    assert hub.files("me/flow")["answer/adapter_model.safetensors"] == adapter(run, "answer")
    assert all(fault.times == 0 for fault in hub.faults)


def test_a_hub_that_stays_away_ends_it_and_the_same_call_goes_on(
    run: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = state(run)
    hub.fail("POST", "/api/models/me/flow/commit/", times=99)
    with pytest.raises(StorageError, match="nothing was pushed; not yet: adapters, pairs") as told:
        flow_dpo.push_to_hub(run, "me/flow", what=("adapters", "pairs"))
    assert "run the same command again" in str(told.value)
    assert TOKEN not in f"{told.value}{caplog.text}"
    assert hub.files("me/flow") == {}, "no part of a commit is there"
    assert sum(call.startswith("POST /api/models/me/flow/commit/") for call in hub.calls) <= 8, "attempts have a limit"
    assert state(run) == before
    hub.faults.clear()
    sent = sum(call.startswith("PUT /lfs/") for call in hub.calls)
    assert sent == 2
    done = flow_dpo.push_to_hub(run, "me/flow", what=("adapters", "pairs"))
    assert [one.kind for one in done] == ["adapters", "pairs"]
    assert sum(call.startswith("PUT /lfs/") for call in hub.calls) == sent, "what had arrived is not sent again"
    assert hub.files("me/flow")["stop/adapter_model.safetensors"] == adapter(run, "stop")
    # Once more, and nothing has changed: no commit.
    commits = len(hub.repositories[("model", "me/flow")].commits)
    flow_dpo.push_to_hub(run, "me/flow")
    assert len(hub.repositories[("model", "me/flow")].commits) == commits


def test_what_was_pushed_before_a_failure_is_told(run: Path, hub: HubServer) -> None:
    hub.fail("POST", "/api/datasets/", times=99, status=403)
    with pytest.raises(StorageError, match=r"pushed: adapters \(me/flow\); not yet: pairs") as told:
        flow_dpo.push_to_hub(run, "me/flow", what=("adapters", "pairs"))
    assert TOKEN not in str(told.value)
    assert "***" in str(told.value), "what the server repeated of the token is covered"


def test_a_hub_that_falls_silent_does_not_hold_the_command(
    run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "SILENCE_S", 0.1)
    hub.fail("POST", "/preupload/", times=99, how="silent")
    with pytest.raises(StorageError, match="nothing was pushed"):
        flow_dpo.push_to_hub(run, "me/flow")


def test_an_interruption_leaves_the_run_whole(run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(run)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.lfs._upload_single_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            flow_dpo.push_to_hub(run, "me/flow")
    assert hub.files("me/flow") == {}
    assert state(run) == before
    flow_dpo.push_to_hub(run, "me/flow")
    assert set(hub.files("me/flow")) > {"config.yaml"}


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_push_leaves_the_run_and_no_other_file(run: Path, hub: HubServer, tmp_path: Path) -> None:
    before = state(run)
    hub.fail("POST", "/commit/", how="silent")
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "flow_dpo", "push", str(run), "--repo_id", "me/flow", "--what", "merged"],
        env={**os.environ, **hub.environment(tmp_path / "cache"), "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not any("/commit/" in call for call in hub.calls):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            hub.over.wait(0.05)
        process.terminate()
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in told
    assert TOKEN not in told
    assert list((tmp_path / "temporary").iterdir()) == []
    assert hub.files("me/flow-answer") == {}
    assert state(run) == before
    sent = len(hub.blobs)
    flow_dpo.push_to_hub(run, "me/flow", what="merged")
    assert len(hub.blobs) == sent + 1, "the other role's weights alone were still to be sent"


def test_an_answer_is_shown_without_what_signs_an_address() -> None:
    shown = one_line(RuntimeError("403 for https://bucket.example/a?X-Amz-Signature=abc\n(try 'http://x/y?token=z')"))
    assert shown == "403 for https://bucket.example/a (try 'http://x/y')"


def test_private_unless_asked(run: Path, hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    hub.make("me/open", {}, private=False)
    with pytest.raises(ConfigError, match="everybody can read it"):
        flow_dpo.push_to_hub(run, "me/open")
    assert hub.files("me/open") == {}
    flow_dpo.push_to_hub(run, "me/new", private=False)
    assert not hub.repositories[("model", "me/new")].private
    flow_dpo.push_to_hub(run, "me/flow")
    with caplog.at_level(logging.WARNING):
        flow_dpo.push_to_hub(run, "me/flow", private=False)
    assert "already exists and stays private" in caplog.text


def test_refused_before_anything_is_sent(
    run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for what, named, error in (
        ("adapters", {"repo_id": "me/../flow"}, "owner/name"),
        ("adapters", {"repo_id": ""}, "owner/name"),
        ("adapter", {}, "adapters, merged, traces, pairs"),
        ("", {}, "expected one or more of"),
    ):
        with pytest.raises(ConfigError, match=error):
            flow_dpo.push_to_hub(run, **{"repo_id": "me/flow", "what": what, **named})
    with pytest.raises(DataError, match="expected a run folder"):
        flow_dpo.push_to_hub(tmp_path, "me/flow")
    untrained = tmp_path / "untrained"
    shutil.copytree(run, untrained)
    (untrained / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"learned something.*resume it first: flow-dpo train"):
        flow_dpo.push_to_hub(untrained, "me/flow")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (untrained / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in untrained.glob("adapters/*/*"):
        folder.rename(folder.with_name("0"))
    with pytest.raises(DataError, match="its 12 problems are used up: train again"):
        flow_dpo.push_to_hub(untrained, "me/flow")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
            flow_dpo.push_to_hub(run, "me/flow")
    with monkeypatch.context() as patch:
        patch.setattr(pushing, "get_token", lambda: None)
        with pytest.raises(ConfigError, match="token"):
            flow_dpo.push_to_hub(run, "me/flow")
    assert hub.calls == []


def test_paths_and_addresses_stay_at_home(run: Path, hub: HubServer, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["model"]["model_name_or_path"] = "/home/someone/models/llama`\n# x"
    config["data"]["dataset_name"] = str(tmp_path / "private.jsonl")
    config["flow_source"] = "/home/someone/flows.py:Mine"
    config["flow"]["prompts"]["answer_system"] = "/no_think"
    config["later_section"] = {"secret": "of a later version"}
    config["engine"] = {"base_url": "http://10.0.0.1:8000"}
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    flow_dpo.push_to_hub(moved, "me/flow", base_model="org/llama", revision="v2")
    files = hub.files("me/flow", revision="v2")
    assert hub.files("me/flow") == {}, "the main branch is as it was"
    everything = b"\n".join(files.values())
    for secret in ("someone", str(tmp_path), "10.0.0.1", "later version"):
        assert secret.encode() not in everything, secret
    pushed = yaml.safe_load(files["config.yaml"])
    assert pushed["model"]["model_name_or_path"] == "org/llama"
    assert pushed["flow_source"] == "flows.py:Mine"
    assert pushed["flow"]["prompts"]["answer_system"] == "/no_think"
    assert json.loads(files["answer/adapter_config.json"])["base_model_name_or_path"] == "org/llama"
    assert ModelCard(files["README.md"].decode()).data.base_model == "org/llama"


def test_relative_paths_stay_at_home_wherever_it_is_pushed_from(
    run: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "models/llama" and "data/mine" look like ids of the hub, where others' models may be of that name."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "models" / "llama", home / "data" / "mine", elsewhere):
        folder.mkdir(parents=True)
    moved = home / "runs" / "flow"
    shutil.copytree(run, moved)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["run"] |= {"output_dir": "runs/flow", "tracking": {"project": "secret-project"}}
    config["model"]["model_name_or_path"] = "models/llama"
    config["model"]["template_kwargs"] = {"/home/someone/a": "/home/someone/b", "switch": "/no_think"}
    config["explore"]["stop_strings"] = ["/", "a/b.py"]
    config["data"] |= {"dataset_name": "data/x.jsonl", "question_template": "Is a/b/c {question}?"}
    config["grading"] |= {"rewards": ["code/rewards.py:mine"]}
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(elsewhere)
    flow_dpo.push_to_hub(moved, "me/flow", what="adapters,pairs")
    files = {**hub.files("me/flow"), "pairs": hub.files("me/flow-pairs", "dataset")["README.md"]}
    everything = b"\n".join(files.values())
    for secret in ("models/llama", "data/x", "someone", "code/", "secret-project", str(tmp_path)):
        assert secret.encode() not in everything, secret
    pushed = yaml.safe_load(files["config.yaml"])
    assert pushed["model"]["template_kwargs"] == {"a": "b", "switch": "/no_think"}
    assert pushed["explore"]["stop_strings"] == ["/", "a/b.py"]
    assert pushed["data"]["question_template"] == "Is a/b/c {question}?"
    assert pushed["data"]["dataset_name"] == "x.jsonl"
    assert pushed["grading"]["rewards"] == ["rewards.py:mine"]
    assert json.loads(files["answer/adapter_config.json"])["base_model_name_or_path"] is None
    assert ModelCard(files["README.md"].decode()).data.base_model is None
    # A folder has no ending that tells it from an id: it is found where the run was begun.
    config["data"]["dataset_name"] = "data/mine"
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    flow_dpo.push_to_hub(moved, "me/flow")
    assert yaml.safe_load(hub.files("me/flow")["config.yaml"])["data"]["dataset_name"] == "mine"


def test_an_evaluation_of_a_private_file_says_its_name_alone(run: Path, hub: HubServer, tmp_path: Path) -> None:
    measured = tmp_path / "measured"
    flow_dpo.evaluate_flow(run, max_problems=4, output_dir=measured)
    for named, shown in (("/home/someone/exam.jsonl/test", "exam.jsonl/test"), ("openai/gsm8k/test",) * 2):
        summary = json.loads((measured / "summary.json").read_text()) | {"dataset": named}
        (measured / "summary.json").write_text(json.dumps(summary))
        flow_dpo.push_to_hub(run, "me/flow", evaluations=[measured])
        card = hub.files("me/flow")["README.md"].decode()
        assert "someone" not in card
        assert f"Evaluation on {shown}" in card


def test_a_token_that_may_not_write_is_told_apart(run: Path, hub: HubServer) -> None:
    hub.fail("POST", "/api/repos/create", times=99, status=401)
    with pytest.raises(StorageError, match="log in with a token that can write to me/flow") as told:
        flow_dpo.push_to_hub(run, "me/flow")
    assert TOKEN not in str(told.value)


def test_hostile_names_are_shown_as_they_are(run: Path, hub: HubServer, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["data"]["dataset_name"] = "x\n---\nlicense: mit\n```<script>alert(1)</script>{{ 7 * 7 }}[y](http://z)"
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    flow_dpo.push_to_hub(moved, "me/flow")
    card = ModelCard(hub.files("me/flow")["README.md"].decode())
    assert card.data.license is None
    assert card.data.datasets is None
    assert "<script>" not in card.text
    assert "[y](" not in card.text
    assert card.text.count("```") % 2 == 0
    assert "49" not in card.text.split("trained on")[1].splitlines()[0]


def test_the_command(run: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "--repo_id", "me/flow", "--what", "adapters,pairs", "--dry_run"]) == 0
    assert "answer/adapter_model.safetensors" in capsys.readouterr().out
    assert hub.calls == []
    assert main(["push", str(run), "--repo_id", "me/flow", "--what", "adapters,pairs"]) == 0
    told = capsys.readouterr()
    assert "adapters to me/flow: 7 files" in told.out
    assert "2 repositories, private" in told.out
    assert TOKEN not in told.out + told.err
    assert main(["push", str(run), "--repo_id", "own"]) == 0
    assert "adapters to me/own" in capsys.readouterr().out, "a name alone is of the token's owner"
    assert main(["push", str(run)]) == 1
    assert "--repo_id" in capsys.readouterr().err
