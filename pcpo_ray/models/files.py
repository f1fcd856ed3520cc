"""Checks of a model's files on disk, without loading anything."""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pcpo_ray.errors import ModelError, nearest
from pcpo_ray.models.described import POINTER, read_json

WEIGHTS = (".safetensors", ".bin")
VARIANT = re.compile(r"[^.]+?(?:-\d+-of-\d+)?(?:\.(?P<variant>.+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
"""Names of weight files: `model.safetensors`, `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`."""

SINGLE = (".safetensors", ".ckpt", ".pt", ".pth")
"""Endings of the files that hold a whole model."""

WANTED = "expected a folder in diffusers' format (pipe.save_pretrained(folder) writes one)"

LEAST_LENGTH = 3
"""The fewest tokens of a text for CLIP: its beginning, one of its own, and its end."""


def no_model(folder: Path) -> str:
    """Say why a path is no model's folder, and what to give instead."""
    hub = "or a model of the Hugging Face Hub as owner/name"
    made_from = "model.path is then the folder, or the hub's id, of the model that it was made from"
    if folder.is_file():
        cure = f"give it as model.single_file={folder}; {made_from}" if folder.suffix in SINGLE else WANTED
        return f"{folder} is a file; {cure}"
    if not folder.exists():
        there = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        return f"there is no such folder{nearest(folder.name, there)}; {WANTED}, the name of a shipped model, {hub}"
    if below := sorted(path.parent for path in folder.glob("*/model_index.json")):
        return f"{folder} has no model_index.json, and {below[0]} has one: give that"
    if singles := sorted(path for path in folder.iterdir() if path.suffix in SINGLE):
        return (
            f"{folder} has no model_index.json; a file such as {singles[0]} is given as model.single_file; {made_from}"
        )
    return f"{folder} has no model_index.json; {WANTED}, {hub}"


def check_parts(folder: Path, parts: Mapping[str, Any], *, weights: bool, variant: str | None) -> None:
    """Raise ModelError unless each part is complete as far as file names tell; without `weights`, configs suffice.

    `parts` are as in model_index.json: a library and a class by name. A part has the weights of its `variant`, or, as
    in diffusers, the plain ones if it has none of the variant.
    """
    for name in parts:
        if not (folder / name).is_dir():
            raise ModelError(f"{folder} has no {name}; copy it from the model it was made from")
        check_no_pointers(path for path in sorted((folder / name).rglob("*")) if weights or path.suffix not in WEIGHTS)
    networks = [folder / name for name in parts if (folder / name / "config.json").is_file()]
    for path in networks:
        _check_quantised(path / "config.json")
    if weights:
        _check_weights({path: variants(path) for path in networks}, folder, variant)
    for name, (_, kind) in parts.items():
        if "CLIPTokenizer" in kind:
            _check_length(folder, name)


def check_index(folder: Path, index: Mapping[str, Any], pipeline_class: type) -> None:
    """Raise ModelError for a part that the pipeline needs and the index does not name.

    Also for parts and settings that the pipeline does not take, which diffusers would leave out.
    """
    known = inspect.signature(pipeline_class).parameters
    optional = getattr(pipeline_class, "_optional_components", [])
    needed = [name for name, one in known.items() if one.default is one.empty and name not in optional]
    if absent := [name for name in needed if name not in index]:
        raise ModelError(
            f"{folder / 'model_index.json'} names no {', '.join(absent)}, without which there is no "
            f"{pipeline_class.__name__}; copy it again from the model it was made from"
        )
    there = {name for name, value in index.items() if value != [None, None]}  # null: an absent part
    unknown = sorted(name for name in there if not name.startswith("_") and name not in known)
    if unknown:
        raise ModelError(
            f"{folder / 'model_index.json'} has {', '.join(unknown)}, which a {pipeline_class.__name__} does not "
            f"read: a second network, a guider or a cache of another pipeline; expected some of "
            f"{', '.join(known)}. Delete it there if the model does without"
        )


def check_no_pointers(paths: Iterable[Path]) -> None:
    """Raise ModelError for a file that git-lfs has not fetched."""
    for path in paths:
        if not path.is_file() or path.stat().st_size > 1024:
            continue
        with path.open("rb") as file:
            pointer = file.read(len(POINTER)) == POINTER
        if pointer:
            raise ModelError(f"{path} is a git-lfs pointer, not the file itself: run git lfs pull where it is kept")


def variants(part: Path) -> dict[str | None, list[str]]:
    """List a part's weight files by variant."""
    found: dict[str | None, list[str]] = {}
    for path in sorted(part.iterdir()):
        matched = VARIANT.fullmatch(path.name)
        if matched is not None:
            found.setdefault(matched["variant"], []).append(path.name)
    return found


def _check_weights(networks: Mapping[Path, Mapping[str | None, list[str]]], folder: Path, variant: str | None) -> None:
    for part, found in networks.items():
        if not found:
            raise ModelError(
                f"{part} has no weights (*.safetensors or *.bin); copy them from the model it was made from"
            )
    there = sorted({name for found in networks.values() for name in found if name is not None})
    for part, found in networks.items():
        if None not in found and variant not in found:
            name, files = next(iter(found.items()))
            whole = [one for one in there if all(one in every or None in every for every in networks.values())]
            raise ModelError(
                f"{part} has weights of the variant {name!r} only ({', '.join(files)}), and model.variant is "
                f"{variant!r}: "
                + (f"set model.variant={whole[0]}" if whole else "no variant is there for all parts; copy one that is")
            )
    if variant is not None and variant not in there:
        raise ModelError(
            f"no part of {folder} has weights of model.variant={variant!r}; expected one of {there or 'null only'}"
        )


def _check_quantised(path: Path) -> None:
    """Raise ModelError for a part whose weights are quantised, which have other numbers than the model's own."""
    quantised = read_json(path).get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ModelError(
            f"{path} has a quantization_config ({method}); expected weights that are not quantised: take the folder of "
            "the model that it was made from (model.dtype=bfloat16 and a LoRA take less memory than training all of it)"
        )


def _check_length(folder: Path, name: str) -> None:
    """Raise ModelError unless a tokenizer that pads to a maximum length has one within its encoder's limit."""
    encoder = folder / name.replace("tokenizer", "text_encoder") / "config.json"
    if not encoder.is_file():
        return
    path, most = folder / name / "tokenizer_config.json", read_json(encoder).get("max_position_embeddings") or 77
    if not isinstance(most, int):
        raise ModelError(
            f"{encoder} has max_position_embeddings: {most!r}; expected a whole number, as 77: copy the file again"
        )
    length = read_json(path).get("model_max_length") if path.is_file() else None
    if not isinstance(length, int) or not LEAST_LENGTH <= length <= most:
        raise ModelError(
            f"{path} has model_max_length: {length}, and texts are padded to it; expected {LEAST_LENGTH} to {most}, "
            f'which is all that {encoder.parent.name} reads: write "model_max_length": {most} there'
        )
