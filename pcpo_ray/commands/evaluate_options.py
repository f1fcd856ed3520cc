"""Overrides of `pcpo-ray evaluate`, checked before torch is loaded: they change how a run is evaluated."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pcpo_ray import config
from pcpo_ray.commands import early
from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError
from pcpo_ray.runs import configs, look
from pcpo_ray.runs.urls import is_url

TRAINING = (
    "steps",
    "combine",
    "advantage",
    "objective",
    "monitors",
    "checkpoints",
    "trackers",
    "notify",
    "evaluation.every",
    "rollout.prompts",
    "rollout.max_staleness",
    *(
        f"optimizer.{key}"
        for key in (
            *("learning_rate", "schedule", "schedule_options", "warmup"),
            *("weight_decay", "decay_norms_and_biases", "beta1", "beta2", "epsilon"),
            *("minibatches", "epochs", "max_gradient_norm", "micro_batch"),
        )
    ),
)
"""Keys that change nothing in an evaluation, with all keys below them."""

TRAINING_SAMPLING = tuple(
    f"sampling.{key}" for key in ("trained_steps", "subset", "shared_noise", "detach_unconditional")
)
"""Further such keys where evaluations have a sampling of their own."""

MEANT = {"steps": "sampling.steps", "rollout.prompts": "evaluation.count"}
"""Keys that may have been meant by some of these."""


def check(place: str, overrides: Sequence[str]) -> None:
    """Check overrides of the run that a user names, and the files it reads. A URL is left to those who read it.

    Raises a PcpoError.
    """
    found = look.place_of(place)
    if not is_url(found):
        early.check(read_to_evaluate(Path(found), overrides))


def read_to_evaluate(folder: Path, overrides: Sequence[str]) -> config.Run:
    """Read the config of a run, overridden in how it is evaluated.

    Raises what `read` raises, and ConfigError for an override that would change nothing or mix in training prompts.
    """
    old, new = configs.read(folder), configs.read(folder, overrides)
    moved = new.prompts
    if isinstance(moved, config.PromptFile) and isinstance(old.prompts, config.PromptFile):
        moved = dataclasses.replace(moved, path=old.prompts.path)
    if moved != old.prompts:
        raise ConfigError(
            "got other prompts than the run was trained on, which say what is held out; override evaluation.prompts"
        )
    _check_sampling(old, new)
    _check_effect(folder, overrides, TRAINING if new.evaluation.sampling is None else (*TRAINING, *TRAINING_SAMPLING))
    return new


def _check_sampling(old: config.Run, new: config.Run) -> None:
    """Refuse overrides of training's sampling where evaluations have their own. Raises ConfigError."""
    own = new.evaluation.sampling
    if own is None:
        return
    given = {"steps": own.steps, "guidance_scale": own.guidance_scale, "process": own.deterministic or None}
    for name, value in given.items():
        if value is not None and getattr(new.sampling, name) != getattr(old.sampling, name):
            key = "deterministic" if name == "process" else name
            raise ConfigError(
                f"sampling.{name} has no part in evaluations, which have evaluation.sampling.{key}={value}; "
                "override that"
            )


def _check_effect(folder: Path, overrides: Sequence[str], training: Sequence[str]) -> None:
    """Refuse keys of training alone, unless the config would be wrong without them. Raises ConfigError."""
    idle = {key: one for one in overrides for key in files.keys_set(one) if _is_below(key, training)}
    if not idle:
        return
    try:
        configs.read(folder, [override for override in overrides if override not in idle.values()])
    except ConfigError:
        return  # another override needs them
    meant = [MEANT[key] for key in idle if key in MEANT]
    guess = f" (did you mean {' and '.join(meant)}?)" if meant else ""
    raise ConfigError(
        f"{', '.join(idle)}: got {'a key' if len(idle) == 1 else 'keys'} of training, and an evaluation trains nothing"
        f"{guess}; leave {'it' if len(idle) == 1 else 'them'} out"
    )


def _is_below(key: str, names: Sequence[str]) -> bool:
    """Return whether a key is one of some, or below one of them."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)
