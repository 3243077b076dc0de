"""Rows of a data set's file, folder or hub id, as plain dictionaries, each with the place it came from.

JSONL (plain or gzip) and JSON (a list of objects, or one object a line) are read here, since the `datasets` library
cannot say which row is broken; Parquet files and hub ids go through `datasets`.

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
from flow_dpo.data.strict_json import parse

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
    wanted = f"a local path or a data set {name!r} on the hub with configuration {config!r} and split {split!r}"
    rows = _table(name, f"{name} ({split})", wanted, name=config, split=split)
    return RowSource(name.rpartition("/")[2], rows)


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
    if config and Path(config).name != config:
        raise DataError(f"expected a name of a configuration, found {config!r}; give the name of a folder in {folder}")
    stems: set[str] = set()
    for place in (folder / part for part in ([config] if config else []) + [".", "data"]):
        tables = sorted(each for each in place.glob("*") if each.name.endswith(SUFFIXES) and each.is_file())
        named = [each for each in tables if _stem(each) == split]
        named = named or [each for each in tables if each.name.startswith(f"{split}-")]  # train-00000-of-00001
        if len(named) == 1:
            return named[0]
        if named:
            raise DataError(
                f"expected one file of split {split!r} in {place}, found {', '.join(each.name for each in named)}; "
                f"name the file itself"
            )
        stems.update(map(_stem, tables))
    near = get_close_matches(split, sorted(stems), n=1)
    raise DataError(
        f"expected a file {split}.jsonl, .jsonl.gz, .json or .parquet in {folder}, found "
        f"{', '.join(sorted(stems)) or 'no data files'}; "
        + (f"did you mean --dataset_split {near[0]}?" if near else "choose a split that is there, or name the file")
    )


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    if path.name.endswith(".parquet"):
        wanted = f"a Parquet file at {path}"
        return _table("parquet", str(path), wanted, data_files=str(path), split="train", streaming=True)
    if path.name.endswith(SUFFIXES):
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
    # Half a surrogate pair or NaN in one field is that row's fault, which `problems` skips or refuses.
    if path.name.removesuffix(".gz").endswith(".json") and text.lstrip().startswith("["):
        values = parse(text, str(path), any_text=True, any_number=True)
    else:
        lines = (line for line in text.split("\n") if line.strip())
        values = (parse(line, f"{path}, row {i}", any_text=True, any_number=True) for i, line in enumerate(lines))
    for index, value in enumerate(values):
        place = f"{path}, row {index}"
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected an object of columns, found {value!r:.80}; repair or drop the row")
        yield place, cast(Row, value)


def _table(path: str, place: str, wanted: str, **options: Any) -> Iterator[tuple[str, Row]]:
    """The rows of what `datasets.load_dataset` opens; `wanted` names in the error what was expected."""
    import datasets
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        table = datasets.load_dataset(path, **options)
        if isinstance(table, datasets.IterableDataset):
            table = table.decode(False)  # images and sounds stay as they are stored
        for index, row in enumerate(table):
            yield f"{place}, row {index}", cast(Row, row)
    except (OSError, ValueError, RuntimeError, ArithmeticError, ArrowException, DatasetsError) as error:
        raise DataError(
            f"expected {wanted}, found {type(error).__name__}: {str(error)[:300]}; check the name, or give another "
            "file, folder or hub id"
        ) from error
