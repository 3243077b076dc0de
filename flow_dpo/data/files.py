"""Rows of a data set's file, folder or hub id, as plain dictionaries, each with the place it came from.

JSONL and JSON (a list of objects, or one object per line), plain or compressed, are read here, because the `datasets`
library cannot say which row is broken and rounds numbers. Parquet files and hub ids go through `datasets`.

    open_rows("data/gsm8k", config=None, split="train")
    -> RowSource("gsm8k", [("data/gsm8k/train.jsonl.gz, row 0", {"question": ..., "answer": ...}), ...])

Invariant: a row is returned as it was written, or a `DataError` names file and row. No library's exception escapes.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from flow_dpo.core.errors import DataError
from flow_dpo.data.columns import Row
from flow_dpo.data.datasets import dataset_names
from flow_dpo.data.strict_json import parse

logger = logging.getLogger(__name__)


def _unzstd(packed: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd") as stream:
        return stream.read()


_PACKED: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress, ".zst": _unzstd
}  # fmt: skip
_TEXTS = (".jsonl", ".json", ".ndjson")
SUFFIXES = (*_TEXTS, *(text + packed for text in _TEXTS for packed in _PACKED), ".parquet")
"""Suffixes of the files that can be read."""
_OTHER_FILES = (".csv", ".tsv", ".txt", ".arrow", ".feather", ".zip", ".tar", ".xlsx", ".yaml", ".yml", ".pkl", ".db")
_KINDS = ".jsonl, .json or .parquet (the first two also with .gz, .zst, .xz or .bz2)"


@dataclass(frozen=True, slots=True)
class RowSource:
    """A data set's name, used in ids, and its rows, each with its place, used in errors."""

    stem: str
    rows: Iterator[tuple[str, Row]]


def open_rows(name: str, *, config: str | None, split: str) -> RowSource:
    """The rows of a local file, of a folder's file for `split`, or of a hub data set."""
    try:
        path = Path(name).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # the name is too long, or "~user" is no user
        raise DataError(f"expected a path or a data set's name, found {name!r:.80}: {error!s:.80}") from error
    if not name.strip():
        raise DataError("expected a path or a data set's name, found none; give one with --dataset_name")
    if is_folder:
        files = _files_of_split(path, config, split)
        return RowSource(path.resolve().name, itertools.chain.from_iterable(map(_read, files)))
    if is_there:
        if split != "train":
            logger.warning("%s is a single file without splits: %r stands for all of it", name, split)
        return RowSource(_stem(path), _read(path))
    if _looks_local(name):
        raise DataError(_missing(path))
    if meant := _mistyped(name, path):
        raise DataError(f"expected a data set at {path} or on the hub, found no local one of that name; {meant}")
    wanted = f"a local path or a data set {name!r} on the hub with configuration {config!r} and split {split!r}"
    rows = _table(name, f"{name} ({split})", wanted, name=config, split=split)
    return RowSource(name.rpartition("/")[2], rows)


def _looks_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id is "name" or "owner/name" and does not end like a file."""
    ends = name.lower().endswith((*SUFFIXES, *_OTHER_FILES, *_PACKED))
    return ends or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _mistyped(name: str, path: Path) -> str:
    """A hint for a possible hub id that resembles a registered name or a local path; "" if nothing is similar."""
    if "/" not in name:
        near = get_close_matches(name, dataset_names(), n=1, cutoff=0.7)
        return f"did you mean {near[0]}? For a data set on the hub, name its owner: owner/{name}" if near else ""
    near = _near(path)
    return f"did you mean {near}?" if near else ""


def _near(path: Path) -> Path | None:
    """The file or folder beside a missing path whose name is most similar."""
    try:
        names = sorted(each.name for each in path.parent.iterdir() if each.exists())[:200]
    except OSError:
        return None
    found = get_close_matches(path.name, names, n=1)
    return path.parent / found[0] if found else None


def _missing(path: Path) -> str:
    near = _near(path)
    hint = f"did you mean {near}?" if near else "give a file, a folder or a hub id"
    folder = next(each for each in (path.parent, *path.parent.parents) if each.exists())
    missing = "" if folder == path.parent else f": {folder} holds no {path.relative_to(folder).parts[0]}"
    return f"expected a data set at {path}, found nothing there{missing}; {hint}"


def _stem(path: Path) -> str:
    return _unpacked(path).rpartition(".")[0] or path.name


def _unpacked(path: Path) -> str:
    """A file's name without its compression suffix."""
    return path.name[: -len(path.suffix)] if path.suffix.lower() in _PACKED else path.name


def _files_of_split(folder: Path, config: str | None, split: str) -> list[Path]:
    """The file of a split (`<split>.jsonl.gz`), or all its parts (train-00000-of-00002.parquet): in the subfolder of
    the configuration, in the folder itself, or in `data`."""
    if config and Path(config).name != config:
        raise DataError(f"expected a configuration's name, found {config!r}; give the name of a folder in {folder}")
    if config and not (folder / config).is_dir():
        # A run can bring its hub configuration to a local set that has none, so only a similar name is a misspelling.
        near = get_close_matches(config, sorted(each.name for each in folder.iterdir() if each.is_dir()), n=1)
        if near:
            raise DataError(
                f"expected a folder for the configuration {config!r} in {folder}, found none; did you mean "
                f"--dataset_config {near[0]}?"
            )
    stems: set[str] = set()
    for place in (folder / part for part in ([config] if config else []) + [".", "data"]):
        tables = sorted(each for each in place.glob("*") if each.name.lower().endswith(SUFFIXES) and each.is_file())
        named = [each for each in tables if _stem(each) == split]
        named = named or [each for each in tables if each.name.startswith(f"{split}-")]
        parts = [re.search(r"-(\d+)-of-(\d+)$", _stem(each)) for each in named]
        numbers = [(int(part[1]), int(part[2])) for part in parts if part]
        whole = numbers == [(at, len(named)) for at in range(len(named))]
        if named and (whole or (len(named) == 1 and not numbers)):
            return named
        if named:
            raise DataError(
                f"expected one file of split {split!r} in {place}, or all its parts, found "
                f"{', '.join(each.name for each in named)}; name the file itself"
            )
        stems.update(map(_stem, tables))
    near = get_close_matches(split, sorted(stems), n=1)
    raise DataError(
        f"expected a file {split}.jsonl, .json, .parquet or compressed (.jsonl.gz) in {folder}, found "
        f"{', '.join(sorted(stems)[:20]) or 'no data files'}; "
        + (f"did you mean --dataset_split {near[0]}?" if near else "choose an existing split, or name the file")
    )


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    ending = path.name.lower()
    _refuse_pointer(path)
    if ending.endswith(".parquet"):
        wanted = f"a Parquet file at {path}"
        if _is_empty_table(path):
            return iter(())
        return _table("parquet", str(path), wanted, data_files=str(path), split="train", streaming=True)
    if ending.endswith(SUFFIXES):
        return _read_json(path)
    raise DataError(f"expected a data set in one of {_KINDS}, found {path}; convert it or name another file")


def _refuse_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        raise DataError(f"expected a readable data set at {path}, found {error}; download it again") from error
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"expected a data set at {path}, found a Git LFS pointer; fetch the file with git lfs pull")


_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1": ".parquet"}


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        packed = path.read_bytes()
        text = _PACKED.get(path.suffix.lower(), bytes)(packed).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            kind = next((ending for magic, ending in _MAGIC.items() if error.object.startswith(magic)), None)
            raise DataError(
                f"expected UTF-8 text in {path}, found byte 0x{error.object[error.start]:02x} at {error.start}; "
                + (f"its content is that of a {kind} file: give it that suffix" if kind else "save it as UTF-8")
            ) from error
        raise DataError(f"expected a readable data set at {path}, found {error}; get or compress it again") from error
    # A lone surrogate or NaN in a field is accepted here; it makes a bad row, which `problems` skips or refuses.
    values = _list_of_rows(text, path)
    if values is None:
        lines = (line for line in text.split("\n") if line.strip())
        values = (parse(line, f"{path}, row {i}", any_text=True, any_number=True) for i, line in enumerate(lines))
    for index, value in enumerate(values):
        place = f"{path}, row {index}"
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected an object of columns, found {value!r:.80}; repair or drop the row")
        yield place, cast(Row, value)


def _is_empty_table(path: Path) -> bool:
    """Whether a Parquet file has no rows; `datasets` fails on such a file."""
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_metadata(path).num_rows == 0
    except (ArrowException, OSError):
        return False


_LISTS = ("data", "rows", "examples", "instances")


def _list_of_rows(text: str, path: Path) -> Iterator[Any] | None:
    """The rows of a text that is a single JSON value: a list, or an object that contains the list. None if the text has
    one row per line."""
    start, is_json = text.lstrip()[:1], _unpacked(path).lower().endswith(".json")
    try:
        if start == "[":
            return iter(parse(text, str(path), any_text=True, any_number=True))
        if start != "{" or not is_json:
            return None
        parse(text.lstrip().partition("\n")[0], str(path), any_text=True, any_number=True)
        return None  # one object per line
    except DataError:
        if start == "[" and is_json:
            raise
        if start == "[":
            return None
    try:
        found: dict[str, Any] = parse(text, str(path), any_text=True, any_number=True)
    except DataError:
        return None
    lists = [value for name, value in found.items() if isinstance(value, list) and (name in _LISTS or len(found) == 1)]
    if len(lists) != 1:
        raise DataError(
            f"{path}: expected a list of objects or one object per line, found one object of {', '.join(found):.200}; "
            "save only the list of rows"
        )
    return iter(lists[0])


def _table(path: str, place: str, wanted: str, **options: Any) -> Iterator[tuple[str, Row]]:
    """The rows of what `datasets.load_dataset` opens; `wanted` says in errors what was expected."""
    import datasets
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        table = datasets.load_dataset(path, **options)
        if isinstance(table, datasets.IterableDataset):
            table = table.decode(False)  # images and audio stay encoded
        for index, row in enumerate(as_written(table)):
            yield f"{place}, row {index}", row
    except (OSError, ValueError, RuntimeError, ArithmeticError, ArrowException, DatasetsError) as error:
        raise DataError(
            f"expected {wanted}, found {type(error).__name__}: {str(error)[:300]}; check the name, or give another "
            "file, folder or hub id"
        ) from error


def as_written(table: Any) -> Iterator[Row]:
    """The rows of a table of the `datasets` library, with cells as they were written: a class label by its name (None
    if it has none), and 0.1 in single precision as 0.1, not 0.10000000149011612."""
    features = table.features
    to_change = features is not None and any(kind in str(features) for kind in ("ClassLabel", "float16", "float32"))
    for row in table:
        yield cast(Row, _written(row, features) if to_change else row)


def _written(value: Any, feature: Any) -> Any:
    """A cell as it was written, according to its feature."""
    if isinstance(value, dict) and isinstance(feature, dict):
        inner, parts = cast("dict[str, Any]", value), cast("dict[str, Any]", feature)
        return {name: _written(each, parts.get(name)) for name, each in inner.items()}
    if isinstance(value, list):
        part = cast("list[Any]", feature)[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_written(each, part) for each in cast("list[Any]", value)]
    if isinstance(value, int) and hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    kind = getattr(feature, "dtype", "")
    if not isinstance(value, float) or kind not in ("float16", "float32"):
        return value
    import numpy

    return float(str(numpy.dtype(kind).type(value)))
