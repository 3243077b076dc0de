"""Entry point of the command line: parses the command's name and passes its arguments to the command's module.

    flow-dpo quickstart                     the whole method on the embedded seed, in half a minute
    flow-dpo train --model_name_or_path ... --dataset_name ...
    flow-dpo prompt --model_name_or_path ...    each role's prompt, as text and tokens
    flow-dpo evaluate --run runs/train ...
    flow-dpo ask runs/train "question"      its answer to a question of your own, turn by turn
    flow-dpo generate --run runs/train ...  verified traces of the trained flow
    flow-dpo export --source runs/traces ...
    flow-dpo sft --traces runs/traces ...   the base model, fine-tuned on traces
    flow-dpo lm-eval --run runs/train --tasks gsm8k     tasks of lm-evaluation-harness, answered by the flow
    flow-dpo push runs/train --repo_id me/name    adapters with a model card, private
    flow-dpo compare --config FILE          the paper's table and its controls, over several seeds
    flow-dpo judge --traces_a A --traces_b B --base_url ...     which of two sets of traces reasons better
    flow-dpo report runs/train ...          one page on runs, evaluations, traces and comparisons
    flow-dpo view runs/train ...            a local page to inspect them, down to every tree and token
    flow-dpo verify FILE --output OUT

Invariant: the work is done elsewhere, and nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TextIO

from flow_dpo.core.errors import FlowDpoError, visible
from flow_dpo.ranks import environment

_COMMANDS = {
    "quickstart": ("train:quickstart", "train on the embedded seed model and show the result"),
    "train": ("train:train", "learn from a stream of problems by Flow-DPO"),
    "prompt": ("prompt:prompt", "print each role's prompt for the first problem, as text and tokens"),
    "evaluate": ("evaluate:evaluate", "measure a model, or a run's adapters, on a data set"),
    "ask": ("ask:ask", "answer a question of your own, role by role"),
    "generate": (
        "generate:generate",
        "write verified traces of a trained flow, an untrained flow, or a single model",
    ),
    "export": ("export:export", "write traces, pairs or labelled steps for other trainers"),
    "sft": ("sft:fine_tune", "fine-tune a model on traces"),
    "lm-eval": ("lm_eval:lm_eval", "run tasks of lm-evaluation-harness on a flow"),
    "push": ("push:push", "push a run's adapters, merged models, traces and pairs to the hub"),
    "compare": ("compare:compare", "compare sources of traces, and other uses of the same effort"),
    "judge": ("judge:judge", "compare two sets of traces with a judge that reads them blind, in both orders"),
    "report": (
        "report:report",
        "write a page on runs, evaluations, traces and comparisons",
    ),
    "view": ("view:view", "inspect runs, traces, evaluations and judgements on a local page"),
    "plugins": ("plugins:plugins", "list what installed plug-ins offer"),
    "verify": ("verify:verify", "grade a file of answers against their gold"),
}
"""Of each command, the module and function, which are imported when it is run, and a description."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 refused or failed, 2 unknown command, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("flow-dpo"))
        return 0
    if words[0] not in _COMMANDS:
        import difflib

        near = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "flow-dpo --help lists the commands"
        print(f"flow-dpo: unknown command {words[0]!r}; {hint}", file=sys.stderr)
        return 2
    _prepare_libraries()
    handler = _Messages()
    handler.setFormatter(_Plain("%(message)s"))
    handler.addFilter(_not_said_already)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "httpx2", "datasets", "filelock", "matplotlib", "fsspec", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A shell makes a background command ignore Ctrl-C; a scheduler ends a command with SIGTERM. Here both signals mean
    # the same: stop, and keep what was done.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        environment.refuse_ranks(words[0])
        return _follow(words) if environment.place().follows else _run(words[0], words[1:])
    except FlowDpoError as error:
        print(f"flow-dpo: {visible(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"flow-dpo: could not read or write: {visible(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flow-dpo: interrupted", file=sys.stderr)
        return 130


class _Messages(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, so messages appear above a progress display that replaced it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Ignored: the stream is always `sys.stderr`."""


def _not_said_already(record: logging.LogRecord) -> bool:
    """Drop huggingface_hub's messages if it has printed them with its own handler."""
    library = record.name.partition(".")[0]
    return library != "huggingface_hub" or not logging.getLogger(library).handlers


class _Plain(logging.Formatter):
    """Escapes control characters: messages quote data sets and models, whose text can be hostile."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _run(command: str, words: list[str]) -> int:
    module, _, function = _COMMANDS[command][0].partition(":")
    done = threading.Event()
    if command in _HEAVY:
        threading.Thread(target=_say_that_it_loads, args=(done,), daemon=True).start()
    try:
        return getattr(importlib.import_module(f"flow_dpo.cli.{module}"), function)(words)
    finally:
        done.set()


def _follow(words: list[str]) -> int:
    """The work of every rank but 0. It prints nothing unless rank 0 is lost, because rank 0 prints everything."""
    if "--help" in words or "-h" in words:
        return 0
    from flow_dpo.ranks.group import Rank0Lost
    from flow_dpo.runs import following

    try:
        following.follow()
    except Rank0Lost:
        raise
    except FlowDpoError:
        return 1
    return 0


SILENT_S = 2.0
"""Seconds after which a command that is still importing its libraries says so."""
_HEAVY = frozenset({"train", "quickstart", "evaluate", "ask", "generate", "lm-eval"})


def _say_that_it_loads(done: threading.Event) -> None:
    """Say on a busy or slow machine that the libraries are still loading. Later the command shows its own progress;
    before torch is imported it can be waiting for user input."""
    while not done.wait(SILENT_S) and not hasattr(sys.modules.get("flow_dpo.runs.runtime"), "open_runtime"):
        if "torch" in sys.modules:
            print("flow-dpo: loading torch and transformers", file=sys.stderr, flush=True)
            return


def _prepare_libraries() -> None:
    """Let idle worker threads sleep, since spinning makes a busy machine ten times slower, and put large tensors in
    huge pages, which the kernel allocates faster (14 processor seconds instead of 23 in one update of a 0.5B model).

    Must happen before torch is imported. What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch on Linux; no effect if the kernel has none


def _usage() -> str:
    lines = ["usage: flow-dpo COMMAND [SETTINGS]", ""]
    lines += [f"  {name:<12}{what}" for name, (_, what) in _COMMANDS.items()]
    return "\n".join([*lines, "", "flow-dpo COMMAND --help lists a command's settings."])
