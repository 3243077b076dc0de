"""The backends of a judge: a model in this process, or one at an OpenAI-compatible address.

Both answer the same questions (`evaluate.judge.protocol`) and pass on each answer as it comes, so a caller can write it
at once:

    choices = JudgeSettings(verdict_format="choices")
    LocalJudge(engine, renderer, prompts=JudgePrompts(), settings=choices, context_tokens=4096)
    EndpointJudge(ChatEndpoint(settings, api_key=...), prompts=JudgePrompts(), settings=JudgeSettings())

Invariant: a trace's text becomes ordinary tokens. If it spells a special token of the chat template, it stays letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from flow_dpo.core.engine import Engine
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps, SampleRequest, sample
from flow_dpo.core.seeds import derive
from flow_dpo.core.types import Completion, Message, Role, Sampling, Turn
from flow_dpo.evaluate.judge.protocol import (
    PLACES,
    JudgePrompts,
    JudgeQuestion,
    JudgeReply,
    JudgeSettings,
    Keep,
    reply_from_text,
    storable,
)
from flow_dpo.models.chat_client import ChatEndpoint, ChatReply
from flow_dpo.models.render import Renderer

JUDGE: Role = "judge"


class LocalJudge:
    """A model in an engine, with greedy decoding and the renderer's chat template."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        *,
        prompts: JudgePrompts,
        settings: JudgeSettings,
        context_tokens: int,
    ) -> None:
        self._runner = RolloutRunner(engine, renderer)
        self._renderer = renderer
        self._prompts, self._settings = prompts, settings
        self._context_tokens = context_tokens

    def ask_all(self, questions: Sequence[JudgeQuestion], keep: Keep) -> None:
        """See `judge.protocol.Judge`. A question that does not fit the context window gets no verdict: "too long"."""
        self._runner.run(self._steps(one, keep) for one in questions)

    def turn(self, question: JudgeQuestion) -> Turn:
        """The question as the judge's turn."""
        parts = question.parts(self._prompts, self._settings.verdict_format)
        messages = (
            Message(role="system", content=(self._prompts.system,)),
            Message(role="user", content=tuple(text for text, _ in parts)),
        )
        if self._settings.verdict_format == "choices":
            return Turn(role=JUDGE, messages=messages, choices=PLACES)
        return Turn(role=JUDGE, messages=messages, max_tokens=self._settings.max_tokens)

    def _steps(self, question: JudgeQuestion, keep: Keep) -> RolloutSteps:
        turn = self.turn(question)
        request = self._renderer.render(turn)
        if len(request.prompt_ids) + request.max_tokens > self._context_tokens:
            found = f"{len(request.prompt_ids)} + {request.max_tokens} of {self._context_tokens} tokens"
            keep(question, JudgeReply(words=found, reason="too long"))
            return
        seed = derive(self._settings.seed, *question.key)
        sampled = yield from sample(SampleRequest(turn=turn, sampling=Sampling(greedy=True), seed=seed))
        keep(question, self._reply(sampled.completion))

    def _reply(self, completion: Completion) -> JudgeReply:
        if completion.choice is not None:
            one, other = completion.choice_logprobs
            # The log-odds are infinite if a word has no probability, so they are capped.
            odds = max(min(one - other, 1e3), -1e3)
            letter = "A" if odds > 0 else "B" if odds < 0 else "tie"
            return JudgeReply(words=letter, tokens=1, verdict=letter, log_odds=odds)
        words = self._renderer.to_text([completion.content_ids])
        return reply_from_text(words, finished=completion.finish_reason == "stop", tokens=len(completion.token_ids))


class EndpointJudge:
    """A model at an address, with several requests at a time."""

    def __init__(
        self, endpoint: ChatEndpoint, *, prompts: JudgePrompts, settings: JudgeSettings, concurrency: int
    ) -> None:
        self._endpoint = endpoint
        self._prompts, self._settings = prompts, settings
        self._concurrency = concurrency

    def ask_all(self, questions: Sequence[JudgeQuestion], keep: Keep) -> None:
        """See `judge.protocol.Judge`."""
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        left = {pool.submit(self._ask, one): one for one in questions}
        try:
            for future in as_completed([*left]):
                reply = future.result()
                keep(left.pop(future), reply)
        finally:
            # On an error or Ctrl-C, nothing under way is waited for, and nothing that was answered is lost.
            if left:
                self._endpoint.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            for future, one in left.items():
                if not future.cancelled() and future.exception() is None:
                    keep(one, future.result())

    def messages(self, question: JudgeQuestion) -> list[dict[str, str]]:
        """The question as a chat."""
        user = "".join(text for text, _ in question.parts(self._prompts, self._settings.verdict_format))
        system = [{"role": "system", "content": self._prompts.system}] if self._prompts.system else []
        return [*system, {"role": "user", "content": user}]

    def _ask(self, question: JudgeQuestion) -> JudgeReply:
        return _reply(self._endpoint.ask(self.messages(question), max_tokens=self._settings.max_tokens))


def _reply(reply: ChatReply) -> JudgeReply:
    if reply.refused:
        return JudgeReply(words=storable(reply.words), tokens=reply.tokens, reason="refused")
    return reply_from_text(reply.words, finished=reply.finished, tokens=reply.tokens)
