"""The memory of reward models, built from their configs alone and without weights, as `hollow` builds the policy's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pcpo_ray import config
from pcpo_ray.commands.plan import sizes
from pcpo_ray.commands.plan.hollow import materialise, quiet, size_of_module
from pcpo_ray.commands.plan.live import Live
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import aesthetic, clip

Clip = tuple[str, bool]
"""A CLIP model: open_clip's name for it or its folder, and whether that folder is in transformers' format."""


def clips(rewards: Sequence[config.Reward]) -> dict[str, Clip]:
    """List the CLIP models of the rewards by label, each once. Raises RewardError for one that is not there."""
    found: dict[str, Clip] = {}
    for reward in rewards:
        asked = None if isinstance(reward, config.CustomReward) else reward.clip
        if asked is None:
            continue
        if asked.weights is not None:
            clip.check_architecture(asked.model)
            found[asked.label] = (asked.model, False)
        else:
            located, _ = clip.locate(asked.model, None)
            found[asked.label] = (located, not located.startswith("local-dir:"))
    return found


def heads(rewards: Sequence[config.Reward]) -> dict[str, int]:
    """Count the bytes of the heads on CLIP models."""
    with torch.device("meta"):
        return {r.name: size_of_module(aesthetic.layers(768)) for r in rewards if isinstance(r, config.Aesthetic)}


def own(rewards: Sequence[config.Reward]) -> list[str]:
    """List the rewards of the user's own, whose memory is unknown before they are made."""
    return sorted({reward.name for reward in rewards if isinstance(reward, config.CustomReward)})


def unknown(rewards: Sequence[config.Reward]) -> list[str]:
    """List the shipped rewards whose memory is unknown: networks that another package runs on the CPU."""
    shipped = [reward for reward in rewards if not isinstance(reward, config.CustomReward)]
    return sorted({reward.name for reward in shipped if not reward.memory_is_known})


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The bytes of a CLIP model, of its copy in pinned memory, and the peak of embedding images and a text."""

    size: int
    pinned: int
    peak: int


@cache
def measure(found: Clip, images: int, half: bool) -> Measured:
    """Measure a CLIP model, for so many images (`half`: on a GPU)."""
    network, side, length = _network(*found)
    network.requires_grad_(False).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(network)
        live = Live("cuda" if half else "cpu")
        with live, torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=half):
            pixels = torch.empty(min(images, clip.CHUNK), 3, side, side)
            tokens = torch.zeros(1, length, dtype=torch.long)
            if found[1]:
                network.get_image_features(pixel_values=pixels)
                network.get_text_features(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            else:
                network.encode_image(pixels)
                network.encode_text(tokens)
        return Measured(size=size_of_module(network), pinned=sizes.pinned_copy(network), peak=live.peak)


def _network(name: str, transformers_format: bool) -> tuple[Any, int, int]:
    """Make the network on the meta device; returns it with the side of its images and the length of its texts."""
    try:
        with quiet(), torch.device("meta"):
            if transformers_format:
                from transformers import CLIPConfig, CLIPModel

                settings = CLIPConfig.from_pretrained(name, local_files_only=True)
                return (
                    CLIPModel(settings),
                    settings.vision_config.image_size,
                    settings.text_config.max_position_embeddings,
                )
            import open_clip

            network: Any = open_clip.create_model(name, load_weights=False, device="meta")
    except Exception as error:  # whatever a library makes of a config that is cut short
        raise RewardError(f"CLIP model {name!r}: no network can be made from its config: {error}") from error
    size = network.visual.image_size
    return network, size[0] if isinstance(size, tuple) else size, int(network.context_length)
