"""Sampling: the process that draws images, its steps, and which of them are trained."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator

from pcpo_ray.config.base import Count, Family, NonNegative, Positive, PositiveFraction, config

# -- processes: `families` names the model families that a process can sample ------------------------------------------


@config
class Ddim:
    """DDIM with `eta` times the std of DDPM (arXiv 2010.02502)."""

    families: ClassVar[tuple[Family, ...]] = ("diffusion",)

    kind: Literal["ddim"] = "ddim"
    eta: Positive = 1.0


@config
class ConstantNoise:
    """Flow SDE with one noise level at every step (DanceGRPO, arXiv 2505.07818)."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["constant_noise"] = "constant_noise"
    eta: Positive = 0.3


@config
class RatioNoise:
    """Flow SDE with noise level a sqrt(t / (1 - t)) (Flow-GRPO, arXiv 2505.05470)."""

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["ratio_noise"] = "ratio_noise"
    a: Positive = 0.7


@config
class CoefficientsPreserving:
    """Flow-CPS (arXiv 2509.05952): the noise level of each time is kept, and a part of the noise is drawn afresh.

    The fresh noise of a step to time t' has std t' sin(eta pi / 2).
    """

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["coefficients_preserving"] = "coefficients_preserving"
    eta: PositiveFraction = 0.8


@config
class ProportionateNoise:
    """Flow-CPS with noise at which each step's own weight is `zeta` times the time it covers.

    `zeta` null takes the smallest value that every step can have, which gives the most noise. Ours: not in a paper.
    """

    families: ClassVar[tuple[Family, ...]] = ("flow",)

    kind: Literal["proportionate_noise"] = "proportionate_noise"
    zeta: Positive | None = None


Process = Annotated[
    Ddim | ConstantNoise | RatioNoise | CoefficientsPreserving | ProportionateNoise, Discriminator("kind")
]

# -- the steps that are trained ----------------------------------------------------------------------------------------


@config
class ShareOfSteps:
    """A random fraction `share` of the trained steps, drawn anew for each group (DanceGRPO).

    All trained steps draw noise, whether they are in the subset or not.
    """

    kind: Literal["share"] = "share"
    share: PositiveFraction = 0.6


@config
class Window:
    """`size` consecutive trained steps, the same for a whole batch; all other steps of its images are deterministic.

    `sliding` (MixGRPO, arXiv 2507.21802) begins at the first step, moves on by `stride` steps after every `every`
    batches, and starts over at the end. `random` (Flow-GRPO-Fast) draws its first step anew for each batch.
    """

    kind: Literal["window"] = "window"
    size: Count = 4
    order: Literal["sliding", "random"] = "sliding"
    stride: Count = 1
    every: Count = 25

    def __post_init__(self) -> None:
        given = [f"{key} {value}" for key, value in (("stride", self.stride), ("every", self.every))]
        if self.order == "random" and (self.stride, self.every) != (1, 25):
            raise ValueError(f"{' and '.join(given)} with order random, which does not slide; leave them out")


@config
class Sampling:
    """The making of an image: `steps` denoising steps at `height` x `width` pixels (null: the model's own size).

    The first `trained_steps` are trained on (null: all that draw noise), or in each batch a `subset` of them.
    `shared_noise` starts all images of a group from the same noise. `detach_unconditional` keeps the gradient out of
    guidance's unconditional branch (Flow-GRPO). `batch` images go through the network at once (null: a whole group);
    the learner uses the same number, so that both compute the same bits. `shift` (flow models) is the shift of an even
    grid of times (null: the model's own scheduler). `storage` is the dtype in which trajectories are sampled, stored
    and compared.
    """

    steps: Count = 20
    guidance_scale: NonNegative = 1.0
    process: Process
    trained_steps: Count | None = None
    subset: Annotated[ShareOfSteps | Window, Discriminator("kind")] | None = None
    shared_noise: bool = False
    detach_unconditional: bool = False
    height: Count | None = None
    width: Count | None = None
    batch: Count | None = None
    shift: Positive | None = None
    storage: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.trained_steps is not None and self.trained_steps > self.steps:
            raise ValueError(
                f"sampling.trained_steps is {self.trained_steps}, of {self.steps} steps; use at most that many"
            )
        if self.detach_unconditional and self.guidance_scale == 1:
            raise ValueError(
                "sampling.detach_unconditional is true with guidance_scale 1, which has no unconditional branch; leave "
                "it out, or set another guidance_scale"
            )
