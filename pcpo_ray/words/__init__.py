"""The words world: captions that ask for a word in colours, and images that show it. The reward `ocr` reads them.

Its models, words-sd and words-flux, are in the package.
"""

from pathlib import Path

from pcpo_ray import shapes

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def checkpoint(name: str) -> Path:
    """Find the folder of a shipped model: "words-sd" and "words-flux" (diffusers).

    Raises ModelError, naming the shipped models, for any other name.
    """
    return shapes.named(name, shapes.folders(CHECKPOINTS))
