"""The learner's network, lent to a sampler while no update is under way: no weights travel, and none are held twice."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from pcpo_ray import config
from pcpo_ray.data import weights
from pcpo_ray.data.weights import Manifest, WeightSnapshot
from pcpo_ray.errors import WeightsError
from pcpo_ray.models.policy import Policy
from pcpo_ray.workers import canary, precision
from pcpo_ray.workers.learner import sharding
from pcpo_ray.workers.learner.distributed import Rank
from pcpo_ray.workers.sampler import Sampler


class LentSampler(Sampler):
    """A sampler on a learner's own network (`Learner.lend`).

    The learner's weights count as loaded once they are proved. Other weights that a task names (an EMA, an older
    version) are loaded as by any sampler; the learner's own are kept aside meanwhile. The learner takes its network
    back before it does anything with it.

    With fsdp2 the parameters are gathered once, by `prove`, and not in each pass: ranks that gathered in passes would
    have to sample in step, also where one has fewer tasks, or is lost. A rank that samples holds the whole network, as
    any sampler does.
    """

    def __init__(self, run: config.Run, policy: Policy, rank: Rank) -> None:
        super().__init__(run, policy.device, policy)
        self.rank = rank
        self.proved: str | None = None
        """The checksum of the learner's weights; None since an update."""
        self.own: dict[str, Tensor] | None = None
        """The learner's weights, while others are in its network."""
        self.whole = False
        """True while a sharded network's parameters are gathered."""

    def prove(self, manifest: Manifest) -> str:
        """Show that the learner's network holds the weights of a manifest, and return their checksum; all ranks do.

        Raises WeightsError if it holds others, or predicts otherwise than the first rank's.
        """
        self.give_back()
        self._join()
        version = manifest.version
        found = weights.checksum(self.policy.denoiser.trainable())
        if found != manifest.checksum:
            raise WeightsError(
                f"rank {self.rank.index} of the learner holds weights of checksum {found}; version {version} has "
                f"{manifest.checksum} on its first rank: ranks that part do not train one network, so start again from "
                "the newest checkpoint, and have all ranks run on machines of one kind"
            )
        predicted = canary.prediction(self.policy)
        remedy = precision.remedy(self.run, version)
        canary.check(predicted, manifest.canary, dtype=self.policy.computed_in, version=version, remedy=remedy)
        self.proved = self.loaded = found
        return found

    def holds(self, checksum: str) -> bool:
        if self.loaded != checksum:
            self.give_back()
        return super().holds(checksum)

    def load(self, received: WeightSnapshot) -> str:
        if self.rank.sharded and not self.whole:
            raise WeightsError(
                f"rank {self.rank.index} of the learner holds a part of its network only, since an update or an error; "
                "it samples once all ranks have proved their weights"
            )
        if self.own is None:
            parameters = self.policy.denoiser.trainable()
            self.own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        return super().load(received)

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the learner's own weights back where others are in its network."""
        if self.own is not None:
            for name, parameter in self.policy.denoiser.trainable().items():
                parameter.copy_(self.own[name])
        self.own, self.loaded = None, self.proved

    def end(self) -> None:
        """Give the network back, whose weights are about to change."""
        self.give_back()
        self._split()
        self.proved = self.loaded = None

    @contextlib.contextmanager
    def interrupted(self) -> Iterator[None]:
        """Give the network back while inside, where its weights do not change; with fsdp2 all ranks together.

        After an error a sharded network stays in its parts, and counts as not proved: ranks that have failed apart
        cannot gather it together, and `prove` does so.
        """
        self.give_back()
        whole, proved = self.whole, self.proved
        self._split()
        if whole:
            self.proved = self.loaded = None
        yield
        if whole:
            self._join()
            self.proved = self.loaded = proved

    def _join(self) -> None:
        if self.rank.sharded:
            sharding.join_parts(self.policy.denoiser.module)
            self.whole = True

    def _split(self) -> None:
        if self.whole:
            sharding.split_again(self.policy.denoiser.module)
            self.whole = False
