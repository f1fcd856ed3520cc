"""Training: the batch, the optimizer, and the checkpoints."""

from typing import Annotated, Literal

from annotated_types import Gt, Lt

from pcpo_ray.config.base import NUMBER, Count, Fraction, NonNegative, NonNegativeInt, Positive, config


@config
class Rollout:
    """A batch: `prompts` groups of `images` images.

    `max_staleness` is how many versions the weights that sampled a batch may be behind the newest ones. 0 is strictly
    on-policy; 1 samples the next batch while this one is trained on.
    """

    prompts: Count = 8
    images: Count = 16
    max_staleness: NonNegativeInt = 0
    reward_failures: NonNegativeInt = 3


@config
class Optimizer:
    """AdamW: each batch is split into `minibatches`, one optimizer step each, and gone through `epochs` times.

    `average` is the decay of an EMA of the weights (null: none). Evaluations, `sample` and the exported adapter then
    use the EMA; samplers go on with the weights themselves. At most `micro_batch` (image, timestep) pairs go through
    the network at once, from any groups and timesteps (null: as many images, at one timestep, as in the sampler).

    `auto` tries the sampler's number and its doubles in the first update, and keeps the fastest that predicts the same
    bits; a run that resumes from a checkpoint keeps that choice. Gradients are then summed in another order. Two runs,
    or a run that is lost before its first checkpoint, are therefore equal to the bit only if the choice is equal; give
    the number to make sure of it.
    """

    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 1e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    epsilon: Positive = 1e-8
    minibatches: Count = 1
    epochs: Count = 1
    average: Annotated[float, NUMBER, Gt(0), Lt(1)] | None = None
    max_gradient_norm: Positive = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    micro_batch: Count | Literal["auto"] | None = None


@config
class Checkpoints:
    """A checkpoint every `every` steps and at the end; the newest `keep` stay."""

    every: Count = 10
    keep: Count = 2
