"""Evaluations: on which prompts, how they sample, what they measure, and the alarms that follow from them."""

from typing import Annotated, Literal

from pydantic import Discriminator

from pcpo_ray.config.base import Count, FilePath, Fraction, NameOrPath, NonNegative, NonNegativeInt, Positive, config
from pcpo_ray.config.prompts import CaptionForm, Prompts
from pcpo_ray.config.rewards import Reward

FEWEST = 6
"""Fewest prompts that give an interval: of fewer, chance gives all the same sign in more than 1 case of 20."""

# -- the quality of images ---------------------------------------------------------------------------------------------


@config
class ClipFeatures:
    """A CLIP model's image embeddings, of unit length; `model` and `weights` as for clip_score."""

    kind: Literal["clip"] = "clip"
    model: NameOrPath = "shapes-clip"
    weights: FilePath | None = None


@config
class InceptionFeatures:
    """The features of FID: 2048 numbers of Inception-v3.

    `weights` is the file weights-inception-2015-12-05 of torch-fidelity.
    """

    kind: Literal["inception"] = "inception"
    weights: FilePath


@config
class DinoFeatures:
    """The features of FD-DINO: DINOv2's class token.

    `model` is a folder in transformers' format (facebook/dinov2-large).
    """

    kind: Literal["dinov2"] = "dinov2"
    model: FilePath


@config
class ShapesReference:
    """`count` drawn images of the embedded world's held-out captions, of one form or of any."""

    kind: Literal["shapes"] = "shapes"
    count: Count = 512
    form: CaptionForm = "any"


@config
class ImagesReference:
    """A folder of images, or a .txt file with one image's path a line; all of the size that the run makes."""

    kind: Literal["images"] = "images"
    path: FilePath


@config
class BaseReference:
    """The images of the run's first evaluation, before training: the same prompts and noise as in all later ones."""

    kind: Literal["base"] = "base"


@config
class Lpips:
    """The network of LPIPS; `weights` is torchvision's file of it (alexnet-owt-7be5be79.pth, vgg16-397923af.pth)."""

    net: Literal["alex", "vgg"] = "alex"
    weights: FilePath


@config
class Quality:
    """Measures of the images themselves (quality/README.md), in the space of `features`.

    Against the `reference` (null: none): Fréchet distance, and precision, recall, density and coverage with the
    `neighbours` nearest neighbours. Among the images of each prompt: Vendi score, mean pairwise distance, LPIPS.
    `cache` is a folder of reference features, shared by all runs that name it (null: each run computes them).
    """

    features: Annotated[ClipFeatures | InceptionFeatures | DinoFeatures, Discriminator("kind")]
    reference: Annotated[ShapesReference | ImagesReference | BaseReference, Discriminator("kind")] | None = None
    neighbours: Count = 5
    cache: FilePath | None = None
    lpips: Lpips | None = None


# -- evaluations -------------------------------------------------------------------------------------------------------


@config
class EvaluationSampling:
    """The sampling of evaluations, where it differs from training; a key that is null is as in training.

    `deterministic` leaves the noise out (the ODE of a flow, DDIM with eta 0). Each image starts from noise of its own,
    and every step uses the network's own prediction.
    """

    steps: Count | None = None
    guidance_scale: NonNegative | None = None
    deterministic: bool = False


@config
class Evaluation:
    """`count` prompts with `images` images each, at fixed seeds: before training, every `every` steps, and at the end.

    `prompts` null holds a part of the run's own file out, by hash (prompts.split), or takes the embedded world's
    captions of the other split. Texts that differ only in case and spaces count once. `held_out` false allows training
    prompts, as some papers' protocols do, and with `prompts` null uses them; no page then calls them held out.
    `train_count` training prompts are evaluated as well: a gain on them alone was learned by heart. `sampling` null
    samples as in training.
    """

    prompts: Prompts | None = None
    held_out: bool = True
    count: Count = 32
    train_count: NonNegativeInt = 0
    images: Count = 2
    every: Count = 10
    rewards: tuple[Reward, ...] = ()
    quality: Quality | None = None
    sampling: EvaluationSampling | None = None

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
        if isinstance(reference, ShapesReference) and reference.count <= quality.neighbours:
            raise ValueError(
                f"evaluation.quality.reference.count is {reference.count}; "
                f"expected more than the {quality.neighbours} neighbours"
            )


@config
class Monitors:
    """The `action` to take when evaluations show that the run collapses or hacks its reward (monitors.py).

    An alarm is raised when a condition holds at `patience` evaluations in a row. One condition is that the `diversity`,
    or the std of rewards within a training group (`deviation`), is below that fraction of its first value. The other is
    that the trained reward has clearly fallen, by `fall` standard deviations of its scores, or that a watched reward
    has while the trained one rises. `warn` goes on, `stop` ends the run with a checkpoint, and `roll_back` ends it at
    the newest checkpoint from before the alarm.
    """

    action: Literal["warn", "stop", "roll_back"] = "warn"
    patience: Count = 2
    diversity: Fraction = 0.5
    deviation: Fraction = 0.1
    fall: Positive = 0.5
