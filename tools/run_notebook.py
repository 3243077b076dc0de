"""Runs examples/quickstart.ipynb from its first cell to its last, and stores it with its outputs.

    python -m tools.run_notebook        (extra "docs")

Invariant: the stored outputs show nothing of this machine: no local paths, no progress bars or warnings of libraries.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"


def executed(path: Path = NOTEBOOK) -> Any:
    """The notebook with fresh outputs. An error in a cell is raised (`nbclient.exceptions.CellExecutionError`)."""
    import nbformat  # pyright: ignore[reportMissingImports]
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def shown(notebook: Any) -> str:
    """All text in the outputs."""
    outputs = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
    return "\n".join(str(one.get("text", "")) + str(one.get("data", "")) for one in outputs)


def local_paths(text: str) -> list[str]:
    """The local paths in a text."""
    return re.findall(r"(?<![\w.])/(?:tmp|home|root|Users|var|work)/\S+", text)


if __name__ == "__main__":
    import nbformat  # pyright: ignore[reportMissingImports]

    nbformat.write(executed(), NOTEBOOK)
