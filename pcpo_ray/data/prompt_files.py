"""Prompt files: text, CSV, JSON, JSONL and Parquet, read whole, with errors that name the file and the row."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcpo_ray.config import recipes
from pcpo_ray.config.prompts import SUFFIXES
from pcpo_ray.errors import PromptError, nearest

if TYPE_CHECKING:
    from pcpo_ray.data.types import Size

POINTER = b"version https://git-lfs"

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
SIDES = ("height", "width")
"""The columns of an image's size in pixels, which a file may have."""

Rows = Iterator[tuple[str, Any, Mapping[str, Any]]]
"""A prompt's place in its file, the value there, and the values of those of `SIDES` that there are."""


@dataclass(frozen=True, kw_only=True)
class FilePrompts:
    """A file's prompts: texts, a size for each (none at all if no row has one), and where each size first stands."""

    texts: Sequence[str]
    sizes: Sequence[Size | None]
    places: Mapping[Size, str]


def read(path: Path, column: str = "prompt") -> FilePrompts:
    """Read the prompts of a file, in order, without empty lines. Raises PromptError naming the file and the row."""
    if path.is_dir():
        raise PromptError(f"{path} is a folder; expected a file of prompts{_beside(path)}")
    if not path.is_file():
        raise PromptError(f"no prompt file at {path}{_guess(path)}")
    suffix = path.suffix.lower()
    if suffix in PACKED:
        raise PromptError(f"{path} is compressed or an archive; unpack it, and give the file that was in it")
    readers = {".txt": _txt, ".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    if suffix not in readers:
        tabs = "; save it with commas, as .csv" if suffix in (".tsv", ".tab") else ""
        raise PromptError(
            f"{path}: prompts are read from .txt, .csv, .json, .jsonl and .parquet; got {path.suffix!r}{tabs}"
        )
    try:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise PromptError(f"{path} is a git-lfs pointer, not the file itself; run git lfs pull")
        found = _prompts(path, column, readers[suffix](path, column))
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error}") from None
    if not found.texts:
        raise PromptError(f"{path} holds no prompts; expected at least one")
    return found


def _guess(path: Path) -> str:
    """Point to a file that may have been meant by a path, or say what would do."""
    there = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
    guess = nearest(path.name, [name for name in there if Path(name).suffix.lower() in SUFFIXES])
    others, lists = ", ".join(SUFFIXES[1:]), " or ".join(recipes.prompt_lists())
    return (
        f"{guess}; expected a text file with a prompt a line, a file of {others}, or a list that comes along: {lists}"
    )


def _beside(folder: Path) -> str:
    """Name a prompt file in a folder."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return f", such as {found[0]} in it" if found else ""


def _prompts(path: Path, column: str, rows: Rows) -> FilePrompts:
    texts: list[str] = []
    sizes: list[Size | None] = []
    places: dict[Size, str] = {}
    for where, value, sides in rows:
        texts.append(_prompt(path, where, column, value))
        size = _size(path, where, sides) if sides else None
        sizes.append(size)
        if size is not None:
            places.setdefault(size, f"{path}, {where}")
    return FilePrompts(texts=texts, sizes=sizes if places else (), places=places)


def _size(path: Path, where: str, sides: Mapping[str, Any]) -> Size | None:
    """Return a row's size, or None where both sides are empty. Raises PromptError."""
    given = {name: value for name, value in sides.items() if value not in (None, "")}
    if not given:
        return None
    missing = [name for name in SIDES if name not in given]
    if missing:
        ((name, value),) = given.items()
        raise PromptError(
            f"{path}, {where}: {name} is {value!r:.100}, and there is no {missing[0]}; give both in pixels or neither "
            "(rename the column if it does not mean the images to make)"
        )
    for name, value in given.items():
        if type(value) is not int or value < 1:
            raise PromptError(
                f"{path}, {where}: {name} is {value!r:.100}; expected a whole number of pixels, at least 1 (rename the "
                "columns height and width if they do not mean the images to make)"
            )
    return given["height"], given["width"]


def _prompt(path: Path, where: str, column: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        shown = repr(value)
        raise PromptError(f"{path}, {where}: {column} is {shown[:100]}; expected a text that is not empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PromptError(
            f"{path}, {where}: {column} has half of a surrogate pair ({value!r:.100}); write the file again as UTF-8"
        )
    return value.strip()


def _text(path: Path) -> str:
    """Read a whole text file. Raises PromptError if it is not UTF-8 text."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        kind = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "UTF-16 or no text (it has NUL bytes)"
        raise PromptError(f"{path} cannot be read, as it is {kind}; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{path}, line {line} cannot be read as UTF-8 (byte {error.start}: {error.reason}); save the file as UTF-8"
        ) from None


def _lines(path: Path) -> list[str]:
    r"""Read the lines of a text file, ending in \n or \r\n. Other separators, such as U+2028, are part of a line."""
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    for number, line in enumerate(lines, 1):
        if "\r" in line.rstrip("\r"):
            raise PromptError(
                f"{path}, line {number} cannot be read, as it has a carriage return inside; save the file with line "
                "feeds as line ends"
            )
    return lines


def _txt(path: Path, column: str) -> Rows:
    return ((f"line {number}", line, {}) for number, line in enumerate(_lines(path), 1) if line.strip())


def _jsonl(path: Path, column: str) -> Rows:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield _of_object(path, f"row {number}", column, _parsed(path, f"row {number}", line))


def _json(path: Path, column: str) -> Rows:
    found = _parsed(path, "the file", _text(path))
    if not isinstance(found, list):
        raise PromptError(f"{path} holds {_a(found)}; expected a list of texts or of objects, or a .jsonl file")
    for number, value in enumerate(found, 1):
        where = f"row {number}"
        yield (where, value, {}) if isinstance(value, str) else _of_object(path, where, column, value)


def _parsed(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}, {where} cannot be read as JSON: {error}") from None


class _Object(dict[str, Any]):
    """A JSON object that knows which of its names are repeated."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = {name for name in names if names.count(name) > 1} if len(self) < len(names) else set()


def _of_object(path: Path, where: str, column: str, value: Any) -> tuple[str, Any, Mapping[str, Any]]:
    if not isinstance(value, _Object):
        raise PromptError(f"{path}, {where} holds {_a(value)}; expected an object with a {column!r}")
    for name in (column, *SIDES):
        if name in value.repeated:
            raise PromptError(f"{path}, {where} has more than one {name!r}; leave one of them")
    _check_column(path, where, column, value)
    return where, value[column], {name: value[name] for name in SIDES if name in value}


def _a(value: Any) -> str:
    return {_Object: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), f"{value!r:.40}")


def _check_column(path: Path, where: str, column: str, names: Collection[str]) -> None:
    count = list(names).count(column)
    if count != 1:
        many = "more than one" if count else "no"
        raise PromptError(
            f"{path}, {where} has {many} column {column!r}; its columns are {list(names)} (set prompts.column)"
        )


def _sides_in(path: Path, where: str, names: Sequence[str]) -> list[str]:
    """List those of `SIDES` that are among a file's columns. Raises PromptError for one that is there twice."""
    found = [name for name in SIDES if name in names]
    for name in found:
        if names.count(name) > 1:
            raise PromptError(f"{path}, {where} has more than one column {name!r}; leave one of them")
    return found


def _csv(path: Path, column: str) -> Rows:
    """Read comma-separated rows; a quote inside a quoted text is doubled, and every row has the header's columns."""
    import csv

    csv.field_size_limit(sys.maxsize)  # 128 KiB unless told
    rows = csv.reader((f"{line}\n" for line in _lines(path)), strict=True)
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            raise PromptError(f"{path} cannot be read as CSV: it is empty; expected a line of column names")
        if len(header) == 1 and any(separator in header[0] for separator in ";\t|"):
            raise PromptError(
                f"{path} cannot be read as CSV: its first line, {header[0]!r:.100}, has no comma; save it with commas "
                "between the columns"
            )
        _check_column(path, "line 1", column, header)
        place = header.index(column)
        sides = {name: header.index(name) for name in _sides_in(path, "line 1", header)}
        for number in itertools.count(1):
            row = next(rows, None)
            while row == []:
                row = next(rows, None)
            if row is None:
                return
            if len(row) != len(header):
                raise csv.Error(f"it has {len(row)} columns, and the header has {len(header)}")
            if '\\"' in row[place]:
                raise csv.Error('it has a quote after a backslash (\\")')
            yield f"row {number}", row[place], {name: _number(row[at]) for name, at in sides.items()}
    except csv.Error as error:
        raise PromptError(
            f"{path}, line {rows.line_num} cannot be read as CSV: {error}; put texts with commas or quotes between "
            'quotes, and double the quotes inside ("" and not \\")'
        ) from None


def _number(cell: str) -> int | str:
    text = cell.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _parquet(path: Path, column: str) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        _check_column(path, "its schema", column, names)
        sides = _sides_in(path, "its schema", names)
        table = file.read(columns=list(dict.fromkeys([column, *sides])))
        values = table.column(column).to_pylist()
        sized = [table.column(name).to_pylist() for name in sides]
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read as Parquet: {error}") from None
    rows = zip(values, *sized, strict=True)
    return (
        (f"row {number}", value, dict(zip(sides, size, strict=True))) for number, (value, *size) in enumerate(rows, 1)
    )
