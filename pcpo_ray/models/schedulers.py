"""Scheduler configs: each class and key is supported, irrelevant, or refused by name.

The sampler is DDIM, or a flow's, whatever solver the config belongs to. So each class and key either describes the
model (its noise, its network's inputs and outputs), or a solver that does not run here.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pcpo_ray.errors import ModelError

FILE = "scheduler/scheduler_config.json"
INDEX_CLASS = "_index_class_name"
"""The key under which the scheduler class of model_index.json is kept, beside the file's own `_class_name`."""


@dataclass(frozen=True, kw_only=True)
class Only:
    """A key with one supported value; `meaning` explains any other."""

    value: Any
    meaning: str

    def allows(self, value: Any) -> bool:
        return value == self.value or (not self.value and not value)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The classes and keys of one kind of model: `read` keys are supported, `unread` ones irrelevant."""

    model: str
    classes: frozenset[str]
    read: frozenset[str]
    unread: frozenset[str]
    only: Mapping[str, Only]


DIFFUSION = Family(
    model="a diffusion model, which DDIM can sample",
    classes=frozenset(
        f"{name}Scheduler"
        for name in (
            *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
            *("DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
            *("DEISMultistep", "UniPCMultistep"),
        )
    ),
    read=frozenset(
        {
            *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
            *("rescale_betas_zero_snr", "prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one"),
        }
    ),
    unread=frozenset(
        {
            # the order and algebra of another solver
            *("algorithm_type", "solver_type", "solver_order", "solver_p", "lower_order_final", "euler_at_final"),
            *("predict_x0", "disable_corrector", "skip_prk_steps", "noise_sampler_seed"),
            # where another solver puts its timesteps and its end: DDIM's keys are timestep_spacing, steps_offset and
            # set_alpha_to_one, which other classes' configs have too
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
            *("interpolation_type", "lambda_min_clipped", "final_sigmas_type"),
            # DDPM's noise, unless it is learned, which is refused
            "variance_type",
            # the clipping range, irrelevant as clipping itself is refused
            *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"),
            # options of use_flow_sigmas, which is refused
            *("flow_shift", "time_shift_type", "use_dynamic_shifting", "shift_terminal"),
            # from configs of 2022: torch or numpy, and an option that was never used
            *("tensor_format", "timestep_values"),
        }
    ),
    only={
        "clip_sample": Only(value=False, meaning="what a step says of the image is cut off"),
        "thresholding": Only(value=False, meaning="what a step says of the image is rescaled"),
        "use_flow_sigmas": Only(value=False, meaning="the model is a flow-matching one"),
        "timestep_type": Only(value="discrete", meaning="the network is told noise levels, not timesteps"),
        "sigma_min": Only(value=None, meaning="the noise does not follow the betas"),
        "sigma_max": Only(value=None, meaning="the noise does not follow the betas"),
        "predict_epsilon": Only(value=True, meaning="the network predicts the image"),
    },
)

FLOW = Family(
    model="a flow-matching model, which Euler's method can sample",
    classes=frozenset({"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}),
    read=frozenset(
        {
            *("shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
            *("shift_terminal", "time_shift_type", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        }
    ),
    unread=frozenset(),
    only={
        "num_train_timesteps": Only(value=1000, meaning="the network is told the time times another number than 1000"),
        "invert_sigmas": Only(value=False, meaning="time runs from the image to the noise"),
        "stochastic_sampling": Only(
            value=False, meaning="the model's own sampler draws all of its noise at every step"
        ),
    },
)

FLOW_SOLVER = Family(
    model="a flow-matching model, published with a solver of higher order",
    classes=frozenset({"DPMSolverMultistepScheduler"}),
    read=frozenset({"flow_shift"}),
    unread=DIFFUSION.read | DIFFUSION.unread,
    only={
        "prediction_type": Only(value="flow_prediction", meaning="the network predicts no velocity"),
        "use_flow_sigmas": Only(value=True, meaning="the model is a diffusion model"),
        "num_train_timesteps": FLOW.only["num_train_timesteps"],
        "thresholding": DIFFUSION.only["thresholding"],
        **dict.fromkeys(
            ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
            Only(value=False, meaning="the solver places its steps elsewhere"),
        ),
    },
)

NOT_HEUNS = ("use_dynamic_shifting", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Keys that FlowMatchEulerDiscreteScheduler reads and FlowMatchHeunDiscreteScheduler does not."""

OTHER_BETAS = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
"""Classes with default betas that differ from the others'."""

REASONS = {
    "EDM": "its network is told continuous noise levels",
    "LCM": "its model was distilled for a few steps, each with all of its noise drawn afresh",
    "TCD": "its model was distilled for a few steps of another sampler",
    "FlowMatchLCM": "its model was distilled for a few steps, each with all of its noise drawn afresh",
}
"""Reasons why some classes are refused, by the beginning of their names."""


def as_loaded(config: Mapping[str, Any], pipeline_class: str, index_class: str | None) -> dict[str, Any]:
    """Return the config that the loaded pipeline has: StableDiffusionPipeline changes some values."""
    loaded = {**config, INDEX_CLASS: index_class}
    if pipeline_class == "StableDiffusionPipeline":
        loaded |= {"steps_offset": 1, "clip_sample": False}
    return loaded


def understood(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Complete the config with its class's defaults. Raises ModelError naming anything unsupported."""
    classes = [name for name in (config.get("_class_name"), config.get(INDEX_CLASS)) if isinstance(name, str)]
    for name in classes:
        if name not in family.classes:
            why = next((f" ({reason})" for start, reason in REASONS.items() if name.startswith(start)), "")
            raise ModelError(
                f"the model's scheduler is a {name}{why}, which is not understood here; expected that of "
                f"{family.model}: {', '.join(sorted(family.classes))}. If it is such a model, give {FILE} and "
                "model_index.json one of these classes, with the keys of that class that the model was trained with"
            )
    settings = dict(config)
    if classes and classes[-1] in ("DDIMScheduler", "DDPMScheduler"):  # the one that the pipeline builds
        settings.setdefault("clip_sample", True)
    if set(classes) & set(OTHER_BETAS):
        settings = {"beta_start": 0.00085, "beta_end": 0.012, **settings}
    only = dict(family.only)
    if "FlowMatchHeunDiscreteScheduler" in classes:
        only |= dict.fromkeys(NOT_HEUNS, Only(value=False, meaning="FlowMatchHeunDiscreteScheduler does not read it"))
    for key, one in only.items():
        if key in settings and not one.allows(settings[key]):
            raise ModelError(
                f"the model's {FILE} means {key}: {json.dumps(settings[key])} ({one.meaning}), which the sampler here "
                f"does not do; expected {json.dumps(one.value)}. Write that there if the model does without, or take "
                "another model"
            )
    if str(settings.get("variance_type")).startswith("learned"):
        raise ModelError(
            f"the model's {FILE} has variance_type: {settings['variance_type']!r}, a network that predicts its "
            "variance too; expected a fixed one: take another model"
        )
    unknown = {key for key in settings if not key.startswith("_")} - family.read - family.unread - only.keys()
    if unknown:
        raise ModelError(
            f"the model's {FILE} has {sorted(unknown)}, of which it is not known whether they change the image; "
            f"expected the keys of a scheduler of {family.model}: delete those that the model does without"
        )
    return settings


def as_euler(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of Euler's method for a flow-matching model published with DPM-Solver: with its shift.

    Any other config is returned as it is. Raises ModelError as `understood`.
    """
    if config.get("_class_name") not in FLOW_SOLVER.classes:
        return config
    settings = understood({"prediction_type": "epsilon", "use_flow_sigmas": False, **config}, FLOW_SOLVER)
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": settings.get("flow_shift", 1.0)}


def made(scheduler: type, config: Mapping[str, Any]) -> Any:
    """Make the scheduler from any config of its kind, as diffusers' `from_config` would.

    That one imports every other scheduler, and scipy with them, to attribute unknown keys. Raises ModelError for values
    that the scheduler refuses.
    """
    known = inspect.signature(scheduler).parameters
    default = config.get("_use_default_values", ())
    settings = {name: value for name, value in config.items() if name in known and name not in default}
    try:
        return scheduler(**settings)
    except Exception as error:  # a scheduler may raise anything for a value of another type
        raise ModelError(f"no {scheduler.__name__} can be made of the model's {FILE}: {error}") from error


def set_timesteps(scheduler: Any, **wanted: Any) -> None:
    """Have the scheduler place its timesteps. Raises ModelError if it cannot with its config."""
    try:
        scheduler.set_timesteps(**wanted)
    except Exception as error:
        raise ModelError(
            f"a {type(scheduler).__name__} cannot place its steps by the model's {FILE}: {error}"
        ) from error
