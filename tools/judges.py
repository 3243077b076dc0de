"""What should judge an attempt: Stop's P(Yes), Answer's own likelihood, or both? Computed from kept draws.

    python -m tools.judges keep runs/study-judges --name seed        packs what it needs from the runs of a comparison
    python -m tools.judges figures                                   computes studies/judges/judges.json from the packs
    python -m tools.judges figures --check                           lists figures that differ; exit code 1 if any

The flow `Attempts` accepts an attempt by a logistic function of two quantities, fitted to the verdicts of its run
(`recipes.flow_dpo.judgement`). Here the same fit, with the same choice of threshold, is made on the same evidence three
times: with both quantities, without the likelihood, and without Stop. Each judge then judges the same attempts, drawn
from the trained Answer at test problems:

- `flow`: accepts the first attempt above the threshold, out of as many as the flow makes; if none is, the best answers.
  The exact mean over all orders of the draws (`evaluate.votes.accepting`);
- `best`: the best of all draws;
- beside them one attempt, the majority of all draws, and the oracle, which any right attempt satisfies.

A judge that leaves out Stop could also leave out Stop's words, whose tokens are counted here all the same.

Invariant: every figure is computed from the packs. A pack has, for one seed, the run's last rows of evidence and, for
each test, problem and draw: Stop's log-odds of Yes (null if the attempt was cut), the mean log-probability, whether it
was right (null if ungraded), whether it has an answer, the number of the answer within its problem, and its tokens.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.compare import seed_results
from flow_dpo.evaluate.pass_at_k import same_answer
from flow_dpo.evaluate.statistics import holm, mean_of, method_difference
from flow_dpo.evaluate.votes import Attempted, accepting, majority, oracle
from flow_dpo.recipes.flow_dpo.judgement import Evidence, Judgement, calibrate
from flow_dpo.runs.adapters import run_settings
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.records import Prediction, read_rows
from tools.recompute import STUDIES, differing

FOLDER = STUDIES / "judges"
_ARM = "answer_votes"

KNOWS: Mapping[str, Callable[[Evidence], Evidence]] = {
    "both": lambda one: one,
    "stop": lambda one: replace(one, mean_logprob=0.0),
    "likelihood": lambda one: replace(one, log_odds=0.0),
}
"""By judge, the evidence that it knows of. A constant quantity gets no weight in the fit."""
PAIRS = (("both", "stop"), ("both", "likelihood"), ("likelihood", "stop"))
"""Judges that are compared with each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One attempt at a test problem."""

    log_odds: float | None
    """Stop's log-odds of Yes; None for an attempt that was cut off, which Stop is not asked about."""
    mean_logprob: float
    right: bool | None
    """None if it could not be graded."""
    answer: int | None
    """The number of its answer among those of its problem; None without an answer."""
    tokens: int


Tests = Mapping[str, Mapping[str, Sequence[Draw]]]
"""By test and problem, its draws in their order."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What one seed's run and draws leave."""

    seed: int
    max_attempts: int
    """Attempts that the flow makes."""
    least_gain: float
    answers: str
    evidence: Sequence[Evidence]
    tests: Tests


# ---- packs -----------------------------------------------------------------------------------------------------------


def kept(seed_folder: Path) -> Pack:
    """The pack of a seed's folder in a comparison's runs."""
    run, seed = seed_folder / "flow", int(seed_folder.name.removeprefix("seed"))
    newest = max((run / "checkpoints").iterdir(), key=lambda each: int(each.name))
    state = json.loads((newest / "loop.json").read_text(encoding="utf-8"))
    flow = run_settings(run)["flow"]
    folders = sorted((seed_folder / "evaluations" / _ARM).glob("*-draws"))
    return Pack(
        seed=seed,
        max_attempts=flow["max_attempts"],
        least_gain=flow["least_gain"],
        answers=flow["answers"],
        evidence=[Evidence(**row) for row in state["progressive"]["evidence"]],
        tests={folder.name.removesuffix("-draws"): _draws(folder) for folder in folders},
    )


def _draws(folder: Path) -> dict[str, list[Draw]]:
    found: dict[str, list[Draw]] = {}
    answers: dict[str, list[str]] = {}
    for row in read_rows(folder / "predictions.jsonl", Prediction):
        verdict = row.verdict or Verdict(status="ungraded")
        answer = None if verdict.answer is None else _number(verdict.answer, answers.setdefault(row.id, []))
        yes = None if row.yes is None else min(max(row.yes, 1e-15), 1 - 1e-15)
        found.setdefault(row.id, []).append(
            Draw(
                log_odds=None if yes is None else round(math.log(yes / (1 - yes)), 6),
                mean_logprob=round(row.mean_logprob or 0.0, 6),
                right=None if verdict.right is None else verdict.right == 1.0,
                answer=answer,
                tokens=row.tokens or 0,
            )
        )
    return found


def _number(answer: str, known: list[str]) -> int:
    """The number of an answer among the known ones, those that a vote counts as equal being one; a new one is added."""
    for number, other in enumerate(known):
        if same_answer(other, answer):
            return number
    known.append(answer)
    return len(known) - 1


def write_pack(path: Path, pack: Pack) -> None:
    """Write it as gzipped JSON, the same bytes for the same pack."""
    rows = {
        test: {id: [list(asdict(draw).values()) for draw in draws] for id, draws in by_id.items()}
        for test, by_id in pack.tests.items()
    }
    evidence = [[round(e.log_odds, 6), round(e.mean_logprob, 6), e.right, e.after] for e in pack.evidence]
    content = {**vars(pack), "evidence": evidence, "tests": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0))


def read_pack(path: Path) -> Pack:
    found = json.loads(gzip.decompress(path.read_bytes()))
    tests = {
        test: {id: [Draw(**dict(zip(Draw.__slots__, row, strict=True))) for row in rows] for id, rows in by_id.items()}
        for test, by_id in found["tests"].items()
    }
    names = ("log_odds", "mean_logprob", "right", "after")
    evidence = [Evidence(**dict(zip(names, row, strict=True))) for row in found["evidence"]]
    return Pack(**{**found, "tests": tests, "evidence": evidence})


# ---- figures ---------------------------------------------------------------------------------------------------------


def fitted(pack: Pack) -> dict[str, tuple[Judgement, float]]:
    """Each judge and its threshold. Raises `ValueError` if the evidence is too little for a fit."""
    found = {
        name: calibrate(
            [knows(one) for one in pack.evidence], least_gain=pack.least_gain, recall=pack.answers == "best"
        )
        for name, knows in KNOWS.items()
    }
    if any(each is None for each in found.values()):
        raise ValueError(f"expected at least 8 right and 8 wrong rows of evidence in seed {pack.seed}, found fewer")
    return {name: each for name, each in found.items() if each is not None}


def by_problem(pack: Pack, test: str) -> dict[str, dict[str, float]]:
    """By rule and problem, the accuracy that it is expected to have; also the tokens of each judge's flow."""
    made: dict[str, dict[str, float]] = {}
    judges = fitted(pack)
    for id, draws in pack.tests[test].items():
        plain = [_attempted(draw, draw.log_odds) for draw in draws]
        made.setdefault("one", {})[id] = sum(one.reward for one in plain) / len(plain)
        made.setdefault("majority", {})[id] = majority(plain)
        made.setdefault("oracle", {})[id] = oracle(plain)
        made.setdefault("tokens/one", {})[id] = sum(one.tokens for one in plain) / len(plain)
        for judge, (judgement, threshold) in judges.items():
            judged = [_attempted(draw, _chance(judgement, KNOWS[judge], draw)) for draw in draws]
            flow = accepting(judged, pack.max_attempts, threshold)
            made.setdefault(f"flow/{judge}", {})[id] = flow.reward
            made.setdefault(f"tokens/{judge}", {})[id] = flow.tokens
            made.setdefault(f"best/{judge}", {})[id] = accepting(judged, len(judged), 1.0).reward
    return made


def _chance(judgement: Judgement, knows: Callable[[Evidence], Evidence], draw: Draw) -> float | None:
    if draw.log_odds is None:
        return None
    known = knows(Evidence(log_odds=draw.log_odds, mean_logprob=draw.mean_logprob, right=False))
    return judgement.chance(known.log_odds, known.mean_logprob)


def _attempted(draw: Draw, yes: float | None) -> Attempted:
    status = "ungraded" if draw.right is None else "correct" if draw.right else "wrong"
    answer = None if draw.answer is None else str(draw.answer)
    return Attempted(verdict=Verdict(status=status, answer=answer), yes=yes, tokens=draw.tokens)


def figures(packs: Sequence[Pack]) -> dict[str, Any]:
    """For each test, every rule's accuracy over seeds, and differences with intervals over seeds and questions; their
    p is corrected for all of the test."""
    made: dict[str, Any] = {
        "seeds": [pack.seed for pack in packs],
        "max_attempts": packs[0].max_attempts,
        "judges": {
            judge: [{**asdict(found), "threshold": threshold} for found, threshold in (fitted(p)[judge] for p in packs)]
            for judge in KNOWS
        },
        "tests": {},
    }
    for test in packs[0].tests:
        rules = [by_problem(pack, test) for pack in packs]
        names = [name for name in rules[0] if not name.startswith("tokens/")]
        against = [(f"flow/{judge}", "one") for judge in KNOWS]
        against += [(f"best/{judge}", other) for judge in KNOWS for other in ("one", "majority")]
        against += [(f"{rule}/{a}", f"{rule}/{b}") for rule in ("flow", "best") for a, b in PAIRS]
        differences = [{"one": one, "other": other, **_difference(rules, one, other)} for one, other in against]
        corrected = holm({f"{d['one']} {d['other']}": d["seed_p"] for d in differences if d["seed_p"] is not None})
        made["tests"][test] = {
            "num_problems": len(rules[0]["one"]),
            "num_draws": len(next(iter(packs[0].tests[test].values()))),
            "accuracies": {name: mean_of([_mean(each[name]) for each in rules]) for name in names},
            "tokens": {
                name.partition("/")[2]: mean_of([_mean(each[name]) for each in rules])
                for name in rules[0]
                if name.startswith("tokens/")
            },
            "differences": [d | {"p_holm": corrected.get(f"{d['one']} {d['other']}")} for d in differences],
        }
    return made


def _mean(values: Mapping[str, float]) -> float:
    return math.fsum(values.values()) / len(values)


def _difference(rules: Sequence[Mapping[str, Mapping[str, float]]], one: str, other: str) -> dict[str, Any]:
    """The difference in the form of `evaluate.statistics.difference`."""
    found = method_difference(*([each[name] for each in rules] for name in (one, other)))
    return {"mean": math.fsum(found["per_seed"]) / len(found["per_seed"]), **found}


def every(folder: Path = FOLDER) -> dict[str, Any]:
    """The figures of every model's packs, by the name of its folder."""
    found: dict[str, list[Pack]] = {}
    packs = [path for path in folder.glob("*/seed*.json.gz") if path.parent.name != seed_results.FOLDER]
    for path in sorted(packs, key=lambda each: int(each.stem.partition(".")[0][4:])):
        found.setdefault(path.parent.name, []).append(read_pack(path))
    return {name: figures(packs) for name, packs in sorted(found.items())}


def main(argv: Sequence[str] | None = None) -> int:
    """Pack runs, or compute figures. Returns 1 if `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    keep = what.add_parser("keep", help="pack what the study needs from the runs of a comparison")
    keep.add_argument("runs", type=Path, nargs="+", help="the comparison's output folder, or several of them")
    keep.add_argument("--name", required=True, help="the model and data, as the folder in studies/judges is named")
    computed = what.add_parser("figures", help="compute judges.json from all packs")
    computed.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    parsed = parser.parse_args(argv)
    output = FOLDER / "judges.json"
    if parsed.what == "keep":
        for draws in sorted(each for runs in parsed.runs for each in runs.glob(f"seed*/evaluations/{_ARM}")):
            pack = kept(draws.parent.parent)
            write_pack(FOLDER / parsed.name / f"seed{pack.seed}.json.gz", pack)
            print(f"{parsed.name}, seed {pack.seed}: {len(pack.evidence)} rows of evidence, {', '.join(pack.tests)}")
    elif parsed.check:
        wrong = differing(json.loads(output.read_text(encoding="utf-8")), json.loads(json.dumps(every())))
        print(f"studies/judges: {len(wrong)} figures differ from the packs", *wrong, sep="\n  ")
        return int(bool(wrong))
    else:
        write_whole(output, json.dumps(every(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
