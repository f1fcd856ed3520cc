"""What holds of every legal config, checked on one run of it: two updates, a second run of the same, a checkpoint."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.data import prompts, tasks
from pcpo_ray.data.types import Handle, Rollout, Scored, Task, Trajectory
from pcpo_ray.data.updates import DriverState, Update
from pcpo_ray.models.policy import Policy
from pcpo_ray.training.batch import make_histories, training_batch
from pcpo_ray.workers.learner import mini_batches
from pcpo_ray.workers.learner.learner import Learner
from pcpo_ray.workers.learner.loss import FIRST_RATIO_LIMIT
from pcpo_ray.workers.learner.movement import SAMPLED
from pcpo_ray.workers.learner.pair_loader import SampledGroup
from pcpo_ray.workers.packing import PackedTrajectory, pack_trajectory, unpack_trajectory
from pcpo_ray.workers.sampler import Sampler
from pcpo_ray.workers.scorer import Scorer

CPU = torch.device("cpu")

COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.9, torch.float16: 0.99}
"""How well a gradient must agree with float32's in direction, by what the network computes in.

Of 220 gradients of drawn configs the worst were 0.999999, 0.982 and 0.9998; one of noise has about 0.
"""

Named = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What float32 says of an optimizer step: the gradients by parameter, the loss, and the mean divergence in it."""

    gradients: Named
    loss: float
    divergence: float


class Running:
    """A run of two updates, in one process and without its loop; `packed` sends trajectories as on Ray."""

    def __init__(self, run: config.Run, *, packed: bool) -> None:
        self.run = run
        self.packed = packed
        self.sampler, self.learner = Sampler(run, CPU), fresh_learner(run)
        self.scorer = Scorer(run, CPU)
        self.histories = make_histories(run)
        self.sources = prompts.sources(run)
        self.images: list[bytes] = []

    def sampled(self, step: int) -> list[SampledGroup]:
        """The batch that update `step` learns, sampled with the weights as they are now."""
        self.sampler.load(self.learner.weights())
        version, images = self.learner.version, self.run.rollout.images
        scored, held = [], {}
        for place, prompt in enumerate(self.sources[0].batch(step, self.run.rollout.prompts)):
            task = Task(step=step, position=place, prompt=prompt, images=images, version=version, purpose="train")
            held[task], one = self._scored(task)
            scored.append(one)
        batch = training_batch(self.run, scored, self.histories, step)
        return [(version, held[one.rollout.task], one.advantages) for one in batch.groups]

    def _scored(self, task: Task) -> tuple[Trajectory | PackedTrajectory, Scored]:
        trajectory, images = self.sampler.sample(task)
        assert trajectory is not None
        self.images.append(images.tobytes())
        sent = pack_trajectory(self.sampler.policy, task, trajectory) if self.packed else trajectory
        scores, failures, _ = self.scorer.score(task, images)
        about = {"bytes": 0, "checksum": "", "seconds": 0.0, "worker": "sampler-0"}
        rollout = Rollout(task=task, trajectory=Handle(reference=sent), images=Handle(reference=images), **about)
        return sent, Scored(rollout=rollout, scores=scores, failures=failures, seconds=0.0)

    def evaluated(self) -> bytes:
        """The images of the first task of an evaluation with the weights as they are now, where it has its own way."""
        if self.run.evaluation.sampling is None and self.run.optimizer.average is None:
            return b""
        task = tasks.evaluation_tasks(self.run, self.sources[1], self.learner.version)[0]
        self.sampler.load(self.learner.weights(averaged=task.averaged))
        found: bytes = self.sampler.sample(task)[1].tobytes()
        return found


def fresh_learner(run: config.Run) -> Learner:
    """A learner; Accelerate keeps its settings for the life of a process, and here are several runs in one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return Learner(run, CPU)


class Reference:
    """The same network in float32, which is given the weights that a learner's network has, rounded as they are.

    Its loss is written down once more, pair by pair, and its predictions are compared with its own at the weights that
    sampled, as a half precision network's would be off by more than an update changes them.
    """

    def __init__(self, run: config.Run, learner: Learner) -> None:
        self.run = run
        self.learner = learner
        model = dataclasses.replace(run.model, dtype="float32", gradient_checkpointing=False)
        optimizer = dataclasses.replace(run.optimizer, mixed_precision="no")
        self.policy = Policy(dataclasses.replace(run, model=model, optimizer=optimizer), CPU)

    def follow(self) -> None:
        """Take over the weights of the learner's network as they are now."""
        given = self.learner.policy.denoiser.module.state_dict()
        for name, value in self.policy.denoiser.module.state_dict().items():
            value.copy_(given[name])

    @torch.no_grad()
    def predictions(self, groups: Sequence[SampledGroup]) -> list[Tensor]:
        """Of each group's trained steps, with the weights as they are now."""
        self.follow()
        return [torch.stack([self._predict(group, k) for k in range(len(group.steps))]) for group in self._open(groups)]

    def expected(self, groups: Sequence[SampledGroup], sampled: Sequence[Tensor], places: Sequence[int]) -> Expected:
        """Of the mean loss over the pairs of some of the groups, with the weights as they are now."""
        self.follow()
        opened = self._open(groups)
        count = sum(len(opened[place]) * len(opened[place].steps) for place in places)
        total = torch.zeros(2)
        for place in places:
            version, _, advantages = groups[place]
            for k in range(len(opened[place].steps)):
                stale = version < self.learner.version
                parts = self._loss(opened[place], k, sampled[place][k], torch.tensor(advantages), stale=stale)
                loss, divergence = (part.sum() / count for part in parts)
                loss.backward()
                total += torch.stack([loss, divergence]).detach()
        found = {}
        for name, parameter in self.policy.denoiser.trainable().items():
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
        return Expected(gradients=found, loss=float(total[0]), divergence=float(total[1]))

    def _open(self, groups: Sequence[SampledGroup]) -> list[Trajectory]:
        return [_opened(self.learner, sent) for _, sent, _ in groups]

    def _predict(self, group: Trajectory, k: int) -> Tensor:
        rows = {name: _wide(row).expand(len(group), *row.shape[1:]) for name, row in group.conditioning.items()}
        return self.policy.predict(group.latents[:, k].float(), int(group.steps[k]), rows)

    def _loss(
        self, group: Trajectory, k: int, sampled: Tensor, advantages: Tensor, *, stale: bool
    ) -> tuple[Tensor, Tensor]:
        """Of each image at the group's k-th trained step, and its divergence from the network without an adapter."""
        settings, plan, index = self.run.objective, self.policy.credit, int(group.steps[k])
        step, trained = plan.steps[index], plan.trained
        prediction = self._predict(group, k)
        noise, own = group.noises[:, k].float(), plan.mix[index] * step.weight
        recomputed, importance = settings.old_predictions == "recomputed", torch.ones(len(group))
        if recomputed:  # the weights as they are now have drawn the same x_next, by another noise
            lag = prediction.detach() - sampled
            drawn = noise + step.sign * own * lag
            densities = 0.5 * (noise.square() - drawn.square())
            if settings.correction is not None:
                importance = densities.flatten(1).sum(1).exp().clamp(max=settings.correction)
            noise, sampled = drawn, prediction.detach()
        change = prediction - sampled

        def log_ratio(weight: float | Tensor, quadratic: float = 1.0) -> Tensor:
            weight = torch.as_tensor(weight).reshape(-1, *[1] * (change.ndim - 1))
            return -(weight * change * (step.sign * noise + quadratic * weight * change / 2)).flatten(1).mean(1)

        scale, quadratic, outside = self._inside_and_outside(index)
        weight = plan.weights[index] if group.weights is None else group.weights[:, k]
        ratio = log_ratio(weight, quadratic) * (2 * step.std**2 if settings.log_ratio == "flow_cps" else scale)
        factor = torch.full((len(group),), outside) * importance
        if settings.step_loss == "noise":
            factor *= step.std / np.mean([plan.steps[one].std for one in trained])
        if settings.correction is not None and stale and not recomputed:
            dimensions = change[0].numel()
            factor *= (dimensions * log_ratio(own)).exp().clamp(max=settings.correction).detach()
            ratio = ratio - ratio.detach()
        limit = getattr(settings, "clip_range", 0.0)
        if getattr(settings, "clip_scale", "constant") == "weight":
            scales = {one: self._inside_and_outside(one)[0] for one in trained}
            limit = limit * scale * weight / np.mean([scales[one] * plan.weights[one] for one in trained])
        if settings.kind == "log_hinge":
            loss = (limit * advantages.abs() - advantages * ratio).relu()
        elif settings.kind == "divergence_mask":
            reached = own**2 / 2 * change.detach().square().flatten(1).mean(1) >= settings.threshold
            kept = ~(reached & (advantages * ratio.detach() > 0))
            loss = -advantages * ratio.expm1() * kept
        else:
            change_of_ratio = ratio.expm1()
            width = torch.as_tensor(limit).expand(len(group))
            clipped = change_of_ratio.clamp(-width, width)
            loss = torch.maximum(-advantages * change_of_ratio, -advantages * clipped)
        divergence = torch.zeros_like(loss)
        if settings.kl:
            with torch.no_grad(), self.policy.denoiser.without_adapter():
                base = self._predict(group, k)
            divergence = own**2 / 2 * (prediction - base).square().flatten(1).mean(1)
        return factor * loss + settings.kl * divergence, divergence

    def _inside_and_outside(self, index: int) -> tuple[float, float, float]:
        """The scale of a step's log-ratio, whether it has a quadratic term (1 or 0), and the factor of its loss."""
        plan, kind = self.policy.credit, self.run.credit.kind
        step, std = plan.steps[index], plan.steps[index].std
        if kind == "grpo_guard":
            return std, 0.0, 1 / self.policy.schedule.dt[index]
        if kind == "flash_grpo":
            return 1.0, 1.0, float(1 / step.weight / np.mean([1 / plan.steps[one].weight for one in plan.trained]))
        if kind == "fair_clip":
            return std**2, 1.0, std**-2
        if kind == "fair_clip2":
            return std**2, 1.0, 1 / std / self.policy.schedule.dt[index]
        return 1.0, 1.0, 1.0


def check(run: config.Run, *, packed: bool, folder: Path) -> list[dict[str, Any]]:
    """See that all properties hold of a run that `runs.check` lets through; what was found, to look at."""
    first = Running(run, packed=packed)
    learner = first.learner
    reference = Reference(run, learner)
    batch = first.sampled(1)
    ahead = first.sampled(2) if run.rollout.max_staleness else None
    predicted = [reference.predictions(groups) for groups in (batch, ahead or [])]
    found = [_learned(learner, reference, 1, batch, predicted[0])]
    if run.optimizer.micro_batch == "auto":  # which is the fastest, a clock says
        chosen = dataclasses.replace(run.optimizer, micro_batch=learner.micro_batch)
        run = dataclasses.replace(run, optimizer=chosen)
    learner.save(folder / "step-000001", DriverState(step=1, micro_batch=learner.micro_batch))
    image_count = len(first.images)

    again = Running(run, packed=packed)
    batch = again.sampled(1)
    if ahead is not None:
        again.sampled(2)
    again.learner.update(1, batch)
    _same_bits(learner, again.learner, "a second run's weights")
    assert again.images == first.images[:image_count], "a second run's images"
    assert again.evaluated() == first.evaluated(), "a second run's evaluation"

    restored = fresh_learner(run)
    restored.restore(folder / "step-000001")
    _same_bits(learner, restored, "the checkpoint's weights")
    following = first.sampled(2) if ahead is None else ahead
    if ahead is None:
        predicted[1] = reference.predictions(following)
    found.append(_learned(learner, reference, 2, following, predicted[1]))
    restored.update(2, following)
    _same_bits(learner, restored, "the weights of the update after a checkpoint")
    return found


def _learned(
    learner: Learner, reference: Reference, step: int, groups: Sequence[SampledGroup], predicted: Sequence[Tensor]
) -> dict[str, Any]:
    """Have the learner make an update, and check it; what was found."""
    run = learner.run
    parts = mini_batches.split_groups(run.optimizer, len(groups), seed=run.seed, step=step)
    expected = reference.expected(groups, predicted, parts[0])
    masters = learner.masters.values
    before = {name: value.detach().clone() for name, value in masters.items()}
    others = {name: value.clone() for name, value in _others(learner).items()}
    moments = _moments(learner)
    taken: list[dict[str, Tensor | None]] = []

    def note(*_: Any) -> None:
        taken.append({name: None if p.grad is None else p.grad.clone() for name, p in masters.items()})

    hook = learner.optimizer.optimizer.register_step_pre_hook(note)
    update = learner.update(step, groups)
    hook.remove()

    assert len(taken) == len(parts) and update.skipped == 0, f"{update.skipped} gradients of {len(parts)} skipped"
    _stepped_as_adamw(run.optimizer, before, moments, taken, masters)
    assert all(torch.equal(value, others[name]) for name, value in _others(learner).items()), "what is not trained"
    for name, parameter in learner.parameters.items():
        assert torch.equal(parameter, masters[name].to(parameter.dtype)), f"{name} is not its master, rounded"
    _recounted(update, before, masters)
    if update.kl is not None and step == len(parts) == 1:
        assert update.kl == 0, f"the adapter is 0, and its divergence {update.kl}"
    fresh = all(version == step - 1 for version, _, _ in groups)
    _check_first_log_ratio(learner, groups, update, fresh=fresh)
    # a log-ratio that rounding moves is cut off at another side of the clip range
    exact = learner.policy.computes_in == torch.float32 and run.sampling.storage == "float32"
    comparable = exact or (fresh and run.objective.log_ratio != "replay")
    found = _direction(learner, taken[0], expected.gradients, comparable=comparable)
    if exact and len(parts) == 1 and run.objective.log_ratio != "replay":
        assert update.loss == pytest.approx(expected.loss, rel=1e-3, abs=1e-7)
        assert update.gradient_norm == pytest.approx(found["norm"], rel=1e-3, abs=1e-9)
        assert (update.kl or 0.0) == pytest.approx(expected.divergence, rel=1e-2, abs=1e-9)
    return {**found, "update": update, "fresh": fresh}


def _wide(row: Tensor) -> Tensor:
    return row.float() if row.is_floating_point() else row  # a mask stays one


def _opened(learner: Learner, sent: Trajectory | PackedTrajectory | None) -> Trajectory:
    assert sent is not None
    return unpack_trajectory(learner.policy, sent) if isinstance(sent, PackedTrajectory) else sent


def _others(learner: Learner) -> dict[str, Tensor]:
    """What of the network is not trained."""
    state: dict[str, Tensor] = learner.policy.denoiser.module.state_dict()
    return {name: value for name, value in state.items() if name not in learner.parameters}


def _moments(learner: Learner) -> dict[str, tuple[int, Tensor, Tensor]]:
    found = {}
    for name, value in learner.masters.values.items():
        state = learner.optimizer.state.get(value)
        if state:
            found[name] = (int(state["step"]), state["exp_avg"].double(), state["exp_avg_sq"].double())
    return found


def _stepped_as_adamw(
    settings: config.Optimizer,
    before: Named,
    moments: Mapping[str, tuple[int, Tensor, Tensor]],
    taken: Sequence[Mapping[str, Tensor | None]],
    after: Named,
) -> None:
    """See that the masters are where AdamW (arXiv 1711.05101, algorithm 2), in float64, takes them from before."""
    rate, betas = settings.learning_rate, (settings.beta1, settings.beta2)
    for name, old in before.items():
        value = old.double()
        count, mean, square = moments.get(name, (0, torch.zeros_like(value), torch.zeros_like(value)))
        for gradients in taken:
            if (gradient := gradients[name]) is None:
                continue
            gradient, count = gradient.double(), count + 1
            mean = betas[0] * mean + (1 - betas[0]) * gradient
            square = betas[1] * square + (1 - betas[1]) * gradient.square()
            scale = (square / (1 - betas[1] ** count)).sqrt() + settings.epsilon
            value = value * (1 - rate * settings.weight_decay) - rate * mean / (1 - betas[0] ** count) / scale
        spacing = (
            2 * torch.finfo(torch.float32).eps * old.double().abs()
        )  # the decay rounds, and its factor, and the sum
        allowed = len(taken) * (spacing + 1e-3 * rate)
        off = ((after[name].detach().double() - value).abs() / allowed).max()
        assert off <= 1, f"{name} is {float(off):.3g} times as far from where AdamW leads as rounding explains"


def _recounted(update: Update, before: Named, after: Named) -> None:
    pairs = [(before[name].double(), value.detach().double()) for name, value in after.items()]
    change = math.sqrt(sum(float((now - old).square().sum()) for old, now in pairs))
    size = math.sqrt(sum(float(now.square().sum()) for _, now in pairs))
    moved = sum(int((now != old).sum()) for old, now in pairs) / sum(now.numel() for _, now in pairs)
    whole = all(value.numel() <= SAMPLED for value in after.values())  # larger ones are estimated from some values
    assert update.moved_fraction == pytest.approx(moved, rel=1e-6 if whole else 0.05, abs=1e-12)
    assert update.update_ratio == pytest.approx(change / size, rel=1e-5 if whole else 0.05, abs=1e-15)


def _check_first_log_ratio(learner: Learner, groups: Sequence[SampledGroup], update: Update, *, fresh: bool) -> None:
    """See that it is 0 where the weights that learn have sampled, or the correction takes it against them.

    A replay is off by what rounding the latents did to the noise that is recovered from them. A number of pairs that
    the config asks for, beside the sampler's own, may have other bits than the sampler had: up to the learner's limit.
    """
    settings = learner.run.objective
    if not fresh and settings.correction is None:
        return
    if settings.old_predictions == "recomputed":
        assert update.first_log_ratio == 0.0
        return
    if settings.log_ratio != "replay" or not fresh:
        limit = FIRST_RATIO_LIMIT if isinstance(learner.run.optimizer.micro_batch, int) else 0.0
        assert update.first_log_ratio <= limit, f"the first log-ratio is {update.first_log_ratio}"
        return
    worst = 0.0
    for _, sent, _ in groups:
        group = _opened(learner, sent)
        unit = torch.finfo(group.latents.dtype).eps / 2
        for k, index in enumerate(group.steps.tolist()):
            step = learner.policy.credit.steps[index]
            x, prediction, z = (getattr(group, name)[:, k].double() for name in ("latents", "predictions", "noises"))
            terms = [step.scale * x, step.gain * prediction, step.std * z]
            rounding = unit * sum(terms).abs() + 2**-22 * sum(term.abs() for term in terms)
            off = rounding / step.std
            worst = max(worst, float((z.abs() * off + off.square() / 2).flatten(1).mean(1).max()) + 1e-6)
    assert update.first_log_ratio <= worst, f"a replay is off by {update.first_log_ratio}; rounding explains {worst}"


def _direction(
    learner: Learner, taken: Mapping[str, Tensor | None], expected: Named, *, comparable: bool
) -> dict[str, float]:
    """Compare the gradient of the first optimizer step with float32's."""
    pairs = [(torch.zeros_like(expected[name]) if g is None else g, expected[name]) for name, g in taken.items()]
    ours, theirs = (torch.cat([one.double().flatten() for one in side]) for side in zip(*pairs, strict=True))
    norm = float(theirs.norm())
    if norm == 0:
        assert float(ours.norm()) == 0, "a gradient where the loss has none"
        return {"norm": 0.0}
    cosine = float(ours @ theirs / (ours.norm() * norm)) if ours.any() else 0.0
    dtypes = [learner.policy.computes_in]
    if learner.run.objective.kl:  # it is of predictions as they are stored
        dtypes.append(getattr(torch, learner.run.sampling.storage))
    least = min(COSINE[dtype] for dtype in dtypes)
    assert not comparable or cosine >= least, f"cosine {cosine:.6f} to float32's gradient (norm {norm:.3g})"
    return {"norm": norm, "cosine": cosine}


def _same_bits(one: Learner, other: Learner, what: str) -> None:
    mine, theirs = _bits(one), _bits(other)
    differing = [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    assert mine.keys() == theirs.keys() and not differing, f"{what} have other bits: {differing[:3]}"


def _bits(learner: Learner) -> dict[str, Tensor]:
    """All that the next update, or a sampler, is given."""
    means = [] if learner.ema is None else learner.ema.values
    return {
        **{f"master of {name}": value for name, value in learner.masters.values.items()},
        **learner.parameters,
        **{f"mean {number}": value for number, value in enumerate(means)},
    }
