"""CLIP models, as embeddings of unit length: open_clip's and those in transformers' format."""

import json
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pcpo_ray.errors import ModelError, RewardError
from pcpo_ray.rewards import published
from pcpo_ray.rewards.images import rgb

CHUNK = 64
"""Images per pass through a model."""

REMEMBERED = 4096
"""Calls of `texts` whose embeddings are kept; an embedding of 1,000 numbers takes 4 kB."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP model: its `network`, preprocessing, tokenizer and the two towers; `scale` is exp(logit_scale).

    N images or texts, E embedding dimensions. Embeddings are float32 and of unit length. `normal` is a mean and std if
    `preprocess` only normalises RGB images of `side` x `side` pixels.
    """

    network: torch.nn.Module
    scale: float
    device: torch.device
    preprocess: Callable[[Any], Tensor]
    tokenize: Callable[[Sequence[str]], Any]
    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Any], Tensor]
    side: int = 0
    normal: tuple[Tensor, Tensor] | None = None
    known: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    last: list[tuple["weakref.ref[np.ndarray]", Tensor]] = field(default_factory=list)

    @torch.inference_mode()
    def images(self, images: UInt8[np.ndarray, "N H W 3"]) -> Float[Tensor, "N E"]:
        """Embed images; rewards that get the same images one after the other share the embeddings."""
        if self.last and self.last[0][0]() is images:
            return self.last[0][1]
        parts = []
        for start in range(0, len(images), CHUNK):
            pixels = self.pixels(images[start : start + CHUNK])
            with self._half():
                parts.append(self.encode_images(pixels.to(self.device)))
        embedded = _unit(torch.cat(parts))
        self.last[:] = [(weakref.ref(images), embedded)]
        return embedded

    def pixels(self, images: UInt8[np.ndarray, "N H W 3"]) -> Float[Tensor, "N 3 side side"]:
        """Preprocess images: all at once if they only have to be normalised, else on torch's threads."""
        if self.normal is not None and images.dtype == np.uint8 and images.shape[1:] == (self.side, self.side, 3):
            return normalised(images, *self.normal)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return torch.stack(list(threads.map(self.preprocess, rgb(images))))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N E"]:
        """Embed texts, each distinct one once; recent calls are remembered."""
        distinct = tuple(dict.fromkeys(texts))
        if distinct not in self.known:
            with self._half():
                embedded = self.encode_texts(self.tokenize(list(distinct)).to(self.device))
            if len(self.known) == REMEMBERED:
                del self.known[next(iter(self.known))]
            self.known[distinct] = _unit(embedded)
        rows: Tensor = self.known[distinct][[distinct.index(text) for text in texts]]
        return rows

    def _half(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda")


def cosines(clip: Clip, images: UInt8[np.ndarray, "N H W 3"], prompts: Sequence[str]) -> list[float]:
    """Compute cos(image, its own prompt)."""
    products: list[float] = (clip.images(images) * clip.texts(prompts)).sum(dim=1).tolist()
    return products


def normalised(
    images: UInt8[np.ndarray, "N H W 3"], mean: Float[Tensor, "3 1 1"], std: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "N 3 H W"]:
    """Scale bytes to 0..1, subtract the mean and divide by the std, exactly as torchvision's ToTensor and Normalize."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(torch.float32).div(255)
    return pixels.sub_(mean).div_(std)


def _normal_of(preprocess: Any, side: int) -> tuple[Tensor, Tensor] | None:
    """Return the mean and std if normalising is all that `preprocess` does to images of that size; else None."""
    from torchvision.transforms import Normalize

    last = getattr(preprocess, "transforms", [None])[-1]
    if not isinstance(last, Normalize):
        return None
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (last.mean, last.std))
    count = np.arange(3 * side * side)
    every = ((count + count // 256) % 256).astype(np.uint8).reshape(1, side, side, 3)
    same = torch.equal(normalised(every, mean, std)[0], preprocess(rgb(every)[0]))
    return (mean, std) if same else None


def _unit(embedded: Float[Tensor, "N E"]) -> Float[Tensor, "N E"]:
    return torch.nn.functional.normalize(embedded.float(), dim=1)


def locate(model: str, weights: str | None) -> tuple[str, str | None]:
    """Return open_clip's name for the model, and its weights file (None if the model's folder holds them).

    `model` is a shipped name, a folder with open_clip_config.json, a folder in transformers' format (then the name is
    the folder's), or an architecture of open_clip's, such as ViT-L-14, together with `weights`, a file. Raises
    RewardError.
    """
    if weights is not None:
        check_file(weights, f"CLIP weights of {model}")
        check_architecture(model)
        published.check_activation(model, Path(weights).absolute())
        return model, weights
    folder = Path(model)
    if "/" not in model and not folder.exists():
        from pcpo_ray import shapes

        try:
            folder = shapes.checkpoint(model)
        except ModelError as error:
            raise RewardError(f"{error}; for an architecture of open_clip's, give its `weights` file too") from None
    if (folder / "open_clip_config.json").is_file():
        return f"local-dir:{folder}", None
    if _is_transformers(folder):
        return str(folder), None
    raise RewardError(
        f"CLIP model {model!r}: no open_clip_config.json in {folder}, and no config.json of model_type clip; "
        "expected open_clip's format or transformers'"
    )


def check(model: str, weights: str | None) -> None:
    """Check, without loading it, that the model and its weights exist. Raises RewardError."""
    name, file = locate(model, weights)
    if file is None:
        published.check_folder(Path(name.removeprefix("local-dir:")))


def check_file(path: str, what: str) -> None:
    """Raise RewardError unless the file exists and is no git-lfs pointer."""
    if not Path(path).is_file():
        raise RewardError(f"no {what} at {path}; download the file and give its path")
    if found := published.fault(Path(path)):
        raise RewardError(found)


def check_architecture(name: str) -> None:
    """Raise RewardError unless open_clip has the architecture."""
    import open_clip

    if name not in open_clip.list_models():
        raise RewardError(f"open_clip has no architecture {name!r}; `open_clip.list_models()` names them")


def _is_transformers(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.is_file():
        return False
    if fault := published.fault(path):
        raise RewardError(fault)
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        found = described.get("model_type") == "clip"
    except (ValueError, AttributeError) as error:
        raise RewardError(f"{path} is not a config: {error}; copy it again from the model it belongs to") from None
    if found:
        published.check_transformers(folder, described)
    return bool(found)


def load(model: str, weights: str | None, device: torch.device, processor: str | None = None) -> Clip:
    """Load the model, once per process however many rewards use it. Raises RewardError.

    `processor` is a folder in transformers' format with preprocessing and tokenizer, if the model's has none.
    """
    found = loaded(model, weights, device, processor)
    found.network.to(device)  # a scorer of this process may have parked it
    return found


@lru_cache(maxsize=2)
def loaded(model: str, weights: str | None, device: torch.device, processor: str | None) -> Clip:
    """Load the model for `load`, which keeps it."""
    check(model, weights)
    name, file = locate(model, weights)
    try:
        if file is None and not name.startswith("local-dir:"):
            return _transformers(name, processor or name, device)
        return _open_clip(name, file, device)
    except Exception as error:  # a truncated file raises whatever its format's reader raises
        raise RewardError(f"CLIP model {model!r} cannot be loaded: {error}") from error


def check_finite(network: torch.nn.Module, where: str) -> None:
    """Raise RewardError for weights that are not finite, naming the first."""
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise RewardError(f"{where}: {name} has numbers that are not finite; copy the weights again")


def _check_places(network: torch.nn.Module, name: str, file: str) -> None:
    """Raise RewardError for weights of another image size or text length: open_clip would interpolate them."""
    expected = {
        key: len(weight) for key, weight in network.state_dict().items() if key.endswith("positional_embedding")
    }
    for key, count in _places(file).items():
        wanted = expected.get(key, expected.get(f"text.{key}", count))
        if count != wanted:
            raise RewardError(
                f"{file} has {count} places in {key}, and {name} has {wanted}: it is of an architecture for another "
                "image size or text length; name that one as `model`"
            )


def _places(file: str) -> dict[str, int]:
    """Count the positions of a file's position embeddings, by their names in open_clip's networks."""
    if file.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            found = {key: opened.get_slice(key).get_shape()[0] for key in opened.keys() if key.endswith(PLACES)}  # noqa: SIM118
    elif published.is_torchscript(Path(file)):
        held = torch.jit.load(file, map_location="cpu").state_dict()
        found = {key: len(weight) for key, weight in held.items() if key.endswith(PLACES)}
    else:
        held = torch.load(file, map_location="cpu", weights_only=True)
        held = held.get("state_dict", held)
        found = {key: len(weight) for key, weight in held.items() if key.endswith(PLACES)}
    return {key.removeprefix("module."): count for key, count in found.items()}


PLACES = "positional_embedding"


def _open_clip(name: str, file: str | None, device: torch.device) -> Clip:
    import open_clip

    origin = None if file is None else published.check_activation(name, Path(file).absolute())
    preprocess_of = {} if origin is None else {f"image_{key}": value for key, value in origin.preprocess.items()}
    network, preprocess = open_clip.create_model_from_pretrained(
        name,
        pretrained=file,
        device=device,
        # torch refuses weights_only for TorchScript archives
        weights_only=file is None or not published.is_torchscript(Path(file)),
        **{key: value for key, value in preprocess_of.items() if key in PREPROCESS},
    )
    check_finite(network, file or name.removeprefix("local-dir:"))
    if file is not None:
        _check_places(network, name, file)
    network.eval()
    size = network.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    return Clip(
        network=network,
        scale=float(network.logit_scale.detach().exp()),
        device=device,
        preprocess=preprocess,
        tokenize=open_clip.get_tokenizer(name),
        encode_images=network.encode_image,
        encode_texts=network.encode_text,
        side=side,
        normal=_normal_of(preprocess, side),
    )


PREPROCESS = tuple(f"image_{name}" for name in published.PREPROCESS)


def _transformers(folder: str, processor: str, device: torch.device) -> Clip:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    network, found = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    absent = [*found["missing_keys"], *found["mismatched_keys"]]
    if absent:
        raise RewardError(f"its weights lack {len(absent)} of the model's parameters, such as {sorted(absent)[:3]}")
    check_finite(network, folder)
    network = network.to(device).eval()
    pixels = CLIPImageProcessor.from_pretrained(processor, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(processor, local_files_only=True)
    _check_processor(network.config, pixels, tokenizer, processor)
    longest = network.config.text_config.max_position_embeddings  # overrides the tokenizer's own files

    def tokenize(texts: Sequence[str]) -> Any:
        return tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")

    return Clip(
        network=network,
        scale=float(network.logit_scale.detach().exp()),
        device=device,
        preprocess=lambda image: pixels(images=image, return_tensors="pt").pixel_values[0],
        tokenize=tokenize,
        encode_images=lambda batch: network.get_image_features(pixel_values=batch).pooler_output,
        encode_texts=lambda tokens: network.get_text_features(**tokens).pooler_output,
    )


def _check_processor(described: Any, pixels: Any, tokenizer: Any, where: str) -> None:
    """Raise RewardError if images or texts would be preprocessed for another network."""
    from PIL import Image

    side = described.vision_config.image_size
    seen = pixels(images=Image.new("RGB", (side + 3, side + 7)), return_tensors="pt").pixel_values.shape[-2:]
    if tuple(seen) != (side, side):
        raise RewardError(f"{where} makes images of {tuple(seen)}, and the network takes {side} x {side}")
    left_out = [name for name in ("do_resize", "do_rescale", "do_normalize") if not getattr(pixels, name)]
    if left_out:
        raise RewardError(f"{where}/preprocessor_config.json has {', '.join(left_out)} false, and CLIP needs them")
    if len(tokenizer) != described.text_config.vocab_size:
        raise RewardError(
            f"{where} has a tokenizer of {len(tokenizer)} tokens, and the network {described.text_config.vocab_size}; "
            "give the folder of the model's own processor"
        )
