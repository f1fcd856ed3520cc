"""Calls of the learner's ranks, which can be repeated."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import exceptions

from pcpo_ray.cluster.failures import brief, cause_of
from pcpo_ray.errors import LearnerLostError, PcpoError


class Call:
    """A call of a rank's method that can be repeated; the first of its references tells whether it is done."""

    def __init__(self, ask: Callable[[], Any], awaited: str) -> None:
        self.ask, self.awaited = ask, awaited
        self.again()

    def again(self) -> None:
        """Ask once more, because the answer was lost on the way."""
        found = self.ask()
        self.references: list[ray.ObjectRef] = found if isinstance(found, list) else [found]

    @property
    def reference(self) -> ray.ObjectRef:
        """The reference to wait for."""
        return self.references[0]

    def newest(self) -> ray.ObjectRef:
        """Return the reference of the answer, which is asked for once more where it was lost on the way."""
        self.answered()
        return self.reference

    def answered(self) -> bool:
        """Tell whether the answer is there; ask again where the rank was out of reach.

        Raises the PcpoError that the work raised, and LearnerLostError.
        """
        if not ray.wait([self.reference], timeout=0)[0]:
            return False
        try:
            self._answer = ray.get(self.reference)
        except exceptions.ActorUnavailableError:
            self.again()
            return False
        except exceptions.RayError as error:
            cause = cause_of(error)
            if isinstance(cause, PcpoError):
                raise cause from error
            raise LearnerLostError(f"the learner is lost, in {self.awaited}: {brief(cause)}") from error
        return True

    @property
    def answer(self) -> Any:
        """The answer, once `answered` is true."""
        return self._answer


def all_answered(calls: Sequence[Call]) -> bool:
    """Tell whether all are answered. Looks at every call, so that the first failure is raised at once."""
    return all([call.answered() for call in calls])
