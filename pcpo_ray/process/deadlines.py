"""A deadline for calls that have none of their own: what a library waits for in C, nothing can interrupt."""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, ask: Callable[[], Result]) -> Result:
    """Return the answer. Raises TimeoutError after `seconds`; the thread that waits goes on, as nothing can stop it."""
    found: list[Result] = []
    failed: list[BaseException] = []

    def asking() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return found[0]
