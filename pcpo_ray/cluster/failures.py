"""What Ray's errors mean for a run: an actor that is gone, a call that failed, a driver that did not listen."""

from ray import exceptions

from pcpo_ray.errors import ClusterError, PcpoError

DEAF = 10.0
"""Seconds between two looks for signs of life, beyond which what lies between is our own silence, and no worker's."""


OF_THE_CALL = (
    exceptions.RayTaskError,
    exceptions.ObjectLostError,
    exceptions.ActorUnavailableError,
    exceptions.GetTimeoutError,
)
"""What tells of a call and not of the end of its actor: the work's own error, arguments that are gone, a moment's
silence. Whatever else Ray raises, now or in a later version, says that the actor is no more."""


def cause_of(error: exceptions.RayError) -> BaseException:
    """What a worker raised, where it was the worker that raised; else Ray's own error."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def is_gone(error: BaseException) -> bool:
    """Whether an error of a call says that its actor is no more: died, killed for memory, its node lost."""
    return isinstance(error, exceptions.RayError) and not isinstance(error, OF_THE_CALL)


def reraise(error: exceptions.RayError, awaited: str) -> PcpoError:
    """The error as one of this package's: the worker's own where it raised one, else what Ray says of the cluster."""
    cause = cause_of(error)
    return cause if isinstance(cause, PcpoError) else ClusterError(f"while waiting for {awaited}: {error}")


def brief(error: BaseException) -> str:
    """One line of an error that may have many."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


class WeightsGoneError(Exception):
    """A version's buckets could not be had from the object store."""
