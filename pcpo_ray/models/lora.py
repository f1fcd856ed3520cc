"""Low-rank adapters through peft, saved so that `pipe.load_lora_weights(folder)` reads them."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcpo_ray.config import Lora
from pcpo_ray.errors import ModelError
from pcpo_ray.models import lora_file, lora_place


def attach(module: nn.Module, config: Lora, *, seed: int) -> None:
    """Add a trainable adapter in float32 whose update is 0 at first. Raises ModelError if it binds no layer."""
    from peft import LoraConfig

    assert config.targets is not None  # config.Model has filled them in
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
    """Give the adapter of `pipeline.<part>` the update that `config.start` has in each layer.

    A different scale goes into B. Where a file has several ranks, smaller ones leave rows of A as initialised, with
    columns of B that are 0. Raises ModelError unless model.train has the file's layers and rank.
    """
    from peft.tuners.lora import LoraLayer

    module: nn.Module = getattr(pipeline, part)
    here = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    updates = lora_file.read(pipeline, part, Path(str(config.start)))
    _check_fit(config, updates, here, _adaptable(module))
    for name, update in updates.items():
        a, b = here[name].lora_A["default"].weight, here[name].lora_B["default"].weight
        if a.shape[1:] != update.a.shape[1:] or b.shape[0] != update.b.shape[0] or b.shape[2:] != update.b.shape[2:]:
            got, expected = ((tuple(x.shape), tuple(y.shape)) for x, y in ((update.a, update.b), (a, b)))
            raise lora_place.refused(config.start, f"has A and B of shapes {got} for {name}, here {expected}")
        with torch.no_grad():
            a[: update.rank] = update.a
            b[:, : update.rank] = update.b * (update.scale / here[name].scaling["default"])


def _check_fit(
    config: Lora, updates: Mapping[str, lora_file.Update], here: Mapping[str, nn.Module], adaptable: Sequence[str]
) -> None:
    """Raise ModelError, naming the right values, unless model.train has the rank and the layers of the file."""
    rank = max(update.rank for update in updates.values())
    needed = [] if rank == config.rank else [f"model.train.rank={rank}"]
    if updates.keys() != here.keys():
        needed.append(f"model.train.targets=[{', '.join(_endings(updates.keys(), adaptable))}]")
    if needed:
        scales = {update.scale for update in updates.values()}
        alphas = sorted({scale * rank for scale in scales})
        if len(alphas) == 1 and alphas[0] != config.alpha:
            needed.append(f"model.train.alpha={alphas[0]:g}")
        raise lora_place.refused(
            config.start,
            f"has rank {rank} on {len(updates)} layers; model.train has rank {config.rank} on {len(here)}, of which "
            f"{len(updates.keys() & here.keys())} are the same. To begin from it, set {' '.join(needed)}",
        )


def _adaptable(module: nn.Module) -> list[str]:
    """List the layers that can have an adapter, with or without one."""
    names = (name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    return [name.removesuffix(".base_layer") for name in names if ".lora_" not in name]


def _endings(chosen: Set[str], names: Sequence[str]) -> list[str]:
    """Find the shortest name endings that select exactly `chosen` among `names`, as model.train.targets does."""
    found = set()
    for name in chosen:
        parts = name.split(".")
        endings = (".".join(parts[start:]) for start in reversed(range(len(parts))) if not parts[start].isdigit())
        found.add(next(end for end in endings if all(n in chosen for n in names if f".{n}".endswith(f".{end}"))))
    return sorted(found)


def save(pipeline: Any, part: str, parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Save the adapter of `pipeline.<part>` with these values, scaled to an alpha equal to its rank.

    So it has the same strength for readers that look for alpha elsewhere or not at all.
    """
    from peft import get_peft_model_state_dict

    module = getattr(pipeline, part)
    peft = module.peft_config["default"]
    matrices = get_peft_model_state_dict(module, state_dict=dict(parameters))
    pipeline.save_lora_weights(
        folder,
        **{
            f"{part}_lora_layers": {
                name: weight * (peft.lora_alpha / peft.r) if ".lora_B." in name else weight
                for name, weight in matrices.items()
            },
            f"{part}_lora_adapter_metadata": {**peft.to_dict(), "lora_alpha": peft.r},
        },
    )
