"""Is the page whole and safe?"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from flow_dpo.cli import main, report
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Status, Verdict
from flow_dpo.evaluate.judge.protocol import JudgeReply, TracePair, questions, row
from flow_dpo.evaluate.judge.results import summarise
from flow_dpo.report.compose import compose
from flow_dpo.report.document import Block, Fold, Forest, Table
from flow_dpo.report.html import render_page
from flow_dpo.report.sources import read_sources
from flow_dpo.runs.charts import COLOURS
from flow_dpo.runs.records import to_json
from flow_dpo.runs.settings import BudgetSettings, RunSettings
from flow_dpo.traces.trace import Trace
from tests.support import judge_server, report_sources
from tests.support.comparison_runs import comparison

RIGHT: list[Status] = ["correct", "wrong", "wrong", "wrong", "wrong"]
WRONG: list[Status] = ["wrong", "correct", "wrong", "wrong", "wrong"]
_ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "dl", "dt", "dd", "ul", "li", "a",
    "section", "p", "figure", "figcaption", "div", "table", "thead", "tbody", "tr", "th", "td", "details", "summary",
    "span", "small", "b", "wbr", "pre", "svg", "g", "path", "line", "circle", "text", "rect",
}  # fmt: skip


class _Reader(HTMLParser):
    """Every tag and attribute that a browser would see, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def sources(
    tmp_path: Path, words: str = "6 + 8 = 14", question: str = "How many?", *, seeds: bool = True
) -> list[Path]:
    """One of each kind, and a run that was interrupted after a batch."""
    whole = report_sources.run(
        tmp_path / "whole", [RIGHT, WRONG] * 4, words=words, question=question,
        facts={"command": f"flow-dpo train {words}", "model": words}, config={"note": words},
    )  # fmt: skip
    interrupted = report_sources.run(tmp_path / "short", [RIGHT, WRONG], facts={"num_problems": 100})
    untrained = report_sources.evaluation(tmp_path / "untrained", words=words)
    single = report_sources.evaluation(tmp_path / "single", accuracy=0.6, mode="single", words=words)
    found = comparison(seeds=seeds)
    found["arms"][0]["name"] = words
    found["arms"][0]["folders"] = [{"evaluations": {"held_out/greedy": "../single"}}]
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "comparison.json").write_text(json.dumps(found))
    folders = [whole, interrupted, untrained, single, traces(tmp_path / "traces", words), tmp_path / "study"]
    return [*folders, verdicts(tmp_path / "judged", words)]


def verdicts(path: Path, words: str) -> Path:
    """What `flow-dpo judge` leaves of three pairs: a win of a, a flip, and one cut off."""
    made = [("q1", "a", "A"), ("q1", "b", "B"), ("q2", "a", "A"), ("q2", "b", "A"), ("q3", "a", None), ("q3", "b", "A")]
    pairs = [
        TracePair(a=judge_server.trace(id, words), b=judge_server.trace(id, "Answer: 1"))
        for id in dict.fromkeys(r[0] for r in made)
    ]
    asked = {one.key: one for one in questions(pairs)}
    rows = [
        row(asked["made/up", id, first], JudgeReply(words=words, verdict=said, reason="" if said else words))
        for id, first, said in made
    ]
    path.mkdir()
    (path / "judgements.jsonl").write_text("".join(json.dumps(to_json(one)) + "\n" for one in rows))
    sides = {side: {"source": f"{side} {words}", "num_traces": 3} for side in ("a", "b")}
    found = summarise(
        pairs, {asked["made/up", id, first].key: one for (id, first, _), one in zip(made, rows, strict=True)}
    )
    (path / "summary.json").write_text(
        json.dumps({"schema": "judge_summary/1", "judge": words, "verdict_format": "text", **sides, **found})
    )
    (path / "judge.json").write_text(
        json.dumps(
            {"schema": "judge/1", "command": f"flow-dpo judge {words}", "num_pairs": 3, "question": {"prompts": words}}
        )
    )
    return path


def traces(path: Path, words: str) -> Path:
    path.mkdir()
    trace = Trace(
        problem_id="q1", question="How many?", gold="14", dataset="d", level="", subject="", messages=(),
        solution=words, token_ids=(1, 2), ended=True, verdict=Verdict(status="correct"), source="trained_flow",
        draw=1, draws_used=1, tokens_spent=2,
    )  # fmt: skip
    (path / "traces.jsonl").write_text(json.dumps(to_json(trace)) + "\n")
    (path / "traces.json").write_text(
        json.dumps({"schema": "traces/1", "source": words, "counts": {"draws": 321}, "versions": {"torch": words}})
    )
    return path


def rendered(paths: list[Path]) -> str:
    return render_page(compose(read_sources(paths), command="flow-dpo report"))


def words(page: str) -> str:
    """What a reader sees, with single spaces."""
    return " ".join(" ".join(_Reader(page).words).split())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return rendered(sources(tmp_path_factory.mktemp("hostile"), report_sources.HOSTILE, report_sources.HOSTILE))


def test_hostile_text_becomes_no_markup(hostile: str) -> None:
    read = _Reader(hostile)
    assert {tag for tag, _ in read.tags} <= _ALLOWED
    for tag, attributes in read.tags:
        strange = {name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset", "action")}
        assert not strange, (tag, strange)
    assert "<script" not in hostile
    assert str(escape("<script>alert('x')</script>")) in hostile


def test_control_and_direction_characters_are_shown_not_sent(hostile: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", hostile)
    assert "\\u202egnp.exe" in hostile


def test_the_page_refers_to_nothing_but_itself(hostile: str) -> None:
    for tag, attributes in _Reader(hostile).tags:
        for name in ("href", "xlink:href", "src", "data", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert "xmlns" not in attributes
    style = hostile.split("<style>")[1].split("</style>")[0]
    assert hostile.count("<style") == 1
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_forbids_everything_but_the_pages_own_style(hostile: str) -> None:
    read = _Reader(hostile)
    policy = next(a["content"] for t, a in read.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    style = hostile.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_every_anchor_has_one_place_and_nothing_is_linked(hostile: str) -> None:
    tags = _Reader(hostile).tags
    ids = [attributes["id"] for _, attributes in tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert not any("href" in attributes for _, attributes in tags), "without a copy of the viewer there is no link"


def _blocks(blocks: Sequence[Block]) -> list[Block]:
    """All of them, and those that are folded."""
    return [inner for one in blocks for inner in ([one] if not isinstance(one, Fold) else _blocks(one.blocks))]


def test_the_page_leaves_no_number_out(tmp_path: Path) -> None:
    made = compose(read_sources(sources(tmp_path)), command="flow-dpo report")
    shown = render_page(made)
    cells = re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", shown)
    blocks = _blocks([block for section in made.sections for block in section.blocks])
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [html.unescape(cell) for cell in cells] == [
        cell for table in tables for row in (table.columns, *table.rows) for cell in row
    ]
    forests = [block for block in blocks if isinstance(block, Forest)]
    effects = [one for forest in forests for _, group in forest.groups for one in group]
    numbers = re.findall(r'<span role="cell" class="n"><b>.*?</b>(.*?)</span>', shown)
    assert [html.unescape(number) for number in numbers] == [cell for one in effects for cell in one.cells]
    answers = [words for part in dataclasses.astuple(made.answers) for words in part]
    read = words(shown)
    assert all(text in read for text in (*answers, *(table.caption for table in tables)))


def test_white_space_of_commands_stays(tmp_path: Path) -> None:
    command = "flow-dpo \\\n    train"
    run = report_sources.run(tmp_path / "run", [RIGHT], facts={"command": command})
    shown = rendered([run, report_sources.evaluation(tmp_path / "evaluation")])
    assert f"\n{command}\n# evaluation" in shown


@pytest.mark.parametrize(
    ("budget", "interrupted"),
    [({"budget_updates": 2}, False), ({"budget_updates": 3}, True), ({"budget_verdicts": 40}, False),
     ({"budget_tokens": 140}, False), ({"budget_tokens": 141}, True),
     ({"budget_updates": 2, "budget_verdicts": 41}, True), ({}, True)],
)  # fmt: skip
def test_a_run_that_spent_its_budget_is_at_its_end(budget: dict[str, int], interrupted: bool, tmp_path: Path) -> None:
    """All that the budget names, as config.yaml has it of the settings; the run has 2 updates of 70 tokens."""
    config = {"run": RunSettings(budget=BudgetSettings(**budget))}
    report_sources.run(tmp_path / "run", [RIGHT] * 8, facts={"num_problems": 999}, config=config)
    told = compose(read_sources([tmp_path / "run"]), command="").answers.distrust
    assert any(words.startswith("Interrupted") for words in told) == interrupted


def test_the_page_tells_what_was_measured(tmp_path: Path) -> None:
    shown = rendered(sources(tmp_path))
    for expected in (
        "Interrupted, or still running: 2 of 100 problems.",
        "untrained flow, greedy", "single model, no adapter, greedy",
        "On held_out/greedy, 1 of 3 arms are better than self_generated, 1 worse, 1 not significantly different.",
        "< 0.0001", "1,234,567", "1,000, 1,001, 1,002", "3.3 to 4.8 %", "40.0 to 60.0 %", "222", "321",
        "What stop can separate", "Where pairs come from", "flow-dpo generate --run seed0/flow",
    ):  # fmt: skip
        assert html.escape(expected) in shown, expected
    assert "trained_flow +11.6 +6.8 to +16.4 < 0.0001 +9.2 to +14.0" in words(shown)
    assert "ground_truth - - - -" in words(shown)


def test_a_judges_verdicts_are_told_with_how_far_it_can_be_trusted(tmp_path: Path) -> None:
    told = words(rendered([verdicts(tmp_path / "judged", "6 + 8 = 14")]))
    # One win of a and one tie: three halves of two pairs, and the third enters no rate.
    assert "a's win rate is 75.0 %" in told
    assert "neither preferred" in told
    assert "the judge's two orders agree on 50.0 % of the pairs." in told
    assert "judged: pairs without a verdict: 1." in told
    assert "flipped with the order 1 " in told
    assert "flow-dpo judge 6 + 8 = 14" in told
    (tmp_path / "judged" / "summary.json").unlink()
    with pytest.raises(DataError, match="the judge has not finished"):
        read_sources([tmp_path / "judged"])


def test_a_bad_value_of_a_judge_is_named(tmp_path: Path) -> None:
    path = verdicts(tmp_path / "judged", "6 + 8 = 14")
    found = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**found, "win_rate": {"rate": "high"}}))
    with pytest.raises(DataError, match=r"summary.json, win_rate: expected a number or null in 'rate'"):
        rendered([path])


def test_one_seed_says_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(comparison(seeds=False)))
    shown = rendered([path])
    assert "1 seed: results of other seeds are unknown; intervals are over 2,000 questions only." in shown
    assert "over seeds" not in words(shown).split("Contrasts")[-1].split("Accuracies, costs")[0]
    assert "trained_flow 88.6 % - 58.6 %" in words(shown)


def test_a_run_without_a_batch_is_reported(tmp_path: Path) -> None:
    path = report_sources.run(tmp_path / "run", [])
    assert "before its first batch" in rendered([path])
    (path / "run.json").unlink()
    assert "before its first batch" in rendered([path])


def test_a_comparison_that_knows_nothing_but_names(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(
        json.dumps({"schema": "comparison/1", "arms": [{"name": "a"}, {"name": "b", "difference_to_self": None}]})
    )
    assert "Comparison" in rendered([path])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"costs": {"seconds": "long"}}, r"arms 1, costs: expected a number or null in 'seconds'"),
        ({"difference_to_self": {"mean": [1]}}, r"arms 1, difference_to_self: expected a number or null in 'mean'"),
        (
            {"step_quality": {"traces": {"interval": [0.1]}}},
            r"step_quality, traces: expected a list of 2: a number, a number or null in 'interval'",
        ),
        ({"accuracies": {"held_out": 3}}, r"accuracies: expected an object or null in 'held_out'"),
        ({"name": None}, r"arms 1: expected a text in 'name', found None"),
    ],
)
def test_a_bad_value_of_a_comparison_is_named(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    found = comparison()
    found["arms"][1] |= change
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=expected):
        rendered([tmp_path])


def test_what_is_no_source_is_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "file.txt").write_text("x")
    report_sources.run(tmp_path / "below" / "seed0", [RIGHT])
    for name, expected in (
        ("nowhere", "found nothing at"), ("empty", "nothing in it"), ("adapter", "flow-dpo evaluate --mode single"),
        ("file.txt", "found the file"), ("below", "but some below it; name those: seed0"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=expected):
            read_sources([tmp_path / name])


def test_nothing_is_written_where_a_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, out = report_sources.run(tmp_path / "run", [RIGHT]), tmp_path / "out"
    assert main.main(["report", str(good), str(tmp_path / "nowhere"), "--output_dir", str(out)]) == 1
    assert "expected a run, an evaluation, traces, a comparison or a judge" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = report_sources.run(tmp_path / "run", [RIGHT, WRONG]), tmp_path / "out"
    for _ in range(2):  # a report is written anew over its older self
        assert main.main(["report", str(run), "--output_dir", str(out)]) == 0
    assert "Written to" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["report.html"]


def test_figures_know_light_and_dark(tmp_path: Path) -> None:
    shown = rendered([report_sources.run(tmp_path / "run", [RIGHT, WRONG])])
    assert shown.count("<svg ") > 3
    drawn = "".join(re.findall(r"<svg .*?</svg>", shown, re.DOTALL))
    style = shown.split("<style>")[1].split("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme:dark)")[:2]
    for name, colour in COLOURS.items():
        assert colour not in drawn, "no colour is left that a dark page could not change"
        assert f"--{name}:{colour}" in light
        assert f"--{name}:" in dark
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(COLOURS)


def test_flags_and_sources_may_stand_in_any_order() -> None:
    paths, settings = report.parse(["--output_dir=o", "a", "--view", "v", "b"])
    assert (paths, settings.output_dir, settings.view) == ([Path("a"), Path("b")], "o", "v")
    with pytest.raises(ConfigError, match="found none: flow-dpo report"):
        report.parse(["--output_dir", "o"])
    with pytest.raises(ConfigError, match="unknown setting --outputdir"):
        report.parse(["a", "--outputdir", "o"])


def test_figures_are_the_same_bytes_again(tmp_path: Path) -> None:
    paths = [report_sources.run(tmp_path / "run", [RIGHT, WRONG])]
    assert rendered(paths) == rendered(paths)
