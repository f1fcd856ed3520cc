"""Titles and meanings of what a report shows by name: rewards, measures of quality, phases."""

from pcpo_ray.config import TOTAL

QUALITY = {
    "frechet": ("Fréchet distance", "how far all images together are from the reference: less is better"),
    "precision": ("precision", "fraction of images that look like one of the reference"),
    "recall": ("recall", "fraction of the reference that looks like one of the images"),
    "density": ("density", "how much of the reference is near an image; about 1 for the reference's own kind"),
    "coverage": ("coverage", "fraction of the reference that has an image near it"),
    "vendi": ("Vendi score", "how many different images a prompt has: 1 where all are the same"),
    "pairwise": ("pairwise distance", "1 - cosine between the images of a prompt, in mean"),
    "lpips": ("LPIPS", "perceptual distance between the images of a prompt, in mean"),
}
"""Titles and meanings of the measures in rewards/quality/."""

PHASES = {
    "sample_and_score": ("sampling and scoring", "waiting for a batch's images and their scores"),
    "learn": ("learning", "the update of the weights"),
    "publish": ("publishing", "handing the new weights to the samplers"),
    "rest": ("the rest of a step", "advantages, and recording the samples"),
    "evaluation": ("evaluation", "its images and their scores"),
}

TITLES = {
    TOTAL: "reward",
    "aesthetic": "aesthetic score",
    "clip_score": "CLIP score",
    "ddddocr": "words that another reader reads exactly",
    "diversity": "diversity",
    "grain": "grain",
    "hps_v2.0": "HPS v2.0",
    "hps_v2.1": "HPS v2.1",
    "image_reward": "ImageReward",
    "jpeg_compressibility": "JPEG compressibility",
    "jpeg_incompressibility": "JPEG size",
    "ocr": "text read",
    "ocr_ctc": "log-probability of the text",
    "ocr_exact": "words read exactly",
    "pickscore": "PickScore",
    "shapes_layout": "layout facts shown",
    "shapes_oracle": "facts shown",
    "shapes_oracle_all": "all facts shown",
    "words_colours": "colours shown",
    "words_letters": "likeness of letters to the font's",
    "words_places": "spread of the word's place",
    "words_tones": "spread of the word's colours",
}
"""The titles of the shipped rewards by their names."""


def title(name: str) -> str:
    """Return what a reader calls a reward; one of the user's own has its name."""
    return TITLES.get(name, name.replace("_", " "))
