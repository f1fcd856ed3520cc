"""A pipeline whose weights, or some of them, are in one `.safetensors` file in their authors' own layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcpo_ray.errors import ModelError

VAE = ("first_stage_model.", "vae.")
"""How the names of a VAE's weights begin in such files, where they hold one."""


def load(pipeline_class: type, file: Path, folder: Path, dtype: torch.dtype, left_out: Mapping[str, Any]) -> Any:
    """The pipeline, on the CPU: configs and what `file` lacks from `folder`, the rest from `file`.

    Raises ModelError for a file that is not whole, is no such pipeline's, or has other sizes than `folder` describes.
    """
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError, safe_open

    parts: dict[str, Any] = dict(left_out)
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        if "vae" not in left_out and not any(name.startswith(VAE) for name in names):
            parts["vae"] = AutoencoderKL.from_pretrained(folder / "vae", dtype=dtype, local_files_only=True)
        pipeline = pipeline_class.from_single_file(  # type: ignore[attr-defined]
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
