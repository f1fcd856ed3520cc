"""Checks for non-finite numbers where they arise: in loaded weights, encoded texts and decoded images.

Later they would look ordinary: a decoder's NaN becomes a black image, which a reward scores.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pcpo_ray.errors import ModelError


def is_finite(tensor: Tensor) -> bool:
    """Return True if all numbers are finite. A sum tells without allocating memory of the tensor's size."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):  # `plan` uses tensors without data
        return True
    if bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))):
        return True
    return bool(torch.isfinite(tensor).all())  # a sum of large numbers may itself overflow


def check_weights(module: nn.Module, source: str, dtype: str) -> None:
    """Raise ModelError naming the first parameter or buffer of `source` that is not finite."""
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, tensor in tensors:
            if not tensor.is_floating_point() or is_finite(tensor):
                continue
            narrow = ", or set model.dtype=bfloat16 or float32 if its numbers are too large for float16"
            raise ModelError(
                f"the weights of {source} hold numbers that are not finite: {name}; expected finite ones: copy the "
                f"files again from where they are whole{narrow if dtype == 'float16' else ''}"
            )


def check_text(encoded: Mapping[str, Tensor], text: str, dtype: str, path: Path | None = None) -> None:
    """Raise ModelError unless an encoded text is finite; `path` is its file if it comes from a cache."""
    for name, row in encoded.items():
        if is_finite(row):
            continue
        what = "the text encoder gave" if path is None else f"{path}, a cached text, holds"
        raise ModelError(
            f"{what} numbers that are not finite for {text!r} ({name}); {_remedy(dtype, 'text encoders')}"
            f"{'' if path is None else ', and delete the cached file'}"
        )


def check_images(decoded: Tensor, latents: Tensor, dtype: str) -> None:
    """Raise ModelError unless the images decoded from `latents` are finite."""
    if is_finite(decoded):
        return
    if not is_finite(latents):
        raise ModelError("the latents to be decoded hold numbers that are not finite; the denoising network gave them")
    bad = sum(not is_finite(image) for image in decoded)
    raise ModelError(
        f"the decoder (the VAE) gave numbers that are not finite for {bad} of {len(decoded)} images; "
        f"{_remedy(dtype, 'vae')}"
    )


def _remedy(dtype: str, part: str) -> str:
    if dtype == "float32":
        return f"copy the files of the model's {part} again from where they are whole"
    return f"set model.dtype=float32 (it is {dtype}, in which such numbers may overflow)"
