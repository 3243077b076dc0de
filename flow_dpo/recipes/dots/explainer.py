"""Explanations by another model, behind an OpenAI-compatible address. DOTS' authors ask GPT-4o mini for theirs.

    explain(["Of all the ways ..."], url="http://127.0.0.1:8000/v1", model="", max_tokens=256)    ->  ["It suits ..."]

Invariant: a reply is text, decoded greedily; if it is refused or empty, the explanation is None and teaches nothing. If
the address keeps failing, everything under way is given up and the client's error is raised.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from flow_dpo.core.engine import RendersTurns
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Completion, Request, TokenIds, Turn
from flow_dpo.models.chat_client import ChatEndpoint, EndpointSettings
from flow_dpo.recipes.scored import ELSEWHERE

log = logging.getLogger("flow_dpo")


def checked_endpoint(*, url: str, model: str) -> ChatEndpoint:
    """The address, checked to answer and to have the model. Raises `ConfigError` if it does not."""
    settings = EndpointSettings(base_url=url, served_model=model)
    endpoint = ChatEndpoint(settings, api_key=os.environ.get("OPENAI_API_KEY", ""))
    try:
        endpoint.check()
    except ConfigError as error:  # with the names of this recipe's settings
        message = str(error).replace("--base_url", "--explore.explainer_url")
        raise ConfigError(message.replace("--served_model", "--explore.explainer_model")) from error
    return endpoint


def explain(prompts: Sequence[str], *, url: str, model: str, max_tokens: int) -> list[str | None]:
    """The reply to each prompt, in order. Raises `ConfigError` if nothing answers there, `EngineError` if the address
    keeps failing. The API key is read from OPENAI_API_KEY."""
    if not prompts:
        return []
    endpoint = checked_endpoint(url=url, model=model)

    def ask(prompt: str) -> str | None:
        reply = endpoint.ask([{"role": "user", "content": prompt}], max_tokens=max_tokens)
        if reply.refused or not reply.words.strip():
            log.warning("%s gave no explanation: %.200s", url, reply.words or "an empty reply")
            return None
        return reply.words.strip()

    with ThreadPoolExecutor(EndpointSettings(base_url=url).concurrency, thread_name_prefix="explainer") as threads:
        futures = [threads.submit(ask, prompt) for prompt in prompts]
        try:
            return [future.result() for future in futures]
        finally:
            # After an error or Ctrl-C, nothing still under way is waited for.
            if not all(future.done() for future in futures):
                endpoint.stop()
                for future in futures:
                    future.cancel()


def as_completion(text: str, turn: Turn, renderer: RendersTurns, end_ids: TokenIds) -> tuple[Request, Completion]:
    """The text in the tokens of this run's model, as if it had answered the turn, followed by `end_ids` and cut at the
    turn's length. This run did not sample it: its version is `ELSEWHERE`."""
    request = renderer.render(turn)
    whole = renderer.render(replace(turn, continuation=(text,))).prompt_ids[len(request.prompt_ids) :] + end_ids
    ids, cut = whole[: turn.max_tokens], len(whole) > turn.max_tokens or not end_ids
    zeros = (0.0,) * len(ids)
    completion = Completion(
        token_ids=ids, logprobs=zeros, sampled_logprobs=zeros, finish_reason="length" if cut else "stop",
        policy_version=ELSEWHERE,
    )  # fmt: skip
    return request, completion
