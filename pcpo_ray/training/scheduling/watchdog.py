"""Watchdog: notices that nothing finishes while work remains."""

from pcpo_ray.errors import ClusterError


class StalledError(ClusterError):
    """Raised when nothing finished for too long."""


class Watchdog:
    """Call `progress` when something finishes, `spoke` when a line was printed, and `check` now and then.

    Times are seconds on the driver's clock. After `quiet` seconds without a line one is due, whether anything moves or
    not; `limit` seconds without progress are the end.
    """

    def __init__(self, *, limit: float, quiet: float, now: float) -> None:
        self.limit, self.quiet = limit, quiet
        self.moved = self.said = now

    def progress(self, now: float) -> None:
        self.moved = now

    def spoke(self, now: float) -> None:
        self.said = now

    def check(self, now: float, awaited: str) -> str | None:
        """Return a line to print, if one is due. Raises StalledError after `limit` seconds without progress."""
        still = now - self.moved
        if still > self.limit:
            raise StalledError(f"nothing finished for {still:.0f} s (workers.task_timeout={self.limit:g}): {awaited}")
        if now - self.said <= self.quiet:
            return None
        self.said = now
        return awaited + (f", with nothing new for {still:.0f} s" if still > self.quiet else "")
