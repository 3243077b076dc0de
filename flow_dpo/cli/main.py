"""Entry point of the command line: parses the command's name and hands its arguments to the command's module.

    flow-dpo quickstart                     the whole method on the embedded seed, in half a minute
    flow-dpo train --model_name_or_path ... --dataset_name ...
    flow-dpo prompt --model_name_or_path ...    what each role is asked, in text and tokens
    flow-dpo evaluate --run runs/train ...
    flow-dpo ask runs/train "question"      its answer to a question of your own, turn by turn
    flow-dpo generate --run runs/train ...  verified traces of the trained flow
    flow-dpo export --source runs/traces ...
    flow-dpo sft --traces runs/traces ...   the base, fine-tuned on traces
    flow-dpo lm-eval --run runs/train --tasks gsm8k     tasks of lm-evaluation-harness, answered by the flow
    flow-dpo push runs/train --repo_id me/name    adapters with their card, private
    flow-dpo compare --config FILE          the paper's table and its controls, over several seeds
    flow-dpo judge --traces_a A --traces_b B --base_url ...     which of two sets of traces reasons better
    flow-dpo report runs/train ...          one page on runs, evaluations, traces and comparisons
    flow-dpo view runs/train ...            a page to look into them, down to every tree and token
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
    "quickstart": ("train:quickstart", "learn on the embedded seed model and show what came of it"),
    "train": ("train:train", "learn from a stream of problems by Flow-DPO"),
    "prompt": ("prompt:prompt", "print what each role is asked on the first problem, in text and tokens"),
    "evaluate": ("evaluate:evaluate", "measure a model, or a run's adapters, on a data set"),
    "ask": ("ask:ask", "answer a question of your own, role by role"),
    "generate": (
        "generate:generate",
        "write verified traces of a trained flow, an untrained one, or a single model",
    ),
    "export": ("export:export", "write traces, or a run's pairs, for other trainers"),
    "sft": ("sft:fine_tune", "fine-tune a model on traces"),
    "lm-eval": ("lm_eval:lm_eval", "run tasks of lm-evaluation-harness on a flow"),
    "push": ("push:push", "push a run's adapters, merged models, traces and pairs to the hub"),
    "compare": ("compare:compare", "compare sources of traces, and what else the same effort could buy"),
    "judge": ("judge:judge", "compare two sets of traces by a judge that reads them blind, in both orders"),
    "report": (
        "report:report",
        "write a page on runs, evaluations, traces and comparisons",
    ),
    "view": ("view:view", "look into runs, traces, evaluations and judgements on a local page"),
    "plugins": ("plugins:plugins", "list what installed plug-ins offer"),
    "verify": ("verify:verify", "grade a file of answers against their gold"),
}
"""Module and function of each command, imported when the command is run, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 refused or failed, 2 not understood, 130 interrupted."""
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
    # A shell that starts a command in the background lets it ignore Ctrl-C; a scheduler ends it with SIGTERM. Both mean
    # the same here: stop, and keep what was done.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        environment.refuse_ranks(words[0])
        return _follow(words) if environment.place().follows else _run(words[0], words[1:])
    except FlowDpoError as error:
        print(f"flow-dpo: {visible(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"flow-dpo: could not read or write: {visible(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flow-dpo: interrupted", file=sys.stderr)
        return 130


class _Messages(logging.StreamHandler[TextIO]):
    """Messages on the standard error as it is now: while a command draws its progress there, they go above it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """It is never another."""


def _not_said_already(record: logging.LogRecord) -> bool:
    """huggingface_hub prints its messages by a handler of its own, and passes them on."""
    library = record.name.partition(".")[0]
    return library != "huggingface_hub" or not logging.getLogger(library).handlers


class _Plain(logging.Formatter):
    """Messages quote data sets and models, whose text may be hostile."""

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
    """What a rank does that is not the first, in silence: rank 0 prints whatever there is to print, while it lives."""
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
"""Seconds after which a command that still imports its libraries says so."""
_HEAVY = frozenset({"train", "quickstart", "evaluate", "ask", "generate", "lm-eval"})


def _say_that_it_loads(done: threading.Event) -> None:
    """Tell, on a busy or slow machine, that nothing hangs. Once all is imported the command shows its own progress;
    before the first library is, it may be waiting for a person."""
    while not done.wait(SILENT_S) and not hasattr(sys.modules.get("flow_dpo.runs.runtime"), "open_runtime"):
        if "torch" in sys.modules:
            print("flow-dpo: loading torch and transformers", file=sys.stderr, flush=True)
            return


def _prepare_libraries() -> None:
    """Let idle worker threads sleep instead of spin, which makes a busy machine ten times slower, and large tensors lie
    in large pages, which the kernel makes in less time: 14 seconds of 80 for 23 in one update of a 0.5B model.

    Must happen before torch is imported; what the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's, on Linux; nothing where the kernel has none to give


def _usage() -> str:
    lines = ["usage: flow-dpo COMMAND [SETTINGS]", ""]
    lines += [f"  {name:<12}{what}" for name, (_, what) in _COMMANDS.items()]
    return "\n".join([*lines, "", "flow-dpo COMMAND --help lists a command's settings."])
