"""Sampling: the process that draws images, its steps, and which of them are trained."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from pcpo_ray.config.base import Count, Family, NonNegative, Pixels, Positive, PositiveFraction, config

# -- processes: `families` names the model families that a process can sample ------------------------------------------


@config
class Ddim:
    """DDIM with `eta` times the std of DDPM (arXiv 2010.02502)."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion",)

    kind: Literal["ddim"] = "ddim"
    eta: Positive = 1.0
    """The noise of each step, as a multiple of DDPM's std."""


@config
class ConstantNoise:
    """Flow SDE with one noise level at every step (DanceGRPO, arXiv 2505.07818)."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["constant_noise"] = "constant_noise"
    eta: Positive = 0.3
    """The noise level of every step."""


@config
class RatioNoise:
    """Flow SDE with noise level a sqrt(t / (1 - t)) (Flow-GRPO, arXiv 2505.05470)."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["ratio_noise"] = "ratio_noise"
    a: Positive = 0.7
    """The factor of the noise level."""


@config
class CoefficientsPreserving:
    """Flow-CPS (arXiv 2509.05952): the noise level of each time is kept, and a part of the noise is drawn afresh.

    The fresh noise of a step to time t' has std t' sin(eta pi / 2).
    """

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["coefficients_preserving"] = "coefficients_preserving"
    eta: PositiveFraction = 0.8
    """The part of the noise that is drawn afresh; 1 draws all of it."""


@config
class ProportionateNoise:
    """Flow-CPS with noise at which each step's own weight is `zeta` times the time it covers.

    Ours: not in a paper.
    """

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["proportionate_noise"] = "proportionate_noise"
    zeta: Positive | None = None
    """A step's weight over the time it covers; null: the smallest that every step can have, with the most noise."""


@config
class Renoised:
    """AWM (arXiv 2509.25050): images are drawn without noise, and trained on after noising them to each timestep anew.

    A pair's log-probability is minus the squared error of the velocity, so there is no step of a sampler, and no noise
    that it would draw. Each trained timestep costs one more call of the network while sampling.
    """

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["renoised"] = "renoised"
    omega: Literal["uniform", "time", "time_squared"] = "uniform"
    """The factor of a timestep's squared error: 1, its time t or t^2."""


Process = Annotated[
    Ddim | ConstantNoise | RatioNoise | CoefficientsPreserving | ProportionateNoise | Renoised, Discriminator("kind")
]

# -- the steps that are trained ----------------------------------------------------------------------------------------


@config
class ShareOfSteps:
    """A random fraction `share` of the trained steps, drawn anew for each group (DanceGRPO).

    All trained steps draw noise, whether they are in the subset or not.
    """

    kind: Literal["share"] = "share"
    share: PositiveFraction = 0.6
    """The fraction of the trained steps that each group is trained on."""


@config
class Window:
    """`size` consecutive trained steps; all other steps of the images are deterministic.

    `sliding` (MixGRPO, arXiv 2507.21802) begins at the first step, moves on by `stride` steps after every `every`
    batches, and starts over at the end. `random` (Flow-GRPO-Fast) draws its first step anew for each batch.
    `per_prompt` draws it anew for each prompt, the same for all its images (Flash-GRPO, arXiv 2605.15980, with size 1).
    """

    kind: Literal["window"] = "window"
    size: Count = 4
    """The number of consecutive denoising steps in the window."""
    order: Literal["sliding", "random", "per_prompt"] = "sliding"
    """The way of the window: sliding along the steps, or drawn anew for each batch or each prompt."""
    stride: Count = 1
    """Denoising steps by which a sliding window moves on."""
    every: Count = 25
    """Batches after which a sliding window moves on."""

    def __post_init__(self) -> None:
        given = [f"{key} {value}" for key, value in (("stride", self.stride), ("every", self.every))]
        if self.order != "sliding" and (self.stride, self.every) != (1, 25):
            raise ValueError(f"{' and '.join(given)} with order {self.order}, which does not slide; leave them out")


@config
class Sampling:
    """The making of an image, and the denoising steps that are trained."""

    steps: Count = 20
    """Denoising steps of an image."""
    guidance_scale: NonNegative = 1.0
    """The factor by which predictions are pushed from the unconditional one; above 1 a step calls the network twice."""
    negative_prompt: str = ""
    """The text of the unconditional branch, which guidance pushes predictions away from."""
    process: Process
    """The rule of a denoising step, and the noise that it draws."""
    trained_steps: Count | None = None
    """The first so many denoising steps are trained; null: all that draw noise."""
    subset: Annotated[ShareOfSteps | Window, Discriminator("kind")] | None = None
    """The part of the trained steps that one batch trains; null: all of them."""
    shared_noise: bool = False
    """True starts all images of a group from the same noise."""
    detach_unconditional: bool = False
    """True keeps the gradient out of guidance's unconditional branch (Flow-GRPO)."""
    height: Pixels | None = None
    """The height of an image whose prompt brings none along; null: the model's own."""
    width: Pixels | None = None
    """The width of an image whose prompt brings none along; null: the model's own."""
    batch: Count | Literal["auto"] | None = None
    """Images that go through the network at once; null: a whole group.

    The learner uses the same number, so that both compute the same bits. `auto` has each sampler try a whole group,
    its half, its quarter and so on in its first task, and keep the fastest that fits. The same run then has other bits
    on another machine, so it needs `objective.old_predictions: recomputed`.
    """
    compile: bool = False
    """True compiles the network's repeated blocks where it samples (diffusers' `compile_repeated_blocks`).

    It needs `objective.old_predictions: recomputed`, as compiled code computes other bits, and a C++ compiler.
    """
    shift: Positive | None = None
    """The shift of an even grid of times (flow models); null: the times of the model's own scheduler."""
    storage: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype in which trajectories are sampled, stored and compared."""

    def together(self, images: int) -> int:
        """Return how many of so many images go through the network at once, at most: all where each sampler chooses."""
        return min(images, self.batch) if isinstance(self.batch, int) else images

    def __post_init__(self) -> None:
        if self.trained_steps is not None and self.trained_steps > self.steps:
            raise ValueError(
                f"sampling.trained_steps is {self.trained_steps}, of {self.steps} steps; use at most that many"
            )
        if self.detach_unconditional and self.guidance_scale <= 1:
            raise ValueError(
                f"sampling.detach_unconditional is true with guidance_scale {self.guidance_scale:g}, which has no "
                "unconditional branch; leave it out, or set a guidance_scale above 1"
            )
        if self.negative_prompt and self.guidance_scale <= 1:
            raise ValueError(
                f"sampling.negative_prompt is {self.negative_prompt!r} with guidance_scale {self.guidance_scale:g}, "
                "which has no unconditional branch; set a guidance_scale above 1, or leave the negative prompt out"
            )
