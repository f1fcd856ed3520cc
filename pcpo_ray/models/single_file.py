"""Pipelines whose weights, or some of them, are in one `.safetensors` file in their authors' layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcpo_ray.errors import ModelError
from pcpo_ray.models.described import is_part, read_json
from pcpo_ray.models.files import check_no_pointers

VAE = ("first_stage_model.", "vae.")
"""Beginnings of the names of a VAE's weights in such files, if they hold one."""

ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
"""Beginnings of the names of text encoders' weights in such files, if they hold any."""

CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load({old!r}, map_location='cpu', weights_only=False); w = w.get('state_dict', w); "
    "s.save_file({{k: v.clone(memory_format=torch.contiguous_format) for k, v in w.items() if torch.is_tensor(v)}}, "
    '{new!r})"'
)
"""The command that converts a pickled file to safetensors."""


def check(file: Path, pipeline_class: type | None) -> None:
    """Raise ModelError unless diffusers reads such files, and this one is there, no git-lfs pointer and not pickled."""
    if pipeline_class is not None and not hasattr(pipeline_class, "from_single_file"):
        raise ModelError(
            f"model.single_file is {str(file)!r}, and diffusers reads no single files for a {pipeline_class.__name__}; "
            "give a folder in diffusers' format as model.path, without model.single_file"
        )
    if not file.is_file():
        raise ModelError(f"no file at model.single_file={str(file)!r}; expected a .safetensors file")
    check_no_pointers([file])
    with file.open("rb") as opened:
        head = opened.read(9)
    if head.startswith((b"PK\x03\x04", b"\x80")) and head[8:] != b"{":  # torch.save's formats, current and legacy
        command = CONVERT.format(old=str(file), new=str(file.with_suffix(".safetensors")))
        raise ModelError(
            f"model.single_file={str(file)!r} is a pickled file, not a .safetensors one; convert it, if you trust "
            f"where it is from (pickled files may run code), by {command}"
        )


def load(pipeline_class: Any, file: Path, folder: Path, dtype: torch.dtype, left_out: Mapping[str, Any]) -> Any:
    """Load the pipeline onto the CPU: configs and anything that `file` lacks from `folder`, the rest from `file`.

    Raises ModelError for a file that is truncated, belongs to another pipeline, or has other sizes than `folder`.
    """
    import diffusers
    from safetensors import SafetensorError, safe_open

    parts: dict[str, Any] = dict(left_out)
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        if "vae" not in left_out and not any(name.startswith(VAE) for name in names):
            vae = getattr(diffusers, read_json(folder / "vae" / "config.json").get("_class_name", "AutoencoderKL"))
            parts["vae"] = vae.from_pretrained(folder / "vae", dtype=dtype, local_files_only=True)
        if not any(name.startswith(ENCODERS) for name in names):
            parts |= _encoders(folder, dtype, left_out)
        pipeline = pipeline_class.from_single_file(
            str(file), config=str(folder), dtype=dtype, local_files_only=True, **parts
        )
    except SafetensorError as error:
        raise ModelError(f"{file} is no whole safetensors file: {error}; copy it again") from error
    except Exception as error:  # a layout that diffusers does not know raises whatever its converters meet first
        raise ModelError(f"{file} cannot be loaded as a {pipeline_class.__name__} of {folder}: {error}") from error
    for part, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
            if missing:
                raise ModelError(
                    f"{file} lacks {len(missing)} weights of the {part} that {folder} describes, {missing[0]} for one; "
                    "take the folder of the architecture that the file was made for"
                )
    return pipeline


def _encoders(folder: Path, dtype: torch.dtype, left_out: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Load the folder's text encoders, apart from those that are left out."""
    import transformers

    index = read_json(folder / "model_index.json")
    return {
        name: getattr(transformers, value[1]).from_pretrained(folder / name, dtype=dtype, local_files_only=True)
        for name, value in index.items()
        if name.startswith("text_encoder") and is_part(value) and value[1] is not None and name not in left_out
    }
