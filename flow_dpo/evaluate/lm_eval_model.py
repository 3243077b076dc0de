"""A flow as a model of lm-evaluation-harness: it writes a text after a context, and gives no probabilities.

    run(FlowModel(answers), ["gsm8k"], manager_of(["gsm8k"], ""), LmEvalSettings())["results"]["gsm8k"]

Only code that needs lm-eval to be installed is here. Invariant: a task that compares probabilities of given answers is
refused: another role decides when a flow's answer has ended, so no forward pass gives its probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval import evaluator  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate.lm_eval_settings import LmEvalSettings

_simple_evaluate: Any = evaluator.simple_evaluate  # its decorator hides its parameters


class FlowModel(LM):
    """Answers contexts with a function that turns a list of them into a list of texts."""

    def __init__(self, answers: Callable[[Sequence[str]], list[str]]) -> None:
        super().__init__()
        self._answers = answers

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The text after each context, cut before the first of its `until` strings."""
        asked = [request.args for request in requests]
        texts = self._answers([context for context, _ in asked])
        return [cut(text, given.get("until")) for text, (_, given) in zip(texts, asked, strict=True)]

    def loglikelihood(self, requests: list[Any]) -> Any:
        """Refused."""
        raise ConfigError(
            f"expected tasks with written answers, found one that compares probabilities "
            f"({requests[0].task_name}), which a flow does not have. Measure one role's adapter with lm-eval itself: "
            "lm_eval run --model hf --model_args pretrained=BASE,peft=RUN/adapters/answer/VERSION --tasks ..."
        )

    def loglikelihood_rolling(self, requests: list[Any]) -> Any:
        """Refused."""
        return self.loglikelihood(requests)


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of these strings."""
    ends = [until] if isinstance(until, str) else [one for one in until or () if isinstance(one, str)]
    for end in ends:
        text = text.partition(end)[0] if end else text
    return text


def manager_of(names: Sequence[str], include_path: str) -> TaskManager:
    """The known tasks. If those of `include_path` are all that is wanted, only they are read: lm-eval's own take
    long."""
    if include_path:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=include_path or None)


def run(model: FlowModel, names: Sequence[str], manager: TaskManager, settings: LmEvalSettings) -> dict[str, Any]:
    """The results of lm-eval. Raises `ConfigError` for a task that it refuses."""
    limit = settings.limit
    try:
        found = _simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=int(limit) if limit is not None and limit >= 1 else limit,
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            # Its global seeds are not used: the flow samples with its own seed, few-shot examples with this one.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=settings.seed,
        )
    except ConfigError:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ConfigError(f"lm-eval could not run {', '.join(names)}: {error}") from error
    assert found is not None, "there is one process"
    return dict(found)
