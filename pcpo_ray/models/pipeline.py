"""What the denoisers over diffusers' pipelines share: loading, what is trained, decoding, saving."""

import contextlib
import dataclasses
import importlib
import json
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pcpo_ray.algorithm.schedule import Schedule
from pcpo_ray.config import Lora, Model, Sampling
from pcpo_ray.data.seeds import generator
from pcpo_ray.data.tensors import Conditioning
from pcpo_ray.errors import ModelError
from pcpo_ray.models import UNUSED, described, files, finite, lora, single_file
from pcpo_ray.models.described import Described
from pcpo_ray.models.texts import KeptTexts, TextCache

TOKENS = 8
"""Of a text that stands for any."""


def tokens_of(height: int, width: int, factor: int, patch: int = 2) -> int:
    """How many patches of latents an image has, of a VAE that makes `factor` pixels a side into one."""
    return (height // (patch * factor)) * (width // (patch * factor))


class PipelineDenoiser(ABC):
    """One of diffusers' pipelines, its denoising network made trainable."""

    pipeline_class: ClassVar[str]
    part: ClassVar[str]
    """Name of the denoising network among the pipeline's parts."""
    packed: ClassVar[int | None] = None
    """How many of the VAE's latents are one of the network's, which takes and gives nothing else; None: unknown."""

    def __init__(self, folder: Path, model: Model, sampling: Sampling, *, seed: int, device: torch.device) -> None:
        import diffusers
        import transformers

        for library in (diffusers, transformers):  # a bar a part, from every worker, is noise
            library.utils.logging.disable_progress_bar()
        self.folder = folder
        self.description = self.described(folder)
        self.device = device
        self.model = model
        self.sampling = sampling
        # the text encoders, often the largest part, are loaded by who encodes a text that no cache holds
        self.encoders = [name for name, there in self._parts().items() if there and name.startswith("text_encoder")]
        self.pipeline = self._load(self.encoders).to(device)
        vae = self.pipeline.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:  # SDXL's overflows in half precision
            vae.to(torch.float32)
        self._decode_in_parts(vae)
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
                finite.check_weights(part, self._source(name), model.dtype)
        self.module: nn.Module = getattr(self.pipeline, self.part)
        if isinstance(model.train, Lora):
            lora.attach(self.module, model.train, seed=seed)
            if model.train.start is not None:
                lora.start(self.pipeline, self.part, model.train)
                finite.check_weights(self.module, f"model.train.start={model.train.start!r}", "float32")
        else:
            self.module.requires_grad_(True)
        if model.gradient_checkpointing:
            getattr(self.pipeline, self.part).enable_gradient_checkpointing()
        self.height, self.width = self.size_in(self.description, sampling)
        self._kept = KeptTexts()
        self.texts = None if model.text_cache is None else TextCache(model, folder)

    def _parts(self) -> dict[str, bool]:
        """The pipeline's parts, by the folder's index, and whether the folder has them (SD3 does without T5)."""
        return {name: value[0] is not None for name, value in self._index().items() if isinstance(value, list)}

    def _index(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        return found

    @classmethod
    def described(cls, folder: Path) -> Described:
        """What the folder's JSON files say. Raises ModelError for what is not understood."""
        description = described.described(folder, cls.pipeline_class, cls.part)
        cls.check(description)
        return description

    @classmethod
    def check(cls, description: Described) -> None:
        """Raise ModelError for what the folder says of its network and this class does not do."""
        if cls.packed is not None:
            described.check_channels(description, cls.part, cls.packed)

    def _source(self, part: str) -> str:
        """Where a part's weights are from, for who has to mend them."""
        file = self.model.single_file
        return str(self.folder / part) if file is None else f"model.single_file={file!r} or {self.folder / part}"

    def _decode_in_parts(self, vae: Any) -> None:
        for asked, name in ((self.model.vae_tiling, "tiling"), (self.model.vae_slicing, "slicing")):
            if not asked:
                continue
            try:
                getattr(vae, f"enable_{name}")()
            except (AttributeError, NotImplementedError):
                raise ModelError(
                    f"model.vae_{name} is true, and the VAE of {self.folder} is a {type(vae).__name__}, which has no "
                    f"{name}; set model.vae_{name}=false"
                ) from None

    def _load(self, left_out: Collection[str]) -> Any:
        """The pipeline, on the CPU, without some of its parts."""
        import diffusers

        # diffusers wants to hear of each part that is not to be looked for
        missing: dict[str, Any] = {
            name: None for name, there in self._parts().items() if not there or name in left_out or name in UNUSED
        }
        if "safety_checker" in missing:
            missing["requires_safety_checker"] = False
        pipeline_class, dtype = getattr(diffusers, self.pipeline_class), getattr(torch, self.model.dtype)
        if self.model.single_file is not None:
            return single_file.load(pipeline_class, Path(self.model.single_file), self.folder, dtype, missing)
        try:
            networks = {name: self._network(name, dtype) for name in self._networks() if name not in missing}
            return pipeline_class.from_pretrained(
                self.folder, dtype=dtype, variant=self.model.variant, local_files_only=True, **missing, **networks
            )
        except ModelError:
            raise
        except Exception as error:  # a file cut short raises whatever its own format's reader raises
            raise ModelError(f"{self.folder} cannot be loaded as a {self.pipeline_class}: {error}") from error

    def _networks(self) -> list[str]:
        """The parts that are loaded one by one, to see that config and weights are of one network."""
        libraries = {name: "transformers" for name in self.encoders} | {self.part: "diffusers", "vae": "diffusers"}
        index = self._index()
        return [name for name, library in libraries.items() if name in index and index[name][0] == library]

    def _network(self, name: str, dtype: torch.dtype) -> nn.Module:
        """A part with the weights of its files, all of them and no others.

        The libraries draw anew what the files lack, and drop what the config has no place for. Raises ModelError.
        """
        library, kind = self._index()[name]
        found, told = getattr(importlib.import_module(library), kind).from_pretrained(
            self.folder / name,
            dtype=dtype,
            variant=self.model.variant if self.model.variant in files.variants(self.folder / name) else None,
            local_files_only=True,
            output_loading_info=True,
        )
        # an encoder's files may hold the rest of a larger model, a decoder or another tower
        own = {child for child, _ in found.named_children()} if library == "transformers" else None
        dropped = [
            key
            for key in told["unexpected_keys"]
            if not key.endswith("position_ids") and (own is None or key.partition(".")[0] in own)
        ]
        for keys, what in ((told["missing_keys"], "lack"), (dropped, "hold")):
            if keys:
                raise ModelError(
                    f"the weights of {self.folder / name} {what} {len(keys)} parameters that its config.json "
                    f"{'describes' if what == 'lack' else 'has no place for'}, such as {sorted(keys)[:3]}: they are of "
                    "another network than the config; copy both again from one place"
                )
        network: nn.Module = found
        return network

    @contextlib.contextmanager
    def text_encoders(self) -> Iterator[None]:
        """Inside, the text encoders are on the device; outside they wait on the CPU, once they have been asked for."""
        if any(getattr(self.pipeline, name) is None for name in self.encoders):
            loaded = self._load({name for name in self._parts() if not name.startswith(("text_encoder", "tokenizer"))})
            parts = {name: getattr(loaded, name).requires_grad_(False).eval() for name in self.encoders}
            for name, part in parts.items():
                finite.check_weights(part, self._source(name), self.model.dtype)
            self.pipeline.register_modules(**parts)
        for name in self.encoders:
            getattr(self.pipeline, name).to(self.device)
        try:
            yield
        finally:
            for name in self.encoders:
                getattr(self.pipeline, name).to("cpu")

    @contextlib.contextmanager
    def sampling_as(self, sampling: Sampling) -> Iterator[None]:
        """Inside, encode and predict with these settings (guidance) in place of the run's."""
        before, self.sampling = self.sampling, sampling
        try:
            yield
        finally:
            self.sampling = before

    @classmethod
    def default_size(cls, network: Mapping[str, Any], factor: int) -> tuple[int, int]:
        """Pixels down and across where the config names none, of the network's config. Raises ModelError."""
        size = network.get("sample_size")
        if not size:
            raise ModelError(
                f"sampling.height and width are null, and {cls.part}/config.json has no sample_size; set both"
            )
        rows, columns = (size, size) if isinstance(size, int) else size
        return rows * factor, columns * factor

    @classmethod
    def size_in(cls, description: Described, sampling: Sampling) -> tuple[int, int]:
        """Pixels down and across. Raises ModelError for what the VAE and the network cannot divide."""
        height, width = sampling.height, sampling.width
        if height is None or width is None:
            rows, columns = cls.default_size(description.network, description.factor)
            height, width = height or rows, width or columns
        least = 2 * description.factor
        if height % least or width % least:
            raise ModelError(
                f"sampling.height x width is {height} x {width}; {description.folder.name} needs multiples of {least}"
            )
        return height, width

    def schedule(self, steps: int) -> Schedule:
        return self.schedule_in(self.description, dataclasses.replace(self.sampling, steps=steps, trained_steps=None))

    @classmethod
    def schedule_in(cls, description: Described, sampling: Sampling) -> Schedule:
        """The steps that the folder's scheduler takes, for images of the size asked for. Raises as `schedule_of`."""
        height, width = cls.size_in(description, sampling)
        tokens = tokens_of(height, width, description.factor, cls.patch_of(description.network))
        return cls.schedule_of(description.scheduler, sampling, tokens=tokens)

    @classmethod
    def patch_of(cls, network: Mapping[str, Any]) -> int:
        """Latents a side of what the pipeline counts as a token, for a flow model's dynamic shift."""
        return 2

    @classmethod
    @abstractmethod
    def schedule_of(cls, scheduler_config: Mapping[str, Any], sampling: Sampling, *, tokens: int) -> Schedule:
        """The steps that the pipeline takes with this scheduler config, for pictures of that many tokens.

        Raises ScheduleError and ModelError.
        """

    @property
    def guided(self) -> bool:
        """Whether a prediction needs the unconditional branch: above 1, as in diffusers' pipelines."""
        return self.sampling.guidance_scale > 1.0

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """One row a text; with guidance, the unconditional branch's beside them as `negative_...`."""
        found = self._encode_all(texts)
        rows = [found[text] for text in texts]
        if self.guided:
            empty = {f"negative_{name}": row for name, row in self.encode_empty().items()}
            rows = [{**row, **empty} for row in rows]
        return {name: torch.cat([row[name] for row in rows]).to(self.device) for name in rows[0]}

    def fixed_text(self) -> Conditioning:
        """Noise in the place of an encoded text where its shape is known, so that no encoder need be loaded for it."""
        shapes = self.text_shapes()
        if shapes is None:
            return self.encode([""])
        dtype = getattr(torch, self.model.dtype)
        return {
            name: torch.randn((1, *shape), generator=generator("text", name)).to(self.device, dtype)
            for kept, shape in shapes.items()
            for name in ([kept, f"negative_{kept}"] if self.guided else [kept])
        }

    def text_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Of a row of each of `encode_one`'s tensors, for some number of tokens; None where the network cannot say."""
        return None

    def encode_empty(self) -> Conditioning:
        """What the unconditional branch is told."""
        return self.encode_text("")

    def encode_text(self, text: str) -> Conditioning:
        """One row on the CPU, without guidance's."""
        return self._encode_all([text])[text]

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode what no cache holds, the encoders on the device once for all of it.

        Workers that share a cache on disk and are given the same texts share the work.
        """
        missing = [text for text in dict.fromkeys(texts) if not self._holds(text)]
        random.SystemRandom().shuffle(missing)  # each worker in an order of its own, so that they seldom meet
        for _ in self._encoded_anew(missing):
            pass

    def _encode_all(self, texts: Sequence[str]) -> dict[str, Conditioning]:
        """A row for each distinct text, whether or not memory has room for all of them at once."""
        found = {text: self._found(text) for text in texts}
        missing = [text for text, encoded in found.items() if encoded is None]
        found.update(self._encoded_anew(missing))
        return {text: encoded for text, encoded in found.items() if encoded is not None}

    def _encoded_anew(self, texts: Sequence[str]) -> Iterator[tuple[str, Conditioning]]:
        """The texts' rows, which are kept; those that another worker has written meanwhile are read."""
        if not texts:
            return
        with torch.no_grad(), self.text_encoders():
            for text in texts:
                encoded = self._found(text)
                if encoded is None:
                    encoded = {name: row.cpu() for name, row in self.encode_one(text).items()}
                    finite.check_text(encoded, text, self.model.dtype)
                    if self.texts is not None:
                        self.texts.put(text, encoded)
                    self._kept.put(text, encoded)
                yield text, encoded

    def _found(self, text: str) -> Conditioning | None:
        """The text's row, where memory or the cache on disk has it."""
        encoded = self._kept.get(text)
        if encoded is None and self.texts is not None and text in self.texts:
            encoded = self.texts.get(text)
            finite.check_text(encoded, text, self.model.dtype, self.texts.path(text))
            self._kept.put(text, encoded)
        return encoded

    def _holds(self, text: str) -> bool:
        return text in self._kept or (self.texts is not None and text in self.texts)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        factor = self.pipeline.vae_scale_factor
        return (self.config.in_channels, self.height // factor, self.width // factor)

    @property
    def config(self) -> Any:
        """The network's own."""
        return getattr(self.pipeline, self.part).config

    def initial_noise(self, generator: torch.Generator) -> Float[Tensor, "..."]:
        return torch.randn((1, *self.latent_shape), generator=generator)[0]

    @abstractmethod
    def encode_one(self, text: str) -> Conditioning:
        """One row, without guidance's."""

    def predict(
        self, latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """The network's prediction after guidance, in float32; both branches go through the network in one batch."""
        inputs = latents.to(conditioning["embeds"].dtype)
        if not self.guided:
            return self.parametrised(self.forward(inputs, timesteps, conditioning).float(), latents, timesteps)
        names = [name for name in conditioning if not name.startswith("negative_")]
        doubled = {name: torch.cat([conditioning[f"negative_{name}"], conditioning[name]]) for name in names}
        both = self.forward(torch.cat([inputs, inputs]), torch.cat([timesteps, timesteps]), doubled)
        unconditional, conditional = both.float().chunk(2)
        if self.sampling.detach_unconditional:
            unconditional = unconditional.detach()
        guided: Tensor = unconditional + self.sampling.guidance_scale * (conditional - unconditional)
        return self.parametrised(guided, latents, timesteps)

    @abstractmethod
    def forward(
        self, latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """One call of the network."""

    def parametrised(
        self, prediction: Float[Tensor, "B ..."], latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"]
    ) -> Float[Tensor, "B ..."]:
        """The network's output as the model's schedule wants it: the noise for diffusion, the velocity for flow."""
        return prediction

    def latents_of(self, latents: Float[Tensor, "B ..."]) -> Float[Tensor, "B C h w"]:
        """The VAE's view of the sampler's latents."""
        return latents

    def decode(self, latents: Float[Tensor, "B ..."]) -> UInt8[np.ndarray, "B H W 3"]:
        images: np.ndarray = self.pixels(latents).cpu().numpy()
        return images

    @torch.no_grad()
    def pixels(self, latents: Float[Tensor, "B ..."]) -> UInt8[Tensor, "B H W 3"]:
        """The images, on the device. Raises ModelError where the decoder gives numbers that are not finite."""
        vae, scaled = self.pipeline.vae, self.latents_of(latents)
        mean, std, shift = (getattr(vae.config, key, None) for key in described.FACTORS)
        if std is not None:
            scaled = scaled * _by_channel(std, scaled)
        scaled = scaled / vae.config.scaling_factor
        if mean is not None:
            scaled = scaled + _by_channel(mean, scaled)
        if shift:
            scaled = scaled + shift
        pictures = vae.decode(scaled.to(vae.dtype), return_dict=False)[0].float()
        finite.check_images(pictures, latents, self.model.dtype)
        pixels: Tensor = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
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
        import diffusers
        from accelerate import init_empty_weights

        network = getattr(self.pipeline, self.part)
        with init_empty_weights():  # a network of its own, as a rank's may hold but parts of its parameters
            whole = getattr(diffusers, self._index()[self.part][1]).from_config(network.config)
        buffers = {name: value for name, value in network.named_buffers() if name in whole.state_dict()}
        dtype = getattr(torch, self.model.dtype)  # the parameters may be float32 masters
        written = {name: value.to(dtype) for name, value in parameters.items()}
        whole.load_state_dict({**buffers, **written}, assign=True)
        with self.text_encoders():  # the folder is to be whole
            try:
                self.pipeline.register_modules(**{self.part: whole})
                self.pipeline.save_pretrained(folder)
            finally:
                self.pipeline.register_modules(**{self.part: network})
        return self._copy_unused(folder)

    def _copy_unused(self, folder: Path) -> None:
        """Give a saved pipeline the parts that were never loaded."""
        own, path = self._index(), folder / "model_index.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        for name in sorted(UNUSED & own.keys()):
            if (self.folder / name).is_dir() and self.model.single_file is None:
                shutil.copytree(self.folder / name, folder / name)
                saved[name] = own[name]
        if "requires_safety_checker" in own:
            saved["requires_safety_checker"] = own["requires_safety_checker"]
        path.write_text(json.dumps(saved, indent=2), encoding="utf-8")


def _by_channel(values: Sequence[float], latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "1 C 1 1"]:
    return torch.tensor(values, device=latents.device, dtype=latents.dtype).reshape(1, -1, 1, 1)
