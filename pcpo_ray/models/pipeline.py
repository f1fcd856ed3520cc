"""The base class of the denoisers over diffusers' pipelines: loading, training, decoding and saving."""

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcpo_ray.algorithm.schedule import TRAIN_STEPS, Schedule
from pcpo_ray.config import Lora, Model, Sampling
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models import TEXT_PARTS, decoding, described, finite, kernels, lora
from pcpo_ray.models.described import Described
from pcpo_ray.models.pipeline_folder import PipelineFolder
from pcpo_ray.models.texts import EncodedTexts, stand_in

TOKENS = 8
"""The number of tokens of the canary's text."""


class PipelineDenoiser(ABC):
    """One of diffusers' pipelines with a trainable denoising network."""

    pipeline_class: ClassVar[str]
    part: ClassVar[str]
    """The denoising network's name among the pipeline's parts."""
    packed: ClassVar[int | None] = None
    """The number of the VAE's latents in one of the network's, if that is fixed; None: unknown."""
    several_sizes: ClassVar[bool] = False
    """True if nothing but `cached_by_size` keeps what depends on `height` and `width`, which then differ by prompt."""
    settings: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Settings that ask for another pipeline's inputs or shapes, each with the values that do not."""
    backwards: ClassVar[bool] = False
    """True if the network is told 1 - t instead of t, and predicts the velocity towards the image."""

    def __init__(self, folder: Path, model: Model, sampling: Sampling, *, seed: int, device: torch.device) -> None:
        import diffusers
        import transformers

        for library in (diffusers, transformers):  # a progress bar per part and worker is noise
            library.utils.logging.disable_progress_bar()
        self.folder, self.files = folder, PipelineFolder(folder, model, self.pipeline_class, self.part)
        self.description = self.described(folder)
        self.device, self.model, self.sampling = device, model, sampling
        # the text encoders, often the largest part, are only loaded for a text that no cache holds
        self.encoders = self.files.encoders
        self.pipeline = self._load(self.encoders).to(device)
        vae = self.pipeline.vae
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):  # SDXL's overflows in half precision
            vae.to(torch.float32)
        decoding.in_parts(vae, model, folder)
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
                finite.check_weights(part, self.files.source(name), model.dtype)
        self.module: nn.Module = getattr(self.pipeline, self.part)
        if isinstance(model.train, Lora):
            lora.attach(self.module, model.train, seed=seed)
            if model.train.start is not None:
                lora.start(self.pipeline, self.part, model.train)
                finite.check_weights(self.module, f"model.train.start={model.train.start!r}", "float32")
        else:
            self.module.requires_grad_(True)
        kernels.use_attention(self.module, model.attention)
        if model.gradient_checkpointing:
            getattr(self.pipeline, self.part).enable_gradient_checkpointing()
        self.height, self.width = self.size_in(self.description, sampling)
        self.texts = EncodedTexts(model, folder)

    @classmethod
    def described(cls, folder: Path) -> Described:
        """Read the folder's JSON files. Raises ModelError for settings that are not supported."""
        description = described.described(folder, cls.pipeline_class, cls.part)
        cls.check(description)
        return description

    @classmethod
    def check(cls, description: Described) -> None:
        """Raise ModelError for a network in the folder that this class does not support."""
        described.check_settings(description, cls.part, cls.settings)
        if cls.packed is not None:
            described.check_channels(description, cls.part, cls.packed)

    def _load(self, left_out: Collection[str]) -> Any:
        """Load the pipeline onto the CPU, without some of its parts."""
        return self.files.load(left_out)

    @contextlib.contextmanager
    def text_encoders(self, device: torch.device | None = None) -> Iterator[None]:
        """Keep the text encoders on the (model's) device while inside; outside they are on the CPU, or not loaded."""
        if any(getattr(self.pipeline, name) is None for name in self.encoders):
            others = {name for name in self.files.parts() if not name.startswith(TEXT_PARTS)}
            loaded = self._load(others)
            parts = {name: getattr(loaded, name).requires_grad_(False).eval() for name in self.encoders}
            for name, part in parts.items():
                finite.check_weights(part, self.files.source(name), self.model.dtype)
            self.pipeline.register_modules(**parts)
        for name in self.encoders:
            getattr(self.pipeline, name).to(device or self.device)
        try:
            yield
        finally:
            for name in self.encoders:
                getattr(self.pipeline, name).to("cpu")

    @contextlib.contextmanager
    def sampling_as(self, sampling: Sampling) -> Iterator[None]:
        """Encode, predict and decode with these settings (guidance, size) instead of the run's while inside."""
        before = self.sampling, self.height, self.width
        self.height, self.width = self.size_in(self.description, sampling)
        self.sampling = sampling
        try:
            yield
        finally:
            self.sampling, self.height, self.width = before

    @classmethod
    def default_size(cls, network: Mapping[str, Any], factor: int) -> tuple[int, int]:
        """Return the height and width in pixels that the network's config names. Raises ModelError."""
        size = network.get("sample_size")
        if not size:
            raise ModelError(
                f"sampling.height and width are null, and {cls.part}/config.json has no sample_size; set both"
            )
        rows, columns = (size, size) if isinstance(size, int) else size
        return rows * factor, columns * factor

    @classmethod
    def size_in(cls, description: Described, sampling: Sampling) -> tuple[int, int]:
        """Return the images' height and width in pixels. Raises ModelError if VAE and network cannot divide them."""
        height, width, network = sampling.height, sampling.width, description.network
        if height is None or width is None:
            rows, columns = cls.default_size(network, description.factor)
            height, width = height or rows, width or columns
        described.check_size(description, height, width, cls.patch_of(network), cls.most_tokens(network))
        return height, width

    def schedule(self, steps: int) -> Schedule:
        return self.schedule_in(self.description, dataclasses.replace(self.sampling, steps=steps, trained_steps=None))

    @classmethod
    def schedule_in(cls, description: Described, sampling: Sampling) -> Schedule:
        """Build the schedule of the folder's scheduler for images of the size asked for. Raises as `schedule_of`."""
        cls.check_sampling(description, sampling)
        tokens = cls.tokens_in(description, *cls.size_in(description, sampling))
        return cls.schedule_of(cls.scheduler_of(description), sampling, tokens=tokens)

    @classmethod
    def check_sampling(cls, description: Described, sampling: Sampling) -> None:
        """Raise ModelError for a setting that has no effect on the model in the folder."""
        if not cls.guidance_is_input(description.network):
            return
        for name in ("negative_prompt", "detach_unconditional"):
            if value := getattr(sampling, name):
                of = f"sampling.{name} is {value!r}, and {description.folder.name}"
                raise ModelError(f"{of} takes the guidance scale as an input, without another branch; leave it out")

    @classmethod
    def scheduler_of(cls, description: Described) -> Mapping[str, Any]:
        """Return the scheduler's config for `schedule_of`, with what the pipeline's own config changes in it."""
        return description.scheduler

    @classmethod
    def step_distilled(cls, description: Described) -> bool:
        """Return whether the model in the folder says that it was distilled to a few steps."""
        return False

    @classmethod
    def guidance_is_input(cls, network: Mapping[str, Any]) -> bool:
        """Return whether the network of this config takes the guidance scale itself, with no unconditional branch."""
        return False

    @classmethod
    def patch_of(cls, network: Mapping[str, Any]) -> int:
        """Return the latents per side of one token."""
        return 2

    @classmethod
    def most_tokens(cls, network: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return the most tokens down and across that the network has positions for; None: any number."""
        return None

    @classmethod
    def tokens_in(cls, description: Described, height: int, width: int) -> int:
        """Count an image's tokens as the pipeline does for a flow model's dynamic shift."""
        side = cls.patch_of(description.network) * description.factor
        return (height // side) * (width // side)

    @classmethod
    @abstractmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> Schedule:
        """Build the schedule that the pipeline follows with this scheduler config, for images of so many tokens.

        Raises ScheduleError and ModelError.
        """

    @property
    def guided(self) -> bool:
        """True if a prediction needs the unconditional branch: above 1, as in diffusers' pipelines."""
        return self.sampling.guidance_scale > 1.0

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Encode texts, one row each; with guidance, `negative_...` are the unconditional branch's rows."""
        found = self.texts.rows(texts, self)
        rows = [found[text] for text in texts]
        if self.guided:
            empty = {f"negative_{name}": row for name, row in self.encode_empty().items()}
            rows = [{**row, **empty} for row in rows]
        return {name: torch.cat([row[name] for row in rows]).to(self.device) for name in rows[0]}

    def fixed_text(self) -> Conditioning:
        """Return noise in place of an encoded text if its shape is known, so that no encoder has to be loaded."""
        if (shapes := self.text_shapes()) is None:
            return self.encode([""])
        return {
            name: stand_in(name, shape, getattr(torch, self.model.dtype)).to(self.device)
            for kept, shape in shapes.items()
            for name in ([kept, f"negative_{kept}"] if self.guided else [kept])
        }

    def text_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes of `encode_one`'s rows for some number of tokens; None if the network does not tell."""
        return None

    def encode_empty(self) -> Conditioning:
        """Encode the unconditional branch's text: nothing, or the negative prompt."""
        return self.encode_text(self.sampling.negative_prompt)

    def encode_text(self, text: str) -> Conditioning:
        """Encode one text on the CPU, without guidance's rows."""
        return self.texts.rows([text], self)[text]

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode the texts that no cache holds, with the encoders on the device once for all of them."""
        self.texts.prepare(texts, self)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (self.config.in_channels, self.height // factor, self.width // factor)

    @property
    def config(self) -> Any:
        """The network's own config."""
        return getattr(self.pipeline, self.part).config

    def initial_noise(self, generator: torch.Generator) -> Float[Tensor, "..."]:
        return torch.randn((1, *self.latent_shape), generator=generator)[0]

    @abstractmethod
    def encode_one(self, text: str) -> Conditioning:
        """Encode one text with the encoders on the device, without guidance's rows."""

    def predict(
        self, latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """Predict with guidance, in float32; both branches pass through the network in one batch."""
        inputs = latents.to(conditioning["embeds"].dtype)
        if not self.guided:
            return self.parametrised(self._turned(inputs, timesteps, conditioning).float(), latents, timesteps)
        names = [name for name in conditioning if not name.startswith("negative_")]
        doubled = {name: torch.cat([conditioning[f"negative_{name}"], conditioning[name]]) for name in names}
        both = self._turned(torch.cat([inputs, inputs]), torch.cat([timesteps, timesteps]), doubled)
        unconditional, conditional = both.float().chunk(2)
        if self.sampling.detach_unconditional:
            unconditional = unconditional.detach()
        return self.parametrised(self.combined(conditional, unconditional), latents, timesteps)

    def combined(
        self, conditional: Float[Tensor, "B ..."], unconditional: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        """Combine the branches by classifier-free guidance: u + scale (c - u), so that a scale of 1 is none."""
        guided: Tensor = unconditional + self.sampling.guidance_scale * (conditional - unconditional)
        return guided

    def _turned(
        self, latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """Call the network once, in its own direction of time."""
        if self.backwards:
            return -self.forward(latents, TRAIN_STEPS - timesteps, conditioning)
        return self.forward(latents, timesteps, conditioning)

    @abstractmethod
    def forward(
        self, latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """Call the network once."""

    def parametrised(
        self, prediction: Float[Tensor, "B ..."], latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"]
    ) -> Float[Tensor, "B ..."]:
        """Convert the network's output to what the schedule expects: noise for diffusion, velocity for flow."""
        return prediction

    def latents_of(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C h w"]:
        """Reshape the sampler's latents to those of the VAE."""
        return latents

    def unscaled(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B ..."]:
        """Undo the scaling with which the network was trained; the result is what the VAE decodes."""
        return decoding.unscaled(self.pipeline.vae.config, latents)

    def decode(self, latents: Float[Tensor, "B ..."]) -> UInt8[np.ndarray, "B H W 3"]:
        images: np.ndarray = self.pixels(latents).cpu().numpy()
        return images

    @torch.no_grad()
    def pixels(self, latents: Float[Tensor, "B ..."]) -> UInt8[Tensor, "B H W 3"]:
        """Decode to pixels on the device. Raises ModelError if the decoder's output is not finite."""
        vae, scaled = self.pipeline.vae, self.unscaled(self.latents_of(latents))
        images = decoding.shown(vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float())
        finite.check_images(images, latents, self.model.dtype)
        pixels: Tensor = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1)

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

    def save(self, folder: Path, parameters: Mapping[str, Tensor]) -> None:
        if isinstance(self.model.train, Lora):
            return lora.save(self.pipeline, self.part, parameters, folder)
        network = getattr(self.pipeline, self.part)
        whole = self.files.whole(network, parameters)
        with self.text_encoders(torch.device("cpu")):  # the saved folder must be complete; a GPU may have no room
            try:
                self.pipeline.register_modules(**{self.part: whole})
                self.pipeline.save_pretrained(folder)
            finally:
                self.pipeline.register_modules(**{self.part: network})
        return self.files.copy_unused(folder)
