"""Reporters: they hand the changes of a run's metrics to an exporter.

The recorder and the loop know one `MetricsReporter`. Changes are sent once a step, an evaluation, an event or a phase,
and at most every `REFRESH` seconds from the status: nothing is done per sample.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from pcpo_ray.data.records import Event, Record
from pcpo_ray.metrics.catalogue import Phase
from pcpo_ray.metrics.changes import Change, RunNumbers, of_event, of_phase, of_record, of_status, totals

REFRESH = 5.0
"""Seconds from one look at a run's status to the next."""


class Exporter(Protocol):
    """A place that shows metrics."""

    def apply(self, run: str, changes: Sequence[Change]) -> None:
        """Show the changes under the run's name."""

    def close(self) -> None:
        """Show nothing any more."""


class MetricsReporter(Protocol):
    """The interface that the recorder and the loop report a run through."""

    def record(self, record: Record) -> None:
        """Report a step or an evaluation."""

    def event(self, event: Event) -> None:
        """Report an event."""

    def status(self, numbers: RunNumbers) -> None:
        """Report the numbers of the status, as often as one likes."""

    def phase(self, phase: Phase) -> None:
        """Report the phase that the driver enters."""

    def close(self) -> None:
        """Report the end of the run."""


class NoReporter:
    """A reporter that reports to nobody."""

    def record(self, record: Record) -> None: ...

    def event(self, event: Event) -> None: ...

    def status(self, numbers: RunNumbers) -> None: ...

    def phase(self, phase: Phase) -> None: ...

    def close(self) -> None: ...


class ExportingReporter:
    """A reporter that hands the changes to an exporter.

    An exporter that fails costs the run nothing: `say` gets a line, and no metric of the run is shown any more.
    """

    def __init__(
        self,
        run: str,
        exporter: Exporter,
        now: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.run, self.exporter, self.now, self.say = run, exporter, now, say
        self.failed = False
        self.driver = uuid.uuid4().hex[:8]
        """A name for this process: what ended is told from what vanished by it, when a run has several in an hour."""
        self.seen: dict[tuple[str, ...], int] = {}
        self.last: RunNumbers | None = None
        self.looked = -REFRESH

    def record(self, record: Record) -> None:
        self._look()
        self._apply(list(of_record(record)))

    def event(self, event: Event) -> None:
        self._apply(list(of_event(event, self.driver)))

    def status(self, numbers: RunNumbers) -> None:
        self.last = numbers
        if self.now() - self.looked >= REFRESH:
            self._look()

    def phase(self, phase: Phase) -> None:
        self._apply(list(of_phase(phase)))

    def close(self) -> None:
        self._look()
        self.exporter.close()

    def _apply(self, changes: Sequence[Change]) -> None:
        if self.failed:
            return
        try:
            self.exporter.apply(self.run, changes)
        except Exception as error:
            self.failed = True
            self.say(f"metrics are shown no more, the run goes on without: {type(error).__name__}: {error}")

    def _look(self) -> None:
        """Send the newest status that was not sent yet."""
        if self.last is None:
            return
        self.looked = self.now()
        self._apply(list(of_status(self.last, self.seen)))
        self.seen = totals(self.last)
        self.last = None
