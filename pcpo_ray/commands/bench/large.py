"""A model of a real size, made up: shapes-sd with a network of about the bytes of Stable Diffusion 1.5's in bfloat16.

In float32, as a CPU computes; what it predicts is noise.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcpo_ray import config, models

WIDTHS = (224, 448, 896, 896)
"""Channels of the UNet's four levels: 0.7 of Stable Diffusion 1.5's, so half its parameters, of twice the bytes."""

BYTES = 1_656_491_680
"""Of its parameters, with those widths."""


def network(source: Path, widths: Sequence[int]) -> Any:
    """The UNet, for the other parts of the model that lies there."""
    from diffusers import UNet2DConditionModel

    small = UNet2DConditionModel.load_config(source / "unet")
    fitting = ("sample_size", "in_channels", "out_channels", "cross_attention_dim")
    torch.manual_seed(0)
    return UNet2DConditionModel(**{name: small[name] for name in fitting}, block_out_channels=tuple(widths))


def write(folder: Path, widths: Sequence[int]) -> config.Model:
    """Write it to a folder that is not there yet, to be trained whole."""
    shipped = config.Model(kind="stable_diffusion", path="shapes-sd")
    source = models.folder_of(shipped)
    shutil.copytree(source, folder, ignore=lambda place, names: {"unet"} & set(names))
    network(source, widths).save_pretrained(folder / "unet")
    return config.Model(kind=shipped.kind, path=str(folder), train=config.Full())
