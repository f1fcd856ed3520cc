"""Low-rank adapters through peft, written so that `pipe.load_lora_weights(folder)` reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


def start(pipeline: Any, part: str, config: Lora) -> None:
    """Overwrite the adapter of `pipeline.<part>` with `config.start`'s. Raises ModelError unless it fits exactly."""
    from diffusers.utils import convert_unet_state_dict_to_peft
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    module, source = getattr(pipeline, part), str(config.start)
    if not Path(source).exists():
        raise ModelError(f"model.train.start: nothing at {source}; expected a LoRA's folder or .safetensors file")
    try:
        read = pipeline.lora_state_dict(source, return_lora_metadata=True, local_files_only=True)
    except Exception as error:  # a file of another format raises whatever its converters meet first
        raise ModelError(f"model.train.start: {source} cannot be read as a LoRA: {error}") from error
    weights, metadata = read[0], read[-1] or {}
    alphas = {float(value) for value in (read[1] or {}).values()} if len(read) == 3 else set()
    foreign = sorted(name for name in weights if not name.startswith(f"{part}."))
    sent = {name.removeprefix(f"{part}."): weight for name, weight in weights.items() if name not in foreign}
    if sent and not any("lora_A" in name for name in sent):
        sent = convert_unet_state_dict_to_peft(sent)
    here = get_peft_model_state_dict(module)
    missing, foreign = sorted(here.keys() - sent.keys()), foreign + sorted(sent.keys() - here.keys())
    other = [name for name in here.keys() & sent.keys() if here[name].shape != sent[name].shape]
    if missing or foreign or other:
        detail = [f"{name}: {tuple(sent[name].shape)}, here {tuple(here[name].shape)}" for name in sorted(other)[:3]]
        raise ModelError(
            f"model.train.start: {source} does not fit the adapter of model.train: {len(missing)} weights are not in "
            f"it {missing[:3]}, {len(foreign)} have no place here {foreign[:3]}, {len(other)} have another shape "
            f"{detail}; set model.train's targets and rank to its own"
        )
    alphas |= {float(metadata[key]) for key in (f"{part}.lora_alpha",) if key in metadata}
    if (alphas or {float(config.rank)}) != {config.alpha}:  # a file that does not say means alpha = rank
        raise ModelError(
            f"model.train.start: {source} has alpha {sorted(alphas) or config.rank}; model.train.alpha is "
            f"{config.alpha:g}, which would scale it otherwise: set it to the same"
        )
    set_peft_model_state_dict(module, sent)


def save(pipeline: Any, part: str, parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Write the adapter of `pipeline.<part>`, whose parameters have these values, with its rank and alpha."""
    from peft import get_peft_model_state_dict

    module = getattr(pipeline, part)
    pipeline.save_lora_weights(
        folder,
        **{
            f"{part}_lora_layers": get_peft_model_state_dict(module, state_dict=dict(parameters)),
            f"{part}_lora_adapter_metadata": module.peft_config["default"].to_dict(),
        },
    )
