"""Prompt sources (the embedded world's captions; text, CSV, JSON, JSONL and Parquet files) and the held-out split.

`batch(step)` depends on the seed and the step alone: epochs are seeded permutations, one after the other. Any step's
prompts are found without drawing the earlier ones, and a resumed run needs no cursor but its step.
"""

import hashlib
import itertools
import json
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pcpo_ray.config import PromptFile, Run, ShapesPrompts
from pcpo_ray.data.seeds import seed_of
from pcpo_ray.data.types import Prompt
from pcpo_ray.errors import PromptError

HELD_OUT = 0.1
"""Fraction of a file's texts that is held out if the config names no evaluation prompts."""
FEWEST = 32
"""Fewest texts of a file that are held out, or half of a file that has fewer than twice as many."""
SHOWN = 3
"""Number of prompts that a message names."""


class PromptSource:
    """Texts in a seeded order. Raises PromptError if there are none."""

    def __init__(self, texts: Sequence[str], *, seed: int, origin: str) -> None:
        if not texts:
            raise PromptError(f"{origin} holds no prompts; expected at least one")
        self.texts = texts
        self.seed = seed
        self.origin = origin

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, step: int, size: int) -> list[Prompt]:
        """Give the `size` prompts of step `step` (counted from 1): the same ones in every process, at every time."""
        if step < 1:
            raise PromptError(f"step is {step}; steps count from 1")
        return [self._at(position) for position in range((step - 1) * size, step * size)]

    def distinct(self, count: int) -> list[Prompt]:
        """Give the first `count` prompts with different texts, or all if fewer: a repeated text is no second sample."""
        first: dict[str, Prompt] = {}
        for position in range(len(self.texts)):
            if len(first) == count:
                break
            prompt = self._at(position)
            first.setdefault(normalised(prompt.text), prompt)
        return list(first.values())

    def _at(self, position: int) -> Prompt:
        epoch, place = divmod(position, len(self.texts))
        index = int(_permutation(self.seed, epoch, len(self.texts))[place])
        return Prompt(index=index, text=self.texts[index])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed_of(seed, "prompts", epoch)).permutation(size)


def load(config: ShapesPrompts | PromptFile, *, seed: int) -> PromptSource:
    """Make the prompt source that a config names. Raises PromptError naming the file and what is wrong with it."""
    if isinstance(config, ShapesPrompts):
        from pcpo_ray.shapes import captions

        texts = list(captions.captions(config.split, config.form))
        return PromptSource(texts, seed=seed, origin=f"shapes ({config.split}, {config.form})")
    return PromptSource(read(Path(config.path), config.column), seed=seed, origin=str(config.path))


# -- training prompts and held-out prompts -----------------------------------------------------------------------------


def normalised(text: str) -> str:
    """Normalise a text: composed characters (NFC), no case, single spaces. Equal results count as one prompt."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def sources(run: Run) -> tuple[PromptSource, PromptSource]:
    """Find the prompts that a run trains on, and those of its evaluations.

    If the config names no evaluation prompts, they are the embedded world's captions of the other split, or a part of
    the file (`split`), which is then not trained on. With evaluation.held_out=false they are the training prompts.
    Raises PromptError if prompts that should be held out are trained on.
    """
    asked = run.evaluation.prompts
    training = load(run.prompts, seed=run.seed)
    if asked is None and not run.evaluation.held_out:
        return training, training
    if asked is None and isinstance(run.prompts, ShapesPrompts):
        return training, load(ShapesPrompts(split=_other(run.prompts)), seed=run.seed)
    if asked is None:
        left, held_out = split(training.texts, training.origin)
        origin = f"the held-out part of {training.origin}"
        return (
            PromptSource(left, seed=run.seed, origin=training.origin),
            PromptSource(held_out, seed=run.seed, origin=origin),
        )
    evaluated = load(asked, seed=run.seed)
    if not (isinstance(run.prompts, ShapesPrompts) and asked == ShapesPrompts(split=_other(run.prompts))):
        _check_apart(run, training, evaluated)
    return training, evaluated


def _other(prompts: ShapesPrompts) -> Any:
    return "held_out" if prompts.split == "train" else "train"


def split(texts: Sequence[str], origin: str) -> tuple[list[str], list[str]]:
    """Split the texts into those to train on and those held out, which are the distinct texts with the lowest hashes.

    A text is held out if its hash is below `HELD_OUT`, so other texts do not move it. At least `FEWEST` are held out,
    or half of a small file. A text is held out with all its repeats. Raises PromptError for a single distinct text.
    """
    places = {text: _hash(text) for text in map(normalised, texts)}
    if len(places) < 2:
        raise PromptError(
            f"{origin} has {len(places)} distinct prompt, and a part of them is to be held out for evaluations; add "
            "prompts, give evaluation.prompts, or set evaluation.held_out=false to evaluate on training prompts"
        )
    tenth = sum(place < HELD_OUT for place in places.values())
    count = min(max(tenth, min(FEWEST, len(places) // 2)), len(places) - 1)
    held_out = set(sorted(places, key=lambda text: (places[text], text))[:count])
    parts: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        parts[normalised(text) in held_out].append(text)
    return parts


def _hash(text: str) -> float:
    """Map a text to a number between 0 and 1, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _check_apart(run: Run, training: PromptSource, evaluated: PromptSource) -> None:
    """Raise PromptError if evaluation.held_out does not say whether evaluation prompts are training prompts."""
    trained = set(map(normalised, training.texts))
    both = [text for text in dict.fromkeys(evaluated.texts) if normalised(text) in trained]
    if both and run.evaluation.held_out:
        raise PromptError(
            f"{len(both)} of {len(set(evaluated.texts))} evaluation prompts ({evaluated.origin}) are training prompts "
            f"({training.origin}): {_named(both)}; take them out of one of the two, leave evaluation.prompts out to "
            "hold a part of the training prompts out, or set evaluation.held_out=false (then no page says held-out)"
        )
    if not both and not run.evaluation.held_out:
        raise PromptError(
            f"evaluation.held_out is false, and none of the evaluation prompts ({evaluated.origin}) is a training "
            f"prompt ({training.origin}); leave evaluation.held_out out"
        )


def _named(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:SHOWN])) + (", ..." if len(texts) > SHOWN else "")


def said(run: Run, training: PromptSource, evaluated: PromptSource) -> list[str]:
    """Describe the prompts of a run, in lines for the user, before it starts."""
    whole = len(training.texts)
    distinct = len(set(map(normalised, training.texts)))
    repeated = f", {distinct} of them distinct: a repeated one is drawn as often as it stands there"
    lines = [f"training prompts: {whole} of {training.origin}" + (repeated if distinct < whole else "")]
    count = len(set(map(normalised, evaluated.texts)))
    used = min(run.evaluation.count, count)
    lines.append(f"evaluations: {used} of {count} {run.of_evaluation('prompts')} of {evaluated.origin}")
    if used < run.evaluation.count:
        lines.append(f"evaluations have {used} prompts, for evaluation.count={run.evaluation.count}: there are no more")
    return lines


# -- files -------------------------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs"

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
Rows = Iterator[tuple[str, Any]]
"""Pairs of a prompt's place in its file and the value there."""


def read(path: Path, column: str = "prompt") -> list[str]:
    """Read the prompts of a file, in order, without empty lines. Raises PromptError naming the file and the row."""
    if not path.is_file():
        raise PromptError(f"no prompt file at {path}")
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
        return [_prompt(path, where, column, value) for where, value in readers[suffix](path, column)]
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error}") from None


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
    return ((f"line {number}", line) for number, line in enumerate(_lines(path), 1) if line.strip())


def _jsonl(path: Path, column: str) -> Rows:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"row {number}", _member(path, f"row {number}", column, _parsed(path, f"row {number}", line))


def _json(path: Path, column: str) -> Rows:
    found = _parsed(path, "the file", _text(path))
    if not isinstance(found, list):
        raise PromptError(f"{path} holds {_a(found)}; expected a list of texts or of objects, or a .jsonl file")
    for number, value in enumerate(found, 1):
        where = f"row {number}"
        yield where, value if isinstance(value, str) else _member(path, where, column, value)


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


def _member(path: Path, where: str, column: str, value: Any) -> Any:
    if not isinstance(value, _Object):
        raise PromptError(f"{path}, {where} holds {_a(value)}; expected an object with a {column!r}")
    if column in value.repeated:
        raise PromptError(f"{path}, {where} has more than one {column!r}; leave one of them")
    _check_column(path, where, column, value)
    return value[column]


def _a(value: Any) -> str:
    return {_Object: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), f"{value!r:.40}")


def _check_column(path: Path, where: str, column: str, names: Collection[str]) -> None:
    count = list(names).count(column)
    if count != 1:
        many = "more than one" if count else "no"
        raise PromptError(
            f"{path}, {where} has {many} column {column!r}; its columns are {list(names)} (set prompts.column)"
        )


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
        for number in itertools.count(1):
            row = next(rows, None)
            while row == []:
                row = next(rows, None)
            if row is None:
                return
            if len(row) != len(header):
                raise csv.Error(f"it has {len(row)} columns, and the header has {len(header)}")
            yield f"row {number}", row[place]
    except csv.Error as error:
        raise PromptError(
            f"{path}, line {rows.line_num} cannot be read as CSV: {error}; put texts with commas or quotes between "
            'quotes, and double the quotes inside ("" and not \\")'
        ) from None


def _parquet(path: Path, column: str) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _check_column(path, "its schema", column, file.schema_arrow.names)
        values = file.read(columns=[column]).column(column).to_pylist()
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read as Parquet: {error}") from None
    return ((f"row {number}", value) for number, value in enumerate(values, 1))
