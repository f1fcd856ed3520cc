"""Readers of LoRA files in every common layout: the update of each layer. Anything that would be lost is refused."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pcpo_ray.models.lora_place import MATRIX, PEFT, check_names, find, refused

OWN = re.compile(r"(?P<layer>.+)\.(lora_[AB]\.weight|alpha)")
"""Names of a layer's weights that need no converter."""

SCALING = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})
"""PEFT's settings that determine the scale."""

# fmt: off
WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type", "velora_config",
})
# fmt: on
"""PEFT's settings about training and layers; the weights mean the same with any value of them."""

STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of PEFT's `init_lora_weights` that leave the network's own weights as they are."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Update:
    """The change of one layer's weight: `scale` * `b` @ `a`, both float32."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def read(pipeline: Any, part: str, source: Path) -> dict[str, Update]:
    """Read the update of each layer of `pipeline.<part>` that the LoRA has, as `pipe.load_lora_weights` scales it.

    Raises ModelError if it is damaged, holds anything but such updates, or readers would differ about a scale.
    """
    file = find(source)
    weights = plain(file)
    settings = _settings(file, part)
    matrices, alphas = _matrices(file, pipeline, part, weights)
    pairs = _pairs(file, getattr(pipeline, part), matrices)
    ups = sum(int(weight.count_nonzero()) for name, weight in weights.items() if _is_up(name))
    kept = sum(int(b.count_nonzero()) for _, b in pairs.values())
    if ups != kept:  # a file may mix two layouts, and converters read only one of them
        raise refused(file, f"has {ups} numbers of B that are not 0, and its converter keeps {kept}; write it anew")
    scales = _scales(file, {layer: a.shape[0] for layer, (a, _) in pairs.items()}, settings, alphas)
    return {layer: Update(a=a, b=b, scale=scales[layer]) for layer, (a, b) in pairs.items()}


def plain(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a plain LoRA's file. Raises ModelError for any other file, and for a damaged one."""
    weights = weights_in(file)
    check_names(file, {name: weight.numel() for name, weight in weights.items()})
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken:
        raise refused(file, f"has {len(broken)} weights that are not finite {broken[:3]}; it was damaged in training")
    return weights


def weights_in(file: Path) -> dict[str, Tensor]:
    """Read all tensors of the file as float32, which represents every narrower dtype exactly."""
    from safetensors.torch import load_file

    try:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        return {name: weight.float() for name, weight in found.items()}
    except Exception as error:  # a file of another format raises whatever its reader meets first
        raise refused(file, f"cannot be read as a LoRA: {error}") from error


def _settings(file: Path, part: str) -> dict[str, Any] | None:
    """Read PEFT's config, which diffusers keeps in the file and PEFT beside it; None if there is none."""
    from safetensors import safe_open

    if file.stem == PEFT:
        beside = file.with_name("adapter_config.json")
        if not beside.is_file():
            raise refused(file, f"has no {beside.name} beside it, which says its scale; copy it too")
        text = beside.read_text(encoding="utf-8")
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get("lora_adapter_metadata", "")
    else:
        text = ""
    if not text:
        return None
    try:
        said = {key.removeprefix(f"{part}."): value for key, value in json.loads(text).items()}
    except (ValueError, AttributeError) as error:
        raise refused(file, f"says its settings in what is no JSON object: {error}") from error
    settings = {key: value for key, value in said.items() if "." not in key}  # keys with a dot belong to another part
    odd = {key: settings[key] for key in settings.keys() - SCALING - WITHOUT_EFFECT if settings[key]}
    if odd.get("bias") == "none":
        del odd["bias"]
    if odd.get("init_lora_weights") in STARTS:
        del odd["init_lora_weights"]
    if str(settings.get("peft_type") or "LORA").rpartition(".")[2] != "LORA":
        odd["peft_type"] = settings["peft_type"]
    if odd:
        raise refused(file, f"says {odd}: more than a plain LoRA, which is all that can be begun from")
    return {key: settings[key] for key in settings.keys() & SCALING if settings[key] is not None}


def _is_up(name: str) -> bool:
    found = MATRIX.search(name)
    return found is not None and found["which"] in ("B", "up")


def _matrices(
    file: Path, pipeline: Any, part: str, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Convert names to LAYER.lora_A.weight and LAYER.lora_B.weight; also return the alphas not yet in the weights."""
    layers = {name for name, _ in getattr(pipeline, part).named_modules()}
    plain = {name.removeprefix("base_model.model.").removeprefix(f"{part}."): weights[name] for name in weights}
    if all(found and found["layer"] in layers for found in map(OWN.fullmatch, plain)):
        alphas = {name: float(weight) for name, weight in plain.items() if name.endswith(".alpha")}
        return {name: weight for name, weight in plain.items() if name not in alphas}, alphas
    options = {"unet_config": pipeline.unet.config} if part == "unet" else {}
    try:
        read = pipeline.lora_state_dict(dict(weights), return_alphas=True, return_lora_metadata=True, **options)
    except Exception as error:  # names that diffusers does not know raise whatever its converters meet first
        raise refused(file, f"has names that diffusers does not understand: {error}") from error
    alphas = read[1] if len(read) == 3 and read[1] else {}
    return _own_names(read[0], part), {name.removeprefix(f"{part}."): float(alphas[name]) for name in alphas}


def _own_names(found: Mapping[str, T], part: str) -> dict[str, T]:
    """Rename to the network's layer names with PEFT's endings."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    own: dict[str, T] = convert_unet_state_dict_to_peft({name.removeprefix(f"{part}."): found[name] for name in found})
    return own


def _pairs(file: Path, module: nn.Module, matrices: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair A and B of each layer, checked to fit each other and a layer of `module`."""
    layers = {name for name, _ in module.named_modules()}
    named = list(dict.fromkeys(name.partition(".lora_")[0] for name in matrices))
    foreign = [layer for layer in named if layer not in layers]
    if foreign:
        raise refused(
            file,
            f"has layers that have no place here, {len(foreign)} of {len(named)} {foreign[:3]}: it is another "
            "architecture's, or has names that diffusers does not read for this one",
        )
    pairs = {}
    for layer in named:
        a, b = (matrices.get(f"{layer}.lora_{which}.weight") for which in "AB")
        if a is None or b is None or a.shape[0] != b.shape[1]:
            shapes = [None if matrix is None else tuple(matrix.shape) for matrix in (a, b)]
            raise refused(file, f"has A and B of shapes {shapes} for {layer}; expected both, of one rank")
        pairs[layer] = (a, b)
    return pairs


def _scales(
    file: Path, ranks: Mapping[str, int], settings: Mapping[str, Any] | None, alphas: Mapping[str, float]
) -> dict[str, float]:
    """Return the scale of each layer's B @ A: from PEFT's settings or the file's alphas, and 1 without either."""
    from diffusers.utils import get_peft_kwargs

    if settings is not None and alphas:
        raise refused(file, "says its scale twice, in its settings and as alphas; readers take the one or the other")
    if settings is not None:
        return _by_settings(file, ranks, settings)
    if any(not (math.isfinite(alpha) and alpha > 0) for alpha in alphas.values()):
        raise refused(file, f"has alphas {sorted(set(alphas.values()))[:3]}; expected numbers above 0")
    matrices = {f"{layer}.lora_B.weight": rank for layer, rank in ranks.items()}
    settings = get_peft_kwargs({f"^{name}": rank for name, rank in matrices.items()}, alphas, matrices)
    drawn = _by_settings(file, ranks, settings)
    layers = _own_names({name.removesuffix(".alpha"): alpha for name, alpha in alphas.items()}, "")
    said = {name.removesuffix(".lora_A.weight"): alpha for name, alpha in layers.items()}
    for layer, rank in ranks.items():
        own = said.get(layer, rank) / rank
        if not math.isclose(own, drawn[layer]):
            raise refused(
                file,
                f"has alphas that readers take in two ways: {layer} is scaled by {own:g} by its own, by "
                f"{drawn[layer]:g} in diffusers. Multiply each layer's B by its alpha / rank, and leave the alphas out",
            )
    return drawn


def _by_settings(file: Path, ranks: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, float]:
    """Compute the scales that PEFT gives to layers of these ranks."""
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    scales = {}
    try:
        config = LoraConfig(**{key: settings[key] for key in settings.keys() & SCALING})
        for layer, rank in ranks.items():
            said = config.rank_pattern.get(get_pattern_key(config.rank_pattern, layer), config.r)
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, layer), config.lora_alpha)
            if said != rank:
                raise refused(file, f"says rank {said} of {layer}, whose A and B have {rank}")
            scales[layer] = float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise refused(file, f"says settings that PEFT cannot use: {error}") from error
    return scales
