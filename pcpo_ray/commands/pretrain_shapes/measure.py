"""Quality of the embedded world's models, on captions that none of them was trained on.

The base models are judged by the oracle, on the pictures they make; shapes-clip by whether it prefers a drawn picture's
caption to every caption with one fact changed.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcpo_ray.commands.pretrain_shapes.data import sample_captions
from pcpo_ray.commands.pretrain_shapes.tokenizers import LENGTH
from pcpo_ray.commands.pretrain_shapes.variants import variants
from pcpo_ray.rewards import clip as clips
from pcpo_ray.shapes.captions import parse
from pcpo_ray.shapes.draw import draw
from pcpo_ray.shapes.oracle import judge

SD_SAMPLING: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0, "eta": 1.0}
# true_cfg_scale: FLUX.1-dev and -schnell were distilled from a guided model, this one was not
FLUX_SAMPLING: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 16,
    "max_sequence_length": LENGTH,
    "true_cfg_scale": 3.0,
}
CHUNK = 64


def accuracy(pipeline: Any, count: int, seed: int = 1, **options: Any) -> dict[str, float]:
    """Over `count` held-out captions: share of pictures that are right in `all` facts, then of facts of each kind."""
    texts = sample_captions(np.random.default_rng(seed), count, split="held_out")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    held: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, count, CHUNK):
        some = texts[start : start + CHUNK]
        guided = {"negative_prompt": [""] * len(some)} if "true_cfg_scale" in options else {}
        pictures = pipeline(some, generator=generator, output_type="np", **options, **guided).images
        for picture, text in zip(pictures, some, strict=True):
            verdict = judge((picture * 255).round().astype("uint8"), text)
            held["all"].append(verdict.right)
            for fact, holds in verdict.facts.items():
                held[fact.split()[0]].append(holds)
    return {kind: float(np.mean(values)) for kind, values in held.items()}


def preference(folder: Path, count: int, seed: int = 1) -> dict[str, float]:
    """Over `count` drawn held-out captions, by the kind of fact changed: the share of changed captions scored lower."""
    clip = clips.load(str(folder), None, torch.device("cpu"))
    texts = sample_captions(np.random.default_rng(seed), count, split="held_out")
    pictures = clip.images(np.stack([draw(parse(text), seed + n) for n, text in enumerate(texts)]))
    held: dict[str, list[bool]] = defaultdict(list)
    for picture, text in zip(pictures, texts, strict=True):
        for kind, others in variants(parse(text)).items():
            own, *changed = (clip.texts([text, *(other.text for other in others)]) @ picture).tolist()
            held[kind] += [own > score for score in changed]
    return {kind: float(np.mean(values)) for kind, values in held.items()}


def measure(out: Path, count: int = 256) -> None:
    """Print what the models of a folder get right."""
    from diffusers import DiffusionPipeline

    for name, options in (("shapes-sd", SD_SAMPLING), ("shapes-flux", FLUX_SAMPLING)):
        pipeline = DiffusionPipeline.from_pretrained(out / name, torch_dtype=torch.float32)
        print(f"{name}, {count} held-out captions, right in {summary(accuracy(pipeline, count, **options))}")
    print(f"shapes-clip, {count} drawn held-out captions, preferred: {summary(preference(out / 'shapes-clip', count))}")


def summary(shares: dict[str, float]) -> str:
    """`all 47%, count 98%, ...`."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
