"""The worlds that the package draws: shapes and words. Each has captions, images and small models."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from pcpo_ray import shapes, words
from pcpo_ray.shapes import captions as shapes_captions
from pcpo_ray.shapes import draw as shapes_draw
from pcpo_ray.words import captions as words_captions
from pcpo_ray.words import draw as words_draw

Name = Literal["shapes", "words"]
NAMES: tuple[Name, ...] = get_args(Name)

EXAMPLES: dict[Name, str] = {
    "shapes": "a red circle above a blue square",
    "words": 'the word "moon" in red on white',
}
"""A caption of each world."""


def of_model(model: str) -> Name | None:
    """Return the world whose shipped model has this name, or would have: "shapes" for shapes-sd; None for a path."""
    return next((name for name in NAMES if model.startswith(f"{name}-")), None)


def checkpoint(model: str) -> Path:
    """Find the folder of a shipped model. Raises ModelError, naming those of all worlds, for any other name."""
    folders = [folder for world in (shapes, words) for folder in shapes.folders(world.CHECKPOINTS)]
    return shapes.named(model, folders)


def draw(world: Name, caption: str, seed: int) -> UInt8[np.ndarray, "H W 3"]:
    """Draw an image of a world's caption. Raises PromptError for another text."""
    if world == "words":
        return words_draw.draw(words_captions.parse(caption), seed)
    return shapes_draw.draw(shapes_captions.parse(caption), seed)


def of_folder(folder: Path) -> Name | None:
    """Return the world that the model in a folder draws; None for one that the package does not ship."""
    roots: dict[Name, Path] = {"shapes": shapes.CHECKPOINTS, "words": words.CHECKPOINTS}
    return next((name for name, root in roots.items() if folder.is_relative_to(root)), None)


def unknown_words(world: Name, prompt: str) -> list[str]:
    """List the words of a prompt that no caption of a world has."""
    return words_captions.unknown_words(prompt) if world == "words" else shapes_captions.unknown_words(prompt)
