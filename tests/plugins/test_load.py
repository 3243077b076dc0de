"""Can a flow be written outside the package, and is one that breaks the contract named?"""

from __future__ import annotations

import hashlib
import pickle
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from flow_dpo.cli import train
from flow_dpo.cli.evaluate import evaluate as cli_evaluate
from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.plugins.load import fingerprint, installed, is_source, load_flow, load_object, ran_files
from flow_dpo.runs import run_folder
from flow_dpo.runs.files import read_jsonl
from flow_dpo.workers.process_workers import _NAMED
from tests.support.chat_models import chat_model_folder

CRITIQUE = Path(__file__).parent.parent.parent / "examples" / "custom_flow.py"
HEAD = CRITIQUE.read_text()


def write(folder: Path, old: str, new: str) -> str:
    assert old in HEAD
    path = folder / "mine.py"
    path.write_text(HEAD.replace(old, new))
    return f"{path}:Critique"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A tiny random model, and problems that it gets right about as often as wrong: the answer is any number."""
    model = chat_model_folder("llama", tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "What is {i}?", "answer": "{i}"}}\n' for i in range(12)))
    return ["--model_name_or_path", str(model), "--dataset_name", str(data), "--flow.solution_tokens", "6",
            "--problems_per_batch", "6", "--examples_per_update", "2"]  # fmt: skip


def test_three_roles_train_resume_and_evaluate(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = str(tmp_path / "run")
    assert train.train([*words, "--flow", f"{CRITIQUE}:Critique", "--max_problems", "6", "--output_dir", output]) == 0
    assert "running the code of" in caplog.text
    (row,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert (row["nodes/solve"], row["nodes/critique"]) == (6, 6)
    assert set(run_folder.latest_adapters(tmp_path / "run")) == {"solve", "critique", "revise"}
    # The folder knows its flow.
    more = ["--max_problems", "12", "--allow", "data,data.max_problems", "--resume", "--output_dir", output]
    assert train.train(more) == 0
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 2
    measured = [
        "--run",
        output,
        "--max_problems",
        "4",
        "--output_dir",
        str(tmp_path / "measured"),
        "--dataset_split",
        "train",
    ]
    with pytest.raises(ConfigError, match=r"config.yaml asks for flow_source = .*trust it, add --flow_source"):
        cli_evaluate(measured)
    measured = ["--flow", f"{CRITIQUE}:Critique", *measured]
    assert cli_evaluate(measured) == 0
    with pytest.raises(ConfigError, match="--mode single needs a flow with an Answer role, found Critique"):
        cli_evaluate([*measured[:-3], str(tmp_path / "single"), "--dataset_split", "train", "--mode", "single"])


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("(frozen=True, kw_only=True)\nclass Critique", "(kw_only=True)\nclass Critique", FlowError, "frozen"),
        ('("solve", "critique", "revise")', "()", FlowError, "declare its roles"),
        ("solution_tokens: int = 64", "solution_tokens: int", FlowError, "to have a default"),
        ("class Critique(Flow[State])", "class Critique", ConfigError, "expected a subclass of"),
        (
            "from flow_dpo.core.flow import Flow",
            "from flow_dpo.core.flow import Flaw",
            ConfigError,
            "could not be run",
        ),
    ],
)
def test_what_is_no_proper_flow_is_refused(
    tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_flow(write(tmp_path, old, new))


def test_no_file_no_class(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no file"):
        load_flow(str(tmp_path / "nowhere.py:Critique"))
    with pytest.raises(ConfigError, match=r"expected Nothing in .* no such name; it has \[.*'State', 'Critique'\]"):
        load_flow(f"{CRITIQUE}:Nothing")
    with pytest.raises(ConfigError, match=r"or an installed flow for --flow, found 'critique'; installed: none"):
        load_flow("critique")


@pytest.mark.parametrize(
    ("text", "source"),
    [("a/b c.py:Name", True), ("C:\\mine.py:Name", True), ("lab.flows:Name", True), ("lab:Name", True), ("a.py:", True),
     ("grpo", False), ("rejection-sampling", False), ('{"max_tokens": 5}', False), ("max_tokens: 5", False),
     ("lab.flows:", False), ("http://x:80", False)],
)  # fmt: skip
def test_what_names_a_place(text: str, source: bool) -> None:
    assert is_source(text) is source


def test_any_kind_of_object_is_loaded_from_a_file_a_module_or_a_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_of_things.py").write_text("THING = [1, 2]\n")
    monkeypatch.syspath_prepend(tmp_path)
    file, module = f"{tmp_path / 'lab_of_things.py'}:THING", "lab_of_things:THING"
    assert fingerprint(module) is None, "what was never imported has no file yet"
    assert load_object(file, kind="grader") == load_object(module, kind="dataset") == [1, 2]
    assert fingerprint(file) == fingerprint(module) == hashlib.sha256(b"THING = [1, 2]\n").hexdigest()
    points = EntryPoints([EntryPoint(name="mine", value=module, group="flow_dpo.callbacks")])
    monkeypatch.setattr("flow_dpo.plugins.load.entry_points", lambda **words: points.select(**words))
    assert load_object("mine", kind="callback") == [1, 2]
    assert (installed("callback"), installed("grader")) == (["mine"], [])
    assert fingerprint("mine") is None
    with pytest.raises(ConfigError, match="an installed grader for --grader, found 'mine'; installed: none"):
        load_object("mine", kind="grader")
    with pytest.raises(ConfigError, match=r"expected a subclass of flow_dpo\.core\.flow\.Flow in lab_of_things:THING"):
        load_flow(module)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'return Turn(role="revise", messages',
            'return Turn(role="reviser", messages',
            "made a turn of role 'reviser', at turn 2 of ",
        ),
        (
            '        if state.next_role == "critique":\n            return replace',
            '        if state.next_role == "solve":\n            object.__setattr__(state, "next_role", "critique")\n'
            '        if state.next_role == "critique":\n            return replace',
            "changed the state that it was given, at 'solve'",
        ),
        ('"critique" if state.next_role == "solve" else None', '"critique"', "every rollout must end"),
        (
            "question = state.problem.question",
            "import itertools\n        question = str(next(self.__dict__.setdefault('n', itertools.count())))",
            r"Critique.turn returns a different turn each time, at turn 0 of ",
        ),
        # A play that is accepted is walked too.
        (
            'None if completion.choice == 0 else "revise"',
            '"solve" if completion.choice == 0 else "revise"',
            "must end",
        ),
    ],
)
def test_a_broken_contract_is_named_before_any_model_speaks(
    words: list[str], tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(FlowError, match=message):
        train.train([*words, "--flow", write(tmp_path, old, new), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_list_that_grows_behind_ones_back_is_a_changed_state(words: list[str], tmp_path: Path) -> None:
    source = HEAD
    for old, new in (
        ("ended: bool = False\n", "ended: bool = False\n    log: list[str] = field(default_factory=list)\n"),
        ("import dataclass, replace", "import dataclass, field, replace"),
        ("        written = replace(", '        state.log.append("said")\n        written = replace('),
    ):
        assert old in source
        source = source.replace(old, new)
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(FlowError, match="changed the state that it was given, at 'solve'"):
        train.train([*words, "--flow", f"{tmp_path / 'mine.py'}:Critique", "--output_dir", str(tmp_path / "run")])


def test_the_documented_command_trains_on_the_seed(tmp_path: Path) -> None:
    page = (CRITIQUE.parent.parent / "docs" / "flows.md").read_text()
    command = next(line for line in page.splitlines() if line.startswith("flow-dpo train --flow"))
    flags = command.replace("examples/custom_flow.py", str(CRITIQUE)).split()[2:]
    flags[flags.index("--output_dir") + 1] = str(tmp_path / "run")
    assert train.train([*flags, "--examples_per_update", "4"]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for role in ("solve", "critique", "revise"):
        assert sum(row[f"pairs/{role}"] for row in rows) > 0, role
    assert rows[-1]["policy_version"] + rows[-1]["learn/updates"] >= 3
    # Another version of the file is another method.
    (tmp_path / "mine.py").write_text(HEAD)
    run = ["--max_problems", "4", "--output_dir", str(tmp_path / "other")]
    assert train.train(["--flow", f"{tmp_path / 'mine.py'}:Critique", *run]) == 0
    (tmp_path / "mine.py").write_text(HEAD.replace("Is this solution right?", "Is it?"))
    with pytest.raises(ConfigError, match=r"--allow flow_file\n  flow_file: [0-9a-f]{12} then, [0-9a-f]{12} now"):
        train.train(["--resume", *run])


@pytest.mark.parametrize("name", ["mine.py", "my-flow.py", "flow.qwen2.5-0.5B.py"])
def test_an_object_of_a_file_of_any_name_goes_to_other_processes(name: str, tmp_path: Path) -> None:
    """They are sent the files of the modules that its bytes name."""
    path = tmp_path / name
    path.write_text(HEAD)
    flow = load_flow(f"{path}:Critique")
    content = pickle.dumps(flow)
    assert pickle.loads(content) == flow
    named = {found.decode() for found in _NAMED.findall(content)}
    assert [file.path for file in ran_files(named)] == [str(path.resolve())]
