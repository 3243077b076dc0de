"""The documentation site: the repository's Markdown, staged with every file it links to, and built by Zensical.

    python -m tools.docs_site        stages build/docs, then builds build/site (extra "docs"; `make docs`)

Stages. 1: README.md, CONTRIBUTING.md, CHANGELOG.md, docs/, the figures and studies are copied to the same places under
build/docs, so links between them need no rewriting. Every other file that one of them links to is copied too. 2: the
reference is written from the public names, one page per room. 3: the quick start runs once, and the viewer's copy of it
is put among the pages. 4: Zensical builds the site; a single warning fails the build.
Invariant: a page on the site is the file that a reader of the repository sees.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import flow_dpo

ROOT = Path(__file__).resolve().parents[1]
STAGED = ROOT / "build" / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "benchmarks/RESULTS.md", "studies/**/*.md")
"""Files that become pages, as patterns relative to the repository."""
ASSETS = ("docs/**/*.svg", "docs/**/*.png", "docs/**/*.css")
VIEW = Path("docs", "quickstart-view")
"""The viewer's copy of the quick start on the site. It is made with the site."""
_NUM_ITEMS = 128
_FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


def pages() -> list[Path]:
    """The Markdown files that become pages, in order."""
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def links(text: str) -> Iterator[str]:
    """The targets of links and pictures in a Markdown text, except those in code."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    for markdown, html in _LINK.findall(prose):
        yield markdown or html


def linked_files(page: Path) -> list[Path]:
    """The files of the repository that a page links to, whether they exist or not."""
    targets = [link.partition("#")[0] for link in links(page.read_text(encoding="utf-8"))]
    return [(page.parent / target).resolve() for target in targets if target and not re.match(r"[a-z]+:", target)]


def reference() -> Mapping[str, str]:
    """The reference's pages by file name: an index, and for each room the public names defined in it."""
    rooms: dict[str, list[str]] = {}
    for name, home in sorted(flow_dpo._HOMES.items()):  # pyright: ignore[reportAttributeAccessIssue]
        rooms.setdefault(home.partition(".")[0], []).append(f"::: flow_dpo.{home}.{name}")
    table = ["| room | public names |", "|---|---|"]
    written = {}
    for room, entries in sorted(rooms.items()):
        question = (ROOT / "flow_dpo" / room / "__init__.py").read_text(encoding="utf-8").splitlines()[0]
        written[f"{room}.md"] = f"# {room}\n\n{question.strip(chr(34))}\n\n" + "\n\n".join(entries) + "\n"
        names = ", ".join(f"[`{entry.rpartition('.')[2]}`]({room}.md#{entry[4:]})" for entry in entries)
        table.append(f"| [{room}]({room}.md) | {names} |")
    head = "# Public names\n\nAll that `import flow_dpo` offers, by the room in which it is defined.\n\n"
    return {"index.md": head + "\n".join(table) + "\n", **written}


def stage(target: Path = STAGED) -> None:
    """Copy the pages, the pictures and all files that pages link to, and write the reference."""
    shutil.rmtree(target, ignore_errors=True)
    wanted = {*pages(), *(path for pattern in ASSETS for path in ROOT.glob(pattern))}
    wanted |= {path for page in pages() for path in linked_files(page) if path.is_file()}
    for path in sorted(wanted):
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for name, text in reference().items():
        path = target / "docs" / "reference" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def show_quickstart(target: Path = STAGED, *more: str) -> None:
    """Run the quick start, unless it has finished already, and put the viewer's copy of it among the pages."""
    run = target.parent / "quickstart"
    command = [sys.executable, "-m", "flow_dpo"]
    words = ["quickstart", "--output_dir", str(run), *more]
    if (run / "config.yaml").exists():
        words = ["train", "--output_dir", str(run), "--resume"]
    if not (run / "progressive.png").exists():  # written at the end of a run
        subprocess.run([*command, *words], cwd=ROOT, check=True, timeout=900)
    copy = ["view", str(run), "--export", str(target / VIEW), "--num_items", str(_NUM_ITEMS)]
    subprocess.run([*command, *copy], cwd=ROOT, check=True, timeout=300)


def build() -> int:
    """Stage and build the site. Returns the exit status: 1 if there was any warning."""
    stage()
    show_quickstart()
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    shown = done.stdout + done.stderr
    print(shown)
    return done.returncode or int(bool(re.search(r"\b(warning|error)s?\b", shown, re.IGNORECASE)))


if __name__ == "__main__":
    sys.exit(build())
