"""The source of prompts: an embedded world's captions, a file, or the user's own code."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pcpo_ray.config import recipes
from pcpo_ray.config.base import ByKind, ListOrPath, Options, OwnKind, PathMark, config, of_kind

CaptionForm = Literal["any", "thing", "placed", "related"]
"""The form of an embedded caption: any, one thing without a place, one `placed` thing, or two `related` things."""

SUFFIXES = (".txt", ".csv", ".json", ".jsonl", ".ndjson", ".parquet")
"""The endings of the files that prompts are read from."""


@config
class ShapesPrompts:
    """The captions of the shapes world in one split, of one form or of any."""

    kind: Literal["shapes"] = "shapes"
    split: Literal["train", "held_out"] = "train"
    """The half of the captions: those to train on, or those held out."""
    form: CaptionForm = "any"
    """The form of the captions: one thing, one thing in a place, two things in relation, or any of these."""


@config
class WordsPrompts:
    """The captions of the words world in one split."""

    kind: Literal["words"] = "words"
    split: Literal["train", "held_out"] = "train"
    """The half of the words: those to train on, or those held out."""


EmbeddedPrompts = ShapesPrompts | WordsPrompts
"""The captions of a world that the package draws."""


@config
class PromptFile:
    """A text file with one prompt a line, or CSV, JSON, JSONL or Parquet with a column of prompts.

    `path` may also be the name of a list that the package ships: animals or scenes. Columns height and width, in
    pixels, give prompts a size of their own.
    """

    kind: Literal["file"] = "file"
    path: ListOrPath
    """The file, or the name of a list."""
    column: str = "prompt"
    """The column that holds the prompts; a text file has none."""

    @property
    def file(self) -> Path:
        """The file itself, wherever the package has it. Raises ConfigError for a name that is no list's."""
        named = PathMark(or_list=True).is_name(self.path)
        return recipes.prompt_list(self.path) if named else Path(self.path)


@config
class CustomPrompts:
    """Prompts from the user's own code: `kind` is `package.module:name` (docs/plugging_in.md)."""

    kind: OwnKind
    options: Options = field(default_factory=dict)
    """Keyword arguments of your class or function."""


def of_text(text: str) -> Mapping[str, Any]:
    """Read a text that stands for prompts: a file's path, the name of a list, or a kind."""
    if "/" in text or Path(text).suffix.lower() in SUFFIXES or text in recipes.prompt_lists():
        return {"kind": "file", "path": text}
    return of_kind(text)


Prompts = Annotated[EmbeddedPrompts | PromptFile | CustomPrompts, ByKind(of_text)]
