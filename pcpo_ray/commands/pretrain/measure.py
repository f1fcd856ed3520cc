"""Quality of a world's models, on captions that none of them was trained on.

The base models are judged by the images they make; shapes-clip by whether it prefers a drawn image's caption to
every caption with one fact changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcpo_ray.commands.pretrain import shapes_world, vae
from pcpo_ray.commands.pretrain.loop import RunningMean
from pcpo_ray.commands.pretrain.tokenizers import LENGTH
from pcpo_ray.commands.pretrain.variants import variants
from pcpo_ray.commands.pretrain.world import Shares, World
from pcpo_ray.rewards import clip as clips
from pcpo_ray.shapes.captions import parse
from pcpo_ray.shapes.draw import draw

SD_SAMPLING: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0, "eta": 1.0}
# true_cfg_scale: FLUX.1-dev and -schnell were distilled from a guided model, this one was not
FLUX_SAMPLING: dict[str, Any] = {"num_inference_steps": 16, "max_sequence_length": LENGTH, "true_cfg_scale": 3.0}
CHUNK = 64
SAVE_EVERY = 500


def accuracy(world: World, pipeline: Any, count: int, seed: int = 1, **changed: Any) -> Shares:
    """Over `count` held-out captions, which shares of the images and of their facts are right.

    `changed` are arguments of the pipeline instead of SD_SAMPLING's or FLUX_SAMPLING's.
    """
    texts = world.sample(np.random.default_rng(seed), count, "held_out")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    flow = type(pipeline).__name__ == "FluxPipeline"
    options = {**(FLUX_SAMPLING if flow else SD_SAMPLING), "height": world.height, "width": world.width, **changed}
    images: list[np.ndarray] = []
    for start in range(0, count, CHUNK):
        some = texts[start : start + CHUNK]
        guided = {"negative_prompt": [""] * len(some)} if flow else {}
        made = pipeline(some, generator=generator, output_type="np", **options, **guided).images
        images += [(image * 255).round().astype("uint8") for image in made]
    return world.judged(images, texts)


def saving(
    world: World, part: str, pipeline: Any, trained: nn.Module, mean: RunningMean, out: Path, *, steps: int, seen: int
) -> Callable[[int], bool]:
    """Return what follows each step: the mean of the `trained` weights goes on, and is saved and measured now and then.

    That is every SAVE_EVERY steps, at the end, and as often as the world's bar for this part is looked at. It returns
    True once that bar is reached, with weights drawn back as the bar says. Without a bar, `seen` held-out captions are
    looked at.
    """
    folder, bar = out / f"{world.name}-{part}", world.bars.get(part)
    earlier = mean.copy()

    def look(when: str) -> float:
        shares = accuracy(world, pipeline, bar.count if bar else seen, **(bar.sampling if bar else {}))
        print(f"{folder.name} {when}, right in {summary(shares)}", flush=True)
        return shares["all"]

    def after_step(step: int) -> bool:
        nonlocal earlier
        mean.update()
        if step % (bar.every if bar else SAVE_EVERY) and step != steps:
            return False
        trained.eval()
        with mean.applied():
            right = look(f"after {step} steps")
            reached = bar is not None and right >= bar.good
            if bar is not None and right <= bar.early:
                earlier = mean.copy()
            if bar is not None and reached:
                draw_back(trained, earlier, bar.kept, look)
            if reached or step % SAVE_EVERY == 0 or step == steps:
                pipeline.save_pretrained(folder)
        trained.train()
        return reached

    return after_step


@torch.no_grad()
def draw_back(trained: nn.Module, earlier: Sequence[Tensor], kept: float, look: Callable[[str], float]) -> None:
    """Mix the weights with earlier ones: of the mixtures in steps of 5%, the earliest in which `kept` are right."""
    last = [parameter.detach().clone() for parameter in trained.parameters()]
    for hundredths in range(5, 105, 5):
        for parameter, before, after in zip(trained.parameters(), earlier, last, strict=True):
            parameter.copy_(torch.lerp(before, after, hundredths / 100))
        if look(f"with {hundredths}% of its last weights") >= kept:
            return


@torch.no_grad()
def rebuilt(world: World, out: Path, count: int, seed: int = 1) -> Shares:
    """Over `count` drawn held-out captions, which shares are right in the images that went through the VAE."""
    rng = np.random.default_rng(seed)
    texts = world.sample(rng, count, "held_out")
    autoencoder = vae.load(world, out)
    parts = world.images(rng, texts).split(CHUNK)
    decoded = torch.cat([autoencoder.decode(autoencoder.encode(part).latent_dist.mean).sample for part in parts])
    images = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return world.judged(list(images), texts)


def preference(folder: Path, count: int, seed: int = 1) -> dict[str, float]:
    """Compute the fraction of changed captions scored lower, by the kind of fact, over `count` held-out ones."""
    clip = clips.load(str(folder), None, torch.device("cpu"))
    texts = shapes_world.WORLD.sample(np.random.default_rng(seed), count, "held_out")
    images = clip.images(np.stack([draw(parse(text), seed + n) for n, text in enumerate(texts)]))
    held: dict[str, list[bool]] = defaultdict(list)
    for image, text in zip(images, texts, strict=True):
        for kind, others in variants(parse(text)).items():
            own, *changed = (clip.texts([text, *(other.text for other in others)]) @ image).tolist()
            held[kind] += [own > score for score in changed]
    return {kind: float(np.mean(values)) for kind, values in held.items()}


def measure(world: World, out: Path, count: int = 256) -> None:
    """Print what the models of a folder get right."""
    from diffusers import DiffusionPipeline

    for part in world.steps:
        name = f"{world.name}-{part}"
        if part == "vae":
            print(f"{name}, {count} drawn held-out captions, right in {summary(rebuilt(world, out, count))}")
        elif part in ("sd", "flux"):
            pipeline = DiffusionPipeline.from_pretrained(out / name, torch_dtype=torch.float32)
            print(f"{name}, {count} held-out captions, right in {summary(accuracy(world, pipeline, count))}")
        elif part == "clip":
            print(f"{name}, {count} drawn held-out captions, preferred: {summary(preference(out / name, count))}")


def summary(shares: Shares) -> str:
    """`all 47%, count 98%, ...`."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
