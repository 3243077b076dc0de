"""Does the drift check compare what it can, also with dropout and under lag, and name the right cause?"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import LearningError
from flow_dpo.core.types import Completion, Pair, Request, by_role
from flow_dpo.learner.gradients import Gradients
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.logprobs import PackedLogprobs
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import LearnerSettings, ReferenceSettings, RowSettings
from flow_dpo.models import drift
from flow_dpo.models.drift_causes import labels_of, own_logits
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import ROLES, answer_pair, pairs_of_tree
from tests.support.tiny_models import tiny_model


def learner(*, lora: LoraSettings | None = None, stirred: bool = True, **values: Any) -> Learner:
    policy = Policy(tiny_model("llama"), ROLES, lora or LoraSettings(lora_r=4), seed=5)
    return Learner(stir(policy) if stirred else policy, LearnerSettings(examples_per_update=0, **values))


def pairs(num_trees: int = 3) -> list[Pair]:
    rng = random.Random(0)
    return [p for tree in range(num_trees) for p in pairs_of_tree(rng, f"p{tree}", num_nodes=3)]


def recorded(
    policy: Policy,
    made: list[Pair],
    version: int,
    *,
    adapter: str | None = "its own",
    temperature: float = 1.0,
    prompt: Callable[[Request], Request] = lambda request: request,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
) -> list[Pair]:
    """The pairs as an engine would have recorded them, under this adapter, temperature and prompt."""

    def record(request: Request, completion: Completion) -> Completion:
        with torch.no_grad(), policy.using(request.role if adapter == "its own" else adapter):
            logits = own_logits(policy.model, prompt(request), completion) / temperature
        labels = labels_of(request, completion)
        values = change(logits.log_softmax(-1)[range(len(labels)), labels])
        return replace(completion, logprobs=tuple(values.tolist()), policy_version=version)

    return [replace(p, chosen=record(p.request, p.chosen), rejected=record(p.request, p.rejected)) for p in made]


def noise(low: float, high: float) -> Callable[[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda values: values + low + (high - low) * torch.rand(values.shape, generator=generator)


def refusal(student: Learner, made: list[Pair]) -> str:
    before = [w.clone() for w in student.policy.weights("answer")]
    with pytest.raises(
        LearningError, match=r"role '\w+': log-probabilities at sampling.*nothing was changed"
    ) as caught:
        student.update(Dpo(), made)
    assert all(torch.equal(a, b) for a, b in zip(before, student.policy.weights("answer"), strict=True))
    return str(caught.value)


CAUSES: dict[str, dict[str, Any]] = {
    "the adapter of 'stop' to": {"adapter": "stop"},
    "the base without an adapter to": {"adapter": None},
    "a temperature of 0.70 to": {"temperature": 0.7},
    "a temperature of 1.60 to": {"temperature": 1.6},
    "a prompt without its first token to": {"prompt": lambda r: replace(r, prompt_ids=r.prompt_ids[1:])},
    "a prompt without its last token to": {"prompt": lambda r: replace(r, prompt_ids=r.prompt_ids[:-1])},
    "a prompt that begins with one more token to": {"prompt": lambda r: replace(r, prompt_ids=(1, *r.prompt_ids))},
    "as rounding in a coarser precision does": {"change": noise(-0.6, 0.6)},
    "no known cause fits: the engine computes another": {"change": noise(-6.0, 0.0)},
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_is_named(cause: str, dropout: float) -> None:
    student = learner(lora=LoraSettings(lora_r=4, lora_dropout=dropout))
    made = by_role(pairs(8))["answer"]
    found = refusal(student, recorded(student.policy, made, 0, **CAUSES[cause]))
    assert cause in found
    if " to" in cause:
        assert f"what was recorded fits {cause}" in found


def test_mixed_up_requests_are_named() -> None:
    student = learner(max_logprob_drift=0.05)
    made = [answer_pair((5, 6, 7, 8 + i), (9, 10 + i), (11, 12 + i), problem=f"p{i}") for i in range(4)]
    wrong = {p.request.prompt_ids: made[(i + 1) % 4].request.prompt_ids for i, p in enumerate(made)}
    asked = recorded(
        student.policy, made[:1], 0, prompt=lambda r: replace(r, prompt_ids=wrong[r.prompt_ids])
    ) + recorded(student.policy, made[1:], 0)
    assert "fits the prompt of another request" in refusal(student, asked)


def test_first_tokens_alone_are_told() -> None:
    student = learner()
    rng = random.Random(1)
    long = [tuple(rng.randrange(5, 128) for _ in range(24)) for _ in range(4)]
    made = [answer_pair((5, 6, 7), long[0], long[1]), answer_pair((5, 6, 8), long[2], long[3])]
    found = refusal(
        student, recorded(student.policy, made, 0, change=lambda x: torch.cat([x[:3] - 4 - torch.rand(3), x[3:]]))
    )
    assert "the first four tokens differ by" in found
    assert "as with another prompt" in found


def test_an_earlier_version_is_named() -> None:
    student = learner(learning_rate=0.02, max_logprob_drift=0.05)
    made = by_role(pairs())["answer"]
    stale = recorded(student.policy, made, 1)  # by version 0, but said to be of version 1
    student.update(Dpo(), recorded(student.policy, made, 0))
    assert "fits version 0 of 'answer' to" in refusal(student, stale)


def test_a_learner_that_computes_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    student = learner()
    made = recorded(student.policy, by_role(pairs())["answer"], 0)
    student._gradients.check()  # the model passes, and then something breaks
    plain = PackedLogprobs.__call__
    monkeypatch.setattr(PackedLogprobs, "__call__", lambda self: [found - 1 for found in plain(self)])
    assert "the learner is at fault" in refusal(student, made)


def test_dropout_is_left_out_of_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    student = learner(lora=LoraSettings(lora_r=4, lora_dropout=0.5))
    made = by_role(recorded(student.policy, pairs(6), 0))["answer"]
    computed = list[int]()
    original = Gradients._compare_again
    monkeypatch.setattr(
        Gradients,
        "_compare_again",
        lambda self, role, examples, account: [
            original(self, role, examples, account),
            computed.append(len(account.drift.completions)),
        ],
    )
    row = student.update(Dpo(), made)
    assert row["learn/answer/max_logprob_drift"] < 1e-4
    assert 0 < computed[0] <= drift.SAMPLE < 2 * len(made)
    assert 0 < row["learn/answer/compared_share"] < 0.5


def test_at_the_start_the_reference_is_the_version_that_sampled() -> None:
    """Version 0 is the base: compared for nothing under the reference, with any lag."""
    student = learner(stirred=False, learning_rate=0.02)
    made = recorded(student.policy, pairs(), 0)
    for _ in range(3):
        row = student.update(Dpo(), made)
        for role in ROLES:
            assert row[f"learn/{role}/max_logprob_drift"] < 1e-4
            assert row[f"learn/{role}/compared_share"] == 1.0


def test_under_lag_only_what_is_at_hand_is_compared() -> None:
    student = learner(learning_rate=0.02, reference=ReferenceSettings(kind="snapshot", every=2))
    made = by_role(pairs())["answer"]
    by_version = dict[int, list[Pair]]()
    for version in range(4):
        by_version[version] = recorded(student.policy, made, version)
        student.update(Dpo(), by_version[version])
    by_version[4] = recorded(student.policy, made, 4)
    # Version 4, and the reference has been at 4 since: 3 and 2 are not at hand.
    row = student.update(Dpo(), by_version[4] + by_version[3])
    assert row["learn/answer/compared_share"] == pytest.approx(0.5)
    assert row["learn/answer/max_logprob_drift"] < 1e-4
    # Version 5: the reference still holds 4.
    row = student.update(Dpo(), by_version[4] + by_version[2])
    assert row["learn/answer/compared_share"] == pytest.approx(0.5)
    assert row["learn/answer/max_logprob_drift"] < 1e-4
    # Nothing to compare is not a drift of zero.
    row = student.update(Dpo(), by_version[2])
    assert row["learn/answer/compared_share"] == 0.0
    assert "learn/answer/logprob_drift" not in row
    lagging = learner(reference=ReferenceSettings(kind="snapshot", every=1, lerp=0.5))
    lagging.update(Dpo(), recorded(lagging.policy, made, 0))
    assert lagging.update(Dpo(), by_version[0])["learn/answer/compared_share"] == 0.0, "the reference is between two"


def test_rows_do_not_change_what_is_compared() -> None:
    policy = stir(Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4)))
    made = by_role(recorded(policy, pairs(), 3, change=noise(-0.1, 0.3)))["answer"]
    found = [
        Gradients(policy, rows, dict.fromkeys(ROLES)).compute(Dpo(), "answer", made, 3).measures
        for rows in (RowSettings(), RowSettings(max_tokens=1), RowSettings(packed=False, max_tokens=50))
    ]
    for name in ("logprob_drift", "max_logprob_drift", "compared_share"):
        assert [row[name] for row in found] == pytest.approx([found[0][name]] * 3, abs=1e-5)
    assert found[0]["logprob_drift"] == pytest.approx(0.14, abs=0.05)
