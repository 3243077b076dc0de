"""Is the documentation true? Links, navigation, tables and pictures, and every block of code in it.

A Python block of README.md or docs/ is executed, page by page in its order, unless the line above it says why not:
`<!-- not run: the reason -->`; such a block still has to compile. The commands of bash blocks are parsed in
tests/test_readme.py.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tools import docs_site, pictures, recipe_pages, run_notebook

ROOT = Path(__file__).parent.parent
PAGES = docs_site.pages()
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


def blocks(kind: str) -> Iterator[tuple[Path, str, str | None]]:
    """The blocks of a kind in README.md and docs/: page, code, and why it is not run."""
    for page in PAGES:
        if page.name == "README.md" or "docs" in page.relative_to(ROOT).parts:
            for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
                if found["kind"] == kind:
                    yield page, found["code"], found["reason"]


def navigation(entry: object) -> Iterator[str]:
    """The files that mkdocs.yml's nav names."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for value in entry.values():
            yield from navigation(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from navigation(value)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown and GitHub make them."""
    text = docs_site._FENCE.sub("", page.read_text(encoding="utf-8"))
    found = set[str]()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in docs_site.links(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (page.parent / target).resolve() if target else page
        if file == ROOT / docs_site.VIEW / "index.html":  # made with the site
            continue
        assert file.is_file(), f"{page.name} links to {link}: no such file (a folder has no page on the site)"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {link}: {file.name} has no such heading"


def test_every_page_is_in_the_navigation() -> None:
    named = set(navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    generated = {f"docs/reference/{name}" for name in docs_site.reference()}
    there = {str(page.relative_to(ROOT)) for page in PAGES} | generated
    assert named - there == set(), "mkdocs.yml names files under nav that do not exist: take them out"
    assert there - named == set(), "these pages are not under nav in mkdocs.yml: add a line for each, `- Title: path`"


def test_tables_of_recipes_are_those_of_the_code() -> None:
    """To write them: python -m tools.recipe_pages."""
    for recipe in recipe_pages.RECIPES:
        text = recipe_pages.page(recipe).read_text(encoding="utf-8")
        assert f"--recipe {recipe}" in text or recipe == "flow-dpo"
        assert recipe_pages.BEGIN in text
        assert text == recipe_pages.written(recipe), f"docs/recipes/{recipe}.md: run python -m tools.recipe_pages"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_are_those_of_the_code(name: str) -> None:
    """To draw them: python -m tools.pictures."""
    assert (pictures.FOLDER / name).read_text(encoding="utf-8") == pictures.PICTURES[name]()


def test_data_in_blocks_can_be_read() -> None:
    readers = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
    for kind, read in readers.items():
        for _, text, _ in blocks(kind):
            assert read(text) is not None


def test_python_blocks_compile() -> None:
    found = list(blocks("python"))
    assert len(found) >= 7
    for page, code, reason in found:
        compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if reason else 0)


SLOW = {"docs/trainer.md", "docs/start/laptop.md"}
"""Pages whose blocks take ten seconds of processor time or more."""


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_python_blocks_run(slow: bool, tmp_path: Path) -> None:
    """All pages in one process and one folder, each page with names of its own, as a reader would type them in."""
    pages: dict[str, list[str]] = {}
    for page, code, reason in blocks("python"):
        if reason is None and (str(page.relative_to(ROOT)) in SLOW) is slow:
            pages.setdefault(str(page.relative_to(ROOT)), []).append(code)
    assert pages
    (tmp_path / "pages.json").write_text(json.dumps(pages))
    program = (
        "import json, time, torch\n"
        "torch.set_num_threads(1)\n"
        "for page, codes in json.load(open('pages.json')).items():\n"
        "    names, start = {'__name__': '__main__'}, time.process_time()\n"
        "    for code in codes:\n"
        "        exec(compile(code, page, 'exec'), names)\n"
        "    print('ran', page, round(time.process_time() - start, 1), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=600, env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_nothing_is_installed_from_where_it_is_not_published() -> None:
    for path in [*PAGES, *sorted((ROOT / "flow_dpo").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]:
        assert "install 'flow-dpo[" not in path.read_text(encoding="utf-8"), f"{path}: say pip install -e '.[extra]'"


def test_the_site_builds_without_a_warning() -> None:
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the extra docs is not installed")
    assert docs_site.build() == 0
    shown = (ROOT / "build" / "site" / "docs" / "reference" / "trainer" / "index.html").read_text(encoding="utf-8")
    assert "flow_dpo.trainer.python_api.train" in shown


def test_the_notebook_is_stored_with_small_outputs_of_no_machine() -> None:
    notebook = json.loads(run_notebook.NOTEBOOK.read_text(encoding="utf-8"))
    assert run_notebook.NOTEBOOK.stat().st_size < 100_000
    kinds = {kind for cell in notebook["cells"] for one in cell.get("outputs", []) for kind in one.get("data", {})}
    assert {"image/png", "image/svg+xml"} <= kinds, "the curve or the tree is missing: python -m tools.run_notebook"
    assert not run_notebook.local_paths(run_notebook.NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    """Some 20 seconds of processor time."""
    pytest.importorskip("nbclient", reason="the extra docs is not installed")
    pytest.importorskip("ipykernel", reason="the extra docs is not installed")
    text = run_notebook.shown(run_notebook.executed())
    assert "held-out problems" in text
    assert "image/svg+xml" in text
    assert "status 0" in text
