"""Does learning go the right way, stop when it goes wrong, and go on where it stopped?"""

from __future__ import annotations

import functools
import math
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError, LearningError, ObjectiveError
from flow_dpo.core.objective import Loss
from flow_dpo.core.types import Pair, by_role
from flow_dpo.learner.gradients import Gradients, RowSettings
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.logprobs import PackedLogprobs
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import PassSettings, ReferenceSettings, RoleSettings
from tests.learner.test_logprobs import assert_same_gradient, policy_of, spoken_of, stir
from tests.support.packed_builders import ROLES, answer_pair, pair_lists, pairs_of_tree
from tests.support.tiny_models import KINDS, tiny_model


def learner(kind: str = "llama", *, lora: LoraSettings | None = None, **values: Any) -> Learner:
    policy = Policy(tiny_model(kind), ROLES, lora or LoraSettings(lora_r=4), seed=5)
    return Learner(policy, LearnerSettings(**{"learning_rate": 1e-3, "examples_per_update": 0, **values}))


def pairs(seed: int = 0, num_trees: int = 2) -> list[Pair]:
    rng = random.Random(seed)
    return [p for tree in range(num_trees) for p in pairs_of_tree(rng, f"p{tree}", num_nodes=3)]


def copies(policy: Policy) -> dict[str, list[torch.Tensor]]:
    return {a: [w.clone() for w in policy.weights(a)] for a in policy.adapters}


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@functools.cache
def ways_of_rows() -> list[Gradients]:
    """Packed rows, short ones, and a pair a row; each checks itself once."""
    ways = (RowSettings(), RowSettings(max_tokens=30), RowSettings(packed=False, max_tokens=50))
    return [Gradients(policy_of("qwen2"), rows, dict.fromkeys(ROLES)) for rows in ways]


@given(pair_lists())
@settings(max_examples=30, deadline=None)
def test_loss_and_gradient_do_not_depend_on_the_rows(made: list[Pair]) -> None:
    for role, examples in by_role(made).items():
        results = [each.compute(Dpo(beta=0.5), role, examples, version=0) for each in ways_of_rows()]
        for other in results[1:]:
            assert_same_gradient(other.pieces, results[0].pieces)
            # Differences of sums of some 60 nats, in float32.
            for name in ("loss", "margin", "chosen_logprobs", "rejected_logprobs", "chosen_ratio"):
                assert other.measures[name] == pytest.approx(results[0].measures[name], rel=1e-5, abs=5e-5)
            assert other.measures["unshared_tokens"] == results[0].measures["unshared_tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_log_two_exactly(kind: str) -> None:
    row = learner(kind).update(Dpo(), [replace(p, weight=1.0) for p in pairs()])
    for role in ROLES:
        assert row[f"learn/{role}/margin"] == 0.0
        assert row[f"learn/{role}/loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_chosen_rises_against_rejected_and_the_other_role_stays(kind: str, role: str) -> None:
    student = learner(kind)
    mine = by_role(pairs())[role]
    before = copies(student.policy)
    base = [p.clone() for n, p in student.policy.model.named_parameters() if ".lora_" not in n]

    def margins() -> torch.Tensor:
        with torch.no_grad(), student.policy.using(role):
            sums = torch.stack([x.sum() for x in PackedLogprobs(student.policy.model, spoken_of(mine))()])
        return sums[0::2] - sums[1::2]

    first = margins()
    row = student.update(Dpo(), mine)
    assert float((margins() - first).mean()) > 0
    assert row["learn/updates"] == 1
    assert student.version == 1
    assert [a.version for a in student.adapters.values()] == [1, 1]
    other = next(r for r in ROLES if r != role)
    assert same(before[other], student.policy.weights(other))
    assert not same(before[role], student.policy.weights(role))
    now = [p for n, p in student.policy.model.named_parameters() if ".lora_" not in n]
    assert same(base, now)
    again = student.update(Dpo(), mine)
    assert again[f"learn/{role}/margin"] > 0
    assert again[f"learn/{role}/loss"] < row[f"learn/{role}/loss"]


def test_the_step_is_adam_on_the_clipped_gradient() -> None:
    student = learner(max_grad_norm=0.5)
    stir(student.policy)
    mine = by_role(pairs())["answer"]
    gradient = Gradients(student.policy, RowSettings(), dict.fromkeys(ROLES)).compute(Dpo(), "answer", mine, 0)
    assert gradient.norm > 0.5
    before = copies(student.policy)["answer"]
    row = student.update(Dpo(), mine)
    assert row["learn/answer/grad_norm"] == pytest.approx(gradient.norm)
    # Adam's first step is lr * g / (|g| + eps), g after clipping.
    for old, new, piece in zip(before, student.policy.weights("answer"), gradient.pieces, strict=True):
        clipped = piece * 0.5 / gradient.norm
        torch.testing.assert_close(new, old - 1e-3 * clipped / (clipped.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def test_what_fills_no_update_waits_in_order() -> None:
    student = learner(examples_per_update=5)
    made = pairs()
    row = student.update(Dpo(), made[:4])
    assert (row["learn/updates"], row["learn/waiting"], student.version) == (0, 4, 0)
    assert not any(name.startswith("learn/answer") for name in row), "nothing learned, nothing said"
    row = student.update(Dpo(), made[4:])  # 12 in all
    assert (row["learn/updates"], row["learn/waiting"], student.version) == (2, 2, 2)
    assert row["learn/answer/pairs"] + row["learn/stop/pairs"] == 10
    assert student.pool == made[10:]
    assert student.update(Dpo(), [])["learn/updates"] == 0
    assert learner().update(Dpo(), [])["learn/updates"] == 0


def test_pooling_over_calls_is_pooling_in_one() -> None:
    made = pairs()
    whole, pieces = learner(examples_per_update=6), learner(examples_per_update=6)
    whole.update(Dpo(), made)
    for pair in made:
        pieces.update(Dpo(), [pair])
    assert same(whole.policy.weights("answer"), pieces.policy.weights("answer"))


def test_rates_of_roles_and_warm_up() -> None:
    student = learner(roles={"stop": RoleSettings(learning_rate=1e-4)}, warmup_updates=4)
    mine = by_role(pairs())
    rows = [student.update(Dpo(), mine["answer"] + (mine["stop"] if i >= 2 else [])) for i in range(6)]
    # A role's own updates count: Stop warms up later.
    assert [r["learn/answer/learning_rate"] for r in rows] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    assert [r["learn/stop/learning_rate"] for r in rows[2:]] == pytest.approx([2.5e-5, 5e-5, 7.5e-5, 1e-4])
    with pytest.raises(ConfigError, match="planner"):
        learner(roles={"planner": RoleSettings(learning_rate=1.0)})


def test_rates_fall_without_a_known_end() -> None:
    student = learner(warmup_updates=2, decay_after=3)
    rates = [student.update(Dpo(), by_role(pairs())["answer"])["learn/answer/learning_rate"] for _ in range(6)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 3e-3 / 4, 3e-3 / 5, 3e-3 / 6])
    slower = LearnerSettings(decay_after=4, schedule="inverse_sqrt")
    assert [slower.rate_share(update) for update in (1, 4, 16, 64)] == pytest.approx([1, 1, 0.5, 0.25])
    with pytest.raises(ConfigError, match="schedule \"inverse\" where decay_after is 0, found 'cosine'"):
        LearnerSettings(schedule="cosine")


def test_a_snapshot_reference_follows_when_told() -> None:
    student = learner(reference=ReferenceSettings(kind="snapshot", every=2, lerp=0.5))
    stir(student.policy)
    for role in ROLES:
        student.policy.snapshot(role)
    first = copies(student.policy)
    assert student.update(Dpo(), pairs())["learn/answer/margin"] == 0.0, "the reference is the policy, not the base"
    frozen = student.policy.weights("reference_answer")
    assert same(frozen, first["answer"])
    student.update(Dpo(), pairs())
    for old, new, reference in zip(first["answer"], student.policy.weights("answer"), frozen, strict=True):
        torch.testing.assert_close(reference, old + 0.5 * (new - old))
    with pytest.raises(ConfigError, match="snapshot"):
        ReferenceSettings(every=3)


def test_tokens_are_counted_as_computed_and_as_unshared() -> None:
    made = [answer_pair((5, 6), (7, 8), (7, 9)), answer_pair((5, 6, 7, 8), (9,), (2,))]
    row = learner().update(Dpo(), made)
    assert row["learn/answer/tokens"] == 4  # 5 6 7 8
    assert row["learn/answer/unshared_tokens"] == 3 + 3 + 4 + 4


def test_drift_from_what_was_sampled_stops_before_anything_is_changed() -> None:
    """What is compared, and which causes are told apart, is in test_drift."""
    student = learner()
    false = [replace(p, chosen=replace(p.chosen, policy_version=0)) for p in pairs()]
    before = copies(student.policy)
    with pytest.raises(LearningError, match="log-probabilities at sampling and at learning differ"):
        student.update(Dpo(), false)
    assert same(before["answer"], student.policy.weights("answer"))
    assert student.version == 0
    assert len(student.pool) == len(false), "the examples are kept for whoever looks into it"
    tolerant = learner(max_logprob_drift=0)
    assert tolerant.update(Dpo(), false)


class Listening(Dpo):
    """Keeps the log-probabilities that it was handed, in the order of the rows."""

    def __call__(self, examples: Any, policy: Any, reference: Any) -> Loss:
        HEARD.extend(pieces[0].tolist() for pieces in policy)
        return super().__call__(examples, policy, reference)


HEARD: list[list[float]] = []


def test_dropout_masks_differ_between_rows_and_repeat_with_the_update() -> None:
    policy = stir(Policy(tiny_model("llama"), ROLES, LoraSettings(lora_dropout=0.5)))
    pair = by_role(pairs())["answer"][0]
    twins = [replace(pair, problem_id=f"p{index}") for index in range(4)]  # of four trees: a row each
    gradients = Gradients(policy, RowSettings(max_tokens=1), dict.fromkeys(ROLES))

    def heard(version: int) -> list[list[float]]:
        HEARD.clear()
        gradients.compute(Listening(), "answer", twins, version)
        return list(HEARD)

    first = heard(0)
    assert len(first) == 4
    assert len({tuple(row) for row in first}) == 4, "no row has another's masks"
    assert heard(0) == first, "a resumed run equals the uninterrupted one"
    assert not {tuple(row) for row in heard(1)} & {tuple(row) for row in first}


def test_a_tie_is_half_a_right_order() -> None:
    row = learner().update(Dpo(), pairs())
    assert [row[f"learn/{role}/accuracy"] for role in ROLES] == [0.5, 0.5], "the reference is the policy"


class Broken(Dpo):
    """Answers with no number for a role's examples."""

    def __call__(self, examples: Any, policy: Any, reference: Any) -> Loss:
        loss = super().__call__(examples, policy, reference)
        factor = math.nan if examples[0].request.role == "stop" else 1.0
        return Loss(loss.total * factor, loss.measures)


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    student = learner()
    before, mine = copies(student.policy), pairs()
    with pytest.raises(LearningError, match="the loss of role 'stop' is nan at version 0; nothing was changed"):
        student.update(Broken(), mine)
    assert all(same(before[r], student.policy.weights(r)) for r in ROLES), "not even the role that was all right"
    assert (student.version, student.pool) == (0, mine)
    lenient = learner(passes=PassSettings(skip_nonfinite=True))
    row = lenient.update(Broken(), mine)
    assert (row["learn/skipped"], row["learn/updates"], lenient.version, lenient.pool) == (1, 0, 0, [])


def test_weights_that_are_no_numbers_are_found_in_the_gradient() -> None:
    student = learner()
    student.update(Dpo(), pairs())
    with torch.no_grad():
        student.policy.weights("answer")[0].fill_(math.inf)
    with pytest.raises(LearningError, match="is nan"):
        student.update(Dpo(), pairs())


class Deaf(Dpo):
    """Does not listen to the policy."""

    def __call__(self, examples: Any, policy: Any, reference: Any) -> Loss:
        return super().__call__(examples, reference, reference)


def test_a_loss_that_no_adapter_reaches() -> None:
    with pytest.raises(LearningError, match="does not depend on its adapter"):
        learner().update(Deaf(), pairs())


def test_an_update_that_moves_the_wrong_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    student = learner()
    stop = student.policy.weights("stop")[0]
    publish = student.policy.publish

    def meddle(adapter: str) -> None:
        stop.data += 1.0
        publish(adapter)

    monkeypatch.setattr(student.policy, "publish", meddle)
    with pytest.raises(LearningError, match="moved the adapter 'stop' as well"):
        student.update(Dpo(), by_role(pairs())["answer"])


def test_an_update_that_moves_nothing_is_found() -> None:
    with pytest.raises(LearningError, match="changed no parameter of 'answer'"):
        learner(learning_rate=1e-60).update(Dpo(), pairs())


def test_foreign_examples_are_refused_before_any_work() -> None:
    student = learner()
    with pytest.raises(ObjectiveError, match="accepts Pair"):
        student.update(Dpo(), ["no pair"])  # pyright: ignore[reportArgumentType]
    foreign = replace(pairs()[0], request=replace(pairs()[0].request, role="planner"))
    with pytest.raises(LearningError, match="planner"):
        student.update(Dpo(), [foreign])
    assert student.pool == []


def gemma2() -> Gemma2ForCausalLM:
    """Caps its attention scores, which no layout can."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=128,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                initializer_range=0.2,
                attn_logit_softcapping=2.0,
            )
        ).eval()


def refusing_layouts() -> Any:
    """Takes no arguments but those that it knows."""
    model = tiny_model("qwen2")
    decoder = model.get_decoder()
    plain = type(decoder).forward

    def forward(input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return plain(decoder, input_ids=input_ids, use_cache=use_cache)

    decoder.forward = forward
    model.forward = lambda input_ids, use_cache=False: SimpleNamespace(
        logits=model.lm_head(forward(input_ids).last_hidden_state)
    )
    return model


def deaf_to_layouts() -> Any:
    """Drops the layout on its way down, as a model would that knows nothing of them."""
    plain = tiny_model("llama")
    model = DeafLlama(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    return model


class DeafLlama(LlamaForCausalLM):
    """A family whose layers drop the layout."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(
                lambda _, args, kwargs: (
                    args,
                    {**kwargs, "layout": None} | ({"attention_mask": None} if kwargs.get("layout") else {}),
                ),
                with_kwargs=True,
            )


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [gemma2, deaf_to_layouts, refusing_layouts])
def test_a_model_that_cannot_share_prefixes_is_found_out(make: Any, dtype: torch.dtype) -> None:
    student = Learner(Policy(make().to(dtype), ROLES), LearnerSettings(examples_per_update=0))
    with pytest.warns(UserWarning, match="prefixes are not shared in learning") as caught:
        row = student.update(Dpo(), pairs())
    assert student.way[0] is False
    assert row["learn/answer/margin"] == 0.0
    assert row["learn/answer/tokens"] >= row["learn/answer/unshared_tokens"]
    student.update(Dpo(), pairs())
    assert len([w for w in caught if "prefixes" in str(w.message)]) == 1, "said once"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_can_is_left_in_peace(kind: str, dtype: torch.dtype) -> None:
    student = Learner(Policy(tiny_model(kind).to(dtype), ROLES), LearnerSettings(examples_per_update=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student.update(Dpo(), pairs())
    assert student.way[0] is True


def test_checkpointed_layers_learn_the_same() -> None:
    plain, saving = learner(), learner(rows=RowSettings(gradient_checkpointing=True))
    rows = [s.update(Dpo(), pairs()) for s in (plain, saving)]
    assert rows[0]["learn/answer/grad_norm"] == pytest.approx(rows[1]["learn/answer/grad_norm"], rel=1e-5)
    with torch.inference_mode(), saving.policy.using("answer"):
        saving.policy.model(input_ids=torch.tensor([[5, 6]]))  # an engine's way, which a checkpoint's hook would break
