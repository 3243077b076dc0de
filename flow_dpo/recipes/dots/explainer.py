"""Explanations by another model, behind an OpenAI-compatible address: DOTS' authors ask GPT-4o mini for theirs.

    explain(["Of all the ways ..."], url="http://127.0.0.1:8000/v1", model="", max_tokens=256)    ->  ["It suits ..."]

Invariant: a reply is text, greedy; what the address refuses or answers with nothing is None, and teaches nothing. Where
the address continues failing, all that is under way is given up and the error is the client's.
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
    """The address, which answers and has the model. Raises `ConfigError` where it does not."""
    settings = EndpointSettings(base_url=url, served_model=model)
    endpoint = ChatEndpoint(settings, api_key=os.environ.get("OPENAI_API_KEY", ""))
    try:
        endpoint.check()
    except ConfigError as error:  # in the names of this recipe's settings
        message = str(error).replace("--base_url", "--explore.explainer_url")
        raise ConfigError(message.replace("--served_model", "--explore.explainer_model")) from error
    return endpoint


def explain(prompts: Sequence[str], *, url: str, model: str, max_tokens: int) -> list[str | None]:
    """The reply to each prompt, in their order. Raises `ConfigError` where nobody answers there, `EngineError` where
    the address continues failing. Its API key is OPENAI_API_KEY's."""
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
            # An error, or Ctrl-C: nothing that is still under way is waited for.
            if not all(future.done() for future in futures):
                endpoint.stop()
                for future in futures:
                    future.cancel()


def as_completion(text: str, turn: Turn, renderer: RendersTurns, end_ids: TokenIds) -> tuple[Request, Completion]:
    """The text in the tokens of this run's model, as if it had answered the turn, `end_ids` behind it; cut at the
    turn's length. Nobody here sampled it: its version is `ELSEWHERE`."""
    request = renderer.render(turn)
    whole = renderer.render(replace(turn, continuation=(text,))).prompt_ids[len(request.prompt_ids) :] + end_ids
    ids, cut = whole[: turn.max_tokens], len(whole) > turn.max_tokens or not end_ids
    zeros = (0.0,) * len(ids)
    completion = Completion(
        token_ids=ids, logprobs=zeros, sampled_logprobs=zeros, finish_reason="length" if cut else "stop",
        policy_version=ELSEWHERE,
    )  # fmt: skip
    return request, completion
