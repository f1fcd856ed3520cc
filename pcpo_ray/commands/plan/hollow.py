"""Hollow: a model made from its folder's configs alone, whose tensors have shapes and dtypes and no data.

What runs on it is the code that a run's workers run, so sizes of real models are found out on any machine, in seconds.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from pcpo_ray import models
from pcpo_ray.algorithm import objective
from pcpo_ray.commands.plan.autocast import CudaRules
from pcpo_ray.commands.plan.live import Live
from pcpo_ray.config import Lora, Model, Sampling
from pcpo_ray.errors import ModelError
from pcpo_ray.models.pipeline import PipelineDenoiser
from pcpo_ray.models.stable_diffusion import StableDiffusion

TEXT = "an image"
"""Stands for any: the pipelines pad every text to one length."""


class Hollow:
    """A denoiser without data; its sizes are in bytes, its peaks what a call needs at most beside what was there.

    Raises ModelError for a folder that lacks a config, and for a model that cannot be run without data.
    """

    def __init__(self, model: Model, sampling: Sampling) -> None:
        folder = models.folder_of(model, weights=False)
        self.sampling = sampling
        self.timestep = models.schedule_of(folder, model, sampling).timesteps[0]
        train = dataclasses.replace(model.train, start=None) if isinstance(model.train, Lora) else model.train
        bare = dataclasses.replace(model, single_file=None, text_cache=None, train=train, attention=None)
        with quiet():
            shell = shell_of(models.class_of(model))
            self.denoiser = shell(folder, bare, sampling, seed=0, device=torch.device("meta"))
            self.denoiser.load_encoders()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.denoiser.device = torch.device("cpu")
        if isinstance(self.denoiser, StableDiffusion):
            _ = self.denoiser.alpha_bars  # made once, and so no part of a call's memory
        with self.mode:
            for part in self.parts.values():
                materialise(part)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The pipeline's networks by name."""
        components = self.denoiser.pipeline.components
        return {name: part for name, part in components.items() if isinstance(part, nn.Module)}

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        trained: dict[str, nn.Parameter] = self.denoiser.trainable()
        return trained

    @cached_property
    def network(self) -> nn.Module:
        """The denoising network, what is trained included."""
        network: nn.Module = getattr(self.denoiser.pipeline, self.denoiser.part)
        return network

    @contextlib.contextmanager
    def _run(self, what: str, *, gpu: bool = True) -> Iterator[Live]:
        live = Live("cuda" if gpu else "cpu")
        try:
            with self.mode, live, CudaRules() if gpu else contextlib.nullcontext():
                yield live
        except Exception as error:  # a model of the user's own may do anything with its tensors
            raise ModelError(
                f"{self.denoiser.folder}: {what} cannot be run without data, so its memory cannot be planned: "
                f"{type(error).__name__}: {error}"
            ) from error

    @cached_property
    def encoded(self) -> tuple[dict[str, Tensor], int]:
        """A text's conditioning, and the peak of encoding it."""
        with self._run("encoding a text") as live, torch.no_grad():
            found = dict(self.denoiser.encode([TEXT]))
        return found, live.peak

    @cached_property
    def latents(self) -> int:
        """Bytes of one image's latents in float32."""
        return 4 * torch.Size(self.denoiser.latent_shape).numel()

    @property
    def plain(self) -> bool:
        """True if the prediction is the network's own output, in its own dtype."""
        latents, timesteps, _ = self._inputs(1)
        with self.mode:
            left = self.denoiser.parametrised(latents, latents, timesteps) is latents
        return left and not self.denoiser.guided

    def _inputs(self, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Latents, timesteps and conditioning of so many images."""
        conditioning, _ = self.encoded
        with self.mode:
            latents = torch.empty(rows, *self.denoiser.latent_shape)
            timesteps = torch.full((rows,), float(self.timestep))
            repeated = {name: row.expand(rows, *row.shape[1:]) for name, row in conditioning.items()}
        return latents, timesteps, repeated

    def _predict(self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], *, mixed: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            prediction: Tensor = self.denoiser.predict(latents, timesteps, conditioning)
        return prediction

    @cache  # noqa: B019 - as long as the model
    def predicting(self, rows: int, *, mixed: bool, gpu: bool) -> int:
        """The peak of a prediction of so many images without gradients."""
        latents, timesteps, conditioning = self._inputs(rows)
        with self._run("a prediction", gpu=gpu) as live, torch.no_grad():
            self._predict(latents, timesteps, conditioning, mixed=mixed)
        return live.peak

    @cache  # noqa: B019
    def learning(self, rows: int, *, mixed: bool, kl: bool, gpu: bool) -> int:
        """The peak of one micro-batch's forward and backward pass, where all gradients are there already."""
        latents, timesteps, conditioning = self._inputs(rows)
        with self.mode:
            for parameter in self.trained.values():
                parameter.grad = torch.zeros_like(parameter)
            old, noise, advantage = torch.empty_like(latents), torch.empty_like(latents), torch.empty(rows)
        with self._run("a backward pass", gpu=gpu) as live:
            prediction = self._predict(latents, timesteps, conditioning, mixed=mixed)
            ratio = objective.log_ratio(prediction, old, noise, weight=1.0, sign=1.0)
            loss = objective.log_hinge(ratio, advantage, clip_range=1.0).sum()
            if kl:
                with torch.no_grad(), self.denoiser.without_adapter():
                    reference = self._predict(latents, timesteps, conditioning, mixed=mixed)
                loss = loss + objective.kl_divergence(prediction, reference, weight=1.0).sum()
            # loss.backward would leave CudaRules outside, and a checkpoint's second pass would differ from its first
            engine: Any = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)
        return live.peak

    @cache  # noqa: B019
    def decoding(self, images: int, *, gpu: bool) -> int:
        """The peak of making images of so many images' latents."""
        latents, _, _ = self._inputs(images)
        with self._run("decoding", gpu=gpu) as live, torch.no_grad():
            self.denoiser.pixels(latents)
        return live.peak


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries say that there are no weights, no safety checker, another dtype: each is meant to be so."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def size_of(*tensors: Tensor) -> int:
    """Bytes of the tensors, each storage once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def size_of_module(module: nn.Module) -> int:
    return size_of(*module.parameters(), *module.buffers())


def materialise(module: nn.Module) -> None:
    """Give a module on the meta device tensors of the CPU's, in place; the caller's mode decides whether with data."""
    made: dict[int, nn.Parameter] = {}  # what two parts share stays shared
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_meta:
                if id(value) not in made:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    made[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad)
                part._parameters[name] = made[id(value)]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for name, value in vars(part).items():  # tables that a network keeps out of its buffers
            if isinstance(value, Tensor) and value.is_meta:
                setattr(part, name, torch.empty(value.shape, dtype=value.dtype))


def shell_of(base: type[PipelineDenoiser]) -> Any:
    """The class of a denoiser that is made without reading any weights, on the meta device."""

    class Shell(base):  # type: ignore[misc, valid-type]
        def _load(self, left_out: Collection[str]) -> Any:
            import diffusers

            parts: dict[str, nn.Module | None] = {
                name: None for name, there in self.files.parts().items() if not there or name in left_out
            }
            for name, there in self.files.parts().items():
                if there and name not in left_out:
                    library, kind = self.files.index()[name]
                    cls = class_in(library, kind)
                    if cls is not None:
                        parts[name] = network(cls, self.folder / name, getattr(torch, self.model.dtype))
            try:
                return getattr(diffusers, self.pipeline_class).from_pretrained(
                    self.folder, local_files_only=True, **parts
                )
            except Exception as error:  # a config cut short raises whatever its own reader raises
                raise ModelError(f"{self.folder} is no {self.pipeline_class}: {error}") from error

        def load_encoders(self) -> None:
            """Make the text encoders, which a run loads when a text has to be encoded."""
            loaded = self._load({name for name in self.files.parts() if not name.startswith(models.TEXT_PARTS)})
            parts = {name: getattr(loaded, name).requires_grad_(False).eval() for name in self.encoders}
            self.pipeline.register_modules(**parts)
            for name, part in self.pipeline.components.items():
                if name.startswith(("tokenizer", "processor")) and hasattr(part, "apply_chat_template"):
                    part.apply_chat_template = with_data(part.apply_chat_template)

        @contextlib.contextmanager
        def text_encoders(self) -> Iterator[None]:
            yield

    return Shell


def with_data(method: Callable[..., Any]) -> Callable[..., Any]:
    """Have a method compute with data while its caller has none: a processor reads the numbers of its tokens."""

    @functools.wraps(method)
    def called(*arguments: Any, **options: Any) -> Any:
        with _disable_current_modes():
            return method(*arguments, **options)

    return called


def class_in(library: str, name: str) -> Any:
    """The class of a network among a pipeline's parts; None for other parts (schedulers, tokenizers)."""
    import diffusers
    import transformers

    places = {"diffusers": diffusers, "transformers": transformers}
    place = places.get(library, getattr(diffusers.pipelines, library, None))
    found = getattr(place, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def network(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A network on the meta device, as its folder's config describes it."""
    with torch.device("meta"):
        made = made_of_config(cls, folder)
    nn.Module.to(made, dtype)  # diffusers' own warns
    if dtype is torch.float16:  # T5 overflows in parts, which it therefore leaves as they were
        precise = getattr(made, "_keep_in_fp32_modules", None) or ()
        for name, part in made.named_modules():
            if name.rpartition(".")[2] in precise:
                nn.Module.float(part)
    return made


def made_of_config(cls: Any, folder: Path) -> nn.Module:
    """A network on the default device, as its folder's config describes it. Raises ModelError."""
    made: nn.Module
    try:
        if hasattr(cls, "load_config"):
            made = cls.from_config(cls.load_config(folder, local_files_only=True))
        else:
            made = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a library makes of a config that is cut short
        raise ModelError(
            f"{folder}: no {cls.__name__} can be made of its config: {error}; copy the folder's JSON files again"
        ) from error
    return made
