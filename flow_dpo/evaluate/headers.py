"""JSON files of what was measured: summary.json of an evaluation and of a judge, judge.json and comparison.json.

Each kind names what readers rely on, and keeps what else the file holds (`runs.headers`). Invariant: a number is a
number or null wherever a table shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flow_dpo.data.typed_json import Count, others
from flow_dpo.evaluate.team_headers import TeamSummary

Interval = tuple[float, float]
Numbers = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class StopSummary:
    """How well Stop separates the kinds of candidates, which were graded one by one."""

    num_candidates: Numbers | None = None
    yes_rate: Numbers | None = None
    auc_right_over_wrong: float | None = None
    auc_finished_over_unfinished: float | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class StepQuality:
    """How many right solutions have a wrong step."""

    num_checked: float | None = None
    num_invalid: float | None = None
    invalid_rate: float | None = None
    interval: Interval | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Accuracy on the problems of one level or subject."""

    accuracy: float | None = None
    accuracy_graded: float | None = None
    num_ungraded: float | None = None
    interval: Interval | None = None
    num_problems: float | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An accuracy over problems, with its 95 % interval."""

    accuracy: float | None
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class VotesAtK:
    """What k attempts at a problem come to by each rule (`evaluate.votes`)."""

    tokens: float | None
    """Sampled for k attempts, a problem."""
    one_attempt: Measured
    majority: Measured
    weighted_majority: Measured
    best: Measured
    oracle: Measured
    weighted_by_right: Measured | None = None
    """By P(right), as the next one, where the flow has a judgement of its own."""
    best_by_right: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """What accepting the first attempt whose P(Yes), or P(right), exceeds a threshold comes to."""

    max_attempts: Count
    threshold: float
    accuracy: float | None
    interval: Interval
    tokens: float | None
    """Sampled until one is accepted, a problem."""
    attempts: float | None
    """Made until one is accepted, a problem."""


@dataclass(frozen=True, kw_only=True)
class VotesSummary:
    """Several attempts at each problem and Stop's P(Yes) of each (`evaluate.votes.summary`)."""

    by_k: Mapping[str, VotesAtK]
    threshold_curve: tuple[AtThreshold, ...]
    """Of P(Yes)."""
    right_curve: tuple[AtThreshold, ...] | None = None
    """Of P(right), where the flow has a judgement of its own: what the flow's threshold is in."""


@dataclass(frozen=True, kw_only=True)
class MeasuredArea:
    """An area under the curve, with its 95 % interval over problems."""

    area: float | None
    interval: Interval | None


AREA_WORDS = {"right_over_wrong": "right over wrong", "finished_over_unfinished": "finished over unfinished"}
"""How tables name the areas of a fixed set."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The probabilities from `low` to `high`: how many, their mean, and the share of right candidates among them."""

    low: float
    high: float
    num: Count
    mean: float | None
    right: float | None


@dataclass(frozen=True, kw_only=True)
class JudgementSummary:
    """A flow's judgement on a fixed set of candidates: what the same fields say of Stop alone, of P(right)."""

    weights: Numbers
    """The judgement's own: bias, stop, likelihood."""
    right_over_wrong: MeasuredArea
    mean_right: Numbers
    brier: float | None
    brier_of_share: float | None
    calibration_error: float | None
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, kw_only=True)
class CandidatesSummary:
    """Stop on a fixed set of candidates (`evaluate.candidates.measures`)."""

    file: str
    sha256: str
    """Of the file: where two are equal, two Stops judged the same candidates."""
    num: Numbers
    """By kind: right, wrong, unfinished, and those that were cut or ungraded, which are in no measure."""
    right_over_wrong: MeasuredArea
    finished_over_unfinished: MeasuredArea
    mean_yes: Numbers
    brier: float | None
    brier_of_share: float | None
    """Of a constant, the share of right candidates."""
    calibration_error: float | None
    """Expected calibration error over `bins`."""
    bins: tuple[ReliabilityBin, ...]
    sampled_by: str | None = None
    """The model that the candidates are of."""
    judgement: JudgementSummary | None = None
    """The flow's, where it is more than Stop alone."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """summary.json of `flow-dpo evaluate`."""

    SCHEMA: ClassVar[str] = "evaluation/1"
    accuracy: float | None
    """Right draws of all draws: what could not be graded was not shown to be right."""
    interval: Interval
    accuracy_graded: float | None = None
    """Right draws of those that could be graded; files without it state that share as `accuracy`."""
    ungraded_reasons: Numbers | None = None
    num_problems: float | None = None
    num_draws: float | None = None
    num_correct: float | None = None
    num_ungraded: float | None = None
    dataset: str | None = None
    model: str | None = None
    command: str | None = None
    settings: Mapping[str, Any] | None = None
    decoding: Mapping[str, Any] | None = None
    adapters: Mapping[str, Any] | None = None
    pass_at_k: Numbers | None = None
    majority_at_k: Numbers | None = None
    by_level: Mapping[str, Group] | None = None
    by_subject: Mapping[str, Group] | None = None
    stop: StopSummary | None = None
    votes: VotesSummary | None = None
    candidates: CandidatesSummary | None = None
    tokenizer: str | None = None
    """SHA-256 of the vocabulary that token ids are of."""
    steps_of_right_answers: StepQuality | None = None
    more: Mapping[str, Any] = others()


# ---- a judge ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JudgeHeader:
    """judge.json: the questions and the judge."""

    SCHEMA: ClassVar[str] = "judge/1"
    question: Mapping[str, Any]
    """Everything that decides the questions."""
    num_pairs: Count
    judge: str | None = None
    command: str | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two sets of traces."""

    source: str | None = None
    path: str | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its interval, or a kappa, or a p."""

    rate: float | None = None
    interval: Interval | None = None
    p: float | None = None
    kappa: float | None = None
    first_rate: float | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class JudgeSummary:
    """summary.json of `flow-dpo judge`."""

    SCHEMA: ClassVar[str] = "judge_summary/1"
    judge: str | None = None
    words: str | None = None
    a: Side
    b: Side
    pairs: Numbers
    ties: Numbers
    unparsed: Numbers
    win_rate: Rate
    decided: Rate
    agreement: Rate
    position: Rate
    longer: Rate
    more: Mapping[str, Any] = others()


# ---- a comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A mean over seeds."""

    mean: float | None = None
    mean_graded: float | None = None
    """Over what could be graded."""
    num_ungraded: float | None = None
    """Answers of all seeds that could not be."""
    low: float | None = None
    high: float | None = None
    per_seed: tuple[float | None, ...] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference of two arms."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    seed_low: float | None = None
    seed_high: float | None = None
    seed_p: float | None = None
    """Of the method: seeds are random, as questions are."""
    num_ungraded: float | None = None
    """Questions that could not be graded on one side at least, over all seeds."""
    per_seed: tuple[float | None, ...] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm's differences to another than the baseline, by test."""

    against: str
    differences: Mapping[str, Difference | None] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """What two changes come to together beyond their sum, by test (`compare.interactions`)."""

    name: str
    neither: str
    one: str
    other: str
    both: str
    differences: Mapping[str, Difference | None]


@dataclass(frozen=True, kw_only=True)
class ArmFolders:
    """Where one seed's work of an arm lies, relative to the comparison."""

    evaluations: Mapping[str, str] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """All of one arm."""

    name: str
    kind: str | None = None
    what: str | None = None
    num_traces: tuple[float | None, ...] | None = None
    num_problems: tuple[float | None, ...] | None = None
    problems_asked: tuple[float | None, ...] | None = None
    accuracies: Mapping[str, Mapping[str, Accuracy | None] | None] | None = None
    costs: Numbers | None = None
    step_quality: Mapping[str, StepQuality | None] | None = None
    trace_makeup: Mapping[str, Numbers | None] | None = None
    difference_to_self: Difference | None = None
    differences_to_self: Mapping[str, Difference | None] | None = None
    contrasts: tuple[Contrast, ...] | None = None
    folders: tuple[ArmFolders, ...] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A set of problems that arms were tested on."""

    num_problems: float | None = None
    num_learned: float | None = None
    """Of its questions, those that some arm learned from."""
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """The code that made some of the pieces of work."""

    num_pieces: float | None = None
    commit: str | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class ChosenRate:
    """The learning rate of a training, and the validation accuracies by which it was chosen."""

    chosen: float
    by_rate: Mapping[str, tuple[float | None, ...]]
    """One a seed of those by which rates are chosen."""
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """comparison.json of `flow-dpo compare`."""

    SCHEMA: ClassVar[str] = "comparison/1"
    arms: tuple[ArmRow, ...]
    num_seeds: Count | None = None
    model: str | None = None
    dataset: str | None = None
    baseline: str | None = None
    primary: str | None = None
    command: str | None = None
    commands: tuple[str, ...] | None = None
    test_sets: Mapping[str, TestSet | None] | None = None
    failed: Mapping[str, str] | None = None
    rates: Mapping[str, ChosenRate] | None = None
    made_by: tuple[MadeBy, ...] | None = None
    team: TeamSummary | None = None
    interactions: tuple[Interaction, ...] | None = None
    more: Mapping[str, Any] = others()

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("expected a comparison with its arms, found none")
