"""The source of prompts: the embedded world's captions, or a file."""

from typing import Annotated, Literal

from pydantic import Discriminator

from pcpo_ray.config.base import FilePath, config

CaptionForm = Literal["any", "thing", "placed", "related"]
"""The form of an embedded caption: any, one thing without a place, one `placed` thing, or two `related` things."""


@config
class ShapesPrompts:
    """The captions of the embedded world in one split, of one form or of any."""

    kind: Literal["shapes"] = "shapes"
    split: Literal["train", "held_out"] = "train"
    form: CaptionForm = "any"


@config
class PromptFile:
    """A text file with one prompt a line, or CSV, JSON, JSONL or Parquet with a column of prompts."""

    kind: Literal["file"] = "file"
    path: FilePath
    column: str = "prompt"


Prompts = Annotated[ShapesPrompts | PromptFile, Discriminator("kind")]
