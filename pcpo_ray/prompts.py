"""Prompt sources: the embedded world's captions; text, CSV, JSONL and Parquet files through pyarrow.

`batch(step)` is pure in the seed: epochs are seeded permutations laid end to end, so any step's prompts can be named
without having drawn those before it, and a resumed run needs no cursor but its step.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pcpo_ray.config import PromptFile, ShapesPrompts
from pcpo_ray.errors import PromptError
from pcpo_ray.trajectory import Prompt, seed_of


class PromptSource:
    """Texts in a seeded order. Raises PromptError when there are none."""

    def __init__(self, texts: list[str], *, seed: int, origin: str) -> None:
        if not texts:
            raise PromptError(f"{origin} holds no prompts; expected at least one")
        self.texts = texts
        self.seed = seed

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The `size` prompts of step `step` (counted from 1): the same whenever and wherever it is asked."""
        if step < 1:
            raise PromptError(f"step is {step}; steps count from 1")
        indices = [self._at(position) for position in range((step - 1) * size, step * size)]
        return [Prompt(index=index, text=self.texts[index]) for index in indices]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.texts))
        return int(_permutation(self.seed, epoch, len(self.texts))[place])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed_of(seed, "prompts", epoch)).permutation(size)


def load(config: ShapesPrompts | PromptFile, *, seed: int) -> PromptSource:
    """The prompt source that a config names. Raises PromptError naming the file and what is wrong with it."""
    if isinstance(config, ShapesPrompts):
        from pcpo_ray.shapes import captions

        texts = list(captions.captions(config.split, config.form))
        return PromptSource(texts, seed=seed, origin=f"shapes ({config.split}, {config.form})")
    return PromptSource(read(Path(config.path), config.column), seed=seed, origin=str(config.path))


def read(path: Path, column: str = "prompt") -> list[str]:
    """The prompts of a file, in its order, empty lines left out. Raises PromptError."""
    if not path.is_file():
        raise PromptError(f"no prompt file at {path}")
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise PromptError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
        return [line.strip() for line in lines if line.strip()]
    readers: dict[str, Callable[[Path], Any]] = {
        ".csv": partial(_csv, column=column),
        ".jsonl": _jsonl,
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        raise PromptError(f"{path}: prompts are read from .txt, .csv, .jsonl and .parquet; got {path.suffix!r}")
    import pyarrow as pa

    try:
        table = readers[path.suffix](path)
        names = table.column_names
        values = table.column(column).to_pylist() if names.count(column) == 1 else None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read as UTF-8 {path.suffix[1:]}: {error}") from None
    if values is None:
        many = "more than one" if column in names else "no"
        raise PromptError(f"{path} has {many} column {column!r}; its columns are {names} (set prompts.column)")
    for row, value in enumerate(values, 1):
        if not isinstance(value, str) or not value.strip():
            raise PromptError(f"{path}, row {row}: {column} is {value!r}; expected a text that is not empty")
    return [value.strip() for value in values]


def _csv(path: Path, column: str):  # type: ignore[no-untyped-def]
    import pyarrow as pa
    from pyarrow import csv

    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types={column: pa.string()}),  # a prompt "1984" is a text too
    )


def _jsonl(path: Path):  # type: ignore[no-untyped-def]
    from pyarrow import json

    return json.read_json(path)


def _parquet(path: Path):  # type: ignore[no-untyped-def]
    from pyarrow import parquet

    return parquet.read_table(path)
