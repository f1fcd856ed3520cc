"""What the denoisers over diffusers' pipelines share: loading, what is trained, decoding, saving."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcpo_ray.config import Lora, Model, Sampling
from pcpo_ray.errors import ModelError
from pcpo_ray.models import lora
from pcpo_ray.trajectory import Conditioning


class PipelineDenoiser:
    """One of diffusers' pipelines, its denoising network made trainable."""

    pipeline_class: ClassVar[str]
    part: ClassVar[str]
    """Name of the denoising network among the pipeline's parts."""

    def __init__(self, folder: Path, model: Model, sampling: Sampling, *, seed: int, device: torch.device) -> None:
        import diffusers
        import transformers

        for library in (diffusers, transformers):  # a bar a part, from every worker, is noise
            library.utils.logging.disable_progress_bar()
        pipeline_class = getattr(diffusers, self.pipeline_class)
        try:
            self.pipeline = pipeline_class.from_pretrained(
                folder, dtype=getattr(torch, model.dtype), local_files_only=True
            )
        except Exception as error:  # a file cut short raises whatever its own format's reader raises
            raise ModelError(f"{folder} cannot be loaded as a {self.pipeline_class}: {error}") from error
        self.pipeline.to(device)
        self.device = device
        self.model = model
        self.sampling = sampling
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.module: nn.Module = getattr(self.pipeline, self.part)
        if isinstance(model.train, Lora):
            lora.attach(self.module, model.train, seed=seed)
        else:
            self.module.requires_grad_(True)
        size = self.pipeline.vae_scale_factor
        self.height, self.width = sampling.height or self.default_size(), sampling.width or self.default_size()
        if self.height % (2 * size) or self.width % (2 * size):
            raise ModelError(
                f"sampling.height x width is {self.height} x {self.width}; {folder.name} needs multiples of {2 * size}"
            )
        self._encoded: dict[str, Conditioning] = {}

    def default_size(self) -> int:
        """Pixels a side where the config names none."""
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

    @property
    def guided(self) -> bool:
        """Whether a prediction needs the unconditional branch."""
        return self.sampling.guidance_scale != 1.0

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """One row a text; with guidance, those of the empty text beside them as `negative_...`."""
        rows = [self._encode(text) for text in texts]
        if self.guided:
            empty = {f"negative_{name}": row for name, row in self._encode("").items()}
            rows = [{**row, **empty} for row in rows]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _encode(self, text: str) -> Conditioning:
        if text not in self._encoded:
            with torch.no_grad():
                self._encoded[text] = self.encode_one(text)
        return self._encoded[text]

    def encode_one(self, text: str) -> Conditioning:
        """One row, without guidance's."""
        raise AssertionError("each pipeline has its own")

    def latents_of(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C h w"]:
        """The VAE's view of the sampler's latents."""
        return latents

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B ..."]) -> UInt8[np.ndarray, "B H W 3"]:
        vae = self.pipeline.vae
        scaled = self.latents_of(latents) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pictures = vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
        pixels = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        images: np.ndarray = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return images

    def trainable(self) -> dict[str, nn.Parameter]:
        # a wrapper (DDP, torch.compile) must not change the names that samplers and checkpoints know
        return {name: p for name, p in getattr(self.pipeline, self.part).named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        if not isinstance(self.model.train, Lora):
            raise ModelError("the reference is the base under a LoRA; model.train.kind=full keeps none")
        part: Any = getattr(self.pipeline, self.part)
        part.disable_adapters()
        try:
            yield
        finally:
            part.enable_adapters()

    def save(self, folder: Path) -> None:
        if isinstance(self.model.train, Lora):
            lora.save(self.pipeline, self.part, folder)
        else:
            self.pipeline.save_pretrained(folder)
