"""Flow-DPO (arXiv 2410.22304) in one file: two roles write solutions together and learn from each other's choices.

    python examples/flow_dpo_loop.py --max_problems 32

It runs in under a minute on a laptop's CPU, on the small model that ships in this package. An Answer role writes a
solution chunk by chunk; after every chunk a Stop role chooses Yes (it is finished and right) or No (continue). Each
role is a LoRA adapter over one frozen base. At every turn an alternative completion is sampled too, and continued to
the end. If one of the two ends in a right solution and the other in a wrong one, the role has a preference to learn.

          answer ---- stop: No ---- answer ---- stop: Yes      right      the trunk
            |            |             |            |
         otherwise      Yes        otherwise        No                    one sibling at every node of it,
            :            :             :            :                     each continued to its end
          wrong        wrong         right        right
          = pair       = pair        no pair      no pair

The imports are what a reader can take for granted: a flow that gives each role its turns, an engine that completes
token ids, a verifier that compares final answers, LoRA. The whole method is below: the product (`flow_dpo.learn`) makes
the same pairs and the same losses from the same seed, and a test compares the two.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import logsigmoid

import flow_dpo
from flow_dpo import Completion, Flow, PlainEngine, Policy, Problem, Renderer, Request, Sampling, Verifier
from flow_dpo.core.divergence import draw_divergence, splice
from flow_dpo.core.seeds import derive

# ---- 0. The numbers: the preset "seed" of the recipe "flow-dpo-paper" ----------------------------------------------

SEED = 0
PROBLEMS_PER_BATCH = 32  # sampled with one version of the adapters
PAIRS_PER_UPDATE = 32
BETA = 1.0  # DPO's beta: how strongly the policy is pulled towards its reference
LEARNING_RATE, WARMUP, DECAY_AFTER = 3e-3, 8, 30  # rises for a role's first 8 updates, falls as 1/t after 30
MAX_GRAD_NORM = 1.0
REFERENCE_EVERY = 8  # updates between two moves of the reference to the policy


@dataclass
class Pair:
    """A preference: two completions of one request. The chosen one led to a right solution, the other did not."""

    request: Request
    chosen: Completion
    rejected: Completion


class Sampler:
    """Everything that samples a turn and grades a solution."""

    def __init__(self, flow: Flow, engine: PlainEngine, renderer: Renderer, verifier: Verifier) -> None:
        self.flow, self.engine, self.renderer, self.verifier = flow, engine, renderer, verifier

    def complete(self, request: Request, seed: int, excluded: tuple[int, ...] = ()) -> Completion:
        """One completion, from token ids to token ids."""
        sampling = Sampling() if request.choices else Sampling(temperature=1.0, top_p=0.97)
        ticket = self.engine.submit(request, sampling, seed=seed, excluded=excluded)
        return dict(self.engine.poll())[ticket]

    # ---- 1. A rollout: the flow's turns, one after the other -------------------------------------------------------

    def rollout(self, problem: Problem, state, depth: int = -1, turns: int = 0) -> Iterator[tuple]:
        """Continue from `state`, yielding (state, request, completion) for every turn, then (state, None, None).

        `depth` is the node of the trunk that this is an alternative to (-1: it is the trunk); `turns` is the number of
        turns already taken. Every random number derives from these, so a rollout does not depend on its batch.
        """
        while (turn := self.flow.turn(state)) is not None:
            request = self.renderer.render(turn)  # text becomes token ids; sampled ids stay as they are
            completion = self.complete(request, derive(SEED, problem.id, depth, 0, turns))
            yield state, request, completion
            state, turns = self.flow.advance(state, completion), turns + 1
        if (turn := self.flow.closing(state)) is not None:  # cut off: is the answer complete?
            closing = self.complete(self.renderer.render(turn), derive(SEED, problem.id, depth, 0, turns))
            state = self.flow.advance(state, closing)
        yield state, None, None

    def reward(self, problem: Problem, state) -> float | None:
        """1 if the final answer is right, 0 if it is wrong, None if it cannot be graded."""
        solution = self.flow.solution(state)
        text = self.renderer.to_text(solution.pieces)
        return self.verifier.grade_many([(problem.gold, text, solution.ended)])[0].reward

    # ---- 2. A sibling: something else at one node of the trunk -----------------------------------------------------

    def sibling(self, problem: Problem, depth: int, request: Request, sampled: Completion) -> Completion | None:
        """Another completion of the same request, drawn from the policy conditioned on being different."""
        if request.choices:  # Stop has two choices: take the other one
            other = 1 if sampled.choice == 0 else 0
            logprob = (sampled.choice_logprobs[other],)
            ids = (request.choices[other],)
            return replace(sampled, choice=other, token_ids=ids, logprobs=logprob, sampled_logprobs=logprob)
        # Answer's sibling must differ from the trunk's completion. The probability that it first differs at token t is
        #     q(y_1) ... q(y_t-1) (1 - q(y_t)) / (1 - q(y)):
        # draw t, keep the tokens before it, forbid y_t, and sample freely from there. One exact draw, never the same.
        rng = random.Random(derive(SEED, problem.id, depth, 0, "divergence"))
        divergence = draw_divergence([sampled], rng)
        if divergence is None:  # the policy is certain: nothing else has any probability
            return None
        prefix = sampled.token_ids[: divergence.kept]
        rest = replace(request, prompt_ids=request.prompt_ids + prefix, max_tokens=request.max_tokens - len(prefix))
        seed = derive(SEED, problem.id, depth, 0, "completion")
        return splice(divergence, self.complete(rest, seed, divergence.excluded_ids))

    # ---- 3. The pairs of a problem: where trunk and sibling end differently ----------------------------------------

    def pairs(self, problem: Problem) -> tuple[list[Pair], float | None]:
        """The pairs of one problem, and the trunk's reward."""
        *trunk, (last, _, _) = self.rollout(problem, self.flow.start(problem))
        reward = self.reward(problem, last)
        pairs = []
        for depth, (state, request, sampled) in enumerate(trunk):
            other = self.sibling(problem, depth, request, sampled)
            if other is None:
                continue
            *_, (end, _, _) = self.rollout(problem, self.flow.advance(state, other), depth, turns=1)
            match reward, self.reward(problem, end):
                case 1.0, 0.0:
                    pairs.append(Pair(request, chosen=sampled, rejected=other))
                case 0.0, 1.0:
                    pairs.append(Pair(request, chosen=other, rejected=sampled))
        return pairs, reward


# ---- 4. Log-probabilities: one forward for a completion ------------------------------------------------------------


def logprob(model: torch.nn.Module, request: Request, completion: Completion) -> torch.Tensor:
    """log p(completion | request), summed over its tokens, under the adapter that is on."""
    ids, start = request.prompt_ids + completion.token_ids, len(request.prompt_ids)
    logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0, start - 1 :]
    if request.choices:  # among Stop's two choices alone, as when it was sampled
        return logits[0, list(request.choices)].log_softmax(-1)[completion.choice]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None]).sum()


# ---- 5. The update: DPO, each role on its own pairs ----------------------------------------------------------------


class Learner:
    """An adapter and an optimizer for each role, and a frozen copy of the adapter to compare with."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.optimizers = {r: torch.optim.AdamW(policy.weights(r), weight_decay=0.0) for r in policy.roles}
        self.references = {role: policy.snapshot(role) for role in policy.roles}
        self.updates = dict.fromkeys(policy.roles, 0)
        self.version = 0
        self.pool: list[Pair] = []

    def learn(self, pairs: list[Pair]) -> list[dict[str, float]]:
        """Pool the pairs; every 32 of them make one update. Returns each update's loss by role."""
        self.pool += pairs
        losses = []
        while len(self.pool) >= PAIRS_PER_UPDATE:
            batch, self.pool = self.pool[:PAIRS_PER_UPDATE], self.pool[PAIRS_PER_UPDATE:]
            by_role = {role: [p for p in batch if p.request.role == role] for role in self.policy.roles}
            losses.append({role: self.step(role, mine) for role, mine in by_role.items() if mine})
            self.version += 1
            if self.version % REFERENCE_EVERY == 0:
                for role in self.policy.roles:
                    self.policy.move_snapshot(role, 1.0)
        return losses

    def step(self, role: str, pairs: list[Pair]) -> float:
        """One step on the mean of -log sigmoid(beta (log-ratio of chosen - log-ratio of rejected))."""
        policy, weights, loss = self.policy, self.policy.weights(role), 0.0
        for pair in pairs:  # one after the other: the gradients add up
            with torch.no_grad(), policy.using(self.references[role]) as model:
                reference = [logprob(model, pair.request, c) for c in (pair.chosen, pair.rejected)]
            with policy.using(role, training=True) as model:
                chosen, rejected = (logprob(model, pair.request, c) for c in (pair.chosen, pair.rejected))
                h = BETA * ((chosen - reference[0]) - (rejected - reference[1]))
                each = -logsigmoid(h) / len(pairs)
                each.backward()
            loss += each.item()
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        self.updates[role] += 1
        t = self.updates[role]
        optimizer = self.optimizers[role]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, t / WARMUP) * min(1.0, DECAY_AFTER / t)
        optimizer.step()
        optimizer.zero_grad()
        policy.publish(role)
        return loss


# ---- 6. The loop ---------------------------------------------------------------------------------------------------


def run(max_problems: int, problems_per_batch: int = PROBLEMS_PER_BATCH) -> Iterator[tuple[list[Pair], list[dict]]]:
    """Sample, validate and learn, batch by batch. Yields each batch's pairs and the losses of its updates."""
    loaded = flow_dpo.load_model("seed")
    flow = flow_dpo.load_recipe("flow-dpo-paper", "seed").flow
    policy = Policy(loaded.model, flow.roles, flow_dpo.LoraSettings(lora_r=8, lora_alpha=8), seed=SEED)
    engine = PlainEngine(
        policy.model, role_model=policy.using, end_ids=loaded.end_ids, context_tokens=loaded.context_tokens
    )
    learner, rewards = Learner(policy), []
    problems = list(flow_dpo.load_problems("seed", max_problems=max_problems))
    with Verifier() as verifier:
        sampler = Sampler(flow, engine, loaded.renderer, verifier)
        for start in range(0, len(problems), problems_per_batch):
            pairs = []
            for problem in problems[start : start + problems_per_batch]:
                found, reward = sampler.pairs(problem)
                pairs += found
                rewards += [reward] if reward is not None else []  # validated before it is learned from
            losses = learner.learn(pairs)
            right = f"{len(rewards)} problems, {sum(rewards) / max(len(rewards), 1):.0%} right before learning"
            shown = [", ".join(f"{role} {loss:.3f}" for role, loss in each.items()) for each in losses]
            print(f"{right} | {len(pairs)} pairs | updates: {'; '.join(shown) or 'none yet'}")
            yield pairs, losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Flow-DPO in one file, on the embedded seed model.")
    parser.add_argument("--max_problems", type=int, default=32)
    parser.add_argument("--problems_per_batch", type=int, default=PROBLEMS_PER_BATCH)
    for _ in run(**vars(parser.parse_args())):
        pass
