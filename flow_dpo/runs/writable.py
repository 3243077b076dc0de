"""Trial of an output folder: whether files can be written there, asked before anything is computed.

    check_writable(Path("runs/train"))              nothing, or one ConfigError that names the place and the reason
    check_writable(Path("/proc/x"), flag="--output")

Invariant: the trial writes and removes a file, for only the system can tell about permissions, read-only disks, full
disks and files in the way; it leaves nothing behind, no folder either.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from flow_dpo.core.errors import ConfigError


def check_writable(folder: Path, *, flag: str = "--output_dir") -> None:
    """Raise `ConfigError` unless files can be written in `folder`, which is made for the trial where it is not there.

    `flag` names the place that the user chose, for the error.
    """
    if folder.parts[:1] and folder.parts[0].startswith("~") and not Path(folder.parts[0]).exists():
        raise ConfigError(
            f"expected a folder in {flag}, found {folder}, in which ~ stands for no home: write {flag} ~/... with a "
            "space, for the shell to fill in, or the whole path"
        )
    made: list[Path] = []
    try:
        # 1. What stands in the way: the nearest part of the path that is there must be a folder.
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
        # 3. Write a file, which has no name and is gone at once.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"flow-dpo")
            file.flush()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"expected a folder that can be written to in {flag}, found that {folder} cannot: "
            f"{getattr(error, 'strerror', None) or error}; make it writable, or name another with {flag}"
        ) from error
    finally:
        for part in reversed(made):
            if not any(part.iterdir()):
                part.rmdir()
