"""`flow-dpo view`: a local page on runs, traces, evaluations and judgements, down to every tree and token.

    flow-dpo view runs/train                  prints a local address, and opens it
    flow-dpo view runs                        everything below a folder
    flow-dpo view runs/a runs/b --port 8000 --no-browser
    flow-dpo view runs/train --export site/view        a copy as static files, for a disk or any web server

Active runs are followed. Invariants: nothing is written to the folders shown; only this machine can reach the page.
"""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.report.viewer.export import export, refuse_export
from flow_dpo.report.viewer.library import Library
from flow_dpo.report.viewer.server import HOST, ViewServer
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.live import Live
from flow_dpo.runs.resolve import resolve

_WHAT = "Inspect runs, traces, evaluations and judgements, or folders of these: flow-dpo view FOLDER..."


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Settings of the page."""

    port: int = 0
    """The port on 127.0.0.1; 0 takes a free one."""
    no_browser: bool = False
    """Only print the address; open no browser."""
    export: str | None = None
    """Instead of serving the page, write a copy of it to this folder."""
    num_items: int = 300
    """With `export`: problems of each source in the copy, spread evenly over the source."""

    def __post_init__(self) -> None:
        expect(self, "from 0 to 65535", lambda value: 0 <= value <= 65_535, "port")
        expect(self, "at least 1", lambda value: value >= 1, "num_items")
        expect(self, "to name a folder", lambda value: value is None or bool(value.strip()), "export")


def parse(argv: Sequence[str]) -> tuple[list[Path], ViewSettings]:
    """The paths and the settings. Raises `ConfigError` if no path is named."""
    words = ["--no_browser" if word == "--no-browser" else word for word in argv]
    parsed = resolve("flow-dpo view", _WHAT, words, {"view": ViewSettings()}, others="paths", doc=__doc__ or "")
    if not parsed["paths"]:
        raise ConfigError("expected a run, traces, an evaluation, judgements or a folder of them, found none: "
                          "flow-dpo view FOLDER...")  # fmt: skip
    return [Path(path) for path in parsed["paths"]], parsed["view"]


def view(argv: Sequence[str]) -> int:
    """`flow-dpo view`."""
    paths, settings = parse(argv)
    console = Console()
    if settings.export is not None:
        return _export(paths, Path(settings.export), settings.num_items, console)
    with Library(paths) as library, _server(library, settings.port) as server:
        print_safe(console, f"{_counted(len(library.sources))} at {server.address}   (Ctrl-C to stop)")
        if not settings.no_browser and has_display():
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print_safe(console, "")
    return 0


def _export(paths: Sequence[Path], folder: Path, num_items: int, console: Console) -> int:
    refuse_export(folder)
    with Library(paths) as library, Live(console) as live:
        live.doing(f"copying {_counted(len(library.sources))}")
        copied = export(library, folder, num_items=num_items)
    for id, num in copied.items.items():
        print_safe(console, f"{id}: {num:,} items")
    if copied.left_out:
        print_safe(console, f"{copied.left_out:,} could not be read and are left out; the copy's notes say why")
    print_safe(console, f"Written to {folder / 'index.html'} ({copied.num_bytes / 1e6:.1f} MB of data)")
    return 0


def _server(library: Library, port: int) -> ViewServer:
    try:
        return ViewServer(library, port=port)
    except OSError as error:
        raise ConfigError(f"expected port {port} of {HOST} to be free, found: {error.strerror}; name another with "
                          "--port, or leave it out") from error  # fmt: skip


def _counted(num: int) -> str:
    return f"{num:,} source{'s' if num != 1 else ''}"


def has_display() -> bool:
    """Whether the system has a display for a browser."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
