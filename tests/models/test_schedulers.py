"""Schedulers as diffusers' from_config makes them."""

import inspect
import subprocess
import sys

import diffusers
import pytest

from pcpo_ray.models import schedulers

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SHIFT = {"shift": 3.0, "use_dynamic_shifting": True}


@pytest.mark.parametrize(
    ("wanted", "found", "settings"),
    [
        ("DDIMScheduler", "DDIMScheduler", NOISE),
        ("DDIMScheduler", "PNDMScheduler", NOISE),
        ("DDIMScheduler", "EulerDiscreteScheduler", NOISE),
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", SHIFT),
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_a_scheduler_of_another_kind_is_read_as_diffusers_reads_it(wanted, found, settings):
    scheduler, stored = getattr(diffusers, wanted), getattr(diffusers, found)(**settings).config
    names = inspect.signature(scheduler).parameters
    for config in (stored, {**stored, "_use_default_values": [next(iter(settings))]}):
        made, expected = schedulers.made(scheduler, config), scheduler.from_config(config)
        assert {key: made.config[key] for key in names} == {key: expected.config[key] for key in names}
    assert schedulers.made(scheduler, stored).config[next(iter(settings))] == next(iter(settings.values()))


def test_nothing_more_is_imported_for_it():
    code = (
        "import sys; from diffusers import FlowMatchEulerDiscreteScheduler as S;"
        "from pcpo_ray.models import schedulers;"
        "before = set(sys.modules); schedulers.made(S, {'shift': 3.0, 'unknown': 1});"
        "sys.exit(bool(set(sys.modules) - before))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
