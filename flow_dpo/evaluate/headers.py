"""JSON files with measurements: summary.json of an evaluation and of a judge, judge.json and comparison.json.

Each kind names the fields that readers rely on, and keeps whatever else the file holds (`runs.headers`). Invariant:
wherever a table shows a number, the field is a number or null.
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
    """How well Stop separates the kinds of candidates, each of which was graded."""

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
    """What k attempts at a problem give by each rule (`evaluate.votes`)."""

    tokens: float | None
    """Sampled for k attempts, per problem."""
    one_attempt: Measured
    majority: Measured
    weighted_majority: Measured
    best: Measured
    oracle: Measured
    weighted_by_right: Measured | None = None
    """By P(right); like `best_by_right`, only if the flow has a judgement of its own."""
    best_by_right: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """What accepting the first attempt whose P(Yes), or P(right), exceeds a threshold gives."""

    max_attempts: Count
    threshold: float
    accuracy: float | None
    interval: Interval
    tokens: float | None
    """Sampled until an attempt is accepted, per problem."""
    attempts: float | None
    """Made until one is accepted, per problem."""


@dataclass(frozen=True, kw_only=True)
class VotesSummary:
    """Several attempts at each problem and Stop's P(Yes) of each (`evaluate.votes.summary`)."""

    by_k: Mapping[str, VotesAtK]
    threshold_curve: tuple[AtThreshold, ...]
    """By threshold of P(Yes)."""
    right_curve: tuple[AtThreshold, ...] | None = None
    """By threshold of P(right), the scale of the flow's own threshold, if the flow has a judgement of its own."""


@dataclass(frozen=True, kw_only=True)
class MeasuredArea:
    """An area under the curve, with its 95 % interval over problems."""

    area: float | None
    interval: Interval | None


AREA_WORDS = {"right_over_wrong": "right over wrong", "finished_over_unfinished": "finished over unfinished"}
"""How tables name the areas measured on a fixed set."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The probabilities from `low` to `high`: their number, their mean, and the share of right candidates."""

    low: float
    high: float
    num: Count
    mean: float | None
    right: float | None


@dataclass(frozen=True, kw_only=True)
class JudgementSummary:
    """A flow's judgement on a fixed set: for P(right), what `CandidatesSummary` has for Stop's P(Yes)."""

    weights: Numbers
    """The weights of the judgement: bias, stop, likelihood."""
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
    """Of the file. If two are equal, two Stops judged the same candidates."""
    num: Numbers
    """By kind: right, wrong, unfinished; and those that were cut or ungraded, which enter no measure."""
    right_over_wrong: MeasuredArea
    finished_over_unfinished: MeasuredArea
    mean_yes: Numbers
    brier: float | None
    brier_of_share: float | None
    """Brier score of a constant prediction, the share of right candidates."""
    calibration_error: float | None
    """Expected calibration error over `bins`."""
    bins: tuple[ReliabilityBin, ...]
    sampled_by: str | None = None
    """The model that sampled the candidates."""
    judgement: JudgementSummary | None = None
    """The flow's judgement, if it is more than Stop alone."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """summary.json of `flow-dpo evaluate`."""

    SCHEMA: ClassVar[str] = "evaluation/1"
    accuracy: float | None
    """Right draws among all draws; a draw that could not be graded counts as not right."""
    interval: Interval
    accuracy_graded: float | None = None
    """Right draws among those that could be graded; files without this field state that share as `accuracy`."""
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
    """SHA-256 of the vocabulary of the token ids."""
    steps_of_right_answers: StepQuality | None = None
    more: Mapping[str, Any] = others()


# ---- a judge ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JudgeHeader:
    """judge.json: the settings of the questions, and the judge."""

    SCHEMA: ClassVar[str] = "judge/1"
    question: Mapping[str, Any]
    """All settings that determine the questions."""
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
    """A share with its interval, or a kappa, or a p-value."""

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
    """Over the answers that could be graded."""
    num_ungraded: float | None = None
    """Answers of all seeds that could not be graded."""
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
    """The method's p: seeds are random, like questions."""
    num_ungraded: float | None = None
    """Questions that could not be graded on at least one side, over all seeds."""
    per_seed: tuple[float | None, ...] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm's differences, by test, to an arm other than the baseline."""

    against: str
    differences: Mapping[str, Difference | None] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """By how much two changes together exceed the sum of each alone, by test (`compare.interactions`)."""

    name: str
    neither: str
    one: str
    other: str
    both: str
    differences: Mapping[str, Difference | None]


@dataclass(frozen=True, kw_only=True)
class ArmFolders:
    """Where the work of one seed of an arm is, relative to the comparison's folder."""

    evaluations: Mapping[str, str] | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """Everything about one arm."""

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
    """Questions of this set that some arm learned from."""
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """The version of the code that made some of the pieces of work."""

    num_pieces: float | None = None
    commit: str | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class ChosenRate:
    """The learning rate of a training, and the validation accuracies that decided it."""

    chosen: float
    by_rate: Mapping[str, tuple[float | None, ...]]
    """By rate: one accuracy for each seed used for choosing."""
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
