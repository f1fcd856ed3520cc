"""Images and prompts that the package draws, on which rewards are tried before a run: what is known of them is checked.

The first image shows its prompt plainly. `marred` ones have noise and a grid on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.data import prompts
from pcpo_ray.errors import RewardError
from pcpo_ray.process import plugins

CAPTIONS = (
    "a red circle above a blue square",
    "a blue square above a red circle",
    "a large green star",
    "a black ring",
)
WORDS = ("OPEN", "hotel", "1984", "garden")
SPELLED = (
    'the word "open" in red on white',
    'the word "hotel" in yellow on blue',
    'the word "moon" in white on black',
    'the word "mist" in green on yellow',
)
SCALE = 4
"""Times that a drawing of 64 x 64 pixels is enlarged, but for rewards that measure such drawings."""


FOREIGN = (config.CustomReward, config.Remote, config.Judge)
"""Rewards that are the user's own code or behind HTTP. They are asked when a run starts, not in every process."""


@dataclass(frozen=True, kw_only=True)
class Probes:
    """N images, the prompt that each one shows, and the same images marred."""

    images: UInt8[np.ndarray, "N H W 3"]
    prompts: Sequence[str]
    marred: UInt8[np.ndarray, "N H W 3"]


def of(reward: config.Reward) -> Probes:
    """Draw the probes for a reward: words for one that reads, else things."""
    if isinstance(reward, config.Ocr):
        images = np.stack([_word(word) for word in WORDS])
        texts: Sequence[str] = [f'a white sign that says "{word}"' for word in WORDS]
    else:
        from pcpo_ray.data import worlds

        small = isinstance(reward, config.WordsOracle | config.WordsSpread | config.DdddOcr)
        world: worlds.Name = "words" if small else "shapes"
        texts = SPELLED if world == "words" else CAPTIONS
        images = np.stack([worlds.draw(world, text, seed) for seed, text in enumerate(texts)])
        if not small and not isinstance(reward, config.ShapesOracle):
            images = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    return Probes(images=images, prompts=texts, marred=_marred(images))


def prompts_to_ask(run: config.Run) -> list[str]:
    """Return two evaluated prompts to ask FOREIGN rewards about; none where the run has no such rewards."""
    if not any(isinstance(reward, FOREIGN) for reward in (*run.rewards, *run.evaluation.rewards)):
        return []
    _, evaluated = prompts.sources(run)
    return [prompt.text for prompt in evaluated.distinct(2)]


def check(name: str, reward: config.Reward, made: object) -> None:
    """Ask a shipped reward, but for those over HTTP, about two images. Raises RewardError.

    Its scores must be finite, and differ.
    """
    if isinstance(reward, FOREIGN) or not hasattr(made, "score"):
        return
    found = of(reward)
    images = np.stack([found.images[0], found.marred[1] if reward.ranks == "marred" else found.images[1]])
    with plugins.isolated(reward.kind, 0):
        scores = [float(score) for score in made.score(images, [found.prompts[0]] * 2)]
    if not np.isfinite(scores).all() or scores[0] == scores[1]:
        raise RewardError(
            f"the reward {name} gives two different images the scores {scores}; expected two numbers that differ: are "
            "its files whole, and those of its kind? pcpo-ray check CONFIG tries it in more ways"
        )


def _marred(images: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
    changed = images + np.random.default_rng(0).normal(0, 12, images.shape)
    changed[:, ::16] -= 40
    changed[:, :, ::16] -= 40
    return np.clip(changed.round(), 0, 255).astype(np.uint8)


def _word(word: str) -> UInt8[np.ndarray, "256 256 3"]:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 48)
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).text((30, 90), word, font=font, fill="black")
    return np.asarray(image)
