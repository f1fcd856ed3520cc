"""What a run and those who talk to it agree on. Light to import: it travels to processes that need nothing else."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args
from uuid import uuid4

from pcpo_ray.errors import ClusterError

NAMESPACE = "pcpo_ray"
"""Where Ray finds a run's controller by the run's name."""

ENDED = ("finished", "stopped", "failed")
"""States of a run that no other follows."""

Fault = Literal["sampler", "all_samplers", "hang", "scorer", "learner"]
"""What can be done to a run to see it mended: SIGKILL to a worker, or SIGSTOP to a sampler (hang)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What someone asks of a run that goes on: other sizes, another staleness, a fault, or its end; None leaves it."""

    samplers: int | None = None
    scorers: int | None = None
    max_staleness: int | None = None
    fault: Fault | None = None
    stop: bool = False
    id: str = field(default_factory=lambda: uuid4().hex)
    """Under which the run says that it was done (status.py)."""

    def __post_init__(self) -> None:
        """Raises ClusterError at who asks, not in the run."""
        least = {"samplers": 1, "scorers": 1, "max_staleness": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ClusterError(f"asked for {name} {value}; expected at least {smallest}")
        if self.fault not in (None, *get_args(Fault)):
            raise ClusterError(f"no fault is named {self.fault!r}; expected one of {list(get_args(Fault))}")

    @property
    def asked(self) -> dict[str, Any]:
        """Only what was asked for."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "id"}
        return {name: value for name, value in values.items() if value is not None and value is not False}
