"""Low-rank adapters through peft, written so that `pipe.load_lora_weights(folder)` reads them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcpo_ray.config import Lora
from pcpo_ray.errors import ModelError


def attach(module: nn.Module, config: Lora, *, seed: int) -> None:
    """Add a trainable adapter in float32 whose update is 0 at first. Raises ModelError if it binds no layer."""
    from peft import LoraConfig

    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            endings = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
            raise ModelError(f"model.train.targets: no layer's name ends in {target!r}; this model has {endings}")
    peft = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        init_lora_weights=True if config.init == "kaiming" else config.init,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.add_adapter(peft)  # type: ignore[operator]
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save(pipeline: Any, part: str, folder: Path) -> None:
    """Write the adapter of `pipeline.<part>` into `folder`, with its rank and alpha."""
    from peft import get_peft_model_state_dict

    module = getattr(pipeline, part)
    pipeline.save_lora_weights(
        folder,
        **{
            f"{part}_lora_layers": get_peft_model_state_dict(module),
            f"{part}_lora_adapter_metadata": module.peft_config["default"].to_dict(),
        },
    )
