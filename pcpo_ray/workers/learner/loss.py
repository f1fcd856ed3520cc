"""The loss of (image, trained step) pairs: log-ratio, correction for older weights, surrogate, KL and diagnostics.

Shapes: N images of a group, K trained steps, B pairs of a pass, `...` one image's latents.
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.algorithm import diagnostics, objective
from pcpo_ray.algorithm.diagnostics import TimestepDiagnostics
from pcpo_ray.data.tensors import sent_to
from pcpo_ray.data.types import Size
from pcpo_ray.errors import TrainingError
from pcpo_ray.models.policy import Policy
from pcpo_ray.workers.learner import step_factors
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.learner.old_predictions import OldPredictions
from pcpo_ray.workers.learner.own_objective import OwnObjective
from pcpo_ray.workers.learner.pair_loader import PairBatch
from pcpo_ray.workers.learner.step_factors import StepFactors

FIRST_RATIO_LIMIT = 1e-6
"""Largest |log-ratio| allowed at the weights that sampled; above it, sampler and learner compute different things."""


class Loss:
    """A policy's loss under the config's objective. It reads the policy's weights and changes nothing but its tallies.

    A prompt's size may have timesteps and credit of its own (dynamic shift), so each size has its step factors.
    """

    def __init__(self, policy: Policy, settings: config.Objective) -> None:
        self.policy = policy
        self.settings = settings
        self.factors: dict[Size | None, StepFactors] = {}
        self.of_steps()
        self.measured = isinstance(policy.run.credit, config.MEASURED)
        self.own = OwnObjective(settings) if isinstance(settings, config.CustomObjective) else None
        self.importances: list[Float[Tensor, "4"]] = []

    def of_steps(self, size: Size | None = None) -> StepFactors:
        """Return the numbers of each timestep for images of a prompt's size (None: the config's)."""
        if size not in self.factors:
            plan = self.policy.setup(size).credit
            self.factors[size] = StepFactors.of(plan, self.settings, self.policy.device)
        return self.factors[size]

    def predict(self, pairs: PairBatch) -> Float[Tensor, "B ..."]:
        """Predict with the present weights, rounded as the sampler's predictions were if it is compared with them."""
        with self.policy.sized(pairs.size):
            prediction = self.policy.predict(pairs.latents, pairs.steps, pairs.conditioning)
        if self.settings.old_predictions == "recomputed":
            return prediction
        return objective.rounded(prediction, pairs.predictions.dtype)

    @torch.no_grad()
    def reference(self, pairs: PairBatch) -> Float[Tensor, "B ..."]:
        """Predict without the adapter, rounded in the same way, so that equal predictions have no divergence."""
        with self.policy.denoiser.without_adapter():
            return self.predict(pairs)

    def log_ratio(self, prediction: Float[Tensor, "B ..."], pairs: PairBatch) -> Float[Tensor, " B"]:
        """Compute the log-ratio to the predictions of `pairs`, by the config's `objective.log_ratio`."""
        if self.settings.log_ratio == "replay":
            return self._replayed(prediction, pairs)
        factors = self.of_steps(pairs.size)
        weight, sign = self._weight(pairs), factors.signs[pairs.steps]
        found = objective.log_ratio(
            prediction, pairs.predictions, pairs.noises, weight=weight, sign=sign, quadratic=factors.quadratic
        )
        return factors.scales[pairs.steps] * found

    def _weight(self, pairs: PairBatch) -> Float[Tensor, " B"]:
        """Return the credit weight of each pair: its timestep's, or the one that was measured on its image."""
        return self.of_steps(pairs.size).credit_weights[pairs.steps] if pairs.weights is None else pairs.weights

    def _replayed(self, prediction: Float[Tensor, "B ..."], pairs: PairBatch) -> Float[Tensor, " B"]:
        """Compute the log-ratio with the noise recovered from the rounded x_next that the sampler continued with."""
        found = []
        for one, predicted in zip(pairs.apart(), prediction.split(pairs.lengths), strict=True):
            step = self.policy.setup(pairs.size).credit.steps[one.indices[0]]
            after = step.moved(one.latents, one.predictions, one.noises)
            found.append(step.log_prob(after, one.latents, predicted) - one.log_probs)
        return torch.cat(found)

    def of_pass(
        self,
        pairs: PairBatch,
        advantage: Float[Tensor, " B"],
        lags: Mapping[int, Float[Tensor, "N K 2"]],
        older: Container[int],
        noted: TimestepDiagnostics,
        *,
        count: int,
        old: OldPredictions | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Compute a pass's part of the mean loss over `count` pairs, and of the mean KL divergence it contains.

        `lags` are those of the groups at the places `older` (`lag_now`, before the update began); without one, the
        present lag is taken. With `old`, everything is compared with these predictions instead of the sampler's.
        `noted` gets the diagnostics. Nothing here waits for the device, unless the pass's old predictions are kept.
        """
        settings, steps = self.settings, self.of_steps(pairs.size)
        prediction = self.predict(pairs)
        limit, factor = self._limit(pairs), steps.factors[pairs.steps]
        if old is not None:
            pairs, importance = self._to_old(prediction, pairs, old)
            factor = factor * importance
        log_ratio = self.log_ratio(prediction, pairs)
        drift = self._drift(prediction, pairs)
        if settings.correction is not None and old is None:
            lag, importance = self._lag(prediction, log_ratio, pairs, lags, older)
            log_ratio, factor = log_ratio - lag, factor * importance
            drift = torch.where(lag == 0, drift, 0.0)  # that of the ratio to the present weights is not known
        kind = self._objective(pairs, limit)
        divergence_from_old = None
        match kind:
            case "log_hinge":
                each = objective.log_hinge(log_ratio, advantage, clip_range=limit)
            case "clipped_ratio":
                each = objective.clipped_ratio(log_ratio, advantage, clip_range=limit)
            case "divergence_mask":
                divergence_from_old = objective.kl_divergence(
                    prediction.detach(), pairs.predictions, weight=steps.own_weights[pairs.steps]
                )
                each = objective.divergence_mask(log_ratio, advantage, divergence_from_old, threshold=limit)
            case _:
                each = kind(log_ratio, advantage)
        loss = (factor * each).sum() / count
        divergence = torch.zeros_like(loss)
        if settings.kl:
            own = steps.own_weights[pairs.steps]
            divergence = objective.kl_divergence(prediction, self.reference(pairs), weight=own).sum() / count
            loss = loss + settings.kl * divergence
        with torch.no_grad():
            stopped = diagnostics.inactive(
                log_ratio, advantage, clip_range=limit, objective=kind, divergence=divergence_from_old
            )
        norm = (
            factor
            * steps.scales[pairs.steps]
            * diagnostics.gradient_norm(
                prediction,
                pairs.predictions,
                pairs.noises,
                log_ratio,
                advantage,
                weight=self._weight(pairs),
                sign=steps.signs[pairs.steps],
                stopped=stopped,
                objective=kind,
                quadratic=steps.quadratic,
            )
        )
        distance = log_ratio.detach().abs() if divergence_from_old is None else divergence_from_old
        noted.add(
            pairs.steps,
            log_ratio.detach(),
            norm,
            drift=drift,
            stopped=stopped,
            distance=distance,
            limit=limit,
            weight=self._weight(pairs),
        )
        return loss, divergence

    @torch.no_grad()
    def _drift(self, prediction: Float[Tensor, "B ..."], pairs: PairBatch) -> Float[Tensor, " B"]:
        """Compute the quadratic term of the log-ratio, by which its mean over the noise is below 0."""
        steps = self.of_steps(pairs.size)
        if not steps.quadratic:
            return torch.zeros_like(steps.scales[pairs.steps])
        squared = objective.kl_divergence(prediction, pairs.predictions, weight=self._weight(pairs))
        return steps.scales[pairs.steps] * squared

    def _limit(self, pairs: PairBatch) -> Float[Tensor, " B"]:
        """Return the distance at which each pair's gradient is cut off."""
        steps, settings = self.of_steps(pairs.size), self.settings
        limit = steps.limits[pairs.steps]
        if pairs.weights is None or not isinstance(settings, config.Clipped) or settings.clip_scale != "weight":
            return limit
        return limit * pairs.weights / steps.credit_weights[pairs.steps]  # the steps' own weights are the mean

    def _objective(self, pairs: PairBatch, limit: Float[Tensor, " B"]) -> objective.Objective | objective.Loss:
        """Return the objective of a pass: its name, or a function of the user's own, given the pairs' weights."""
        settings = self.settings
        match settings:
            case config.LogHinge() | config.ClippedRatio() | config.DivergenceMask():
                return settings.kind
            case config.CustomObjective():
                assert self.own is not None
                return self.own.loss(self._weight(pairs), limit)
            case _:
                assert_never(settings)

    @torch.no_grad()
    def lag_now(
        self, prediction: Float[Tensor, "B ..."], log_ratio: Float[Tensor, " B"], pairs: PairBatch
    ) -> Float[Tensor, "B 2"]:
        """Compare the present weights with those that sampled.

        The first column is the log-ratio that the loss uses. The second is that of the sampler's own densities, from
        which the importance weights are computed.
        """
        return torch.stack([log_ratio.detach(), self._own_log_ratio(prediction, pairs)], dim=1)

    def _own_log_ratio(self, prediction: Float[Tensor, "B ..."], pairs: PairBatch) -> Float[Tensor, " B"]:
        """Compute the log-ratio of the densities of the sampler's own steps, whatever credit they carry."""
        factors = self.of_steps(pairs.size)
        weight, sign = factors.own_weights[pairs.steps], factors.signs[pairs.steps]
        return objective.log_ratio(prediction, pairs.predictions, pairs.noises, weight=weight, sign=sign)

    @torch.no_grad()
    def take_old(self, pairs: PairBatch, old: OldPredictions) -> None:
        """Keep the present predictions of a pass as the old ones, and note their mismatch with the sampler's."""
        with torch.set_grad_enabled(self.policy.run.optimizer.compile):  # compiled, gradients make other kernels
            prediction = self.predict(pairs).detach()
        old.note(pairs, self._own_log_ratio(prediction, pairs))
        old.keep(pairs, prediction)

    @torch.no_grad()
    def _to_old(
        self, prediction: Float[Tensor, "B ..."], pairs: PairBatch, old: OldPredictions
    ) -> tuple[PairBatch, Float[Tensor, " B"]]:
        """Return the pairs as if the old predictions had sampled them, and the importance of each.

        They are drawn with the noise that the old predictions need for the same x_next. The importance is the
        truncated ratio of old to sampler; 1 without objective.correction.
        """
        factors, (before, first) = self.of_steps(pairs.size), old.of(pairs, prediction)
        lag = self._own_log_ratio(before, pairs)
        if first:
            old.note(pairs, lag)
        weight, sign = factors.own_weights[pairs.steps], factors.signs[pairs.steps]
        noises = objective.noise_under(before, pairs.predictions, pairs.noises, weight=weight, sign=sign)
        importance, most = torch.ones_like(lag), self.settings.correction
        if most is not None:
            importance = objective.importance(lag, dimensions=pairs.latents[0].numel(), most=most)
            self.importances.append(objective.spread(importance, torch.ones_like(lag, dtype=torch.bool), most=most))
        return replace(pairs, predictions=before, noises=noises), importance

    @torch.no_grad()
    def _lag(
        self,
        prediction: Float[Tensor, "B ..."],
        log_ratio: Float[Tensor, " B"],
        pairs: PairBatch,
        lags: Mapping[int, Float[Tensor, "N K 2"]],
        older: Container[int],
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return each pair's lag, the log-ratio of the update's first weights to the sampler's, and its importance.

        Pairs of groups that are not older have lag 0 and importance 1.
        """
        if not any(block.place in older for block in pairs.blocks):
            return torch.zeros_like(log_ratio), torch.ones_like(log_ratio)
        old = torch.tensor([block.place in older for block in pairs.blocks for _ in range(len(block))])
        old = sent_to(old, self.policy.device)
        now = self.lag_now(prediction, log_ratio, pairs)
        begun = [
            lags[block.place][block.rows, block.k] if block.place in lags else present
            for block, present in zip(pairs.blocks, now.split(pairs.lengths), strict=True)
        ]
        lag, own = torch.cat(begun).unbind(1)
        most = self.settings.correction
        assert most is not None
        importance = objective.importance(own, dimensions=pairs.latents[0].numel(), most=most)
        self.importances.append(objective.spread(importance, old, most=most))
        return torch.where(old, lag, 0.0), torch.where(old, importance, 1.0)

    def take_importance(self, rank: Rank) -> Mapping[str, float] | None:
        """Summarise the importance weights of all ranks since the last call; None if there were none."""
        noted, self.importances = self.importances, []
        sums = torch.stack(noted).sum(0) if noted else torch.zeros(4, dtype=torch.float64, device=self.policy.device)
        if self.settings.correction is None:
            return None
        return objective.spread_in_numbers(rank.total(sums).tolist())

    def per_timestep(
        self, noted: TimestepDiagnostics, old: OldPredictions | None = None
    ) -> Mapping[str, Sequence[float | None]]:
        """Tabulate the diagnostics and weights of the trained timesteps, noisiest first.

        Timesteps and weights are those of the config's own size. `old` adds the mismatch, where it was measured.
        """
        credit, found = self.policy.credit, noted.summary()
        weights = found.pop("weight_mean")
        columns: dict[str, Sequence[float | None]] = {
            "timestep": self.policy.schedule.timesteps,
            "native_weight": [step.weight for step in self.policy.native],
            "credit_weight": weights if self.measured else step_factors.inside(credit, self.settings),
            "outside_weight": step_factors.outside(credit, self.settings),
            **found,
        }
        more = {} if old is None else old.table(credit.trained)
        return {name: [values[index] for index in credit.trained] for name, values in columns.items()} | more


def loss_scale(dtypes: Iterable[torch.dtype], dimensions: int, count: int) -> float:
    """Choose a power of two for the loss, so that float16 does not round gradients of a mean over `count` pairs to 0.

    Each pair's gradient of its prediction, about |A| w z / (count D), then is about |A| w z, for D = `dimensions`.
    Without float16 among the dtypes it is 1.
    """
    if torch.float16 not in dtypes:
        return 1.0
    return 2.0 ** round(math.log2(count * dimensions))


def check_unchanged(log_ratios: Sequence[float], version: int) -> None:
    """Check the largest |log-ratio| at each timestep. Raises TrainingError above FIRST_RATIO_LIMIT."""
    largest = max(log_ratios)
    if largest > FIRST_RATIO_LIMIT:
        index = log_ratios.index(largest)
        raise TrainingError(
            f"at the weights that sampled (version {version}), step {index} has log-ratio {largest:.3g}; "
            f"expected 0 (at most {FIRST_RATIO_LIMIT:g}): sampler and learner do not compute the same prediction. "
            "Use the same dtype, sampling.batch and kernels on both, model.dtype=float32, "
            "optimizer.micro_batch=null, or objective.old_predictions=recomputed"
        )
