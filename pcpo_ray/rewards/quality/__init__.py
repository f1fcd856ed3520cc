"""Quality of an evaluation's images, apart from rewards.

Scorers, which have the images, compute features (`Measures`) and send them to the driver, which holds the reference
and computes the figures (`Assessor`). Their names are stable: frechet, precision, recall, density and coverage against
the reference; vendi, pairwise and lpips within a prompt, as means over prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from pcpo_ray import config
from pcpo_ray.errors import QualityError
from pcpo_ray.rewards.quality import diversity, features, frechet, neighbours, reference

NAMES = ("frechet", "precision", "recall", "density", "coverage", "vendi", "pairwise", "lpips")

Measured = Mapping[str, np.ndarray]
"""Values for a group's N images: `features` (N, E), `size` (height, width), and `lpips` (N,) if configured."""


def check(run: config.Run) -> None:
    """Check, without loading a network, that quality can be measured. Raises QualityError."""
    quality = run.evaluation.quality
    if quality is None:
        return
    features.check(quality.features)
    height, width = run.sampling.height, run.sampling.width
    reference.check(quality, None if height is None or width is None else (height, width))
    if quality.lpips is not None:
        diversity.check_lpips(quality.lpips)


class Measures:
    """The scorer's part: networks applied to images. Raises QualityError if a network cannot be loaded."""

    def __init__(self, quality: config.Quality, device: torch.device) -> None:
        self.extract = features.load(quality.features, device)
        self.lpips = None if quality.lpips is None else diversity.load_lpips(quality.lpips, device)
        self.networks = [self.extract.network, *([] if self.lpips is None else [self.lpips.network])]

    def __call__(self, images: UInt8[np.ndarray, "N H W 3"], *, each: int) -> Measured:
        """Measure images of several prompts: `each` images per prompt, prompts in order."""
        found = {"features": self.extract(images), "size": np.array(images.shape[1:3])}
        if not np.isfinite(found["features"]).all():
            raise QualityError("features that are not finite")
        if self.lpips is None:
            return found
        groups = [self.lpips(images[start : start + each]) for start in range(0, len(images), each)]
        return {**found, "lpips": np.concatenate(groups)}


def rows_of(measured: Measured, rows: slice) -> Measured:
    """Select the values of some images."""
    return {name: value if name == "size" else value[rows] for name, value in measured.items()}


def assessor(run: config.Run, folder: Path, say: Callable[[str], None]) -> "Assessor | None":
    """Make the driver's part of a run in `folder`; None if its config asks for no quality.

    The reference is loaded at once, so that its errors appear before anything is sampled. Raises QualityError.
    """
    from pcpo_ray.data.tensors import device_here

    wanted = run.evaluation.quality
    if wanted is None:
        return None
    found = Assessor(wanted, folder, device_here(), say)
    found.prepare()
    return found


class Assessor:
    """The driver's part, for a run in `folder`. It loads the reference once and keeps it."""

    def __init__(
        self,
        quality: config.Quality,
        folder: Path,
        device: torch.device,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.quality, self.folder, self.device, self.say = quality, folder, device, say
        self._reference: reference.Reference | None = None

    def prepare(self) -> None:
        """Load the reference, unless it is the run's own first evaluation. Raises QualityError."""
        if self.quality.reference is not None and not isinstance(self.quality.reference, config.BaseReference):
            self._reference = reference.load(
                self.quality, lambda: features.load(self.quality.features, self.device), self.say
            )

    def __call__(self, measured: Sequence[Measured]) -> dict[str, float]:
        """Compute the quality of an evaluation's groups that have features; empty if none has.

        Raises QualityError if the reference is missing or has another size than the images.
        """
        groups = [group for group in measured if "features" in group]
        values: dict[str, float] = {}
        if groups and self.quality.reference is not None:
            values = self._against(self._had(groups[0]), np.concatenate([group["features"] for group in groups]))
        several = [group for group in groups if len(group["features"]) > 1]
        if several:
            values["vendi"] = float(np.mean([diversity.vendi(group["features"]) for group in several]))
            values["pairwise"] = float(np.mean([diversity.pairwise(group["features"]) for group in several]))
            if self.quality.lpips is not None:
                values["lpips"] = float(np.mean([group["lpips"].mean() for group in several]))
        return values

    def keep(self, step: int, measured: Sequence[Measured]) -> None:
        """Save the evaluation's features to features/step-000010.npy, one row per image."""
        groups = [group["features"] for group in measured if "features" in group]
        if groups:
            reference.save(self._path(step), np.concatenate(groups))

    def _path(self, step: int) -> Path:
        return self.folder / "features" / f"step-{step:06d}.npy"

    def _against(self, known: reference.Reference, made: np.ndarray) -> dict[str, float]:
        k = self.quality.neighbours
        if len(made) <= k:  # scorers failed on nearly all of them and reported it
            return {}
        return {
            "frechet": frechet.distance(frechet.normal(made), known.normal),
            **neighbours.compare(made, known.features, k),
        }

    def _had(self, group: Measured) -> reference.Reference:
        height, width = (int(side) for side in group["size"])
        if self._reference is None:
            self.prepare()
        if self._reference is None:
            self._reference = reference.base(self._path(0), (height, width))
        if self._reference.size != (height, width):
            wide = " x ".join(map(str, self._reference.size))
            raise QualityError(
                f"the run makes images of {height} x {width}, and evaluation.quality.reference has {wide}; give "
                "reference images of the run's size, or set sampling.height and sampling.width"
            )
        return self._reference
