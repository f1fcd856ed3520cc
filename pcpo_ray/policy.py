"""What sampler and learner must build alike: the denoiser, the steps of its schedule, and the credit they carry."""

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config, credit, models
from pcpo_ray.errors import CreditError
from pcpo_ray.models import Denoiser
from pcpo_ray.schedule import DiffusionSchedule, FlowSchedule, Schedule
from pcpo_ray.trajectory import Conditioning, seed_of
from pcpo_ray.transitions import AffineStep, ddim, flow


def device_here() -> torch.device:
    """The accelerator, if this process can use one: logical GPUs on a CPU machine are normal in tests."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Policy:
    """A denoiser and the T steps by which a run samples from it."""

    def __init__(self, run: config.Run, device: torch.device) -> None:
        self.device = device
        self.denoiser: Denoiser = models.load(run.model, run.sampling, seed=seed_of(run.seed, "adapter"), device=device)
        self.schedule = self.denoiser.schedule(run.sampling.steps)
        self.native = native_steps(run.sampling, self.schedule)
        self.credit = plan(run.credit, run.sampling, self.schedule)
        self.mixed = run.optimizer.mixed_precision == "bf16"

    def predict(self, latents: Float[Tensor, "B ..."], step: int, conditioning: Conditioning) -> Float[Tensor, "B ..."]:
        """The network's prediction at step index `step`, the same bits wherever it is asked at the same B."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            return self.denoiser.predict(latents, self.schedule.timesteps[step], conditioning)


def native_steps(sampling: config.Sampling, schedule: Schedule) -> tuple[AffineStep, ...]:
    """The steps of the config's process; a flow's last one is the ODE's, so that images carry no noise of its own."""
    process = sampling.process
    if isinstance(schedule, DiffusionSchedule):
        assert isinstance(process, config.Ddim)  # config.Run has checked it
        return ddim.steps(schedule, eta=process.eta)
    if isinstance(process, config.ConstantNoise):
        levels = flow.constant_noise(schedule, process.eta)
    else:
        assert isinstance(process, config.RatioNoise)
        levels = flow.ratio_noise(schedule, process.a)
    return flow.steps(schedule, (*levels[:-1], 0.0))


def plan(kind: config.Credit, sampling: config.Sampling, schedule: Schedule) -> credit.Credit:
    """The steps to sample with and the weights they carry. Raises CreditError."""
    steps = native_steps(sampling, schedule)
    noisy = [index for index, step in enumerate(steps) if step.std > 0]
    trained = noisy if sampling.trained_steps is None else range(sampling.trained_steps)
    match kind:
        case config.Native():
            return credit.native(steps, trained)
        case config.Reweight():
            return credit.reweight(steps, trained)
        case config.Interpolate(w_star=w_star):
            return credit.interpolate(steps, trained, w_star=w_star)
    if isinstance(schedule, FlowSchedule):
        return credit.proportionate_flow(schedule, steps, trained)
    assert isinstance(sampling.process, config.Ddim)
    match kind:
        case config.Released(w_star=w_star):
            return credit.released(schedule, trained, w_star=w_star, eta=sampling.process.eta)
        case config.Variance(w_star=w_star):
            return credit.variance(schedule, trained, w_star=w_star, eta=sampling.process.eta)
    raise CreditError(f"credit.kind={kind.kind} has no meaning on this schedule")
