"""Images that tests draw, words in real fonts, and how they compare what a model draws."""

from pathlib import Path

import numpy as np


def font(name: str, size: int):
    """A font of matplotlib's by its file's name, or Noto Sans CJK."""
    from PIL import ImageFont

    if name == "cjk":
        import noto_cjk_sans_jp_regular

        (file,) = Path(noto_cjk_sans_jp_regular.__file__).parent.glob("*.otf")
    else:
        import matplotlib

        file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(file), size)


def words(text: str, name: str = "DejaVuSans", size: int = 40, *, noise: float = 0.0, side: int = 256) -> np.ndarray:
    """A square image with a text in dark blue on cream, and Gaussian noise of a std in levels of 0..255."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), (250, 245, 230))
    ImageDraw.Draw(image).text((16, side // 3), text, font=font(name, size), fill=(20, 30, 90))
    drawn = np.asarray(image, np.float64) + np.random.default_rng(0).normal(0, noise, (side, side, 3))
    return np.clip(drawn.round(), 0, 255).astype(np.uint8)


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether images differ in what a sum's last bit makes of a level that is halfway between two, and nowhere else.

    A convolution's last bits depend on where its weights lie in memory, so two copies of one decoder differ in them.
    """
    apart = np.abs(ours.astype(int) - theirs.astype(int))
    return ours.shape == theirs.shape and apart.max() <= 1 and (apart > 0).mean() < 1e-3
