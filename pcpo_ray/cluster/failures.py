"""The meaning of Ray's errors for a run: an actor that is gone, a call that failed, a driver that did not listen."""

from ray import exceptions

from pcpo_ray.errors import ClusterError, PcpoError

DEAF = 10.0
"""Seconds between two looks for signs of life beyond which the silence is our own, and no worker's."""


OF_THE_CALL = (
    exceptions.RayTaskError,
    exceptions.UnserializableException,
    exceptions.ObjectLostError,
    exceptions.ActorUnavailableError,
    exceptions.GetTimeoutError,
)
"""Errors of a call that do not mean the end of its actor: the work's own error (as text where its class does not
unpickle), lost arguments, a moment's silence.

Any other error that Ray raises, now or in a later version, means that the actor is gone.
"""


def cause_of(error: exceptions.RayError) -> BaseException:
    """Return the error that a worker raised, if one did; else Ray's own error."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def is_gone(error: BaseException) -> bool:
    """Tell whether an error of a call means that its actor is gone: died, killed for memory, or its node lost."""
    return isinstance(error, exceptions.RayError) and not isinstance(error, OF_THE_CALL)


def reraise(error: exceptions.RayError, awaited: str) -> PcpoError:
    """Turn an error into one of this package: the worker's own where it raised one, else a ClusterError."""
    cause = cause_of(error)
    return cause if isinstance(cause, PcpoError) else ClusterError(f"while waiting for {awaited}: {error}")


def brief(error: BaseException) -> str:
    """Shorten an error to one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, exceptions.UnserializableException):
        return lines[-1][:300]  # of the traceback in it: the error that was raised
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


class WeightsGoneError(Exception):
    """Raised when a version cannot be fetched from the object store; `manifest` names the reference of its manifest.

    It is no PcpoError on purpose: `retries.blame` would take it for bad data, which stops the run.
    """

    def __init__(self, message: str, manifest: str = "") -> None:
        super().__init__(message)
        self.manifest = manifest
