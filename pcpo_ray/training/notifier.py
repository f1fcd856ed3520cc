"""Notifier: tells a webhook when a run fails, meets an alarm or ends.

A thread of its own sends the messages. Whatever the other end does costs the run nothing but the message; the run's end
waits for the last one, at most `FAREWELL` seconds. The URL is a secret, so errors name only its environment variable.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from pcpo_ray import config
from pcpo_ray.config import TOTAL
from pcpo_ray.data.records import EvaluationRecord, Event, Record
from pcpo_ray.errors import ConfigError
from pcpo_ray.runs.lines import counted

TIMEOUT = 5.0
"""Seconds that one attempt may take."""

PATIENCE = 60.0
"""Seconds within which a message is tried again while the run goes on."""

LONGEST = 1000
"""Characters of an error that a message holds; the rest is in the run's log."""

FAREWELL = 10.0
"""Seconds that the end of a run waits for the last messages."""


def url_of(notify: config.Notify) -> str:
    """Return the webhook's URL from the environment. Raises ConfigError, without the URL."""
    url = os.environ.get(notify.url_env, "")
    if not url:
        raise ConfigError(
            f"notify: the environment variable {notify.url_env} is not set here; put the webhook's URL into it (for a "
            "submitted run: where the head is started), or leave `notify` out"
        )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"notify: {notify.url_env} holds no http or https URL; put the webhook's whole URL into it")
    return url


class Notifier:
    """Sends messages about a run, as its config asks. Raises ConfigError where there is no URL to send them to.

    `trouble` gets a line where a message could not be sent.
    """

    def __init__(self, run: config.Run, place: str, trouble: Callable[[str], None] = lambda line: None) -> None:
        self.run, self.place, self.trouble = run, place, trouble
        self.step = 0
        self.again = ""
        """The command that continues the run, for messages about one that has ended early."""
        self.changes: Mapping[str, Mapping[str, float | None]] = {}
        self._lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None
        if run.notify is not None:
            self._url, self._source = url_of(run.notify), run.notify.url_env
            self._thread = threading.Thread(target=self._send_all, name="notifier", daemon=True)
            self._thread.start()

    def record(self, record: Record) -> None:
        """Take note of a step or an evaluation."""
        self.step = record.step
        if isinstance(record, EvaluationRecord):
            self.changes = record.changes or {}

    def event(self, event: Event) -> None:
        """Send a message about an event, if it is one that the config names."""
        occasion, text = self._told(event)
        if self.run.notify is None or occasion not in self.run.notify.events or self._thread is None:
            return
        self._tell_of_trouble()
        self._messages.put(
            {
                "text": "\n".join([f"{self.run.name}: {text}", *self._next(occasion, event)]),
                "run": self.run.name,
                "event": occasion,
                "step": self.step,
                "steps": self.run.steps,
                "change": self.changes.get(TOTAL),
                "folder": self.place,
                "time": datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds"),
            }
        )

    def close(self) -> None:
        """Wait for the last messages, at most `FAREWELL` seconds."""
        if self._thread is None:
            return
        self._deadline = time.monotonic() + FAREWELL
        self._messages.put(None)
        self._thread.join(FAREWELL)
        if self._thread.is_alive():
            self._lost.put(f"notify: no answer from the address in {self._source} within {FAREWELL:g} s")
        self._thread = None
        self._tell_of_trouble()

    def _told(self, event: Event) -> tuple[str, str]:
        """Return the occasion that an event is, and what to say of it."""
        details = event.details
        step = int(details.get("step", self.step))
        at = f"step {step} of {self.run.steps}"
        match event.kind:
            case "alarm":
                on = "; the run goes on" if details["action"] == "warn" else ""
                return "alarm", f"ALARM at {at}, {details['monitor']}: {details['text']}{on}"
            case "stopped" | "rolled_back" if "alarm" in details:
                return "alarm", f"ended by its monitors at {at}: {details['alarm']}"
            case "failed":
                error = str(details["error"])
                error = error if len(error) <= LONGEST else f"{error[:LONGEST]} ..."
                return "failed", f"FAILED after {at}: {error}"
            case "finished":
                return "finished", f"finished all of its {counted(self.run.steps, 'step')}{self._change()}"
            case "stopped" if not step:
                return "stopped", "stopped before its first step"
            case "stopped":
                return "stopped", f"stopped after {at}, with a checkpoint{self._change()}"
        return "", ""

    def _next(self, occasion: str, event: Event) -> list[str]:
        """Say where to look, and how a run that has ended early goes on."""
        if occasion == "finished":
            return [f"report: {self.place.rstrip('/')}/report.html"]
        goes_on = self.again if occasion in ("failed", "stopped") or event.kind in ("stopped", "rolled_back") else ""
        return [f"folder: {self.place}", *([f"continue with: {goes_on}"] if goes_on else [])]

    def _change(self) -> str:
        """Say how the evaluated reward has changed, if that is known."""
        found = self.changes.get(TOTAL, {})
        mean, low, high = (found.get(name) for name in ("mean", "low", "high"))
        if mean is None:
            return ""
        known = low is not None and high is not None
        bounds = f"95% interval {low:+.2g} to {high:+.2g}" if known else "no interval, from so few prompts"
        return f"; {self.run.of_evaluation('reward')} changed by {mean:+.2g} ({bounds})"

    # -- the thread -----------------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._send(message)
            except Exception as error:  # nothing that goes wrong here may end a run
                self._lost.put(
                    f"notify: the message {message['event']!r} did not reach the address in {self._source}: "
                    f"{_named(error)}"
                )

    def _send(self, message: Mapping[str, Any]) -> None:
        """Send a message, again and again until the deadline where the other end does not answer."""
        import tenacity

        until = time.monotonic() + PATIENCE
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10.0),
            stop=lambda state: time.monotonic() + state.upcoming_sleep > min(until, self._deadline),
            reraise=True,
        ):
            with attempt:
                self._once(message)

    def _once(self, message: Mapping[str, Any]) -> None:
        import requests

        left = min(TIMEOUT, max(0.1, self._deadline - time.monotonic()))
        answer = requests.post(self._url, json=message, timeout=left, allow_redirects=False, stream=True)
        with answer:
            if answer.status_code >= 300:
                raise _RefusedError(answer.status_code)

    def _tell_of_trouble(self) -> None:
        while not self._lost.empty():
            self.trouble(self._lost.get())


class _RefusedError(Exception):
    """An answer that is not what a webhook gives."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answered with status {status}")
        self.status = status


def _may_pass(error: BaseException) -> bool:
    """Return whether trying again may help: no answer, too many messages, or an error of the other end."""
    import requests

    if isinstance(error, _RefusedError):
        return error.status == 429 or error.status >= 500
    return isinstance(error, requests.ConnectionError | requests.Timeout)


def _named(error: Exception) -> str:
    """Name an error; those of `requests` are named by their class, as their text holds the URL."""
    return str(error) if isinstance(error, _RefusedError) else type(error).__name__
