"""The small models with denoising networks large enough for their memory to be told from what else a process holds."""

import importlib
from pathlib import Path
from typing import Any

import torch

from pcpo_ray.models.described import read_json
from tests.support import families, small

HEADS = {"num_attention_heads": 8, "attention_head_dim": 64}

WIDER: dict[str, dict[str, Any]] = {
    "stable_diffusion": {"block_out_channels": (192, 384), "attention_head_dim": 64},
    "sdxl": {"block_out_channels": (192, 384), "attention_head_dim": (3, 6)},
    "sd3": {**HEADS, "caption_projection_dim": 512},
    "flux": {**HEADS, "axes_dims_rope": (16, 24, 24), "num_single_layers": 4},
    "flux2_klein": {**HEADS, "axes_dims_rope": (16, 16, 16, 16)},
    "flux2_dev": {**HEADS, "axes_dims_rope": (16, 16, 16, 16)},
    "z_image": {"dim": 512, "n_heads": 8, "n_kv_heads": 8, "axes_dims": (16, 24, 24)},
    "qwen_image": {**HEADS, "axes_dims_rope": (16, 24, 24)},
    "qwen_image_21": {**HEADS, "axes_dims_rope": (16, 24, 24)},
    "sana": {
        **{"num_attention_heads": 16, "attention_head_dim": 32, "cross_attention_dim": 512, "num_layers": 3},
        **{"num_cross_attention_heads": 8, "cross_attention_head_dim": 64},
    },
    "chroma": {**HEADS, "axes_dims_rope": (16, 24, 24), "approximator_hidden_dim": 512, "num_single_layers": 4},
    "krea2": {**HEADS, "num_key_value_heads": 4, "intermediate_size": 2048, "axes_dims_rope": (16, 24, 24)},
    "lumina2": {"hidden_size": 512, "num_attention_heads": 8, "num_kv_heads": 4, "axes_dim_rope": (16, 24, 24)},
}
"""By model.kind, what of the denoising network's config is changed."""


def model(kind: str, folder: Path) -> Path:
    """Make a kind's small model with a wider network, of random weights."""
    older = {"sdxl": small.sdxl, "sd3": small.sd3, "flux": small.flux}
    if kind == "stable_diffusion":
        small.stable_diffusion(folder, levels=2)
    elif kind in older:
        older[kind](folder)
    else:
        families.FAMILIES[kind].make(folder)
    part = next(path for name in ("unet", "transformer") if (path := folder / name).is_dir())
    settings = {**read_json(part / "config.json"), **WIDER[kind]}
    torch.manual_seed(0)
    network = getattr(importlib.import_module("diffusers"), settings["_class_name"]).from_config(settings)
    for parameter in network.parameters():  # some are made of whatever was in memory
        torch.nn.init.normal_(parameter, std=0.02)
    network.save_pretrained(part)
    return folder
