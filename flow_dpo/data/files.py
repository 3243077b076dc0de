"""Which rows does a data set's file, folder or hub id hold?

Reads JSONL (plain or gzip), JSON (a list of objects, or one object a line) and Parquet into plain dictionaries, each
with the place it came from. Local files are read without the `datasets` library; a hub id goes through it.

    open_rows("data/gsm8k", config=None, split="train")
    -> RowSource("gsm8k", [("data/gsm8k/train.jsonl.gz, row 0", {"question": ..., "answer": ...}), ...])

Invariant: a row comes back as it was written, or `DataError` names file and row. Never a library's exception.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from flow_dpo.core.errors import DataError
from flow_dpo.data import strict_json

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


@dataclass(frozen=True, slots=True)
class RowSource:
    """A data set's name, for ids, and its rows, each with its place, for errors."""

    stem: str
    rows: Iterator[tuple[str, Row]]


def open_rows(name: str, *, config: str | None, split: str) -> RowSource:
    """The rows of a local file, of a folder's file for `split`, or of a hub data set."""
    path = Path(name).expanduser()
    if path.is_dir():
        file = _file_of_split(path, config, split)
        return RowSource(path.resolve().name, _read(file))
    if path.exists():
        return RowSource(_stem(path), _read(path))
    if _looks_local(name):
        raise DataError(_missing(path))
    return RowSource(name.rpartition("/")[2], _from_hub(name, config, split))


def _looks_local(name: str) -> bool:
    """A hub id is "name" or "owner/name"; anything else can only be a path."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith(SUFFIXES)


def _missing(path: Path) -> str:
    folder = path.parent
    names = sorted(each.name for each in folder.iterdir())[:200] if folder.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    hint = f"did you mean {folder / near[0]}?" if near else "give a file, a folder or a hub id"
    return f"expected a data set at {path}, found nothing there; {hint}"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _file_of_split(folder: Path, config: str | None, split: str) -> Path:
    """`<split>.jsonl.gz` and its like in the folder, in its folder of the configuration, or in `data`."""
    places = [folder / part for part in ([config] if config else []) + [".", "data"]]
    if config and Path(config).name != config:
        raise DataError(f"expected a name of a configuration, found {config!r}; give the name of a folder in {folder}")
    found: list[Path] = []
    for place in places:
        files = [each for each in sorted(place.iterdir()) if each.is_file()] if place.is_dir() else []
        tables = [each for each in files if each.name.endswith(SUFFIXES)]
        named = [each for each in tables if _stem(each) == split]
        named = named or [
            each for each in tables if each.name.startswith(f"{split}-")
        ]  # the hub's train-00000-of-00001
        if len(named) == 1:
            return named[0]
        if named:
            raise DataError(
                f"expected one file of split {split!r} in {place}, found {', '.join(each.name for each in named)}; "
                f"name the file itself"
            )
        found += tables
    listed = ", ".join(sorted({_stem(each) for each in found})) or "no data files"
    near = get_close_matches(split, [_stem(each) for each in found], n=1)
    raise DataError(
        f"expected a file {split}.jsonl, .jsonl.gz, .json or .parquet in {folder}, found {listed}; "
        + (f"did you mean --dataset_split {near[0]}?" if near else "choose a split that is there, or name the file")
    )


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    if path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        return _read_json(path)
    raise DataError(
        f"expected a data set in one of {', '.join(SUFFIXES)}, found {path}; convert it or name another file"
    )


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        packed = path.read_bytes()
        text = (gzip.decompress(packed) if path.name.endswith(".gz") else packed).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"expected a readable data set at {path}, found {error}; fetch or pack it again") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 text in {path}, found byte 0x{error.object[error.start]:02x} "
            f"at {error.start}; save it as UTF-8"
        ) from error
    is_list = path.name.removesuffix(".gz").endswith(".json") and text.lstrip().startswith("[")
    if is_list:
        values: object = strict_json.parse(text, str(path), foreign=True)
        if not isinstance(values, list):
            raise DataError(f"expected a list of objects in {path}, found {type(values).__name__}; save it as JSONL")
        for index, value in enumerate(cast("list[object]", values)):
            yield _placed(path, index, value)
        return
    index = 0
    for line in text.split("\n"):
        if line.strip():
            yield _placed(path, index, strict_json.parse(line, f"{path}, row {index}", foreign=True))
            index += 1


def _placed(path: Path, index: int, value: object) -> tuple[str, Row]:
    place = f"{path}, row {index}"
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object of columns, found {value!r:.80}; repair or drop the row")
    return place, cast(Row, value)


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=1_000):
                for row in batch.to_pylist():
                    yield f"{path}, row {index}", row
                    index += 1
    except (OSError, arrow.ArrowException, ValueError, ArithmeticError) as error:
        raise DataError(f"expected a Parquet file at {path}, found {error}; fetch or write it again") from error


def _from_hub(name: str, config: str | None, split: str) -> Iterator[tuple[str, Row]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        table = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"expected a local path or a data set on the hub named {name!r} with configuration {config!r} and split "
            f"{split!r}, found {type(error).__name__}: {str(error)[:300]}; check the name, or give a file or folder"
        ) from error
    for index, row in enumerate(table):
        yield f"{name} ({split}), row {index}", cast(Row, row)
