"""Copies a world's trained models into the package, their weights in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pcpo_ray.commands.pretrain.world import World


def ship(world: World, out: Path, into: Path) -> None:
    """Replace the shipped folders in `into` by those of `out`.

    Configs keep saying float32, which is what they load as.
    """
    for part in world.steps:
        if part == "vae":  # it is in both pipelines
            continue
        name = f"{world.name}-{part}"
        folder = into / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(out / name, folder)
        for path in folder.rglob("*.safetensors"):
            weights = {key: w.half() if w.dtype == torch.float32 else w for key, w in load_file(path).items()}
            save_file(weights, path, metadata={"format": "pt"})
            path.chmod(0o644)
        for path in folder.rglob("config.json"):  # diffusers notes where it was loaded from on this machine
            settings = json.loads(path.read_text(encoding="utf-8"))
            if settings.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
