"""Ledger: the tasks issued, in flight and done; each is exactly once in the update it belongs to."""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from pcpo_ray.errors import TrainingError

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Ledger(Generic[Key, Result]):
    """Every key is issued once, done once and taken once. Raises TrainingError for anything else."""

    def __init__(self) -> None:
        self._in_flight: dict[Key, None] = {}
        self._done: dict[Key, Result] = {}

    def __len__(self) -> int:
        """Count the keys in flight."""
        return len(self._in_flight)

    def issue(self, key: Key) -> None:
        if key in self._in_flight or key in self._done:
            raise TrainingError(f"{key} was issued twice; a task belongs to one update, once")
        self._in_flight[key] = None

    def done(self, key: Key, result: Result) -> None:
        if key not in self._in_flight:
            raise TrainingError(f"{key} finished and is not in flight; it would count twice or belongs to no update")
        del self._in_flight[key]
        self._done[key] = result

    def missing(self, keys: Sequence[Key]) -> set[Key]:
        """Return the keys that are not done."""
        return {key for key in keys if key not in self._done}

    def take(self, keys: Sequence[Key]) -> list[Result]:
        """Return the results of keys that are done, in the keys' order, and forget them."""
        missing = [key for key in keys if key not in self._done]
        if missing:
            raise TrainingError(f"{len(missing)} of {len(keys)} tasks asked for are not done, {missing[0]} for one")
        return [self._done.pop(key) for key in keys]

    def forget(self) -> None:
        """Drop everything: keys in flight are no longer waited for."""
        self._in_flight.clear()
        self._done.clear()
