"""Growth of computed tokens with the depth of a tree, against computing every sequence alone.

    python -m benchmarks.depth                # writes benchmarks/depth.png

Token counts, which are the same on every machine, on a random model of a few thousand weights. The question has 150
tokens, a chunk 160.

- Learning: the tokens that go through the model in one update on both roles' pairs of a tree, as the learner counts
  them, against computing every completion after its own prompt. Growth is the ratio of the tokens at 16 nodes to those
  at 8: 2 is linear, 4 quadratic.
- Rollouts: the prompt tokens read and the tokens sampled by a flow whose Stop never ends a rollout, with an alternative
  at every node sampled to the end, against reading every prompt whole. The number of sampled tokens itself grows with
  the square of the depth, so growth is that of the tokens computed per sampled token, from 8 to 16 nodes: 1 means that
  it does not grow, 2 that it doubles with the depth.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import Figure
from benchmarks.workloads import Shape, random_model, tree_pairs
from flow_dpo.core.answer_stop import AnswerStop, AnswerStopPrompts, AnswerStopState
from flow_dpo.core.dpo import Dpo
from flow_dpo.core.explore import Siblings
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.types import Completion, Piece, Problem, Request, Turn
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.learner.gradients import RowSettings
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import Policy

MODULE = "benchmarks.depth"
ROLES = ("answer", "stop")
PICTURE = Path(__file__).parent / "depth.png"
Counts = list[tuple[int, int]]
"""At each depth: tokens computed by ours, and unshared."""


@dataclass(frozen=True, kw_only=True)
class EveryChunk(AnswerStop):
    """The paper's flow with a Stop whose choice is sampled and ignored: every rollout has all its chunks."""

    def advance(self, state: AnswerStopState, completion: Completion) -> AnswerStopState:
        if state.next_role == "stop":
            return replace(state, runner="answer")
        return super().advance(state, completion)


class Ids:
    """A renderer of made-up words: the question is as many tokens as it has letters."""

    def render(self, turn: Turn) -> Request:
        ids: list[int] = []
        for piece in [*(p for message in turn.messages for p in message.content), *turn.continuation]:
            ids += [5 + ord(letter) % 400 for letter in piece] if isinstance(piece, str) else piece
        return Request(
            role=turn.role, prompt_ids=tuple(ids), max_tokens=turn.max_tokens, choices=(3, 4) if turn.choices else ()
        )

    def to_text(self, pieces: Sequence[Piece]) -> str:
        return " ".join(piece if isinstance(piece, str) else " ".join(map(str, piece)) for piece in pieces)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--prompt_tokens", type=int, default=150)
    parser.add_argument("--chunk_tokens", type=int, default=160)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    settings = parser.parse_args()
    if settings.tiny:
        settings.prompt_tokens, settings.chunk_tokens = 12, 6
    learning = [learned(Shape(settings.prompt_tokens, settings.chunk_tokens, n)) for n in settings.depths]
    rollouts = [count_rollouts(settings, n) for n in settings.depths]
    draw(settings, learning, [(ours, unshared) for ours, unshared, _ in rollouts])
    keep(settings, learning, rollouts)


def learned(shape: Shape) -> tuple[int, int]:
    """Tokens of one update, ours and unshared."""
    policy = Policy(random_model("tiny"), ROLES)
    # One row holds the deepest tree: a tree that is cut computes its trunk once a row.
    rows = RowSettings(max_tokens=1 << 16)
    learner = Learner(policy, LearnerSettings(examples_per_update=0, rows=rows))
    row = learner.update(Dpo(beta=0.1), tree_pairs(random.Random(0), "p", shape, vocabulary=512))
    ours, unshared = (int(sum(row[f"learn/{r}/{name}"] for r in ROLES)) for name in ("tokens", "unshared_tokens"))
    return ours, unshared


def count_rollouts(settings: argparse.Namespace, num_chunks: int) -> tuple[int, int, int]:
    """Tokens computed by ours and unshared, and tokens sampled, of the rollouts of one problem."""
    policy = Policy(random_model("tiny"), ROLES)
    engine = LocalEngine(policy.model, role_model=policy.using, end_ids=(), context_tokens=8192)
    prompts = AnswerStopPrompts(answer_system="", stop_system="", stop_user="{question}{candidate} right?")
    flow = EveryChunk(chunk_tokens=settings.chunk_tokens, max_chunks=num_chunks, prompts=prompts)
    problem = Problem(id="p", question="q" * settings.prompt_tokens, gold="1")
    Siblings()(flow, RolloutRunner(engine, Ids()), [problem], seed=0)
    stats = engine.take_stats()
    ours = stats["prefilled_tokens"] + stats["sampled_tokens"]
    return int(ours), int(ours + stats["reused_tokens"]), int(stats["sampled_tokens"])


def keep(settings: argparse.Namespace, learning: Counts, playing: Sequence[tuple[int, int, int]]) -> None:
    depths = settings.depths
    ours, unshared = (learning[-1][side] / learning[-2][side] for side in (0, 1))
    costs = [(ours / sampled, unshared / sampled) for ours, unshared, sampled in playing]
    details = {
        "depths": depths,
        "learning": learning,
        "playing": playing,
        "tokens_computed_a_token_sampled": costs,
    }
    last = f"{depths[-2]} to {depths[-1]} nodes"
    figures = [
        Figure(name=f"depth, learning: growth of ours, {last}", ratio=ours, reach="<= 2.1", details=details),
        Figure(name=f"depth, learning: growth of unshared, {last}", ratio=unshared, reach=">= 3", details=details),
        *(
            Figure(
                name=f"depth, playing: growth of {side} a sampled token, {last}",
                ratio=costs[-1][i] / costs[-2][i],
                reach=bound,
                details=details,
            )
            for i, (side, bound) in enumerate((("ours", "<= 1.1"), ("unshared", ">= 1.5")))
        ),
    ]
    for depth, (a, b), (c, d, sampled) in zip(depths, learning, playing, strict=True):
        print(f"{depth} nodes: learning {a} of {b} tokens, playing {c} of {d} tokens for {sampled} sampled")
    measuring.keep(figures, settings, MODULE)


def draw(settings: argparse.Namespace, learning: Counts, playing: Counts) -> None:
    """Tokens against depth, on plain axes: a straight line is linear."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, title, counts in zip(axes, ("learning", "playing"), (learning, playing), strict=True):
        for name, side, color in (("unshared", 1, "#c4581b"), ("ours", 0, "#1668b8")):
            axis.plot(settings.depths, [count[side] / 1000 for count in counts], marker="o", label=name, color=color)
        axis.set_title(f"{title} one tree: question {settings.prompt_tokens}, chunks of {settings.chunk_tokens}")
        axis.title.set_size(9)
        axis.set_xlabel("chunks in the trunk")
        axis.set_ylabel("thousand tokens computed")
        axis.set_ylim(bottom=0)
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(settings.picture, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
