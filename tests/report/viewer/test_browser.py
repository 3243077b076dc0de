"""Can one look into a run of every recipe with a browser: filter, walk, follow, read on any width, in the dark?"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.recipes.presets import RECIPES
from flow_dpo.report.viewer.export import export
from flow_dpo.report.viewer.library import Library
from tests.report.viewer.conftest import Open, served
from tests.support.once import Once
from tests.support.recipe_runs import tried
from tests.support.report_sources import HOSTILE, run

WIDTHS = (390, 1000, 1600)


def _shape(recipe: str) -> tuple[type, type, type]:
    """What a recipe's trees and examples are made by."""
    found = RECIPES[recipe]["seed"].recipe
    return type(found.explore), type(found.flow), type(found.credit)


SHAPES = tuple({_shape(recipe): recipe for recipe in reversed(list(RECIPES))}.values())
"""Recipes, one for each kind of tree and of examples."""


@pytest.fixture(scope="module")
def runs(once: Once) -> Path:
    """A run of each shape below one folder, of eight problems; of flow-dpo two, of four."""

    def make(folder: Path) -> None:
        words = ["--max_problems", "4", "--problems_per_batch", "4", "--examples_per_update", "4"]
        for name, seed in (("flow-dpo", "0"), ("again", "1")):
            assert train.train([*words, "--run.seed", seed, "--output_dir", str(folder / name)]) == 0
        for name in {*SHAPES} - {"flow-dpo"}:
            shutil.copytree(tried(name, once), folder / name)

    return once("browser", make)


@pytest.fixture(scope="module")
def site(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Library]]:
    with served([runs], tmp_path_factory.mktemp("cache")) as found:
        yield found


@pytest.mark.parametrize("recipe", SHAPES)
def test_a_tree_of_every_recipe_is_drawn_whole(recipe: str, site: tuple[str, Library], visit: Open) -> None:
    address, library = site
    at = visit(f"{address}#/s/{recipe}")
    rows = at.page.get_by_role("row").filter(has=at.page.get_by_role("gridcell"))
    assert rows.count() == (4 if recipe == "flow-dpo" else 8)
    for n in (0, 3):
        item = library.get("item", {"source": recipe, "n": str(n)})
        at.go(f"#/s/{recipe}/{n}")
        unfold = at.page.get_by_role("button", name="unfold", exact=True)
        if unfold.count():
            unfold.click()
        shown = at.page.evaluate("[...document.querySelectorAll('[data-node]')].map((one) => Number(one.dataset.node))")
        assert sorted(shown) == [node["id"] for node in item["nodes"]], "each node once"
        text = at.page.locator("main").inner_text()
        assert item["problem"]["question"] in text
        assert item["problem"]["gold"] in text
        assert {rollout["status"] for rollout in item["rollouts"] if rollout["status"]} - {"ungraded"} <= set(
            re.findall(r"correct|wrong|stopped", text)
        )


def test_filters_stand_in_the_address_and_give_what_the_library_gives(site: tuple[str, Library], visit: Open) -> None:
    address, library = site
    at = visit(f"{address}#/s/flow-dpo")
    at.page.get_by_role("button", name="flipped", exact=True).click()
    at.page.get_by_label("verdict").select_option("wrong")
    at.page.get_by_label("sort").select_option("-tokens")
    at.settled()
    query = at.page.url.partition("?")[2]
    assert dict(pair.split("=") for pair in query.split("&")) == {"flipped": "1", "status": "wrong", "sort": "-tokens"}
    wanted = {"source": "flow-dpo", "flipped": "1", "status": "wrong", "sort": "-tokens"}
    found = [row["n"] for row in library.get("items", wanted)["rows"]]
    other = visit(at.page.url)  # the link, sent to somebody
    for each in (at, other):
        rows = each.page.get_by_role("row").filter(has=each.page.get_by_role("gridcell"))
        assert [int(text.split()[0]) for text in rows.all_inner_texts()] == found
    at.page.keyboard.press("/")
    at.page.keyboard.type("no such words")
    at.until("document.querySelector('main').innerText.includes('0 of 4')")


def test_a_tree_is_walked_by_keys(site: tuple[str, Library], visit: Open) -> None:
    address, library = site
    found = library.get("items", {"source": "flow-dpo", "examples": "pair", "sort": "-tokens"})["rows"]
    item = library.get("item", {"source": "flow-dpo", "n": str(found[0]["n"])})
    pair = next(one for one in item["examples"] if one["kind"] == "pair")
    at = visit(f"{address}#/s/flow-dpo?examples=pair&sort=-tokens")
    at.page.get_by_label("sort").focus()
    at.page.keyboard.press("Tab")
    while at.page.evaluate("document.activeElement.getAttribute('role')") != "grid":
        at.page.keyboard.press("Tab")
    assert at.page.locator("[aria-selected=true]").count() == 1, "what has the focus can be seen"
    at.page.keyboard.press("j")
    at.page.keyboard.press("k")
    at.page.keyboard.press("l")
    at.page.wait_for_url(re.compile(rf"#/s/flow-dpo/{found[0]['n']}"))
    at.settled()
    # To the first node of a pair, and into its alternative.
    trunk = [node["id"] for node in item["nodes"] if node["rollout"] == 0]
    sides = {pair["chosen"], pair["rejected"]}
    [start] = sides & set(trunk)
    for _ in range(len(trunk)):
        if focused(at.page.url) == start:
            break
        at.page.keyboard.press("j")
    assert focused(at.page.url) == start
    at.page.keyboard.press("l")
    other = focused(at.page.url)
    assert other != start
    assert item["nodes"][other]["parent"] == item["nodes"][start]["parent"]
    at.page.keyboard.press("h")
    assert focused(at.page.url) == start
    # Tokens by their log-probability, and the prompt with its special tokens.
    at.page.keyboard.press("t")
    assert "tokens=" in at.page.url
    at.page.keyboard.press("r")
    prompt = "".join(item["special"].get(str(id)) or piece for id, piece in prompt_of(item, start))
    shown = at.page.get_by_role("region", name=re.compile("prompt", re.IGNORECASE)).first.inner_text()
    assert re.sub(r"\s", "", prompt) in re.sub(r"\s", "", shown)
    if len(found) > 1:
        at.page.keyboard.press("n")
        at.page.wait_for_url(re.compile(rf"#/s/flow-dpo/{found[1]['n']}"))
    at.page.keyboard.press("Escape")
    at.page.wait_for_url(re.compile(r"#/s/flow-dpo\?.*sort=-tokens"))
    at.page.keyboard.press("?")
    assert at.page.get_by_role("dialog").is_visible()


def focused(url: str) -> int:
    """The node that the address names; -1 where it names none."""
    found = re.search(r"node=(\d+)", url)
    return int(found[1]) if found else -1


def prompt_of(item: dict[str, Any], node: int) -> list[tuple[int, str]]:
    """A node's prompt, token by token, as the contract says: what is kept of an earlier one, and its own."""
    one = item["nodes"][node]["prompt"]
    own = list(zip(one["ids"], one["pieces"], strict=True))
    if one["after"] is None:
        return own
    before = item["nodes"][one["after"]]
    whole = prompt_of(item, one["after"]) + list(zip(before["ids"], before["pieces"], strict=True))
    return whole[: one["kept"]] + own


def test_a_run_that_goes_on_is_followed(runs: Path, tmp_path: Path, visit: Open) -> None:
    going = tmp_path / "going"
    shutil.copytree(runs / "grpo", going)
    whole = (going / "trees.jsonl").read_bytes().splitlines(keepends=True)
    (going / "trees.jsonl").write_bytes(b"".join(whole[:2]) + whole[2][:100])
    for name in ("scored.jsonl", "learned.jsonl"):
        (going / name).write_bytes(b"")
    with served([going], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/s/going")
        rows = at.page.get_by_role("row").filter(has=at.page.get_by_role("gridcell"))
        assert rows.count() == 2
        with (going / "trees.jsonl").open("ab") as file:
            file.write(whole[2][100:] + whole[3])
        at.until(lambda: rows.count() == 4)


def test_the_same_problem_in_two_runs_stands_side_by_side(site: tuple[str, Library], visit: Open) -> None:
    address, library = site
    item = library.get("item", {"source": "flow-dpo", "n": "1"})
    other = next(each for each in item["elsewhere"] if each["source"] == "again")
    at = visit(f"{address}#/compare/flow-dpo/1/again/{other['n']}")
    text = at.page.locator("main").inner_text()
    assert item["problem"]["question"] in text
    for name in ("flow-dpo", "again"):
        assert name in text
    one = visit(f"{address}#/s/flow-dpo/1").page
    one.get_by_text("The same problem in").click()
    one.get_by_label("Side by side with again").click()
    assert one.url.endswith(f"#/compare/flow-dpo/1/again/{other['n']}")


def test_a_copy_opens_from_disk_and_filters_as_the_server_does(
    site: tuple[str, Library], tmp_path: Path, visit: Open
) -> None:
    _, library = site
    export(library, tmp_path / "site", num_items=100)
    at = visit((tmp_path / "site" / "index.html").as_uri() + "#/s/vineppo/2")
    assert library.get("item", {"source": "vineppo", "n": "2"})["problem"]["question"] in at.page.inner_text("main")
    questions = [
        {"sort": sort} for name in ("time", "accuracy", "examples", "tokens", "margin") for sort in (name, f"-{name}")
    ]
    questions += [
        {"flipped": "1"},
        {"ungraded": "1"},
        {"status": "wrong"},
        {"status": "correct"},
        {"q": "loses SHELLS"},
    ]
    questions += [{"role": "answer"}, {"role": "answer", "depth": "1"}, {"depth": "2"}, {"from": "1", "to": "3"}]
    questions += [{"examples": kind} for kind in ("pair", "scored", "none")]
    questions += [{"version": version} for version in ("0", "0-3", "1-", "-1")]
    questions += [{"level": "3"}, {"subject": "total", "sort": "-tokens"}, {"limit": "2", "offset": "1"}]
    select = "([source, params]) => flowDpo.get('items', {...params, source})"
    for source in ("flow-dpo", "vineppo", "cpl", "grpo"):
        for params in questions:
            expected = library.get("items", {**params, "source": source})
            found = at.page.evaluate(select, [source, params])
            assert [row["n"] for row in found["rows"]] == [row["n"] for row in expected["rows"]], params
            assert found["total"] == expected["total"], params


# ---- hostile texts, and every width in both themes -------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hostile")
    words = HOSTILE + "\x00 \u200b " + "x" * 1_000_000
    made = run(folder / "run", [("correct", "wrong", "ungraded", "wrong", "wrong")] * 5, words=words, question=words)
    rows = (made / "trees.jsonl").read_text().splitlines(keepends=True)
    (made / "trees.jsonl").write_text(rows[0] + '{"schema": "tree/2", "nodes": 5}\n' + "\x00\n" + "".join(rows[1:]))
    with served([folder], tmp_path_factory.mktemp("cache")) as (address, _):
        yield address


def test_hostile_text_is_only_text(hostile: str, visit: Open) -> None:
    at = visit(f"{hostile}#/s/run/0")
    text = at.page.inner_text("main")
    assert "<script>alert('x')</script>" in text
    assert "U+202E" in text
    assert "\u202e" not in text, "a direction override is shown as a sign, and turns nothing"
    assert len(text) < 200_000, "a megabyte is cut, with a button for the rest"
    assert at.page.evaluate("document.querySelectorAll('main script, main img, main iframe').length") == 0
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert at.page.evaluate(wide) <= 0, "a long gold answer wraps"
    at.go("#/")
    assert at.page.evaluate("document.documentElement.outerHTML.length") < 500_000
    notes = at.page.get_by_text(re.compile(r"trees\.jsonl"))
    assert notes.count() > 0 or at.page.get_by_text(re.compile("2 notes|2 rows")).count() > 0


def test_a_rollout_of_many_nodes_is_drawn_as_far_as_it_is_asked_for(seeded: Path, tmp_path: Path, visit: Open) -> None:
    long = tmp_path / "long"
    shutil.copytree(seeded, long)
    row = json.loads((long / "trees.jsonl").read_text().splitlines()[0])
    node = row["nodes"][0] | {"prompt": {"kept": 0, "token_ids": [2]}}
    row["nodes"] = [node | {"id": at, "parent": at - 1 if at else None, "depth": at} for at in range(2_000)]
    row["rollouts"] = [row["rollouts"][0] | {"start": 0, "leaf": 1_999}]
    (long / "trees.jsonl").write_text(json.dumps(row) + "\n")
    with served([long], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/s/long/0")
        cards = at.page.locator("main [data-node]")
        first = cards.count()
        assert first < 500
        at.page.get_by_role("button", name="more of").click()
        assert first < cards.count() < 1_000
        at.go("#/s/long/0?node=1500")
        at.until("document.activeElement.dataset.node === '1500'")
        assert cards.evaluate_all("(all) => all.map((one) => +one.dataset.node)") == list(range(1_501))


CONTRAST = """() => {
  const channel = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (css) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const behind = (one) => { for (let at = one; at; at = at.parentElement) {
    const found = rgba(getComputedStyle(at).backgroundColor); if (found[3] > 250) return found; }
    return rgba(getComputedStyle(document.documentElement).colorScheme.includes('dark') ? '#000' : '#fff'); };
  const wrong = [];
  for (const one of document.body.querySelectorAll('*')) {
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(one), box = one.getBoundingClientRect();
    if (!box.width || style.visibility === 'hidden') continue;
    if (one.closest('[inert], :disabled, option, noscript, .skip')) continue;
    const text = rgba(one instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(text), light(behind(one))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if ((a + 0.05) / (b + 0.05) >= (large ? 3 : 4.5)) continue;
    wrong.push(`${one.tagName}.${one.className}: ${one.textContent.slice(0, 40)}`);
  }
  return wrong;
}"""
"""The texts whose contrast with what is behind them is below WCAG's AA."""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_and_can_be_read(width: int, theme: str, site: tuple[str, Library], visit: Open) -> None:
    address, _ = site
    at = visit(f"{address}#/", width=width, theme=theme)
    for route in ("#/", "#/s/flow-dpo", "#/s/flow-dpo/1?tokens=logprob", "#/s/flow-dpo/1?tokens=learning",
                  "#/s/vineppo/1", "#/s/grpo/0", "#/compare/flow-dpo/1/again/1"):  # fmt: skip
        at.go(route)
        wide = at.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{route} is {wide} px wider than the window"
        assert at.page.evaluate(CONTRAST) == [], route
        headings = at.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => +one.tagName[1])")
        assert headings[0] == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(headings)), f"{route}: {headings}"


def test_no_script_writes_markup() -> None:
    """Text becomes a page by text nodes alone."""
    folder = Path(__file__).parents[3] / "flow_dpo" / "report" / "viewer" / "assets"
    sources = {file.name: file.read_text() for file in sorted(folder.glob("*.js"))}
    assert len(sources) > 5
    for name, source in sources.items():
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", source
        )
        assert not found, f"{name}: {found}"
    assert json.dumps(re.findall(r"<script>|style=|onclick", (folder / "index.html").read_text())) == "[]"
