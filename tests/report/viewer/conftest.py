"""A browser on the viewer: a page that fails a test where anything goes wrong on it, or leaves this machine."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.report.viewer.library import Library
from flow_dpo.report.viewer.server import ViewServer
from tests.support.once import Once
from tests.support.view_runs import seed_run

WAIT_MS = 30_000
"""The longest that a page may take on a busy machine."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; the tests that need one are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra dev)")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"], timeout=120_000
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def seeded(once: Once) -> Path:
    """A short run of the seed model, to be read alone."""
    return once("seeded", lambda folder: seed_run(folder / "run")) / "run"


@dataclass(kw_only=True)
class Visit:
    """A page in the browser, and what went wrong on it."""

    page: Any
    wrong: list[str]

    def go(self, route: str) -> None:
        """Open a route of the page that is open, as a link would, and wait until it is drawn."""
        if self.page.evaluate("location.hash") != route:
            self.page.evaluate(
                "(route) => new Promise((done) => { addEventListener('hashchange', () => setTimeout(done, 0), "
                "{once: true}); location.hash = route; })",
                route,
            )
        self.settled()

    def settled(self) -> None:
        """Wait until everything that was asked for is drawn."""
        self.until(
            "document.querySelector('main h1, main [role=alert]') !== null && "
            "document.getElementById('main').getAttribute('aria-busy') !== 'true'"
        )

    def until(self, condition: str | Callable[[], bool]) -> None:
        """Wait until something holds: a call, or an expression in the page.

        Playwright's own way evaluates a text in the page, which forbids it.
        """
        end = time.monotonic() + WAIT_MS / 1000
        while not (self.page.evaluate(condition) if isinstance(condition, str) else condition()):
            assert time.monotonic() < end, f"not within {WAIT_MS} ms: {condition}"
            time.sleep(0.02)


Open = Callable[..., Visit]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Open]:
    """Opens addresses: visit(address, width=1000, theme="light"). What is wrong on a page fails the test at its end."""
    opened: list[tuple[Any, Visit]] = []

    def begin(address: str, *, width: int = 1000, theme: str = "light") -> Visit:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        made = Visit(page=page, wrong=[])
        opened.append((context, made))
        own = address.partition("#")[0].rpartition("/")[0]
        page.on("console", lambda message: made.wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: made.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (made.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url.startswith((own, "data:")) else made.wrong.append(request.url),
        )
        page.goto(address)
        made.settled()
        return made

    yield begin
    wrong = [one for _, made in opened for one in made.wrong]
    for context, _ in opened:
        context.close()
    assert not wrong


@contextmanager
def served(paths: Sequence[Path], cache: Path) -> Iterator[tuple[str, Library]]:
    """The address of a viewer of these paths, everything indexed, and its library."""
    with Library(paths, cache=cache) as library, ViewServer(library) as server:
        library.wait()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.address, library
        finally:
            server.shutdown()
            thread.join(timeout=10)
