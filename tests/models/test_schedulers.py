"""What scheduler configs mean: as diffusers' from_config makes them, understood, harmless or refused by name."""

import inspect
import json
import subprocess
import sys

import diffusers
import pytest
import torch

from pcpo_ray import models
from pcpo_ray.algorithm.transitions import ddim
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import ModelError, ScheduleError
from pcpo_ray.models import schedulers
from pcpo_ray.models.schedulers import DIFFUSION, FLOW, as_loaded, understood
from pcpo_ray.models.stable_diffusion import schedule
from tests.support import small

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SHIFT = {"shift": 3.0, "use_dynamic_shifting": True}
WITH_SIGNATURE = sorted((DIFFUSION.classes | FLOW.classes) - {"DPMSolverSDEScheduler"})  # it needs another package
NOT_CLIPPED = {key: {"clip_sample": False} for key in ("DDIMScheduler", "DDPMScheduler")}
CPU = torch.device("cpu")


def load(run):
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def family_of(name):
    return FLOW if name in FLOW.classes else DIFFUSION


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


@pytest.mark.parametrize("name", WITH_SIGNATURE)
def test_every_key_of_an_understood_class_is_known(name):
    family, keys = family_of(name), inspect.signature(getattr(diffusers, name)).parameters
    assert keys.keys() <= family.read | family.unread | family.only.keys()


@pytest.mark.parametrize("name", WITH_SIGNATURE)
def test_an_understood_class_as_it_is_by_itself_is_understood(name):
    stored = json.loads(getattr(diffusers, name)(**NOT_CLIPPED.get(name, {})).to_json_string())
    assert understood(stored, family_of(name)) == stored


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((DIFFUSION, name) for name in sorted(FLOW.classes)),
        *((FLOW, name) for name in sorted(DIFFUSION.classes)),
        *(
            (DIFFUSION, f"{name}Scheduler")
            for name in ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep", "LCM", "TCD", "Unheard")
        ),
        (FLOW, "FlowMatchLCMScheduler"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model.split()[1],
)
@pytest.mark.parametrize("key", ["_class_name", schedulers.INDEX_CLASS])
def test_a_class_that_is_not_understood_is_refused_by_name(family, name, key):
    other = "FlowMatchEulerDiscreteScheduler" if family is FLOW else "DDIMScheduler"
    config = {"_class_name": other, schedulers.INDEX_CLASS: other, "clip_sample": False, key: name}
    with pytest.raises(ModelError, match=f"{name}.*not understood.*expected.*{other}"):
        understood(config, family)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        (DIFFUSION, {"clip_sample": True}),
        (DIFFUSION, {"thresholding": True}),
        (DIFFUSION, {"use_flow_sigmas": True, "flow_shift": 3.0}),
        (DIFFUSION, {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        (DIFFUSION, {"sigma_max": 120.0}),
        (DIFFUSION, {"sigma_min": 0.002}),
        (DIFFUSION, {"variance_type": "learned_range"}),
        (DIFFUSION, {"predict_epsilon": False}),
        (DIFFUSION, {"snr_shift_scale": 3.0}),
        (DIFFUSION, {"shift": 3.0}),
        (FLOW, {"num_train_timesteps": 10000}),
        (FLOW, {"invert_sigmas": True}),
        (FLOW, {"stochastic_sampling": True}),
        (FLOW, {"flow_shift": 3.0}),
        (FLOW, {"beta_start": 0.1}),
        (FLOW, {"_class_name": "FlowMatchHeunDiscreteScheduler", "use_dynamic_shifting": True}),
        (FLOW, {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift_terminal": 0.1}),
    ],
    ids=lambda value: ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_key_that_changes_the_image_is_refused_by_name(family, settings):
    plain = {"_class_name": "FlowMatchEulerDiscreteScheduler" if family is FLOW else "EulerDiscreteScheduler"}
    understood(plain, family)
    with pytest.raises(ModelError, match=next(key for key in settings if key[0] != "_")):
        understood({**plain, **settings}, family)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_clipping_by_a_default_that_the_pipeline_ignores_is_refused(name):
    config = {"_class_name": name, **NOISE}
    with pytest.raises(ModelError, match=r"clip_sample: true.*Write that there"):
        understood(as_loaded(config, "StableDiffusionXLPipeline", name), DIFFUSION)
    understood(as_loaded({**config, "clip_sample": False}, "StableDiffusionXLPipeline", name), DIFFUSION)
    understood(as_loaded({**config, "clip_sample": True}, "StableDiffusionPipeline", name), DIFFUSION)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "EulerDiscreteScheduler"])
def test_betas_that_a_config_leaves_out_are_its_classs_own(name):
    expected = getattr(diffusers, name)(beta_schedule="scaled_linear").alphas_cumprod
    found = schedule({"_class_name": name, "beta_schedule": "scaled_linear", "steps_offset": 1}, 10)
    assert found.alpha_bar == tuple(float(expected.double()[t]) for t in found.timesteps)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta_schedule": "exp"}, "exp is not implemented"),
        ({"beta_start": "small"}, "no DDIMScheduler can be made"),
        ({"timestep_spacing": "even"}, "cannot place its steps.*even"),
        ({"trained_betas": [0.1] * 10}, "10 trained_betas.*1000"),
        ({"trained_betas": 0.1}, "1 trained_betas.*1000"),
        ({"prediction_type": "flow_prediction"}, "'flow_prediction'.*expected 'epsilon'"),
    ],
)
def test_values_that_ddim_does_not_take_are_named_errors(settings, words):
    with pytest.raises(ModelError, match=words):
        schedule({"_class_name": "EulerDiscreteScheduler", **NOISE, **settings}, 10)


GRIDS = [
    {},
    {"shift_terminal": 0.02},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    {"_class_name": "FlowMatchHeunDiscreteScheduler"},
]


@pytest.mark.parametrize("settings", GRIDS, ids=lambda settings: ", ".join(settings) or "plain")
@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_a_flow_visits_the_times_that_its_pipeline_gives_its_scheduler(kind, settings):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, **settings}
    run = small.run(f"small-{kind}", sampling__steps=5)
    tokens = 1000
    found = models.class_of(run.model).schedule_of(config, run.sampling, tokens=tokens)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = calculate_shift(tokens) if scheduler.config.use_dynamic_shifting else None
    sigmas = {"sigmas": torch.linspace(1, 1 / 5, 5).tolist()} if kind == "flux" else {"num_inference_steps": 5}
    scheduler.set_timesteps(**sigmas, mu=mu)
    assert found.times == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    assert found.timesteps == pytest.approx(scheduler.timesteps.tolist(), abs=1e-3)


CHANGES = [
    ("small_sd", {"steps_offset": 0}, {}),
    ("small_sd", {"steps_offset": 0, "_class_name": "EulerDiscreteScheduler"}, {}),
    ("small_sd", {"steps_offset": 2, "clip_sample": True, "set_alpha_to_one": True}, {}),
    ("small_sdxl", {"steps_offset": 1}, {}),
    ("small_sdxl", {"timestep_spacing": "trailing"}, {}),
    ("small_sd3", {"use_dynamic_shifting": True}, {"height": "null", "width": "null"}),
    ("small_sd3", {"use_dynamic_shifting": True}, {"height": "64", "width": "32"}),
    ("small_flux", {"use_dynamic_shifting": True}, {"height": "null", "width": "null"}),
    ("small_flux", {"use_dynamic_shifting": True}, {"height": "64", "width": "null"}),
]


@pytest.mark.parametrize(("model", "changes", "size"), CHANGES)
def test_the_schedule_that_is_checked_is_the_one_that_is_run(request, tmp_path, model, changes, size):
    folder = small.rescheduled(request.getfixturevalue(model), tmp_path, **changes)
    run = small.run(folder, **{f"sampling__{key}": value for key, value in size.items()})
    checked = models.schedule_of(models.folder_of(run.model), run.model, run.sampling)
    denoiser = load(run)
    assert checked == denoiser.schedule(run.sampling.steps)
    pipeline = denoiser.pipeline
    if model == "small_sd":
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        pipeline.scheduler.set_timesteps(run.sampling.steps)
        assert list(checked.timesteps) == pipeline.scheduler.timesteps.tolist() == [751, 501, 251, 1]


def test_a_step_without_any_signal_is_refused_and_the_advice_helps(small_sd, tmp_path):
    changes = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    folder = small.rescheduled(small_sd, tmp_path / "trailing", **changes)
    run = small.run(folder)
    with pytest.raises(ScheduleError, match=r'no signal.*"timestep_spacing": "leading" and "steps_offset": 1'):
        models.schedule_of(models.folder_of(run.model), run.model, run.sampling)
    folder = small.rescheduled(folder, tmp_path / "leading", timestep_spacing="leading", steps_offset=1)
    run = small.run(folder, sampling__guidance_scale=1)
    denoiser = load(run)
    latents = noise = denoiser.initial_noise(generator(0))[None]
    steps = denoiser.schedule(5)
    with torch.no_grad():
        for timestep, step in zip(steps.timesteps, ddim.steps(steps, eta=0.0), strict=True):
            predicted = denoiser.predict(latents, torch.tensor([float(timestep)]), denoiser.encode(["a ring"]))
            latents, _ = step.draw(latents, predicted, torch.zeros_like(latents))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 5, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "latent"}
    theirs = pipeline(["a ring"], latents=noise, **options).images
    assert torch.allclose(latents, theirs, rtol=1e-5, atol=1e-5)


def test_a_schedule_too_fine_to_stay_off_the_end_asks_for_fewer_steps():
    with pytest.raises(ScheduleError, match=r"no signal.*use fewer steps"):
        schedule({"_class_name": "EulerDiscreteScheduler", **NOISE, "rescale_betas_zero_snr": True}, 999)
