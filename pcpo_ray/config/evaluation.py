"""Evaluations: on which prompts, how they sample, what they measure, and the alarms that follow from them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator

from pcpo_ray.config.base import (
    Count,
    FilePath,
    Fraction,
    NameOrPath,
    NonNegative,
    NonNegativeInt,
    Positive,
    Unit,
    config,
    one_or_more,
)
from pcpo_ray.config.prompts import CaptionForm, Prompts
from pcpo_ray.config.rewards import Reward

FEWEST = 6
"""Fewest prompts that give an interval: of fewer, chance gives all the same sign in more than 1 case of 20."""

# -- the quality of images ---------------------------------------------------------------------------------------------


@config
class ClipFeatures:
    """A CLIP model's image embeddings, of unit length."""

    kind: Literal["clip"] = "clip"
    model: NameOrPath = "shapes-clip"
    """The CLIP model, named as for the reward clip_score."""
    weights: FilePath | None = None
    """The weights file, where `model` names an architecture of open_clip."""


@config
class InceptionFeatures:
    """The features of FID: 2048 numbers of Inception-v3."""

    kind: Literal["inception"] = "inception"
    weights: FilePath
    """The file weights-inception-2015-12-05 of torch-fidelity."""


@config
class DinoFeatures:
    """The features of FD-DINO: DINOv2's class token."""

    kind: Literal["dinov2"] = "dinov2"
    model: FilePath
    """A folder in transformers' format (facebook/dinov2-large)."""


@config
class ShapesReference:
    """Drawn images of the shapes world's held-out captions."""

    kind: Literal["shapes"] = "shapes"
    count: Count = 512
    """The number of images drawn."""
    form: CaptionForm = "any"
    """The form of their captions, or any."""


@config
class WordsReference:
    """Drawn images of the words world's held-out captions."""

    kind: Literal["words"] = "words"
    count: Count = 512
    """The number of images drawn."""


@config
class ImagesReference:
    """A folder of images, or a .txt file with one image's path a line; all of the size that the run makes."""

    kind: Literal["images"] = "images"
    path: FilePath
    """The folder or the list."""


@config
class BaseReference:
    """The images of the run's first evaluation, before training: the same prompts and noise as in all later ones."""

    kind: Literal["base"] = "base"


@config
class Lpips:
    """The network of LPIPS."""

    net: Literal["alex", "vgg"] = "alex"
    """One of the two published networks."""
    weights: FilePath
    """torchvision's file of it (alexnet-owt-7be5be79.pth, vgg16-397923af.pth)."""


@config
class Quality:
    """Measures of the images themselves (quality/README.md), in the space of `features`.

    Against the `reference`: Fréchet distance, and precision, recall, density and coverage. Among the images of each
    prompt: Vendi score, mean pairwise distance, LPIPS.
    """

    features: Annotated[ClipFeatures | InceptionFeatures | DinoFeatures, Discriminator("kind")]
    """The features of an image that are compared."""
    reference: (
        Annotated[ShapesReference | WordsReference | ImagesReference | BaseReference, Discriminator("kind")] | None
    ) = None
    """The images to compare with; null: none, and only diversity is measured."""
    neighbours: Count = 5
    """Nearest neighbours for precision, recall, density and coverage."""
    cache: FilePath | None = None
    """A folder of reference features, shared by all runs that name it; null: each run computes them."""
    lpips: Lpips | None = None
    """The perceptual distance between images of one prompt; null: it is not measured."""


# -- evaluations -------------------------------------------------------------------------------------------------------


@config
class EvaluationSampling:
    """The sampling of evaluations, where it differs from training; a key that is null is as in training.

    `deterministic` leaves the noise out (the ODE of a flow, DDIM with eta 0). Each image starts from noise of its own,
    and every step uses the network's own prediction.
    """

    steps: Count | None = None
    """Denoising steps of an image."""
    guidance_scale: NonNegative | None = None
    """The factor by which predictions are pushed from the unconditional one."""
    deterministic: bool = False
    """True leaves the noise of the steps out."""


@config
class Evaluation:
    """Prompts that are sampled again at fixed seeds: before training, every `every` steps, and at the end.

    Texts that differ only in case and spaces count once.
    """

    prompts: Prompts | None = None
    """The prompts to evaluate on; null: a part of the run's own, which is then held out.

    Null takes a tenth of a file's prompts by hash, or an embedded world's captions of the other split.
    """
    held_out: bool = True
    """False allows training prompts, and with `prompts` null uses them; no page then calls them held out."""
    count: Count = 32
    """Prompts of an evaluation."""
    train_count: NonNegativeInt = 0
    """Training prompts that are evaluated as well: a gain on them alone was learned by heart."""
    images: Count = 2
    """Images of each prompt."""
    every: Annotated[Count, Unit("steps")] = 10
    """Steps between two evaluations."""
    rewards: Annotated[
        tuple[Reward, ...], BeforeValidator(one_or_more, json_schema_input_type=tuple[Reward, ...] | Reward)
    ] = ()
    """Rewards that are watched and not trained on; those that are trained are evaluated anyway."""
    quality: Quality | None = None
    """Measures of the images themselves; null: none."""
    sampling: EvaluationSampling | None = None
    """The sampling of evaluations; null: as in training."""

    def __post_init__(self) -> None:
        if self.prompts is None and not self.held_out and self.train_count:
            raise ValueError(
                f"evaluation.train_count is {self.train_count} with evaluation.held_out=false and no "
                "evaluation.prompts, which are training prompts already; leave one of the two out"
            )
        quality = self.quality
        if quality is None:
            return
        if self.images < 2 and (quality.reference is None or quality.lpips is not None):
            raise ValueError(
                f"evaluation.images is {self.images}, and diversity compares a prompt's images; use at least 2, or "
                "give evaluation.quality a reference and no lpips"
            )
        if quality.reference is not None and self.count * self.images <= quality.neighbours:
            raise ValueError(
                f"evaluation.quality.neighbours is {quality.neighbours}, of {self.count} x {self.images} images; "
                "evaluate more images, or use fewer neighbours"
            )
        reference = quality.reference
        if isinstance(reference, ShapesReference | WordsReference) and reference.count <= quality.neighbours:
            raise ValueError(
                f"evaluation.quality.reference.count is {reference.count}; "
                f"expected more than the {quality.neighbours} neighbours"
            )


@config
class Monitors:
    """Alarms when evaluations show that the run collapses or hacks its reward (monitors.py)."""

    action: Literal["warn", "stop", "roll_back"] = "warn"
    """The effect of an alarm.

    `warn` goes on, `stop` ends the run with a checkpoint, and `roll_back` ends it at the newest checkpoint from before
    the alarm.
    """
    patience: Annotated[Count, Unit("evaluations")] = 2
    """Evaluations in a row at which a condition must hold before it is an alarm."""
    diversity: Fraction = 0.5
    """The fraction of its first value below which the images' diversity is a collapse."""
    deviation: Fraction = 0.1
    """The fraction of its first value below which the std of rewards within a group is a collapse."""
    fall: Positive = 0.5
    """Standard deviations of its scores by which a reward must fall for an alarm.

    It is the trained reward, or a watched one while the trained one rises.
    """
