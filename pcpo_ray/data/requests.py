"""Requests to a run that is going on. It is light to import, for processes that need nothing else."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args
from uuid import uuid4

from pcpo_ray.errors import ClusterError

NAMESPACE = "pcpo_ray"
"""The Ray namespace in which a run's controller has the run's name."""

ENDED = ("finished", "stopped", "failed")
"""The final states of a run."""

Fault = Literal["sampler", "all_samplers", "hang", "scorer", "learner"]
"""Faults that can be injected into a run: SIGKILL to a worker, or SIGSTOP to a sampler (hang)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to a run: other pool sizes, another staleness, a fault, or its end. None leaves a value as it is."""

    samplers: int | None = None
    scorers: int | None = None
    max_staleness: int | None = None
    fault: Fault | None = None
    stop: bool = False
    id: str = field(default_factory=lambda: uuid4().hex)
    """The id under which the run reports that the request was carried out (status.py)."""

    def __post_init__(self) -> None:
        """Raise ClusterError for a wrong value, in the process that asks and not in the run."""
        least = {"samplers": 1, "scorers": 1, "max_staleness": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ClusterError(f"asked for {name} {value}; expected at least {smallest}")
        if self.fault not in (None, *get_args(Fault)):
            raise ClusterError(f"no fault is named {self.fault!r}; expected one of {list(get_args(Fault))}")

    @property
    def asked(self) -> dict[str, Any]:
        """The values that were asked for, without those left as they are."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "id"}
        return {name: value for name, value in values.items() if value is not None and value is not False}
