"""A model of realistic size with random weights: shapes-sd with about the bytes of Stable Diffusion 1.5 in bfloat16.

It is float32, as CPUs compute; its predictions are meaningless.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pcpo_ray import config, models

WIDTHS = (224, 448, 896, 896)
"""Channels of the UNet's four levels: 0.7 of Stable Diffusion 1.5's, so half its parameters at twice the bytes."""

BYTES = 1_656_491_680
"""Bytes of its parameters at those widths."""


def network(source: Path, widths: Sequence[int]) -> Any:
    """Make the UNet that fits the other parts of the model in `source`."""
    from diffusers import UNet2DConditionModel

    small = UNet2DConditionModel.load_config(source / "unet")
    fitting = ("sample_size", "in_channels", "out_channels", "cross_attention_dim")
    torch.manual_seed(0)
    return UNet2DConditionModel(**{name: small[name] for name in fitting}, block_out_channels=tuple(widths))


def write(folder: Path, widths: Sequence[int]) -> config.Model:
    """Write the model to a new folder, to be fully trained."""
    shipped = config.Model(kind="stable_diffusion", path="shapes-sd")
    source = models.folder_of(shipped)
    shutil.copytree(source, folder, ignore=lambda place, names: {"unet"} & set(names))
    network(source, widths).save_pretrained(folder / "unet")
    return config.Model(kind=shipped.kind, path=str(folder), train=config.Full())
