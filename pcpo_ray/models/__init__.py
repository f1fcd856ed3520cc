"""The Denoiser protocol (encode, predict, decode, trainable), and `load`, which makes one from a config.

Backbones know no algorithms: a denoiser predicts and names its schedule. `transitions` defines the step that uses the
prediction, and `credit` the weight that the step carries.

A model's folder is found, and its kind checked (`located`), before torch is loaded.
"""

from __future__ import annotations

import inspect
import logging
import pkgutil
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pcpo_ray.config import BACKBONES, Model, Sampling
from pcpo_ray.errors import ModelError
from pcpo_ray.models import files, hub
from pcpo_ray.models.described import is_part, read_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float, UInt8
    from torch import Tensor, nn

    from pcpo_ray.algorithm.schedule import Schedule
    from pcpo_ray.data.tensors import Conditioning
    from pcpo_ray.models.pipeline import PipelineDenoiser

log = logging.getLogger(__name__)

FEW_STEPS = re.compile("turbo|schnell|lightning|sprint|distilled", re.IGNORECASE)
"""Names of models distilled to a few steps, whose configs do not say it."""

UNUSED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
"""Parts that neither sampling nor training uses: never loaded, and copied into what full fine-tuning saves."""


TEXT_PARTS = ("text_encoder", "tokenizer", "processor")
"""Beginnings of the names of the parts that encode texts; some pipelines call their tokenizer `processor`."""


class Denoiser(Protocol):
    """A text-to-image model. B images, `...` one image's latents (`latent_shape`)."""

    device: torch.device
    module: nn.Module
    pipeline: Any
    """diffusers' pipeline, whose parts the networks are."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one image's latents, as the sampler steps them."""

    def schedule(self, steps: int) -> Schedule:
        """Build the schedule that the model's own scheduler follows in `steps` steps. Raises ScheduleError."""

    def initial_noise(self, generator: torch.Generator) -> Float[Tensor, "..."]:
        """Draw one image's initial latents as the model's pipeline draws them."""

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Encode texts for `predict`, one row each, with the rows that guidance needs."""

    def sampling_as(self, sampling: Sampling) -> AbstractContextManager[None]:
        """Follow these settings instead of the run's in `encode`, `predict` and `schedule` while inside."""

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode texts ahead, so that `encode` only has to look them up."""

    def fixed_text(self) -> Conditioning:
        """Return a row that stands for a text, the same in every process, for the canary (canary.py)."""

    def predict(
        self, latents: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B ..."]:
        """Predict with guidance, in float32; each image has its own timestep and text."""

    def decode(self, latents: Float[Tensor, "B ..."]) -> UInt8[np.ndarray, "B H W 3"]:
        """Decode latents to images."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""

    def without_adapter(self) -> AbstractContextManager[None]:
        """Predict with the base model while inside. Raises ModelError if there is no adapter."""

    def save(self, folder: Path, parameters: Mapping[str, Tensor]) -> None:
        """Save the trained parameters, with these values, as diffusers reads them: a LoRA or a whole pipeline."""


def folder_of(model: Model, *, weights: bool = True) -> Path:
    """Return the model's folder, checked for its kind without loading anything; without `weights`, configs suffice.

    A model of the Hugging Face Hub that is not in the cache is fetched, unless HF_HUB_OFFLINE is set.
    Raises ModelError.
    """
    folder = located(model)
    if folder is None:
        if (cached := hub.cached(model.path)) is not None:
            _check_kind(cached, model, class_of(model).pipeline_class)  # fetching more of it would not help
        return hub.found(
            model.path,
            lambda folder: _check(folder, model, weights=weights),
            weights=weights and model.single_file is None,
            variant=model.variant,
            unused=UNUSED,
        )
    _check(folder, model, weights=weights)
    return folder


def located(model: Model) -> Path | None:
    """Find the folder of a model that is shipped or lies on a disk, without loading torch.

    Returns None for a model of the hub, whose folder may have to be fetched. Raises ModelError, also for a folder of
    another kind, unless only a denoiser of the user's own knows the kind.
    """
    if hub.is_id(model.path):
        if (cached := hub.cached(model.path)) is not None:
            _check_kind(cached, model, model.backbone.pipeline)
        return None
    if "/" not in model.path and not Path(model.path).exists():
        from pcpo_ray.data import worlds

        folder = worlds.checkpoint(model.path)
    else:
        folder = Path(model.path)
    _check_kind(folder, model, model.backbone.pipeline)
    return folder


def _check_index(folder: Path, model: Model) -> None:
    """Check that a folder is a model's. Raises ModelError."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"model.path {model.path!r}: {files.no_model(folder)}")


def _check_kind(folder: Path, model: Model, expected: str) -> dict[str, Any]:
    """Return the folder's model_index.json, which must be of the `expected` pipeline; empty: of any.

    Raises ModelError, which names the kind that the folder is of.
    """
    _check_index(folder, model)
    described = read_json(folder / "model_index.json")
    got = described.get("_class_name")
    if expected and got != expected:
        fitting = [kind for kind, backbone in BACKBONES.items() if backbone.pipeline == got]
        cure = f"set model.kind={fitting[0]}" if fitting else f"give the folder of a {expected}"
        raise ModelError(f"{folder} holds a {got}; model.kind={model.kind} expects a {expected}: {cure}")
    return described


def _check(folder: Path, model: Model, *, weights: bool) -> None:
    """Check a folder for the model's kind, parts and weights. Raises ModelError."""
    import diffusers

    described = _check_kind(folder, model, class_of(model).pipeline_class)
    pipeline_class = getattr(diffusers, described["_class_name"], None)  # a user's class may load one of its own
    if pipeline_class is not None:
        files.check_index(folder, described, pipeline_class)
    if weights and model.single_file is not None:
        from pcpo_ray.models import single_file

        single_file.check(Path(model.single_file), pipeline_class)
    parts = {
        name: value
        for name, value in described.items()
        if is_part(value) and value[0] is not None and name not in UNUSED
    }
    files.check_parts(folder, parts, weights=weights and model.single_file is None, variant=model.variant)


def class_of(model: Model) -> type[PipelineDenoiser]:
    """The denoiser's class for a model's kind. Raises ModelError where a class of the user's own is none."""
    from pcpo_ray.models.pipeline import PipelineDenoiser
    from pcpo_ray.process.own import unfound
    from pcpo_ray.process.plugins import resolve_class

    if model.denoiser is None:
        found: type[PipelineDenoiser] = pkgutil.resolve_name(model.backbone.denoiser)
        return found
    try:
        own = resolve_class(model.denoiser)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ModelError(
            f"model.denoiser {model.denoiser!r}: {unfound(error, model.denoiser)}; expected an importable "
            "package.module:Class"
        ) from error
    if not (isinstance(own, type) and issubclass(own, PipelineDenoiser)) or inspect.isabstract(own):
        missing = sorted(getattr(own, "__abstractmethods__", ()))
        raise ModelError(
            f"model.denoiser {model.denoiser!r} is {own!r}, without {missing}; expected a class derived from "
            "pcpo_ray.models.pipeline.PipelineDenoiser that defines them"
        )
    return own


def schedule_of(folder: Path, model: Model, sampling: Sampling) -> Schedule:
    """Build the schedule of the folder's scheduler without reading weights. Raises ScheduleError and ModelError."""
    kind = class_of(model)
    return kind.schedule_in(kind.described(folder), sampling)


def warn_of_few_steps(folder: Path, model: Model) -> None:
    """Log a warning if the model was distilled to a few steps, as it or its name says."""
    kind = class_of(model)
    if kind.step_distilled(kind.described(folder)) or FEW_STEPS.search(Path(model.path).name):
        log.warning(
            "%s was distilled to a few steps: its samples are sharp only on the very path that it was taught, which "
            "exploration leaves, so that rewards rise slowly and images blur. Train the model that it was distilled "
            "from, if there is one, and use or distil its few-step version afterwards",
            model.path,
        )


def load(model: Model, sampling: Sampling, *, seed: int, device: torch.device) -> Denoiser:
    """Load the denoiser that a config names onto `device`, ready to train; adapters are initialised from `seed`.

    Raises ModelError naming the folder and what is wrong with it.
    """
    from pcpo_ray.models import kernels

    folder, kind = folder_of(model), class_of(model)
    kernels.check(model, folder, kind.part)
    return kind(folder, model, sampling, seed=seed, device=device)
