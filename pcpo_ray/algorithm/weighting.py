"""Credit as a pair: what scales a step's log-ratio inside the clip, and what multiplies its loss outside it.

At a ratio of 1 a step's gradient has the weight inside * outside, so methods of very different words can be compared by
two numbers a step. In the notation of credit.py, with dt the time that a step of a flow covers and K = |gain| / dt:

    kind          inside                    outside               product   source
    grpo_guard    |gain|, linear term only  1 / dt                K         arXiv 2510.22319
    flash_grpo    w                         mean w / w, harmonic  constant  arXiv 2605.15980
    fair_clip     w std^2 = |gain| std      1 / std^2             w         the code of PCPO's author
    fair_clip2    w std^2 = |gain| std      1 / (std dt)          K         the code of PCPO's author

Every number is a step's own, whatever shares a micro-batch with it. Published codes of GRPO-Guard average std and dt
over a micro-batch, which is another number as soon as a micro-batch mixes steps. TempFlow-GRPO's factor outside is
`objective.step_loss`, as it goes with any credit. Functions raise CreditError as those of credit.py do.
"""

from collections.abc import Sequence

from pcpo_ray.algorithm.credit import Credit, made, native_weights
from pcpo_ray.algorithm.schedule import FlowSchedule
from pcpo_ray.algorithm.transitions import AffineStep
from pcpo_ray.errors import CreditError


def grpo_guard(schedule: FlowSchedule, steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Centre and rescale the log-ratio, log rho = -s |gain| mean(d z), and divide the step's loss by dt.

    The published form adds the drift of the mean, |gain d|^2 / (2 std^2), back to the log-ratio of the Gaussians and
    multiplies the sum by std. That leaves the linear term alone, times std. The paper has it for Flow-GRPO's SDE, where
    gain is -dt K; for other processes of a flow it is ours.
    """
    weights = native_weights(steps, trained)
    dt = _dt(schedule, steps)
    scales = {index: steps[index].std for index in weights}
    return made(steps, weights, scales=scales, outside={index: 1 / dt[index] for index in weights}, quadratic=False)


def flash_grpo(steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Multiply a step's loss by (1 / w) / mean(1 / w) over the trained steps: temporal gradient rectification.

    Its other half is one step per prompt: a window of size 1 that is drawn for each prompt (sampling.subset). The paper
    takes the mean over the batch, whose steps are drawn evenly: its expectation is the mean here. It is for flow models
    there; for DDIM it is ours.
    """
    weights = native_weights(steps, trained)
    mean = sum(1 / weight for weight in weights.values()) / len(weights)
    return made(steps, weights, outside={index: 1 / weight / mean for index, weight in weights.items()})


def fair_clip(steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Multiply the log-ratio by std^2 inside the clip, and divide the loss by it outside.

    What is clipped is then the squared distance of means, in the unit of the latents at every step. The gradient keeps
    the native weights.
    """
    weights = native_weights(steps, trained)
    scales = _variances(steps, weights)
    return made(steps, weights, scales=scales, outside={index: 1 / scale for index, scale in scales.items()})


def fair_clip2(schedule: FlowSchedule, steps: Sequence[AffineStep], trained: Sequence[int]) -> Credit:
    """Clip as `fair_clip` does, and give the gradient the weights of GRPO-Guard, |gain| / dt."""
    weights = native_weights(steps, trained)
    dt = _dt(schedule, steps)
    outside = {index: 1 / (steps[index].std * dt[index]) for index in weights}
    return made(steps, weights, scales=_variances(steps, weights), outside=outside)


def _variances(steps: Sequence[AffineStep], weights: dict[int, float]) -> dict[int, float]:
    return {index: steps[index].std ** 2 for index in weights}


def _dt(schedule: FlowSchedule, steps: Sequence[AffineStep]) -> tuple[float, ...]:
    """Return the time that each step covers. Raises CreditError unless there are as many steps as in the schedule."""
    if len(steps) != len(schedule):
        raise CreditError(f"got {len(steps)} steps for a schedule of {len(schedule)}; make the steps from the schedule")
    return schedule.dt
