"""Admission: how much may be sampled before the weights move on.

The number of samples that may begin sets the pace. Nothing that was sampled is dropped for its age, which would starve
slow prompts and bias the data.
"""


def capacity(*, max_staleness: int, version: int, batch: int, accepted: int, running: int) -> int:
    """Count the groups that may start now, so that none is learned more than `max_staleness` versions late.

    `version` counts the batches learned, `batch` the groups in one; `accepted` are the groups learned so far (after a
    resume: those of the run before it too), `running` those that were started and are not learned yet.
    """
    return (max_staleness + version + 1) * batch - (accepted + running)
