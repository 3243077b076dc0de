"""Are log-probabilities at a temperature those of the model's logits divided by it: new, old and the reference's?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedModel

from flow_dpo.core.errors import LearningError
from flow_dpo.core.objective import Loss, TokenLogprobs
from flow_dpo.core.types import Pair, ScoredCompletion, by_role
from flow_dpo.learner.gradients import Gradients
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs, PromptedCompletion
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import LearnerSettings, PassSettings, RowSettings
from flow_dpo.models.drift_causes import inputs, labels_of
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from tests.learner.test_drift import CAUSES, pairs, recorded, refusal
from tests.learner.test_logprobs import assert_same_gradient, policy_of, spoken_of, stir
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import tiny_model

T = 0.6


def plain(model: PreTrainedModel, prompted: PromptedCompletion, temperature: float) -> torch.Tensor:
    """Each token's log-probability by one forward of the PEFT model, with autograd; choices among themselves as they
    are."""
    request, completion = prompted
    found = model(input_ids=torch.tensor([inputs(prompted)]), use_cache=False).logits[0, -len(completion.token_ids) :]
    scaled = found[:, list(request.choices)] if request.choices else found / temperature
    labels = labels_of(request, completion)
    return scaled.log_softmax(-1)[range(len(labels)), labels]


@pytest.mark.parametrize("own_head", [False, True], ids=["head", "own head"])
@pytest.mark.parametrize("way", [PackedLogprobs, PlainLogprobs])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_values_and_gradients_are_of_scaled_logits(
    kind: str, way: type[PackedLogprobs | PlainLogprobs], own_head: bool
) -> None:
    policy, prompted = policy_of(kind), spoken_of(pairs(2))
    assert {bool(request.choices) for request, _ in prompted} == {True, False}
    with policy.using("answer", training=True) as model:
        logprobs = way(model, prompted, own_head=own_head, temperature=T)
        found, wanted = torch.cat(logprobs()), torch.cat([plain(model, one, T) for one in prompted])
        mixture = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
        gradients = [torch.autograd.grad((x * mixture).sum(), policy.parameters("answer")) for x in (found, wanted)]
        added = torch.cat(logprobs.added()) - (wanted - torch.cat([plain(model, one, 1.0) for one in prompted]))
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
    assert added.abs().max() < 4e-5
    assert_same_gradient(list(gradients[0]), list(gradients[1]), 2e-5)


Call = tuple[list[ScoredCompletion], list[torch.Tensor], list[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """`ClippedPolicyGradient`, and what it was given, update by update."""

    accepts: ClassVar[tuple[type, ...]] = (ScoredCompletion,)
    calls: list[Call] = field(default_factory=list[Call])

    @property
    def needs_reference(self) -> bool:
        return True

    def __call__(
        self, examples: Sequence[Any], policy: Sequence[TokenLogprobs], reference: Sequence[TokenLogprobs]
    ) -> Loss:
        now, base = ([side[0].detach() for side in sides] for sides in (policy, reference))
        self.calls.append((list(examples), now, base))
        return ClippedPolicyGradient(kl_coef=0.1)(examples, policy, reference)


def policy(**lora: Any) -> Policy:
    return stir(Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4, **lora), seed=5))


def learner(*, kept_versions: int = 0, **values: Any) -> Learner:
    settings = {"learning_rate": 0.02, "examples_per_update": 0, "logit_temperature": T, **values}
    return Learner(policy(), LearnerSettings(**settings), kept_versions=kept_versions)


def scored(made: list[Pair], version: int, policy: Policy) -> list[ScoredCompletion]:
    """Both sides of the Answer's pairs, as an engine records them under the present weights."""
    return [
        ScoredCompletion(
            request=p.request, completion=c, advantage=a, problem_id=p.problem_id, node=2 * i + (a < 0), depth=0
        )
        for i, p in enumerate(recorded(policy, by_role(made)["answer"], version))
        for c, a in ((p.chosen, 0.7), (p.rejected, -1.1))
    ]


def prompted_of(examples: list[ScoredCompletion]) -> list[PromptedCompletion]:
    return [(e.request, e.completion) for e in examples]


def test_new_old_and_reference_are_scaled_alike_in_every_update_of_a_batch() -> None:
    student, seen = learner(passes=PassSettings(minibatches=2, epochs_per_batch=2)), Seen()
    examples = scored(pairs(), 0, student.policy)
    with torch.no_grad(), student.policy.using("answer") as model:
        old = {e.node: plain(model, one, T) for e, one in zip(examples, prompted_of(examples), strict=True)}
    weights = list[list[torch.Tensor]]()
    step = student._step
    student._step = lambda *words: weights.append([w.clone() for w in student.policy.weights("answer")]) or step(*words)  # pyright: ignore[reportAttributeAccessIssue]
    row = student.update(seen, examples)
    assert row["learn/updates"] == 4 == len(weights)
    assert row["learn/answer/max_logprob_drift"] < 1e-4
    moved = 0.0
    for before, (given, now, base) in zip(weights, seen.calls, strict=True):
        for side, adapter in ((now, "answer"), (base, None)):
            with torch.no_grad(), student.policy.holding("answer", before), student.policy.using(adapter) as model:
                wanted = [plain(model, one, T) for one in prompted_of(given)]
            torch.testing.assert_close(torch.cat(side), torch.cat(wanted), rtol=1e-4, atol=1e-4)
        for example, value in zip(given, now, strict=True):
            was = torch.tensor(example.completion.logprobs)
            torch.testing.assert_close(was, old[example.node], rtol=1e-4, atol=1e-4)
            assert example.completion.raw_logprobs == examples[example.node].completion.logprobs
            moved = max(moved, float((value - was).abs().max()))
    assert moved > 0.1, "the later updates are off policy"


def test_the_gradient_is_that_of_the_formula_off_policy() -> None:
    here, objective = policy(), ClippedPolicyGradient(kl_coef=0.1, reduction="tokens")
    examples = scored(pairs(), 0, here)
    with here.using("answer", training=True) as model:
        now = [plain(model, one, T) for one in prompted_of(examples)]
        old = [each.detach() + 0.3 * torch.randn(len(each), generator=torch.Generator().manual_seed(3)) for each in now]
        with torch.no_grad(), here.using(None):
            base = [plain(model, one, T) for one in prompted_of(examples)]
        sums = list[torch.Tensor]()
        for example, x, was, reference in zip(examples, now, old, base, strict=True):
            r, a, d = (x - was).exp(), example.advantage, reference - x
            sums.append((0.1 * (d.exp() - d - 1) - torch.minimum(r * a, r.clamp(0.8, 1.2) * a)).sum())
        loss = torch.stack(sums).sum() / sum(len(x) for x in now)
        wanted = torch.autograd.grad(loss, here.parameters("answer"))
    given = [
        replace(e, completion=replace(e.completion, logprobs=tuple(was.tolist())))
        for e, was in zip(examples, old, strict=True)
    ]
    computed = Gradients(here, RowSettings(max_tokens=40), {"answer": None}, temperature=T)
    found = computed.compute(objective, "answer", given, 1)
    assert found.measures["clipped"] > 0
    assert found.measures["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_same_gradient(found.pieces, list(wanted), 1e-4)


def test_under_lag_old_ones_are_of_the_weights_that_sampled() -> None:
    student, seen = learner(kept_versions=1), Seen()
    made = pairs()
    first = scored(made, 0, student.policy)
    with torch.no_grad(), student.policy.using("answer") as model:
        old = [plain(model, one, T) for one in prompted_of(first)]
    student.update(Seen(), first)
    assert student.update(seen, first)["learn/answer/max_logprob_drift"] < 1e-4
    for given, _, _ in seen.calls:
        for example in given:
            was = torch.tensor(example.completion.logprobs)
            torch.testing.assert_close(was, old[first.index(_recorded(example))], rtol=1e-4, atol=1e-4)
    with pytest.raises(LearningError, match="the weights of version 0 were not kept"):
        student.update(seen, first)


def _recorded(example: ScoredCompletion) -> ScoredCompletion:
    raw = example.completion.raw_logprobs
    return replace(example, completion=replace(example.completion, logprobs=raw, raw_logprobs=()))


@pytest.mark.parametrize("cause", ["the adapter of 'stop' to", "a temperature of 0.70 to"])
def test_a_drift_is_found_and_its_cause_named_as_at_temperature_1(cause: str) -> None:
    student = learner()
    refused = refusal(student, recorded(student.policy, by_role(pairs(8))["answer"], 0, **CAUSES[cause]))
    assert f"what was recorded fits {cause}" in refused


def test_what_waits_is_scaled_once_and_a_resumed_learner_goes_on_to_the_byte(tmp_path: Path) -> None:
    values: dict[str, Any] = {"examples_per_update": 8, "passes": PassSettings(minibatches=2)}
    whole, objective = learner(**values), ClippedPolicyGradient(kl_coef=0.1)
    examples = scored(pairs(6), 0, whole.policy)
    whole.update(objective, examples[:12])
    waiting = [completion.raw_logprobs for one in whole.pool for completion in one.completions]
    assert waiting == [one.completion.logprobs for one in examples[:12]]
    whole.save(tmp_path / "middle")
    resumed = learner(**values)
    resumed.load(tmp_path / "middle")
    for student, folder in ((whole, "whole"), (resumed, "resumed")):
        assert student.update(objective, examples[12:20])["learn/updates"] == 2
        student.save(tmp_path / folder)
    for name in ("learner.json", "learner.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_at_temperature_1_examples_are_what_was_handed_over() -> None:
    student = learner(logit_temperature=1.0, examples_per_update=100)
    examples = scored(pairs(), 0, student.policy)
    student.update(ClippedPolicyGradient(), examples)
    assert all(one is other for one, other in zip(student.pool, examples, strict=True))
