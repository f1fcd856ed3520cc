"""GenEval (arXiv 2310.11513), for `serve.py` in an environment of its own: its detector needs mmcv, built with CUDA.

    pip install torch==2.1.2 torchvision==0.16.2 "numpy<2" "setuptools<81" open_clip_torch==2.32.0 fastapi uvicorn
    pip install --no-build-isolation mmcv==2.1.0
    pip install mmdet==3.3.0 mmengine==0.10.7
    python serve.py geneval:Scorer --option metadata=evaluation_metadata.jsonl --option names=object_names.txt \
        --option config=mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py --option checkpoint=mask2former.pth

`metadata` and `names` are files of djghosh13/geneval: what each prompt asks for, and COCO's classes in its words.
`config` and `checkpoint` are mmdet's Mask2Former with Swin-S. An image scores 1 if all that its prompt asks for is
found in it, else 0, by the paper's thresholds. A prompt that `metadata` lacks is an error. This file needs only those
packages and Pillow.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SEEN, SEEN_COUNTED = 0.3, 0.9
"""The least confidence of an object; where the prompt is about a number."""

MOST = 16
"""Objects of one class that are looked at."""

APART = 0.1
"""The part of two objects' sizes by which their centres must be apart before one is beside the other."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
GREY = "#999"
"""The colour behind an object whose colour is asked."""


@dataclass(frozen=True)
class Thing:
    """A detected object: left, top, right and bottom in pixels, and its mask (H, W)."""

    box: tuple[float, float, float, float]
    mask: np.ndarray


class Scorer:
    """GenEval's measure. `clip` is the file of OpenAI's ViT-L-14, which tells colours; None fetches it."""

    def __init__(
        self, metadata: str, names: str, config: str, checkpoint: str, clip: str | None = None, device: str = "cuda"
    ) -> None:
        import open_clip
        from mmdet.apis import init_detector

        with open(metadata, encoding="utf-8") as lines:
            self.asked = {found["prompt"]: found for found in map(json.loads, filter(str.strip, lines))}
        with open(names, encoding="utf-8") as lines:
            self.names = [line.strip() for line in lines if line.strip()]
        self.device = device
        self.detector = init_detector(config, checkpoint, device=device)
        self.clip, _, self.preprocess = open_clip.create_model_and_transforms(
            "ViT-L-14-quickgelu", pretrained=clip or "openai", device=device
        )
        self.clip.eval()
        self.tokenizer = open_clip.get_tokenizer("ViT-L-14-quickgelu")

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> list[float]:
        unknown = sorted({prompt for prompt in prompts if prompt not in self.asked})
        if unknown:
            raise ValueError(f"metadata says nothing about {unknown[:3]}; expected GenEval's own prompts")
        return [float(self._shows(image, self.asked[prompt])) for image, prompt in zip(images, prompts, strict=True)]

    def _shows(self, image: np.ndarray, asked: Mapping[str, Any]) -> bool:
        """Tell whether an image shows all that is asked, and none of what is excluded."""
        things = self._things(image, SEEN_COUNTED if asked["tag"] == "counting" else SEEN)
        found: list[Sequence[Thing]] = []
        for demand in asked.get("include", ()):
            name, count = demand["class"], demand["count"]
            found.append(things.get(name, [])[:count])
            if len(found[-1]) < count:
                return False
            if "color" in demand and self._colours(image, found[-1], name).count(demand["color"]) < count:
                return False
            if "position" in demand:
                place, target = demand["position"]
                if any(place not in places(one, other) for one in found[-1] for other in found[target]):
                    return False
        return all(len(things.get(one["class"], [])) < one["count"] for one in asked.get("exclude", ()))

    def _things(self, image: np.ndarray, least: float) -> dict[str, list[Thing]]:
        """Detect objects by name, the surest first."""
        from mmdet.apis import inference_detector

        found = inference_detector(self.detector, np.ascontiguousarray(image[..., ::-1])).pred_instances  # as OpenCV
        scores, labels, boxes, masks = (
            value.cpu().numpy() for value in (found.scores, found.labels, found.bboxes, found.masks)
        )
        things: dict[str, list[Thing]] = {}
        for n in np.argsort(-scores, kind="stable"):
            same = things.setdefault(self.names[labels[n]], [])
            if scores[n] > least and len(same) < MOST:
                left, top, right, bottom = map(float, boxes[n])
                same.append(Thing((left, top, right, bottom), masks[n].astype(bool)))
        return things

    def _colours(self, image: np.ndarray, things: Sequence[Thing], name: str) -> list[str]:
        """Tell the colour of each object, on a grey background, by its likeness to texts in CLIP."""
        import torch
        from PIL import Image

        whole = Image.fromarray(image)
        blank = Image.new("RGB", whole.size, GREY)
        crops = [Image.composite(whole, blank, Image.fromarray(thing.mask)).crop(thing.box) for thing in things]
        with torch.no_grad():
            classes = []
            for colour in COLOURS:
                texts = [
                    f"a photo of a {colour} {name}",
                    f"a photo of a {colour}-colored {name}",
                    f"a photo of a {colour} object",
                ]
                embedded = torch.nn.functional.normalize(
                    self.clip.encode_text(self.tokenizer(texts).to(self.device)), dim=-1
                )
                classes.append(torch.nn.functional.normalize(embedded.mean(dim=0), dim=-1))
            pixels = torch.stack([self.preprocess(crop) for crop in crops]).to(self.device)
            likeness = self.clip.encode_image(pixels) @ torch.stack(classes, dim=1)
        return [COLOURS[n] for n in likeness.argmax(dim=1).tolist()]


def places(one: Thing, other: Thing) -> set[str]:
    """Tell where one object lies of another: to the left, right, above or below, up to two of them."""
    (a, b), (c, d) = ((np.array(thing.box[:2]), np.array(thing.box[2:])) for thing in (one, other))
    between = (a + b - c - d) / 2
    free = np.maximum(np.abs(between) - APART * (b - a + d - c), 0) * np.sign(between)
    if np.all(np.abs(free) < 1e-3):
        return set()
    across, down = free / np.linalg.norm(between)
    named = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in named.items() if holds}
