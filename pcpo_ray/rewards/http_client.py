"""An HTTP client that retries while its server is away or busy, with random pauses and up to a deadline."""

import contextlib
import email.utils
import ipaddress
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pcpo_ray.errors import RewardError

if TYPE_CHECKING:
    import requests

LARGEST_ANSWER = 1 << 24
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Bounds in seconds on the random pause before a retry; it doubles each time, so that scorers do not retry in step."""

AWAY = (408, 425, 429, *range(502, 600))
"""Status codes of a server, or a proxy before it, that may recover; proxies have some of their own (520 to 530)."""

HUNG_UP = ("UNEXPECTED_EOF", "EOF occurred", "timed out")
"""Signs of a connection that ended before its certificate was seen, as a balancer without a server ends it."""

FAULT, FAULTS = 500, 3
"""The status code of a failed reward, and the number of attempts that it gets."""

SHORTEST_SECRET = 8
"""Characters of a token from which on it is looked for in answers: a shorter one may stand in a number of a score."""


class AwayError(Exception):
    """A failed attempt that may succeed later. `pause`: seconds that the server asks to wait."""

    def __init__(self, problem: str, pause: float = 0.0, *, fault: bool = False) -> None:
        super().__init__(problem)
        self.pause, self.fault = pause, fault


class RefusedError(RewardError):
    """A request that the server refused, with its status code."""

    def __init__(self, problem: str, status: int = 0) -> None:  # pickle gives `problem` alone, and adds `status`
        super().__init__(problem)
        self.status = status


class Client:
    """A client that retries while the server is away or busy, for up to `patience` seconds.

    An answer may take `timeout` seconds; `token` is the environment variable that holds the server's token, which
    stands in no message. Raises RewardError, naming the address, for any other failure and when the patience ends.
    """

    def __init__(self, url: str, *, timeout: float, patience: float, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.timeout, self.patience = timeout, patience
        self.away: float | None = None
        """The time since which no attempt has succeeded."""
        self.token, self.secret = token, None if token is None else os.environ.get(token, "").strip()
        if self.secret and not (self.secret.isascii() and self.secret.isprintable()):
            raise RewardError(f"the token in {token} can be in no header; expected one line of ASCII characters")
        if token is not None and not self.secret:
            raise RewardError(
                f"{self.url} wants the token in the environment variable {token}, which is not set where the scorer "
                "runs; set it there (on Ray, before `ray start`)"
            )

    def request(self, method: str, path: str, body: bytes, kind: str) -> bytes:
        import tenacity

        jitter = tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)
        began, faults = time.monotonic(), 0

        def pause(state: tenacity.RetryCallState) -> float:
            return max(jitter(state), _failure(state).pause)

        def enough(state: tenacity.RetryCallState) -> bool:
            nonlocal faults
            faults += _failure(state).fault
            self.away = began if self.away is None else self.away
            too_late = time.monotonic() + state.upcoming_sleep > self.away + self.patience
            return too_late or faults >= FAULTS

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(AwayError), wait=pause, stop=enough, reraise=True
        )
        try:
            answer: bytes = retrying(self.once, method, path, body, kind)
        except AwayError as error:
            tried = retrying.statistics["attempt_number"]
            raise RewardError(
                f"{self.url}{path} failed {tried} times, in {time.monotonic() - began:.0f} s (patience "
                f"{self.patience:g}), the last time with {error}; is the scorer up?"
            ) from None
        self.away = None
        return answer

    @contextlib.contextmanager
    def hurried(self, patience: float) -> Iterator[None]:
        """Inside, a server that is away is waited for `patience` seconds at most."""
        kept, self.patience = self.patience, min(self.patience, patience)
        try:
            yield
        finally:
            self.patience, self.away = kept, None

    def once(self, method: str, path: str, body: bytes, kind: str) -> bytes:
        """Make one attempt. Raises AwayError, and RewardError for failures that no retry could fix."""
        import requests
        import urllib3

        url = self.url + path
        try:
            with requests.request(
                method,
                url,
                data=body,
                headers={"Content-Type": kind, "Accept-Encoding": "identity"},  # some proxies compress all the same
                timeout=self.timeout,
                stream=True,
                auth=self._authorized,  # always set: otherwise requests sends credentials from ~/.netrc
                allow_redirects=False,
                proxies={"http": "", "https": ""} if _is_here(url) else None,
            ) as response:
                answer = self._read(response)
        except requests.exceptions.SSLError as error:
            if any(sign in str(error) for sign in HUNG_UP):
                raise AwayError(f"{type(error).__name__}: {error}") from None
            raise RewardError(f"{url} cannot be trusted: {error}") from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise AwayError(f"{type(error).__name__}: {error}") from None
        except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError, OSError) as error:
            raise AwayError(f"an answer that broke off ({type(error).__name__}: {error})") from None
        if response.ok and response.status_code < 300:
            return answer
        problem = f"status {response.status_code}: {answer[:200]!r}"
        if response.status_code in (*AWAY, FAULT):
            pause = _retry_after(response.headers.get("Retry-After", ""), response.headers.get("Date", ""))
            raise AwayError(problem, pause, fault=response.status_code == FAULT)
        raise RefusedError(f"{url} refused: {problem}{self._hint(response.status_code)}", response.status_code)

    def _authorized(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        if self.secret is not None:
            request.headers["Authorization"] = f"Bearer {self.secret}"
        return request

    def _hint(self, status: int) -> str:
        if status == 404:
            return f"; is {self.url} its whole address, with /v1 where it has one?"
        if status not in (401, 403):
            return ""
        if self.token is None:
            return "; it wants a token: name the environment variable that holds it in `token`"
        return f"; the token in {self.token} is not the one that it wants"

    def _read(self, response: "requests.Response") -> bytes:
        """Read the whole answer before the deadline: otherwise a server that drips bytes would never time out.

        The server's token is left out of it: some servers name it in what they answer, and answers stand in messages.
        """
        import requests

        deadline, answer = time.monotonic() + self.timeout, bytearray()
        while chunk := response.raw.read1(1 << 16, decode_content=True):
            answer += chunk
            if time.monotonic() > deadline:
                raise requests.Timeout(f"the answer was not whole after {self.timeout:g} s")
            if len(answer) > LARGEST_ANSWER:
                raise RewardError(f"{response.url} answered more than {LARGEST_ANSWER} bytes")
        there = response.raw.tell()  # as sent: an answer may be compressed
        if (length := response.headers.get("Content-Length", "")).isdigit() and there < int(length):
            raise AwayError(f"an answer that broke off after {there} of {length} bytes")
        if self.secret is None or len(self.secret) < SHORTEST_SECRET:
            return bytes(answer)
        return bytes(answer).replace(self.secret.encode(), b"***")


def _failure(state: Any) -> AwayError:
    error = state.outcome.exception()
    assert isinstance(error, AwayError)
    return error


def _retry_after(text: str, date: str) -> float:
    """Parse either form of the header into seconds from the server's `date`; 0 for none."""
    if text.strip().isdecimal():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    try:
        now = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        now = time.time()
    return max(0.0, until.timestamp() - now)


def _is_here(url: str) -> bool:
    """Return True for a server on this machine, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
