"""A LoRA's file: where it is, and whether its names are those of one, told without loading torch."""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

from pcpo_ray.errors import ModelError, nearest
from pcpo_ray.models import files
from pcpo_ray.runs.names import step_of

PEFT = "adapter_model"
"""Stem of the file that PEFT's `save_pretrained` writes, beside its adapter_config.json."""

FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", f"{PEFT}.safetensors", f"{PEFT}.bin")
"""File names of a LoRA in a folder; the first that exists counts."""

MATRIX = re.compile(r"lora\w*[._](?P<which>A|B|up|down)\.weight$")
"""Endings of the names of A and B in every layout: lora_A.weight, lora_down.weight, to_q_lora.down.weight, ..."""

ENCODERS = re.compile(r"(lora_te\d?_|(base_model\.model\.)?(text_encoder|text_model|cond_stage_model|conditioner))")
"""Beginnings of the names of a text encoder's weights."""


def refused(what: object, why: str) -> ModelError:
    """Make the error for a LoRA that training cannot start from."""
    return ModelError(f"model.train.start: {what} {why}")


def find(source: Path) -> Path:
    """Find the file that `source` names, or the one in that folder. Raises ModelError, also for a git-lfs pointer."""
    file = _named(source)
    files.check_no_pointers([file])
    return file


def _named(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.exists():
        beside = [path.name for path in source.parent.iterdir()] if source.parent.is_dir() else []
        raise refused(
            source,
            f"is not there: nothing at that path{nearest(source.name, beside)}; expected a LoRA's folder or file",
        )
    for name in FILES:
        if (source / name).is_file():
            return source / name
    there = (source / "checkpoints").glob("step-*")
    every = {step: path for path in there if (step := step_of(path.name)) is not None}
    steps = [step for step, path in every.items() if (path / FILES[0]).is_file()]
    if steps:
        newest = every[max(steps)]
        raise refused(source, f"is a run's folder; name one of its checkpoints, the newest is {newest}")
    if (source / "state.json").is_file() or every:
        raise refused(
            source, "is of a run that trained the whole network, and holds no LoRA; give the LoRA of another run"
        )
    others = sorted(path for path in source.iterdir() if path.suffix == ".safetensors")
    if len(others) != 1:
        held = [path.name for path in others[:3]]
        raise refused(
            source, f"has none of {', '.join(FILES)}, and {len(others)} other LoRA files {held}; name the file"
        )
    return others[0]


def check(source: Path) -> None:
    """Check that `source` is a LoRA, as far as the names of its weights tell. Raises ModelError.

    Only a safetensors file has a header with the names; any other is left to those who read it whole.
    """
    from safetensors import SafetensorError, safe_open

    file = find(source)
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, "np") as opened:
            sizes = {name: prod(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise refused(file, f"cannot be read as a LoRA: {error}") from error
    check_names(file, sizes)


def check_names(file: Path, sizes: Mapping[str, int]) -> None:
    """Check that the names of a file's weights, with their sizes, are those of a plain LoRA. Raises ModelError."""
    if not sizes:
        raise refused(file, "holds no weights at all; get it again from where it was made")
    encoders = [name for name in sizes if ENCODERS.match(name)]
    if encoders:
        raise refused(
            file,
            f"changes a text encoder too, by {len(encoders)} of its {len(sizes)} weights {encoders[:3]}. A run has "
            "the text encoders as the model's folder has them, so that these would be left out: save it without them",
        )
    others = [
        name for name, size in sizes.items() if not (MATRIX.search(name) or (name.endswith(".alpha") and size == 1))
    ]
    if others:
        raise refused(
            file,
            f"has {len(others)} weights that are no A, B or alpha of a LoRA {others[:3]}; a DoRA, a LoHa, a LoKr and "
            "trained biases or norms cannot be begun from",
        )
