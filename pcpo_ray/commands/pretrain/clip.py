"""shapes-clip: a small CLIP (Radford et al., 2103.00020) of the shapes world, in open_clip's folder format.

Every scene stands in its batch beside variants with one fact changed, images and captions both, so that telling the
facts apart is what the contrast asks for.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from pcpo_ray.commands.pretrain.facts import FACTS, facts, misread
from pcpo_ray.commands.pretrain.loop import RunningMean, optimise
from pcpo_ray.commands.pretrain.shapes_world import WORLD
from pcpo_ray.commands.pretrain.tokenizers import LENGTH, clip_tokenizer
from pcpo_ray.commands.pretrain.variants import variants
from pcpo_ray.commands.pretrain.world import World
from pcpo_ray.shapes.captions import Caption, parse

NAME = "shapes-clip"
WIDTH = 128
SCENES, SIBLINGS = 16, 4  # scenes a batch; captions a scene, the first one included
SAVE_EVERY = 300
LARGEST_SCALE = math.log(50.0)
PIXEL_MEAN, PIXEL_STD = 0.88, 0.25  # of drawn images, whose background is light
FACTS_WEIGHT = 3.0  # of each tower's loss on the facts, beside the contrast
FACTS_SCALE = 10.0  # embeddings have unit length, too short for a linear layer to be sure


def write_config(folder: Path) -> None:
    """Write what open_clip reads to build the model, and the tokenizer, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer(WORLD)
    tokenizer.save_pretrained(folder)
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 12, "head_width": 32}  # a ModifiedResNet
    text = {
        "context_length": LENGTH,
        "vocab_size": len(tokenizer),
        "width": WIDTH,
        "heads": 4,
        "layers": 3,
        "hf_tokenizer_name": NAME,
    }
    config = {
        "model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {
            "mean": [PIXEL_MEAN] * 3,
            "std": [PIXEL_STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def normalised(images: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 3 64 64"]:
    """Images from -1..1 to what open_clip's preprocessing gives the image tower."""
    return ((images + 1) / 2 - PIXEL_MEAN) / PIXEL_STD


def sample_scene(rng: np.random.Generator) -> list[Caption]:
    """A caption of the training split and variants of it, from as many kinds of change as it has."""
    while True:
        caption = parse(WORLD.sample(rng, 1, "train")[0])
        kinds = [[v for v in kind if v.split == "train"] for kind in variants(caption).values()]
        kinds = [kind for kind in kinds if kind]
        order = [kinds[k] for k in rng.permutation(len(kinds))]
        chosen = [kind[rng.integers(len(kind))] for kind in (order * SIBLINGS)[: SIBLINGS - 1]]
        if len({c.text for c in (caption, *chosen)}) == SIBLINGS:
            return [caption, *chosen]


def comparable(captions: list[Caption]) -> Bool[Tensor, "B B"]:
    """Which pairs the contrast may use: those of one scene, and those of scenes that differ in what they show.

    "a red star" and "a red star at the top" from two scenes may both be true of one image, so they are left out.
    """
    shown = [frozenset((thing.colour, thing.shape) for thing in caption.things) for caption in captions]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(shown))}
    content = torch.tensor([numbers[key] for key in shown])
    scene = torch.arange(len(captions)) // SIBLINGS
    return (content[:, None] != content) | (scene[:, None] == scene)


def contrast(logits: Float[Tensor, "B B"], usable: Bool[Tensor, "B B"]) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over the usable pairs (2103.00020, figure 3)."""
    logits = logits.masked_fill(~usable, float("-inf"))
    target = torch.arange(len(logits))
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


def train(world: World, out: Path, seed: int, steps: int) -> None:
    """Train shapes-clip on drawn images and write it to `out`, every SAVE_EVERY steps and at the end."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    folder = out / NAME
    write_config(folder)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    reader = nn.Linear(WIDTH, FACTS)
    mean = RunningMean(model)

    def loss_of() -> Tensor:
        batch = [caption for _ in range(SCENES) for caption in sample_scene(rng)]
        texts = [caption.text for caption in batch]
        images = model.encode_image(normalised(WORLD.images(rng, texts)), normalize=True)
        words = model.encode_text(tokenizer(texts), normalize=True)
        said, told = facts(batch)
        wrong = sum(misread(reader(FACTS_SCALE * tower), said, told) for tower in (images, words))
        return contrast(model.logit_scale.exp() * images @ words.T, comparable(batch)) + FACTS_WEIGHT * wrong

    def after_step(step: int) -> bool:
        with torch.no_grad():
            model.logit_scale.clamp_(max=LARGEST_SCALE)
        mean.update()
        if step % SAVE_EVERY == 0 or step == steps:
            with mean.applied():
                weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
                save_file(weights, folder / "open_clip_model.safetensors")
        return False

    optimise(
        "clip",
        nn.ModuleList([model, reader]),
        loss_of,
        steps=steps,
        rate=1.5e-3,
        weight_decay=0.05,
        after_step=after_step,
    )
