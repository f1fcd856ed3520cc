"""Scores of the probes that are known: of rewards without weights of the user's, and of the shipped CLIP model's.

Probes are drawn the same everywhere. `within` covers what libraries' versions change: a JPEG encoder's rounding, the
order of a network's sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pcpo_ray import config


@dataclass(frozen=True, kw_only=True)
class Known:
    """The scores of the four probes and of the same marred; `within` is the largest difference, on a GPU `on_gpu`."""

    scores: Sequence[float]
    marred: Sequence[float]
    within: float
    on_gpu: float = 0.0


SIZES, MARRED_SIZES = (3.811, 3.921, 3.704, 3.06), (42.091, 41.954, 42.023, 41.778)

KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "jpeg_compressibility": Known(
            scores=[-size for size in SIZES], marred=[-size for size in MARRED_SIZES], within=0.05
        ),
        "jpeg_incompressibility": Known(scores=SIZES, marred=MARRED_SIZES, within=0.05),
        "grain": Known(scores=(0, 0, 0, 0), marred=(15.2643, 15.2439, 15.3145, 15.3140), within=1e-3),
        "grid": Known(scores=(0, 0, 0, 0), marred=(39.25, 39.625, 39.5, 40), within=1e-3),
        "shapes_oracle": Known(scores=(1, 1, 1, 1), marred=(1 / 2, 1 / 2, 1 / 2, 1 / 3), within=1e-6),
        "shapes_oracle_all": Known(scores=(1, 1, 1, 1), marred=(0, 0, 0, 0), within=0),
        "shapes_layout": Known(scores=(1, 1, 1, 1), marred=(1 / 2, 1 / 2, 0, 0), within=1e-6),
        "clip_score of shapes-clip": Known(
            scores=(0.904343, 0.879217, 0.875190, 0.804320),
            marred=(0.903295, 0.880286, 0.887354, 0.799091),
            within=1e-4,
            on_gpu=2e-3,  # the network computes in float16 there
        ),
        "diversity of shapes-clip": Known(
            scores=(0.821063, 0.778211, 1.03039, 0.920095),
            marred=(0.826725, 0.778247, 1.03177, 0.926869),
            within=2e-4,
            on_gpu=4e-3,
        ),
        "nsfw": Known(
            scores=(0.0025974, 0.0159345, 0.002823, 0.00673552),
            marred=(0.00270872, 0.00126876, 0.00093196, 0.00563191),
            within=5e-4,
        ),
        "ocr": Known(scores=(1, 1, 1, 1), marred=(1, 1, 1, 1), within=0),
        "ddddocr": Known(scores=(1, 1, 1, 1), marred=(0, 1, 1, 1), within=0),
    }
)
"""By the reward's name, and that of its model where it has one."""


def of(reward: config.Reward) -> Known | None:
    """Return what is known of a reward's scores; None for weights, or settings, with which none were computed here."""
    match reward:
        case config.ClipScore() | config.Diversity():
            return KNOWN.get(f"{reward.kind} of {reward.model}")
        case config.Jpeg() if reward.quality != 95:
            return None
        case config.Ocr() if not reward.detect:
            return None
        case _:
            return KNOWN.get(reward.kind)
