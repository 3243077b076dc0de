"""vLLM HTTP client: completions, adapters and models of a running `vllm serve`, with retries.

    client = VllmClient(VllmServerSettings(base_url="http://127.0.0.1:8000"), api_key="")
    client.load("answer-v3-5f2c", Path("runs/x/served/answer/3"))
    completed = client.complete("answer-v3-5f2c", VllmRequest((1, 5, 6), {"max_tokens": 8, ...}))

Prompts are sent as token ids; token ids and log-probabilities come back. Transient failures (a connection, a deadline,
a server that is going down or coming up) are retried with growing waits until `patience_s` is over; a request that the
server refuses is not. Invariant: a reply names the adapter that was requested.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.engines.settings import VllmServerSettings
from flow_dpo.engines.vllm.requests import Reply, VllmRequest
from flow_dpo.models.http_client import Address, Answer, Passing

_logger = logging.getLogger(__name__)
_LONGEST_WAIT_S = 5.0
_TRIES_OF_500 = 5
"""A server whose engine has died replies 500 until it ends; one that keeps doing so has another fault."""
_MOST_BYTES = 256 << 20
"""The log-probabilities of 250,000 tokens take some 20 MiB."""
_ABORT = "abort"
"""Finish reason of a completion that the server aborted."""
_ABOUT_ADAPTERS = re.compile(r"lora.rank|max_lora|lora is not enabled|target_modules|adapter_config", re.IGNORECASE)
"""Words in the refusal of an adapter, which is not worth a retry."""
_PARTING_S = 10.0
"""Deadline in seconds for unloading an adapter; nothing depends on its success."""
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
    """A reply with its token counts."""

    reply: Reply
    prompt_tokens: int
    cached_tokens: int | None
    """Prompt tokens found in the server's prefix cache; None if it does not report them."""


class Unreachable(EngineError):
    """The server did not answer within the time allowed."""


class Unknown(Exception):
    """The server does not have the adapter: it was restarted, or another program unloaded it."""


class VllmClient:
    """Client of one server; thread-safe. After `stop` every request raises an error."""

    def __init__(self, settings: VllmServerSettings, *, api_key: str) -> None:
        self.settings = settings
        root = settings.base_url.rstrip("/").removesuffix("/v1")
        self._address = Address(root, api_key=api_key, deadline_s=settings.deadline_s, max_bytes=_MOST_BYTES)
        self._parting = Address(root, api_key=api_key, deadline_s=_PARTING_S)

    @property
    def num_retries(self) -> int:
        """Requests that were retried since the last `take_num_retries`."""
        return self._address.num_retries

    def take_num_retries(self) -> int:
        """The same; resets the count."""
        taken, self._address.num_retries = self._address.num_retries, 0
        return taken

    @property
    def url(self) -> str:
        """The server's address."""
        return self._address.base_url

    def stop(self) -> None:
        """Give up all requests under way. Adapters can still be unloaded."""
        self._address.stop()

    def answers(self) -> Answer:
        """The response to a request for its models, without retries. Raises `ConfigError` if there is none."""
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
        """The text in the server's token ids, without special tokens at its ends."""
        answer = self._patiently("POST", "/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
        try:
            return tuple(int(token) for token in json.loads(answer.text)["tokens"])
        except _UNREADABLE as error:
            raise self._strange("/tokenize", answer, "start it with its tokenizer") from error

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter from a folder in PEFT's layout. One that is already loaded under that name stays as it is."""
        answer = self._patiently("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status != 200 and "already been loaded" not in answer.text:
            raise _load_error(self.url, folder, answer)

    def unload(self, name: str) -> None:
        """Unload an adapter; warns if the server fails to."""
        body = json.dumps({"lora_name": name}).encode("ascii")
        try:
            answer = self._parting.exchange("POST", "/v1/unload_lora_adapter", body)
        except Passing as error:
            _logger.warning("%s did not unload %s: %s", self.url, name, error)
            return
        if answer.status not in (200, 404):
            _logger.warning("%s did not unload %s: status %d, %.200r", self.url, name, answer.status, answer.text)

    def max_loras(self) -> int | None:
        """How many adapters it can serve in one batch, from its metrics; None if they do not say."""
        answer = self._patiently("GET", "/metrics", None)
        found = re.search(r'vllm:lora_requests_info\{[^}]*max_lora="(\d+)"', answer.text)
        return int(found[1]) if found else None

    def complete(self, model: str, request: VllmRequest) -> Completed:
        """One completion. Raises `Unknown` for a missing adapter, `EngineError` for a request that is refused or a
        reply that cannot be read."""
        asked: dict[str, Any] = {
            "model": model, "prompt": list(request.prompt_ids), "return_token_ids": True,
            "return_tokens_as_token_ids": True, "logprobs": 0,
        } | dict(request.params)  # fmt: skip
        answer = self._patiently("POST", "/v1/completions", asked)
        if answer.status == 404:
            raise Unknown(model)
        if answer.status != 200:
            raise self._strange("/v1/completions", answer, _advice(answer.text))
        try:
            found = json.loads(answer.text)
            choice, usage = found["choices"][0], found["usage"]
            details = usage.get("prompt_tokens_details") or {}
            answered_by, reply = found["model"], _reply(choice, params=asked)
            completed = Completed(reply, int(usage["prompt_tokens"]), details.get("cached_tokens"))
        except _UNREADABLE as error:
            raise self._strange(
                "/v1/completions", answer,
                f"it must return token ids and their log-probabilities, like vLLM 0.32 ({error!r:.100})",
            ) from error  # fmt: skip
        if answered_by != model:
            raise EngineError(
                f"expected an answer from the adapter {model} at {self.url}, found one from {answered_by!r:.200}"
            )
        return completed

    def _patiently(self, method: str, path: str, fields: Mapping[str, Any] | None) -> Answer:
        """Retry until there is a response. Raises `EngineError` `patience_s` after the first failure."""
        body = None if fields is None else json.dumps(fields).encode("ascii")
        left_of_500 = _TRIES_OF_500

        def may_pass(answer: Answer) -> bool:
            nonlocal left_of_500
            left_of_500 -= answer.status == 500
            restarting = answer.status == 500 and left_of_500 > 0 and not _ABOUT_ADAPTERS.search(answer.text)
            return restarting or answer.status in (429, 502, 503, 504) or _aborted(answer)

        try:
            return self._address.retry(
                method, path, body, may_pass=may_pass, backoff_s=self.settings.backoff_s,
                longest_wait_s=_LONGEST_WAIT_S, patience_s=self.settings.patience_s,
            )  # fmt: skip
        except Passing as error:
            raise Unreachable(
                f"expected an answer from {self.url}, found {error}, for {error.seconds:.0f} s (--patience_s); what "
                "was learned so far is kept: check the server, and resume"
            ) from error

    def _strange(self, path: str, answer: Answer, advice: str) -> EngineError:
        return EngineError(
            f"expected an answer from {self.url}{path}, found the status {answer.status}: {answer.text[:300]!r}; "
            f"{advice}"
        )


def served_models(answer: Answer, url: str) -> list[ServedModel]:
    """Read the response of /v1/models. Raises `EngineError` if it is something else."""
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
    """Whether the server aborted the request because it is about to end."""
    if answer.status != 200 or _ABORT not in answer.text:
        return False
    try:
        return any(choice.get("finish_reason") == _ABORT for choice in json.loads(answer.text)["choices"])
    except _UNREADABLE:
        return False


def _reply(choice: Mapping[str, Any], *, params: Mapping[str, Any]) -> Reply:
    logprobs = choice["logprobs"]
    ids = tuple(int(token) for token in choice["token_ids"])
    values = tuple(float(value) for value in logprobs["token_logprobs"])
    top_logprobs: tuple[Mapping[int, float], ...] = ({},) * len(ids)
    if params["logprobs"]:
        top_logprobs = tuple(
            {int(name.removeprefix(_TOKEN_ID)): float(value) for name, value in one.items()}
            for one in logprobs["top_logprobs"]
        )
    if not ids or not len(ids) == len(values) == len(top_logprobs):
        raise ValueError(
            f"{len(ids)} token ids, {len(values)} log-probabilities, {len(top_logprobs)} lists of likeliest"
        )
    return Reply(ids, values, top_logprobs)


def _advice(text: str) -> str:
    """What to change, given vLLM's refusal."""
    if "max allowed" in text or "max_logprobs" in text:
        return "start it with --max-logprobs -1"
    return "see its log, and check that it serves the model that is trained"


def _load_error(url: str, folder: Path, answer: Answer) -> ConfigError:
    """The error for an adapter that vLLM cannot load, with what to change."""
    text = answer.text[:300]
    if answer.status in (404, 405) and "adapter" not in text.lower():
        advice = "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
    elif re.search(r"lora.rank", text, re.IGNORECASE):
        advice = "start it with --max-lora-rank of at least lora_r"
    elif "no adapter found" in text.lower():
        advice = "it must see this folder under the same path: run it on this machine, or share the file system"
    else:
        advice = (
            "start it with --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --max-lora-rank of at least lora_r"
        )
    return ConfigError(
        f"expected {url} to load the adapter {folder}, found the status {answer.status}: {text!r}; {advice}"
    )
