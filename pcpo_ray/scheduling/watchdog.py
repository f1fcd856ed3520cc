"""Watchdog: nothing finished and no step taken, while work remains."""

from pcpo_ray.errors import ClusterError


class Watchdog:
    """`progress` whenever something finishes; `check` whenever there is time. Seconds on the driver's clock.

    `quiet` seconds without progress are worth a line, `limit` seconds are the end.
    """

    def __init__(self, *, limit: float, quiet: float, now: float) -> None:
        self.limit, self.quiet = limit, quiet
        self.moved = self.said = now

    def progress(self, now: float) -> None:
        self.moved = now

    def check(self, now: float, awaited: str) -> str | None:
        """A line to print, now and then while nothing moves. Raises ClusterError after `limit` seconds."""
        still = now - self.moved
        if still > self.limit:
            raise ClusterError(
                f"nothing finished for {still:.0f} s (workers.task_timeout={self.limit:g}), waiting for {awaited}"
            )
        if min(still, now - self.said) <= self.quiet:
            return None
        self.said = now
        return f"waiting for {awaited}; nothing finished for {still:.0f} s"
