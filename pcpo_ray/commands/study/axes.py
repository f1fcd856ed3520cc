"""Settings that must be equal in two arms, so that their difference is due to the studied ones."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pcpo_ray import config
from pcpo_ray.errors import nearest

OWN = ("name", "seed")
"""Keys that a study gives each run itself."""

DERIVED = ("trained steps", "mean credit weight")
"""Axes that follow from several keys: the trained timesteps, with the part that one batch trains, and the mean weight
over them."""

TOLERANCE = 1e-6
"""Relative difference of two mean weights that counts as none."""


def differing(one: config.Run, other: config.Run) -> dict[str, tuple[Any, Any]]:
    """Every key of the config in which two runs differ, and what of DERIVED does, with their values.

    Where two blocks have other keys, as two kinds of credit may, the key is that of the block. Raises the PcpoError of
    a schedule or credit that cannot be.
    """
    mine, theirs = derived(one), derived(other)
    return settings_differing(one, other) | {
        name: (mine[name], theirs[name]) for name in DERIVED if not same(mine[name], theirs[name])
    }


def settings_differing(one: config.Run, other: config.Run) -> dict[str, tuple[Any, Any]]:
    """`differing` without what follows from several keys, for which nothing of the model need be there."""
    return dict(_differences(_settings(one), _settings(other)))


def _settings(run: config.Run) -> dict[str, Any]:
    return {key: value for key, value in asdict(run).items() if key not in OWN}


def _differences(left: Any, right: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(left, Mapping) and isinstance(right, Mapping) and left.keys() == right.keys():
        for key in left:
            yield from _differences(left[key], right[key], f"{path}.{key}" if path else key)
    elif left != right:
        yield path, (left, right)


def derived(run: config.Run) -> dict[str, Any]:
    """A run's value of each of DERIVED, as plain data."""
    from pcpo_ray import models
    from pcpo_ray.models import steps

    sampling = run.sampling
    schedule = models.schedule_of(models.folder_of(run.model), run.model, sampling)
    plan = steps.plan(run.credit, sampling, schedule)
    subset = "all of them" if sampling.subset is None else asdict(sampling.subset)
    return {
        "trained steps": [[schedule.timesteps[index] for index in plan.trained], subset],
        "mean credit weight": math.fsum(plan.inside[index] for index in plan.trained) / len(plan.trained),
    }


def covers(declared: str, key: str) -> bool:
    """Return whether a name under `varies` covers this key: it is the key, or a block around it."""
    return key == declared or key.startswith(f"{declared}.")


def unknown(declared: str, runs: Collection[config.Run]) -> str | None:
    """Explain why a name under `varies` is no key of these runs' configs; None if it is one."""
    known = {*DERIVED, *(path for run in runs for path in _paths(_settings(run)))}
    if declared in known:
        return None
    return f"no key of a run's config, nor one of {list(DERIVED)}{nearest(declared, sorted(known))}"


def _paths(settings: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in settings.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{before}{key}.")


def drawn(run: config.Run) -> dict[str, Any]:
    """Return the settings that an evaluation's images depend on, besides weights; equal if two runs sample alike."""
    from pcpo_ray import models
    from pcpo_ray.models import steps

    sampling = run.evaluated
    schedule = models.schedule_of(models.folder_of(run.model), run.model, sampling)
    if run.evaluation.sampling is None:
        way = steps.plan(run.credit, sampling, schedule)
    else:
        way = steps.evaluation_credit(run, schedule)
    keys = ("guidance_scale", "height", "width", "shared_noise", "storage")
    return {
        **{key: getattr(sampling, key) for key in keys},
        "timesteps": list(schedule.timesteps),
        "steps": [asdict(step) for step in way.steps],
        "mix": list(way.mix),
    }


def same(left: Any, right: Any) -> bool:
    """Equal, up to rounding where numbers are compared."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=TOLERANCE)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)
