"""Told: what a pool says of itself: lines about faults, notes, and counts of what was fixed."""

from collections import Counter

from pcpo_ray.training.scheduling.workers import Note


class Told:
    """The lines that a pool has still to tell, and the counts of what it replaced and sent once more."""

    def __init__(self) -> None:
        self.recovered: list[str] = []
        self.noted: list[Note] = []
        self.restarts: Counter[str] = Counter()
        self.retries: dict[str, Counter[str]] = {"lost": Counter(), "hedged": Counter()}

    def faults(self) -> list[str]:
        """Return what was recovered since the last call, a line each."""
        recovered, self.recovered = self.recovered, []
        return recovered

    def notes(self) -> list[Note]:
        """Return what is worth a line and is no fault, since the last call."""
        noted, self.noted = self.noted, []
        return noted
