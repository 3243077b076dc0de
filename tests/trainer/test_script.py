"""Can a script with nothing but documented names train, go on after Ctrl-C, evaluate, sample traces, save and push?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import flow_dpo
from tests.support.hub_server import HubServer
from tests.support.run_equality import assert_same_run

SCRIPT = '''
import flow_dpo


class CtrlC:
    """Interrupts after the first batch."""

    def on_batch(self, row, trees, examples):
        raise KeyboardInterrupt


rows = [
    {"prompt": [{"role": "user", "content": problem.question}], "ground_truth": problem.gold}
    for problem in flow_dpo.load_problems("seed", max_problems=12)
]
args = flow_dpo.FlowDPOConfig(
    output_dir="runs/script", per_device_train_batch_size=4, save_steps=2, num_train_epochs=1, disable_tqdm=True,
    settings={"run.problems_per_batch": 6, "evaluation.greedy": False, "generate.num_samples": 2},
)
told = {"args": args, "train_dataset": rows, "eval_dataset": "seed"}
try:
    flow_dpo.FlowDPOTrainer("seed", callbacks=[CtrlC()], **told).train()
except KeyboardInterrupt:
    print("interrupted")

trainer = flow_dpo.FlowDPOTrainer("seed", **told)
run = trainer.train(resume_from_checkpoint=True)
print("trained", run.progressive.num_seen, trainer.state.global_step)
print("accuracy", trainer.evaluate(max_problems=4)["eval_accuracy"])
traces = trainer.generate_traces(output_dir="runs/traces")
print("traces", len(traces.traces))
print("saved", sorted(path.name for path in trainer.save_model("saved").iterdir()))
print("pushed", [pushed.repo_id for pushed in trainer.push_to_hub("me/script")])

other = flow_dpo.FlowDPOConfig(**{**args.given(), "output_dir": "runs/whole"})
flow_dpo.FlowDPOTrainer("seed", args=other, train_dataset=rows).train()
'''  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of its client
def test_a_script_of_documented_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(re.findall(r"flow_dpo\.(\w+)", SCRIPT)) <= set(dir(flow_dpo))
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub, hub.used(monkeypatch, tmp_path / "cache"):
        exec(compile(SCRIPT, "script", "exec"), {"__name__": "script"})
        files = hub.files("me/script")
    shown = capsys.readouterr().out
    assert "interrupted" in shown
    assert re.search(r"trained 12 [1-9]", shown)
    assert re.search(r"accuracy [01]\.[0-9]+", shown)
    assert re.search(r"traces [1-9]", shown)
    assert "saved ['answer', 'stop']" in shown
    assert "pushed ['me/script']" in shown
    assert_same_run(tmp_path / "runs" / "whole", tmp_path / "runs" / "script")
    [weights] = [name for name in files if name.endswith("answer/adapter_model.safetensors")]
    assert files[weights] == (tmp_path / "saved" / "answer" / "adapter_model.safetensors").read_bytes()
    question = flow_dpo.load_problems("seed", max_problems=1).problems[0].question
    assert question in (tmp_path / "runs" / "script" / "trees.jsonl").read_text()


@pytest.mark.slow
def test_the_newest_run_in_a_folder_is_gone_on_with_and_a_repository_may_be_given_by_the_config(tmp_path: Path) -> None:
    settings = {"run.problems_per_batch": 2, "learner.examples_per_update": 4}
    for name in ("a", "b"):
        args = flow_dpo.FlowDPOConfig(output_dir=tmp_path / name, max_steps=1, disable_tqdm=True, settings=settings)
        flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset="seed").train()
    args = flow_dpo.FlowDPOConfig(output_dir=tmp_path, max_steps=1, disable_tqdm=True, settings=settings)
    trainer = flow_dpo.FlowDPOTrainer("seed", args=args, train_dataset="seed")
    assert trainer.train(resume_from_checkpoint=True).path == tmp_path / "b"
    assert trainer.state.global_step >= 1
    assert trainer.train(resume_from_checkpoint=tmp_path / "a").path == tmp_path / "a"
    with pytest.raises(flow_dpo.FlowDpoError, match="already holds a run"):
        flow_dpo.FlowDPOTrainer("seed", args=flow_dpo.FlowDPOConfig(output_dir=tmp_path / "a")).train()
