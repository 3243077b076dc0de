"""What is asked of a running `vllm serve`, and what is done while it does not answer?

    client = VllmClient(VllmServerSettings(base_url="http://127.0.0.1:8000"), api_key="")
    client.load("answer-v3-5f2c", Path("runs/x/served/answer/3"))
    said = client.complete("answer-v3-5f2c", Ask((1, 5, 6), {"max_tokens": 8, ...}))

Prompts go as token ids, token ids and log-probabilities come back. What fails on the way (a connection, a deadline, a
server that is going down or coming up) is asked again after a growing wait, until `patience_s` is over; what the server
refuses is not. Invariant: the adapter that an answer names is the one that was asked.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.engines.http_client import Address, Answer, Passing
from flow_dpo.engines.settings import VllmServerSettings
from flow_dpo.engines.vllm.requests import Ask, Reply

_logger = logging.getLogger(__name__)
_LONGEST_WAIT_S = 5.0
_TRIES_OF_500 = 5
"""A server whose engine has died says 500 until it ends; one that says it forever has a fault of its own."""
_MOST_BYTES = 256 << 20
"""The log-probabilities of 250,000 tokens are some 20 MiB."""
_ABORT = "abort"
"""Why a completion ended that the server gave up."""
_ABOUT_ADAPTERS = re.compile(r"lora.rank|max_lora|lora is not enabled|target_modules|adapter_config", re.IGNORECASE)
"""What a refusal of an adapter speaks of, which asking again does not change."""
_PARTING_S = 10.0
"""Seconds that a server has to unload an adapter: nobody waits for it."""
_TOKEN_ID = "token_id:"
_UNREADABLE = (ValueError, RecursionError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model or adapter that the server lists."""

    id: str
    root: str
    parent: str
    """The base model of an adapter; "" for a base model."""
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Completed:
    """An answer, and what it cost."""

    heard: Reply
    prompt_tokens: int
    cached_tokens: int | None
    """Of the prompt, those that the prefix cache held; None where the server does not tell."""


class Unknown(Exception):
    """The server does not know the adapter: it was started anew, or somebody has unloaded it."""


class VllmClient:
    """May be asked from several threads. After `stop` every request ends in an error."""

    def __init__(self, settings: VllmServerSettings, *, api_key: str) -> None:
        self.settings = settings
        root = settings.base_url.rstrip("/").removesuffix("/v1")
        self._address = Address(root, api_key=api_key, deadline_s=settings.deadline_s, max_bytes=_MOST_BYTES)
        self._parting = Address(root, api_key=api_key, deadline_s=_PARTING_S)
        self.num_retries = 0

    @property
    def url(self) -> str:
        """The server's address."""
        return self._address.base_url

    def stop(self) -> None:
        """Give up whatever is under way. Adapters can still be unloaded."""
        self._address.stop()

    def answers(self) -> Answer:
        """What it says when it is asked for its models, without patience. Raises `ConfigError` where nobody answers."""
        try:
            return self._address.exchange("GET", "/v1/models")
        except Passing as error:
            raise ConfigError(
                f"expected a vLLM server at {self.url}, found {error}; start it (docs/engines.md has the command), or "
                "give another --base_url"
            ) from error

    def models(self) -> list[ServedModel]:
        """The models and adapters that it serves."""
        return served_models(self._patiently("GET", "/v1/models", None), self.url)

    def tokenize(self, model: str, text: str) -> tuple[int, ...]:
        """The text in the server's token ids, without special ones at its ends."""
        answer = self._patiently("POST", "/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
        try:
            return tuple(int(token) for token in json.loads(answer.text)["tokens"])
        except _UNREADABLE as error:
            raise self._strange("/tokenize", answer, "start it with its tokenizer") from error

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter from a folder in PEFT's layout. One of that name that is there already is left as it is."""
        answer = self._patiently("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status != 200 and "already been loaded" not in answer.text:
            raise _load_error(self.url, folder, answer)

    def unload(self, name: str) -> None:
        """Let the server forget an adapter; says so where it does not. One that has ended has forgotten it."""
        body = json.dumps({"lora_name": name}).encode("ascii")
        try:
            answer = self._parting.exchange("POST", "/v1/unload_lora_adapter", body)
        except Passing as error:
            _logger.warning("%s did not unload %s: %s", self.url, name, error)
            return
        if answer.status not in (200, 404):
            _logger.warning("%s did not unload %s: status %d, %.200r", self.url, name, answer.status, answer.text)

    def max_loras(self) -> int | None:
        """How many adapters it speaks with in one batch, as its metrics say; None where they do not."""
        answer = self._patiently("GET", "/metrics", None)
        found = re.search(r'vllm:lora_requests_info\{[^}]*max_lora="(\d+)"', answer.text)
        return int(found[1]) if found else None

    def complete(self, model: str, ask: Ask) -> Completed:
        """One completion. Raises `Unknown` for an adapter that is not there, `EngineError` for what is refused or
        cannot be read."""
        asked: dict[str, Any] = {
            "model": model, "prompt": list(ask.prompt_ids), "return_token_ids": True,
            "return_tokens_as_token_ids": True, "logprobs": 0,
        } | dict(ask.params)  # fmt: skip
        answer = self._patiently("POST", "/v1/completions", asked)
        if answer.status == 404:
            raise Unknown(model)
        if answer.status != 200:
            raise self._strange("/v1/completions", answer, _advice(answer.text))
        try:
            found = json.loads(answer.text)
            choice, usage = found["choices"][0], found["usage"]
            details = usage.get("prompt_tokens_details") or {}
            said, heard = found["model"], _heard(choice, wanted=asked)
            completed = Completed(heard, int(usage["prompt_tokens"]), details.get("cached_tokens"))
        except _UNREADABLE as error:
            raise self._strange(
                "/v1/completions", answer,
                f"it must tell token ids and their log-probabilities, as vLLM 0.32 does ({error!r:.100})",
            ) from error  # fmt: skip
        if said != model:
            raise EngineError(f"expected an answer of the adapter {model} from {self.url}, found one of {said!r:.200}")
        return completed

    def _patiently(self, method: str, path: str, fields: Mapping[str, Any] | None) -> Answer:
        """Ask until there is an answer. Raises `EngineError` when patience is over, which begins with what fails."""
        body = None if fields is None else json.dumps(fields).encode("ascii")
        failing_since, wait_s, left_of_500 = math.inf, self.settings.backoff_s, _TRIES_OF_500
        while True:
            try:
                answer = self._address.exchange(method, path, body)
                left_of_500 -= answer.status == 500
                passing = answer.status == 500 and left_of_500 and not _ABOUT_ADAPTERS.search(answer.text)
                if passing or answer.status in (429, 502, 503, 504) or _aborted(answer):
                    raise Passing(f"the status {answer.status}: {answer.text[:200]!r}", answer.wait_s)
                return answer
            except Passing as error:
                failing_since = min(failing_since, time.monotonic())
                waited = time.monotonic() - failing_since
                if self._address.stopped.is_set() or waited >= self.settings.patience_s:
                    raise EngineError(
                        f"expected an answer from {self.url}, found {error}, for {waited:.0f} s (--patience_s); what "
                        "was learned so far is kept: look after the server, and resume"
                    ) from error
                self.num_retries += 1
                self._address.stopped.wait(min(max(error.wait_s, wait_s), _LONGEST_WAIT_S))
                wait_s *= 2

    def _strange(self, path: str, answer: Answer, advice: str) -> EngineError:
        return EngineError(
            f"expected an answer from {self.url}{path}, found the status {answer.status}: {answer.text[:300]!r}; "
            f"{advice}"
        )


def served_models(answer: Answer, url: str) -> list[ServedModel]:
    """Read /v1/models. Raises `EngineError` where it is something else."""
    try:
        return [
            ServedModel(str(one["id"]), str(one.get("root")), one.get("parent") or "", int(one["max_model_len"] or 0))
            for one in json.loads(answer.text)["data"]
        ]
    except _UNREADABLE as error:
        raise EngineError(
            f"expected a list of models at {url}/v1/models, found the status {answer.status}: {answer.text[:200]!r}; "
            "is a vLLM server there?"
        ) from error


def _aborted(answer: Answer) -> bool:
    """Whether a server that is about to end gave a request up."""
    if answer.status != 200 or _ABORT not in answer.text:
        return False
    try:
        return any(choice.get("finish_reason") == _ABORT for choice in json.loads(answer.text)["choices"])
    except _UNREADABLE:
        return False


def _heard(choice: Mapping[str, Any], *, wanted: Mapping[str, Any]) -> Reply:
    logprobs = choice["logprobs"]
    ids = tuple(int(token) for token in choice["token_ids"])
    values = tuple(float(value) for value in logprobs["token_logprobs"])
    told: tuple[Mapping[int, float], ...] = ({},) * len(ids)
    if wanted["logprobs"]:
        told = tuple(
            {int(name.removeprefix(_TOKEN_ID)): float(value) for name, value in one.items()}
            for one in logprobs["top_logprobs"]
        )
    if not ids or not len(ids) == len(values) == len(told):
        raise ValueError(f"{len(ids)} token ids, {len(values)} log-probabilities, {len(told)} lists of likeliest")
    return Reply(ids, values, told)


def _advice(text: str) -> str:
    """What to change, by what vLLM refused."""
    if "max allowed" in text or "max_logprobs" in text:
        return "start it with --max-logprobs -1"
    return "see its log, and check that it serves the model that is trained"


def _load_error(url: str, folder: Path, answer: Answer) -> ConfigError:
    """vLLM's words for an adapter that it cannot load, with what to change."""
    text = answer.text[:300]
    if answer.status in (404, 405) and "adapter" not in text.lower():
        advice = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
    elif re.search(r"lora.rank", text, re.IGNORECASE):
        advice = "start it with --max-lora-rank of lora_r at least"
    elif "no adapter found" in text.lower():
        advice = "it must see this folder under the same path: run it on this machine, or share the file system"
    else:
        advice = (
            "start it with --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --max-lora-rank of lora_r at least"
        )
    return ConfigError(
        f"expected {url} to load the adapter {folder}, found the status {answer.status}: {text!r}; {advice}"
    )
