"""Arms of a comparison that test whether a team is better than its members: flow, Answer alone, votes, Stop.

    flow_itself      against    answer_adapter                    the flow and its own Answer in one pass
    flow_itself      against    answer_votes, untrained_votes     and several attempts by vote, at equal tokens
    flow_itself      against    paper_flow                        and the paper's flow, on equally many problems
    trained_stop     against    untrained_stop, paper_stop        two Stops on one fixed set of candidates
    likelier_choice  against    likelier_choice_untrained_stop    Answer is sampled, Stop gives its likelier answer

Attempts are drawn once for each set of problems (`flow-dpo evaluate --draws`) and serve all of this; those of the
untrained Answer are also the fixed set. Invariant: votes and Stops have no accuracy of their own in the table of arms;
their results are under `team` in comparison.json (`team`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from flow_dpo.evaluate.compare.arms import Arm, Kind, Make, Outcome, Sizes, compiled, draw_flags, enough, evaluated
from flow_dpo.evaluate.compare.jobs import JobRunner, Work
from flow_dpo.recipes import presets

PAPER_RECIPE = "flow-dpo-paper"
OTHER_SEED = 500
"""Added to a seed for a second run of the flow on the same problems."""
LIKELIER = ("--explore.choice_temperature", "0.001")
"""Choices are the likelier one where texts are sampled. Tested greedily, an arm with these flags is the one without."""
FIXED = "held_out"
"""The problem set whose untrained attempts are the fixed set of candidates."""


def _draws(do: JobRunner, sizes: Sizes, name: str, problems: str, run: Work | None = None) -> Path:
    flags = ("--draws", str(sizes.test_draws))
    return do.evaluate(f"evaluations/{name}/{problems}-draws", problems, *flags, run=run)


def _voted(do: JobRunner, sizes: Sizes, name: str, *works: Work) -> Outcome:
    """Attempts at the problems of every test."""
    sets = dict.fromkeys(test.partition("/")[0] for test in sizes.tests)
    run = works[-1] if works else None
    drawn = {problems: _draws(do, sizes, name, problems, run) for problems in sets}
    return Outcome(works=works, evaluations={}, votes=drawn)


def _answer_votes(do: JobRunner, sizes: Sizes) -> Outcome:
    return _voted(do, sizes, "answer_votes", do.train("flow"))


def _untrained_votes(do: JobRunner, sizes: Sizes) -> Outcome:
    return _voted(do, sizes, "untrained_votes")


def _paper(do: JobRunner, sizes: Sizes) -> Work:
    """The paper's flow with the comparison's lengths, on equally many problems."""
    flow = presets.preset(PAPER_RECIPE, sizes.preset).recipe.flow
    lengths = (
        [] if sizes.flow_shape is None else list(zip(("chunk_tokens", "max_chunks"), sizes.flow_shape, strict=True))
    )
    flags = [word for name, value in lengths if getattr(flow, name) != value for word in (f"--{name}", str(value))]
    return do.train("paper_flow", *flags, recipe=PAPER_RECIPE)


def _paper_draws(sizes: Sizes) -> list[str]:
    return draw_flags(presets.preset(PAPER_RECIPE, sizes.preset).recipe.explore, sizes.draws)


def _paper_flow(do: JobRunner, sizes: Sizes) -> Outcome:
    work = _paper(do, sizes)
    found = evaluated(do, sizes, "paper_flow", "--mode", "flow", *_paper_draws(sizes), run=work)
    return Outcome(works=(work,), evaluations=found)


def _paper_answer(do: JobRunner, sizes: Sizes) -> Outcome:
    work = _paper(do, sizes)
    flags = ("--mode", "single", "--roles", "[answer]", *_paper_draws(sizes))
    return Outcome(works=(work,), evaluations=evaluated(do, sizes, "paper_answer", *flags, run=work))


def _stop(name: str, of: Literal["untrained", "flow", "paper"]) -> Make:
    """A Stop that judges the untrained Answer's attempts."""

    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        fixed = _draws(do, sizes, "untrained_votes", FIXED)
        works = () if of == "untrained" else (do.train("flow") if of == "flow" else _paper(do, sizes),)
        run = works[-1] if works else None
        judged = do.evaluate(f"evaluations/{name}", "fixed", "--candidates", str(fixed), run=run)
        return Outcome(works=works, evaluations={}, stop=judged)

    return make


def _with_stop(name: str, of: Literal["trained", "untrained", "other"], *drawn: str) -> Make:
    """The trained Answer with its own Stop, the base as Stop, or the Stop of another run on the same problems."""

    def make(do: JobRunner, sizes: Sizes) -> Outcome:
        flow = do.train("flow")
        works, flags = (flow,), [] if of == "trained" else ["--roles", "[answer]"]
        if of == "other":
            other = do.train("other_flow", seed=do.seed + OTHER_SEED, rate_of="flow")
            works, flags = (flow, other), ["--role_runs", json.dumps({"stop": str(other.folder)})]
        found = evaluated(do, sizes, name, "--mode", "flow", *flags, *drawn, run=flow)
        return Outcome(works=works, evaluations=found)

    return make


def _traces_with_untrained_stop(do: JobRunner, sizes: Sizes) -> Outcome:
    flow, name = do.train("flow"), "traces_with_untrained_stop"
    flags = ("--mode", "flow", "--roles", "[answer]", *enough(sizes))
    return compiled(do, sizes, name, do.traces(f"traces/{name}", *flags, run=flow), flow)


def _with_untrained_answer(do: JobRunner, sizes: Sizes) -> Outcome:
    flow = do.train("flow")
    flags = ("--mode", "flow", "--roles", "[stop]")
    return Outcome(works=(flow,), evaluations=evaluated(do, sizes, "untrained_answer_trained_stop", *flags, run=flow))


def _arm(name: str, kind: Kind, what: str, make: Make, *against: str) -> Arm:
    return Arm(name=name, kind=kind, what=what, make=make, against=against)


_ARMS = (
    _arm("answer_votes", "votes", "attempts of the trained flow's Answer, by vote or by its Stop", _answer_votes),
    _arm("untrained_votes", "votes", "attempts of the base, by vote or by the untrained Stop", _untrained_votes),
    _arm(
        "untrained_stop",
        "stop",
        "the base as Stop, on the untrained Answer's attempts",
        _stop("untrained_stop", "untrained"),
    ),
    _arm("trained_stop", "stop", "the trained flow's Stop, on the same", _stop("trained_stop", "flow")),
    _arm(
        "paper_flow",
        "flow",
        "the paper's flow and pairs, trained on as many problems, not compiled",
        _paper_flow,
        "flow_itself",
    ),
    _arm(
        "paper_answer",
        "single",
        "the paper's flow's Answer adapter in one pass, not compiled",
        _paper_answer,
        "paper_flow",
    ),
    _arm(
        "trained_answer_untrained_stop",
        "flow",
        "the trained flow's Answer with the base as Stop: what Stop has learned, taken away",
        _with_stop("trained_answer_untrained_stop", "untrained"),
        "flow_itself",
    ),
    _arm(
        "untrained_answer_trained_stop",
        "flow",
        "the base as Answer with the trained flow's Stop: what Answer has learned, taken away",
        _with_untrained_answer,
        "flow_itself",
        "untrained_flow_itself",
    ),
    _arm(
        "cross_play",
        "flow",
        "the trained flow's Answer with the Stop of another run on the same problems",
        _with_stop("cross_play", "other"),
        "flow_itself",
        "trained_answer_untrained_stop",
    ),
    _arm(
        "likelier_choice",
        "flow",
        "the trained flow, whose Stop gives its likelier answer also where Answer is sampled",
        _with_stop("likelier_choice", "trained", *LIKELIER),
        "flow_itself",
        "answer_adapter",
    ),
    _arm(
        "likelier_choice_untrained_stop",
        "flow",
        "the same with the base as Stop",
        _with_stop("likelier_choice_untrained_stop", "untrained", *LIKELIER),
        "likelier_choice",
        "trained_answer_untrained_stop",
    ),
    _arm(
        "traces_with_untrained_stop",
        "compiled",
        "SFT on right solutions of the trained flow's Answer with the base as Stop",
        _traces_with_untrained_stop,
        "trained_flow",
    ),
    _arm("paper_stop", "stop", "the paper's flow's Stop, on the same attempts", _stop("paper_stop", "paper")),
)
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ARMS}
PARTS = ("untrained_flow_itself", "trained_answer_untrained_stop", "untrained_answer_trained_stop", "cross_play")
"""The contribution of each part: each role trained or not, two by two, and Answer with the Stop of another run."""
STOP = ("likelier_choice", "likelier_choice_untrained_stop", "traces_with_untrained_stop")
"""What Stop's learning is worth apart from the sampling of its answers, and to the traces."""
TEAM = ("zero_shot", "flow_itself", "answer_adapter", *(name for name in ARMS if name not in (*PARTS, *STOP)))
"""The flow, its members, their votes at equal tokens, and the paper's flow; together with the base."""
