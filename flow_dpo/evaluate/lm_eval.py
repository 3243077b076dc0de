"""lm-evaluation-harness on a flow: contexts of its tasks become questions, the flow's final attempts the answers.

    measure_tasks(parsed)       runs/lm-eval/results.json as lm-eval writes it, samples_TASK.jsonl, lm_eval.json

A context is sent unchanged, few-shot examples included, as the question in the flow's own prompts; lm-eval's system
instruction and chat template are not used. The answer is the text of the last attempt (with `--mode single`, of one
pass), cut at the first of the task's `until` strings. A task's other generation settings are ignored: length and
decoding are the flow's. Invariant: only lm-eval scores; the verifier is not asked, and nothing is learned.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from flow_dpo.core.errors import ConfigError, StorageError
from flow_dpo.core.loop import batched
from flow_dpo.core.seeds import derive
from flow_dpo.core.types import Adapter, Problem, Role, Verdict
from flow_dpo.data.problems import ProblemSet, fingerprint
from flow_dpo.data.typed_json import others
from flow_dpo.evaluate.lm_eval_settings import LmEvalSettings
from flow_dpo.models.render import Renderer
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import load_adapters, sampled_flow
from flow_dpo.runs.given_objects import recordable
from flow_dpo.runs.headers import write_header
from flow_dpo.runs.live import Live
from flow_dpo.runs.resolve import command_line
from flow_dpo.runs.runtime import open_runtime
from flow_dpo.runs.settings import RuntimeSettings
from flow_dpo.runs.writable import check_writable
from flow_dpo.verify.grader import AnswerGrader

HEADER, RESULTS = "lm_eval.json", "results.json"


@dataclass(frozen=True, kw_only=True)
class LmEvalHeader:
    """lm_eval.json: what was measured, how, and each task's metrics."""

    SCHEMA: ClassVar[str] = "lm_eval/1"
    results: Mapping[str, Any]
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    adapters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    command: str = ""
    more: Mapping[str, Any] = others()


class _NoVerdicts:
    """A verifier that leaves everything to lm-eval (`verify.grader.Verifies`)."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> None:
        """Nothing is looked at."""

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        """Ungraded, all of them."""
        return [Verdict(status="ungraded", reason="lm-eval scores it") for _ in items]


def unscored(renderer: Renderer) -> AnswerGrader:
    """A grader that gives texts but no verdicts."""
    return AnswerGrader(_NoVerdicts(), renderer)


def check_installed() -> None:
    """Raise `ConfigError` if lm-eval is not installed."""
    try:
        import lm_eval  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"flow-dpo lm-eval needs lm-evaluation-harness, found that it cannot be imported ({error}); install it "
            "with pip install -e '.[eval]'"
        ) from error


def measure_tasks(
    parsed: Mapping[str, Any], *, report: Callable[[str], None] = lambda _: None, console: Console | None = None
) -> dict[str, Any]:
    """Run the tasks and write the folder. Returns lm-eval's results without the samples.

    `parsed` holds the command's groups of settings. Before anything is loaded, raises `ConfigError` for an unknown task
    or a folder in use; also raises it if a task asks for probabilities, which a flow does not have.
    """
    settings: LmEvalSettings = parsed["lm_eval"]
    folder = Path(settings.output_dir)
    check_writable(folder)
    run_folder.refuse_others(folder, own=HEADER)
    if (folder / HEADER).exists():
        raise ConfigError(f"{folder} already holds results of lm-eval; name another with --output_dir")
    check_installed()
    from flow_dpo.evaluate.lm_eval_model import FlowModel, manager_of, run

    manager = manager_of(settings.names, settings.include_path)
    names = _known(settings.names, manager.all_tasks)
    with run_folder.locked(folder), Live(Console(quiet=True) if console is None else console) as live:
        answers = _Answers(parsed, live)
        found = run(FlowModel(answers), names, manager, settings)
        samples = found.pop("samples", {})
        _write(folder, found, samples, _header(parsed, answers, found))
    return found


@dataclass
class _Answers:
    """The flow's answers to contexts, sampled by a runtime that is opened for each list of them."""

    parsed: Mapping[str, Any]
    live: Live
    adapters: Mapping[Role, Adapter] = field(default_factory=dict[Role, Adapter])
    model: str = ""

    def __call__(self, contexts: Sequence[str]) -> list[str]:
        """One text per context, in order; empty ("") if its rollout would not fit the context window."""
        settings: LmEvalSettings = self.parsed["lm_eval"]
        problems = tuple(
            Problem(id=f"lm-eval/{number}", question=context, gold="") for number, context in enumerate(contexts)
        )
        flow = self.parsed["flow"]
        sampled = sampled_flow(flow, settings.mode)
        texts: dict[str, str] = {}
        with open_runtime(
            RuntimeSettings.from_sections(self.parsed), sampled, roles=flow.roles, seed=settings.seed, grader=unscored,
            problems=ProblemSet(problems=problems, fingerprint=fingerprint(problems)), doing=self.live.doing,
        ) as runtime:  # fmt: skip
            self.adapters, self.model = load_adapters(runtime.policy, self.parsed["speaking"]), runtime.loaded.name
            runtime.workers.refresh(self.adapters)
            explore = self.parsed["explore"].alone(greedy=settings.greedy)
            self.live.begin(len(runtime.fitting), "contexts")
            seed = derive(settings.seed, "lm-eval")
            for batch in batched(runtime.fitting, runtime.problems_under_way(settings.batch_problems)):
                for tree in runtime.workers.submit(explore, sampled, batch, seed=seed).result().trees:
                    texts[tree.problem.id] = runtime.renderer.to_text(tree.trunk.solution.attempt)
                self.live.advance(len(texts))
        return [texts.get(problem.id, "") for problem in problems]


def _known(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names of the tasks, with patterns expanded. Raises `ConfigError` for an unknown one."""
    if not wanted:
        raise ConfigError("expected tasks of lm-eval, found none; name them with --tasks, as in --tasks gsm8k")
    names: list[str] = []
    for name in wanted:
        found = fnmatch.filter(known, name)
        if not found:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "lm_eval ls tasks lists them"
            raise ConfigError(f"expected tasks that lm-eval or --include_path has, found {name!r}; {hint}")
        names += found
    return list(dict.fromkeys(names))


def _header(parsed: Mapping[str, Any], answers: _Answers, found: Mapping[str, Any]) -> dict[str, Any]:
    settings: LmEvalSettings = parsed["lm_eval"]
    return {
        "results": found["results"],
        "model": answers.model,
        "settings": run_folder.plain(settings) | run_folder.plain(parsed["speaking"]),
        "adapters": {role: adapter.path for role, adapter in answers.adapters.items()},
        "sampled": recordable({name: parsed[name] for name in ("flow", "explore", "model")}),
        "command": command_line(),
        **run_folder.environment(),
    }


def _write(folder: Path, found: Mapping[str, Any], samples: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Write lm-eval's results and samples, and last how they were made. Raises `StorageError`."""
    from lm_eval.utils import handle_non_serializable  # pyright: ignore[reportMissingImports]

    def text(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=False, default=handle_non_serializable)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task, rows in samples.items():
            name = "".join(char if char.isalnum() or char in "-_." else "_" for char in task)
            (folder / f"samples_{name}.jsonl").write_text("".join(text(row) + "\n" for row in rows), encoding="utf-8")
        (folder / RESULTS).write_text(text(found, 2) + "\n", encoding="utf-8")
        write_header(folder / HEADER, LmEvalHeader, json.loads(text(header)))
    except OSError as error:
        raise StorageError(f"could not write the results to {folder}: {error}; free some space, and rerun") from error
