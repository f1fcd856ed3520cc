"""Descriptions of models from their folders' JSON files, with the values that a loaded pipeline has.

Check, plan, study and run all read them here, so that the checked values are the values used.
"""

import json
import math
import re
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcpo_ray.errors import ModelError
from pcpo_ray.models import schedulers, settings

POINTER = b"version https://git-lfs.github.com/spec/"

KL = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny")
"""The VAE classes of images that are supported with most pipelines."""


@dataclass(frozen=True)
class Vae:
    """The VAE classes supported with a pipeline, and the factors with which it turns latents into images."""

    classes: tuple[str, ...]
    factors: frozenset[str]


SCALED = frozenset({"scaling_factor"})

VAES = {
    "StableDiffusionPipeline": Vae(KL, SCALED),
    "StableDiffusionXLPipeline": Vae(KL, SCALED | {"latents_mean", "latents_std"}),
    "StableDiffusion3Pipeline": Vae(KL, SCALED | {"shift_factor"}),
    "FluxPipeline": Vae(KL, SCALED | {"shift_factor"}),
    "Flux2KleinPipeline": Vae(("AutoencoderKLFlux2",), frozenset()),
    "Flux2Pipeline": Vae(("AutoencoderKLFlux2",), frozenset()),
    "ZImagePipeline": Vae(KL, SCALED | {"shift_factor"}),
    "QwenImagePipeline": Vae(("AutoencoderKLQwenImage",), frozenset({"latents_mean", "latents_std"})),
    "QwenImage21Pipeline": Vae(("AutoencoderKLQwenImage21",), frozenset({"latents_mean", "latents_std"})),
    "SanaPipeline": Vae(("AutoencoderDC",), SCALED),
    "ChromaPipeline": Vae(KL, SCALED | {"shift_factor"}),
    "Lumina2Pipeline": Vae(KL, SCALED | {"shift_factor"}),
    "Krea2Pipeline": Vae(("AutoencoderKLQwenImage",), frozenset({"latents_mean", "latents_std"})),
}
"""The VAEs that are supported, by pipeline."""

LATENTS = {"AutoencoderKLFlux2": 32, "AutoencoderDC": 32, "AutoencoderKLQwenImage": 16, "AutoencoderKLQwenImage21": 64}
"""The latents' channels where a config does not say them, by VAE class; 4 for all others."""

FACTORS = ("latents_mean", "latents_std", "shift_factor")
"""Keys of a VAE's config about its latents, apart from the scaling_factor that most pipelines read."""

BLOCKS = ("decoder_block_out_channels", "up_block_out_channels", "block_out_channels")
"""Keys of a VAE's config with one entry per resolution: one more than it doubles the size."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """The configs of scheduler, denoising network and VAE; the VAE turns `factor` pixels a side into one latent.

    `pipeline` has the pipeline's own settings, which model_index.json holds beside its parts.
    """

    folder: Path
    pipeline: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    network: Mapping[str, Any]
    vae: Mapping[str, Any]
    factor: int


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of settings. Raises ModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parents[1]} has no {path.parent.name}/{path.name}; copy it from the model it was made from"
        ) from None
    except ValueError as error:
        if path.read_bytes().startswith(POINTER):
            raise ModelError(
                f"{path} is a git-lfs pointer, not the file itself: run git lfs pull where it is kept"
            ) from None
        raise ModelError(f"{path} is not JSON: {error}; copy it again from the model it was made from") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; expected an object of settings")
    return found


def is_part(value: object) -> bool:
    """Return whether a value of model_index.json names a part, by library and class, or one that is left out."""
    return isinstance(value, list) and len(value) == 2 and all(name is None or isinstance(name, str) for name in value)


def described(folder: Path, pipeline_class: str, part: str) -> Described:
    """Describe the model in the folder, whose denoising network is `part`. Raises ModelError."""
    scheduler, network, vae = (
        read_json(folder / name) for name in (schedulers.FILE, f"{part}/config.json", "vae/config.json")
    )
    path = folder / "vae" / "config.json"
    index = read_json(folder / "model_index.json")
    factors = ("scaling_factor", *FACTORS)  # of which more is known than their kind
    others = {key: value for key, value in vae.items() if key not in factors}
    for name, values in ((part, network), ("vae", others)):
        if (kind := _class_of(index.get(name))) is not None:
            settings.check(folder / name / "config.json", values, kind)
    _check_vae(vae, path, pipeline_class)
    for name, values in ((part, network), ("vae", vae)):
        if (kind := _class_of(index.get(name))) is not None:
            settings.check_read(folder / name / "config.json", values, kind)
    entry = index.get("scheduler")
    index_class = entry[1] if isinstance(entry, list) else None
    return Described(
        folder=folder,
        pipeline={key: value for key, value in index.items() if not (is_part(value) or key.startswith("_"))},
        scheduler=schedulers.as_loaded(scheduler, pipeline_class, index_class),
        network=_network_as_loaded(network, pipeline_class),
        vae=vae,
        factor=_factor(vae, path),
    )


def _class_of(entry: object) -> type | None:
    """Return the class of diffusers' that an entry of model_index.json names; None if it is none."""
    import diffusers

    library, name = entry if isinstance(entry, list) and is_part(entry) else (None, None)
    found = getattr(diffusers, name, None) if library == "diffusers" and name else None
    return found if isinstance(found, type) else None


def _network_as_loaded(network: dict[str, Any], pipeline_class: str) -> dict[str, Any]:
    """Correct a size below 64 in a config from before diffusers 0.9, as StableDiffusionPipeline does."""
    size, version = network.get("sample_size"), re.match(r"(\d+)\.(\d+)", str(network.get("_diffusers_version")))
    early = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    if pipeline_class == "StableDiffusionPipeline" and early and isinstance(size, int) and size < 64:
        return {**network, "sample_size": 64}
    return network


def _check_vae(vae: Mapping[str, Any], path: Path, pipeline_class: str) -> None:
    """Raise ModelError unless the pipeline, and the code here, decode latents as the VAE's config says."""
    known = VAES.get(pipeline_class)
    if known is None:  # a pipeline that a user's class chose
        return
    name = vae.get("_class_name", known.classes[0])
    if name not in known.classes:
        raise ModelError(
            f"{path} is of a {name}, which is not understood here; expected one of {', '.join(known.classes)}"
        )
    ignored = [f"{key}: {vae[key]}" for key in FACTORS if vae.get(key) and key not in known.factors]
    if ignored:
        raise ModelError(
            f"{path} has {', '.join(ignored)}, which {pipeline_class} does not read; expected null: write that there "
            "if the model does without, or take the VAE that belongs to it"
        )
    for key in sorted(known.factors):
        _check_factor(vae, key, path)
    if bool(vae.get("latents_mean")) != bool(vae.get("latents_std")):
        raise ModelError(f"{path} has one of latents_mean and latents_std; expected both, or null for both")
    if not vae.get("scaling_factor", 1):
        raise ModelError(
            f"{path} has scaling_factor: {json.dumps(vae['scaling_factor'])}; expected the number that latents were "
            "multiplied by in training (0.18215 for Stable Diffusion 1 and 2, 0.13025 for SDXL)"
        )


def _check_factor(vae: Mapping[str, Any], key: str, path: Path) -> None:
    """Raise ModelError unless a factor is null, a finite number, or a list with a number per channel."""
    value, channels = vae.get(key), channels_of(vae)
    several = key.startswith("latents_")
    numbers = value if several and isinstance(value, list) else [value]
    whole = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    if value is not None and not (whole and len(numbers) == (channels if several else 1)):
        raise ModelError(
            f"{path} has {key}: {json.dumps(value)}; expected "
            f"{f'{channels} finite numbers, one a channel' if several else 'a finite number'}: copy the file again "
            "from the model it was made from"
        )


def channels_of(vae: Mapping[str, Any]) -> int:
    """Return the number of the latents' channels."""
    return int(vae.get("latent_channels") or vae.get("z_dim") or LATENTS.get(vae.get("_class_name", ""), 4))


def _factor(vae: Mapping[str, Any], path: Path) -> int:
    """Return how many pixels a side make up one latent. Raises ModelError."""
    if vae.get("_class_name") == "AutoencoderKLQwenImage":
        return int(2 ** len(vae.get("temperal_downsample", (False, True, True))))
    if vae.get("_class_name") == "AutoencoderKLQwenImage21":
        return int(2 ** (len(vae.get("dim_mult", range(5))) - 1))
    blocks = next((vae[key] for key in BLOCKS if vae.get(key)), None)
    if not isinstance(blocks, Sized):
        raise ModelError(f"{path} has no {BLOCKS[-1]}; copy it again from the model it was made from")
    return int(2 ** (len(blocks) - 1))


def check_size(description: Described, height: int, width: int, patch: int, most: tuple[int, int] | None) -> None:
    """Raise ModelError for a size in pixels that VAE and network cannot divide, or with more than `most` tokens.

    A token has `patch` latents a side; `most` are the tokens down and across, None for any number.
    """
    asked = f"sampling.height x width is {height} x {width}"
    least, side = 2 * description.factor, patch * description.factor
    if height % least or width % least:
        raise ModelError(f"{asked}; {description.folder.name} needs multiples of {least}")
    if most is not None and (height > most[0] * side or width > most[1] * side):
        raise ModelError(
            f"{asked}; {description.folder.name} has positions for at most {most[0] * side} x {most[1] * side} pixels "
            f"(tokens of {side} pixels a side, {most[0]} down and {most[1]} across)"
        )


def check_settings(description: Described, part: str, known: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ModelError for a setting of the network with another value than those `known`; null, false and 0 are one.

    The first of them is what a config without the setting means.
    """
    for key, values in known.items():
        value = description.network.get(key, values[0])
        if value not in values and (value or values[0]):
            wanted = " or ".join(json.dumps(one) for one in values)
            raise ModelError(
                f"{description.folder / part / 'config.json'} has {key}: {json.dumps(value)}, for which the network "
                f"needs inputs, or gives outputs, of another pipeline; expected {wanted}: take a model of this kind"
            )


def check_channels(description: Described, part: str, patch: int) -> None:
    """Raise ModelError unless the network's inputs and outputs are latents alone, `patch` of them together."""
    network, latents = description.network, channels_of(description.vae)
    taken = network.get("in_channels", patch * latents)
    given = network.get("out_channels") or taken
    if not taken == given == patch * latents:
        raise ModelError(
            f"{description.folder / part} takes {taken} channels and gives {given}, of latents of {latents}; expected "
            f"{patch * latents} of both: it was trained for another pipeline (inpainting, editing, upscaling), or the "
            "VAE is another model's"
        )
