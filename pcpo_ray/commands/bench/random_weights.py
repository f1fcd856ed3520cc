"""Published models with random weights, to measure speed and memory without the real ones."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from pcpo_ray.commands.bench import published, published_flows
from pcpo_ray.commands.plan.hollow import class_in, made_of_config
from pcpo_ray.errors import BenchError
from pcpo_ray.runs import disk

MODELS: Mapping[str, Callable[[Path], Path]] = {
    "sd15": published.stable_diffusion,
    "sdxl": published.sdxl,
    "sd35m": published.sd3,
    "flux": published.flux,
    "flux2-klein-4b": published_flows.flux2_klein,
    "flux2-klein-9b": published_flows.flux2_klein_9b,
    "z-image": published_flows.z_image,
    "qwen-image": published_flows.qwen_image,
    "sana-0.6b": published_flows.sana,
    "flux2-dev": published_flows.flux2_dev,
    "qwen-image-2.1": published_flows.qwen_image_21,
    "krea-2": published_flows.krea2,
    "lumina-2": published_flows.lumina2,
    "chroma": published_flows.chroma,
    "clip-l": lambda folder: published.clip(folder, large=False),
    "clip-h": lambda folder: published.clip(folder, large=True),
}

LAYERS = {"Qwen3ForCausalLM": 27, "Mistral3ForConditionalGeneration": 30, "Qwen3VLModel": 35}
"""Layers of text encoders of which more than the last is read: FLUX.2 klein's, FLUX.2-dev's and Krea 2's."""

DTYPES = ("float32", "bfloat16", "float16")


def write(name: str, folder: Path, dtype: str, device: torch.device) -> None:
    """Write the model with random weights, drawn on `device` by its classes' own initialisation.

    Each text encoder has its real width but as few layers as it is read from: a run encodes every text only once.
    Raises BenchError.
    """
    if name not in MODELS:
        raise BenchError(f"no model {name!r} is known; expected one of {', '.join(MODELS)}")
    if folder.exists():
        raise BenchError(f"{folder} is there already; give a folder that is not, or take it as it is")
    if dtype not in DTYPES:
        raise BenchError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    beside = disk.partial_path(folder)
    MODELS[name](beside)
    try:
        with _drawing(getattr(torch, dtype), device):
            if (beside / "model_index.json").is_file():
                _pipeline(beside)
            else:
                _clip(beside)
    except (torch.OutOfMemoryError, MemoryError) as error:
        shutil.rmtree(beside)
        raise BenchError(
            f"{name} in {dtype} does not fit the memory of {device}: {error}; use --dtype bfloat16, or a smaller model"
        ) from None
    beside.rename(folder)


@contextmanager
def _drawing(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Make networks on the device and in the dtype, from a fixed seed, while inside."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _pipeline(folder: Path) -> None:
    for name, (library, kind) in _networks(folder).items():
        path = folder / name / "config.json"
        cls = class_in(library, kind)
        if name.startswith("text_encoder"):
            settings = json.loads(path.read_text(encoding="utf-8"))
            text = settings.get("text_config", settings)  # a language model's, beside that of its vision
            text["num_layers" if settings["model_type"] == "t5" else "num_hidden_layers"] = LAYERS.get(kind, 1)
            path.write_text(json.dumps(settings), encoding="utf-8")
        made_of_config(cls, folder / name).save_pretrained(folder / name)  # type: ignore[operator]


def _networks(folder: Path) -> dict[str, tuple[str, str]]:
    """List the parts with weights, from the pipeline's index."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {name: tuple(value) for name, value in index.items() if (folder / name / "config.json").is_file()}


def _clip(folder: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer

    tokenizer, path = clip_tokenizer(WORLD), folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    own = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    settings["text_config"] = {**settings["text_config"], "vocab_size": len(tokenizer), **own}
    path.write_text(json.dumps(settings), encoding="utf-8")
    made_of_config(CLIPModel, folder).save_pretrained(folder)  # type: ignore[operator]
    CLIPImageProcessor().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
