"""Check of an output folder: whether files can be written there, tried before anything is computed.

    check_writable(Path("runs/train"))              nothing, or one ConfigError that names the place and the reason
    check_writable(Path("/proc/x"), flag="--output")

Invariant: the check writes and removes a file, since only the system knows about permissions, read-only disks, full
disks and files in the way; it leaves nothing behind, not even a folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from flow_dpo.core.errors import ConfigError


def check_writable(folder: Path, *, flag: str = "--output_dir") -> None:
    """Raise `ConfigError` unless files can be written in `folder`, which is made for the check if it does not exist.

    `flag` is the setting with which the user chose the folder, for the error.
    """
    if folder.parts[:1] and folder.parts[0].startswith("~") and not Path(folder.parts[0]).exists():
        raise ConfigError(
            f"expected a folder in {flag}, found {folder}, in which ~ is not expanded: write {flag} ~/... with a "
            "space, so that the shell expands it, or the full path"
        )
    made: list[Path] = []
    try:
        # 1. Nothing may be in the way: the nearest part of the path that exists must be a folder.
        for part in (folder, *folder.parents):
            if part.is_dir():
                break
            if part.exists() or part.is_symlink():
                raise ConfigError(
                    f"expected a folder in {flag}, found the file {part} in its way; name another with {flag}"
                )
        # 2. Make the folders that are missing, the outermost first.
        for part in reversed([part for part in (folder, *folder.parents) if not part.exists()]):
            part.mkdir(exist_ok=True)
            made.append(part)
        # 3. Write a file, which has no name and is removed at once.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"flow-dpo")
            file.flush()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"expected a folder that can be written to in {flag}, found {folder}, which cannot: "
            f"{getattr(error, 'strerror', None) or error}; make it writable, or name another with {flag}"
        ) from error
    finally:
        for part in reversed(made):
            if not any(part.iterdir()):
                part.rmdir()
